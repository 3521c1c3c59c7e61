"""Tries random changes of PyTorch's operator samples on the host and on trn.

python fuzz.py [--seed 1] [--cases N] [--seconds T] [--match REGEX] [--jobs 2] [--report FILE]
python fuzz.py --case NUMBER     one case again, in words

A child process tries a case after the other. One that dies or hangs is a finding if trn alone does
it too; the next child goes on behind it.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

HANG_S = 60  # of one case
STRIDE = 1_000_003  # between the cases of one seed and those of the next


def names(match: str) -> list[str]:
    from sampling import ENTRIES

    return [name for name in ENTRIES if re.search(match, name)]


def child(match: str, place: str) -> None:
    """Judges the cases whose numbers come on standard input; says each place before it is tried."""
    import torch
    from sampling import TRIED, acceptable, arguments_of, case_of, judge, outcome, smaller, trial_of

    torch.set_num_threads(1)
    for absent in (torch.cuda, torch.xpu, torch.mtia):
        # Half the time of a case: each seed is queued with a formatted stack.
        absent.manual_seed_all = lambda seed: None
    warnings.simplefilter("ignore")
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a kernel prints is not a row

    def say(row: dict[str, Any]) -> None:
        print(json.dumps(row), file=sink, flush=True)

    chosen = names(match)
    torch.ones(2, device=TRIED).sum().item()  # what loads late is no hang
    say({"place": "ready"})
    for line in sys.stdin:
        case = case_of(int(line), chosen)
        if place == TRIED:  # did the host alone die?
            trial = trial_of(case)
            say({"verdict": "EXACT", "case": str(case), "why": str(outcome(trial, TRIED)[1])})
            continue
        verdict, why = judge(case, lambda at: say({"place": at}))
        row = {"seed": case.seed, "verdict": verdict, "case": str(case), "why": why}
        if not acceptable(case, verdict, why):
            case = smaller(case, verdict)
            row |= {"case": str(case), "why": f"{judge(case)[1]} {arguments_of(case)}"}
        else:
            row["verdict"] = "EXACT" if verdict != "NO_SAMPLE" else verdict
        say(row)


def ended(process: subprocess.Popen[str]) -> int:
    """Lets the process end, or finds it dead; closes its pipes and gives its status."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    status = process.wait()
    process.stdout.close()
    return status


class Worker:
    """A child process that is replaced when it dies."""

    def __init__(self, match: str) -> None:
        self.match = match
        self.process: subprocess.Popen[str] | None = None

    def start(self, place: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--child", "--match", self.match, "--place", place]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"TRN_EMU_MATMUL": "fp32", "OMP_NUM_THREADS": "1", **os.environ},
        )
        process.stdout.readline()  # ready
        return process

    @staticmethod
    def ask(process: subprocess.Popen[str], seed: int) -> tuple[dict[str, Any] | None, str]:
        """The row of a case, or None and the place where the process died."""
        timer = threading.Timer(HANG_S, process.kill)
        timer.start()
        place = "making the sample"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{seed}\n")
            process.stdin.flush()
        for line in process.stdout:
            row = json.loads(line)
            if "verdict" in row:
                timer.cancel()
                return row, place
            place = row["place"]
        timer.cancel()
        return None, place

    def judge(self, seed: int) -> dict[str, Any]:
        if self.process is None:
            self.process = self.start()
        row, place = self.ask(self.process, seed)
        if row is not None:
            return row
        signal = -ended(self.process)
        self.process = None
        why = f"signal {signal} at: {place}"
        if place != "making the sample":  # the host's own kernel may have died, or spoiled the heap
            alone = self.start("trn")
            row, _ = self.ask(alone, seed)
            alone.kill()
            ended(alone)
            refused = row is not None and row["why"] != str(None)
            if refused or (row is not None and place == "cpu"):
                return {"seed": seed, "verdict": "HOST_DIED", "case": row["case"], "why": why}
            if row is None:
                why += ", and on trn alone"
        return {"seed": seed, "verdict": "CRASH", "case": self.described(seed), "why": why}

    def described(self, seed: int) -> str:
        command = [sys.executable, __file__, "--describe", str(seed), "--match", self.match]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or f"case {seed}"

    def close(self) -> None:
        if self.process is not None:
            ended(self.process)
            self.process = None


def walk(
    seed: int,
    *,
    cases: int | None,
    seconds: float,
    match: str,
    jobs: int,
    report: Path | None,
    stopped: threading.Event,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Findings, and how often each verdict came out, until then or until `stopped`."""
    end, lock = time.monotonic() + seconds, threading.Lock()
    pending = iter(range(seed * STRIDE, seed * STRIDE + (cases or STRIDE)))
    findings: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()

    def work() -> None:
        worker = Worker(match)
        while time.monotonic() < end and not stopped.is_set():
            with lock:
                number = next(pending, None)
            if number is None:
                break
            row = worker.judge(number)
            if stopped.is_set():  # which may have ended the worker as well
                break
            with lock:
                counts[row["verdict"]] += 1
                if row["verdict"] in ("EXACT", "NO_SAMPLE", "HOST_DIED"):
                    continue
                findings.append(row)
                print(f"{row['verdict']} {row['seed']} {row['case']}: {row['why']}", flush=True)
                if report is not None:
                    with report.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return findings, counts


def show(seed: int, match: str) -> None:
    from known import known
    from sampling import arguments_of, case_of, judge

    case = case_of(seed, names(match))
    print(case, arguments_of(case), flush=True)
    verdict, why = judge(case)
    print(verdict, why, sep=": ")
    if row := known(case, verdict, why):
        print(f"known: {row.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--match", default="", help="operators, by a regular expression")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path, help="findings, one a line")
    parser.add_argument("--case", type=int)
    parser.add_argument("--describe", type=int)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--place", default="")
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.match, arguments.place)
    if arguments.describe is not None:
        from sampling import arguments_of, case_of

        case = case_of(arguments.describe, names(arguments.match))
        print(case, arguments_of(case))
        return None
    if arguments.case is not None:
        return show(arguments.case, arguments.match)
    stopped = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):  # what was done until then is told
        signal.signal(ending, lambda *_: stopped.set())
    findings, counts = walk(
        arguments.seed,
        cases=arguments.cases,
        seconds=arguments.seconds,
        match=arguments.match,
        jobs=arguments.jobs,
        report=arguments.report,
        stopped=stopped,
    )
    print(f"{sum(counts.values())} cases: {dict(counts)}")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
