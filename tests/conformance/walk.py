"""Runs cases on the host and on trn, or on trn eagerly and compiled, and says how each came out.

python walk.py [--compiled] [--suite op] [--match REGEX] [--slice] [--jobs 2] [--samples N]
               [--write FILE] [--summary FILE]

The cases run in child processes. One that dies or hangs makes its case a row, and the next child
goes on behind it.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
import unittest
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import summary

HANG_S = 240  # of one case


def suites() -> dict[str, Any]:
    from cases import SUITES
    from compiled import COMPILED_SUITES
    from wider import WIDER_SUITES

    return {**SUITES, **COMPILED_SUITES, **WIDER_SUITES}


def judge(case: Any, samples: int | None = None) -> dict[str, Any]:
    """The worst verdict over the samples of a case, and why."""
    from cases import UNINITIALISED
    from places import NotCompiled, Verdict, compare, outcome
    from reasons import reason_for

    worst, why, count = Verdict.NO_SAMPLE, "", 0
    values = case.name.split(".")[0] not in UNINITIALISED
    reason = reason_for(str(case))
    suite = suites()[case.suite]
    right, tried = suite.places
    trials = suite.trials(case)
    for trial in itertools.islice(trials, samples):
        expected, host_error = outcome(trial, right)
        actual, error = outcome(trial, tried)
        if isinstance(host_error, unittest.SkipTest):
            continue
        if isinstance(error, NotCompiled):
            verdict, text = Verdict.UNCOMPILED, str(error)
        elif type(host_error) is not type(error):
            verdict = Verdict.ERROR_DIFFERS
            text = f"{brief(host_error)} on {right}, {brief(error)} on {tried}"
        elif error is not None:
            verdict, text = Verdict.EXACT, ""
        else:
            bound = reason and bound_of(reason, case, trial, expected)
            verdict, text = compare(expected, actual, values=values, bound=bound)
        if worst == Verdict.NO_SAMPLE or verdict > worst:
            worst, why = verdict, text and f"sample {count}: {text}"
        count += 1
    return {"case": str(case), "verdict": worst.name, "why": why, "samples": count}


def bound_of(reason: Any, case: Any, trial: Any, expected: Any) -> Any:
    """The reason's bound of one sample."""
    from cases import BY_NAME, HOST
    from places import outcome, twice_the_hosts

    if reason.wide is None:
        return reason.bound
    reference, error = outcome(partial(trial, wide=reason.wide), HOST)
    if error is not None:
        raise error
    return twice_the_hosts(expected, reference, BY_NAME[case.dtype])


def brief(error: Exception | None) -> str:
    if error is None:
        return "no error"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"


def child(samples: int | None) -> None:
    """Judges the cases named on standard input."""
    import torch
    from cases import Case

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a test prints is not a row
    for line in sys.stdin:
        case = Case(*line.strip().split("/"))
        try:
            row = judge(case, samples)
        except Exception as error:  # making the samples failed: nothing of ours ran
            row = {"case": str(case), "verdict": "NO_SAMPLE", "why": brief(error), "samples": 0}
        print(json.dumps(row), file=sink, flush=True)


class Worker:
    """A child process that is replaced when it dies."""

    def __init__(self, samples: int | None) -> None:
        self.command = [sys.executable, __file__, "--child"]
        if samples is not None:
            self.command += ["--samples", str(samples)]
        self.process: subprocess.Popen[str] | None = None

    def judge(self, case: Any) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={"TRN_EMU_MATMUL": "fp32", **os.environ},
            )
        process = self.process
        timer = threading.Timer(HANG_S, process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{case}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.process = None
        signal = -process.wait()
        return {"case": str(case), "verdict": "CRASH", "why": f"signal {signal}", "samples": 0}

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()


def walk(
    cases: list[Any], *, jobs: int, samples: int | None = None, kept: Path | None = None
) -> list[dict[str, Any]]:
    """Rows in the order of `cases`. A file keeps them as they come; what it has is not run."""
    rows: dict[str, dict[str, Any]] = {}
    if kept is not None and kept.exists():
        rows = {row["case"]: row for row in map(json.loads, kept.read_text().splitlines())}
    pending, lock = iter([case for case in cases if str(case) not in rows]), threading.Lock()

    def work() -> None:
        worker = Worker(samples)
        while True:
            with lock:
                case = next(pending, None)
            if case is None:
                break
            row = rows[str(case)] = worker.judge(case)
            if kept is not None:
                with lock, kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if row["verdict"] not in ("EXACT", "NO_SAMPLE"):
                print(
                    f"{row['verdict']:14} {row['case']}: {row['why']}", file=sys.stderr, flush=True
                )
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [rows[str(case)] for case in cases]


def selected(suite: str, match: str, compiled: bool) -> list[Any]:
    from cases import SUITES
    from compiled import COMPILED_SUITES
    from wider import WIDER_SUITES

    pattern = re.compile(match)
    chosen = COMPILED_SUITES if compiled else {**SUITES, **WIDER_SUITES}
    cases = (case for one in chosen.values() for case in one.cases())
    return [c for c in cases if suite in ("", c.suite) and pattern.search(str(c))]


def sliced(cases: list[Any]) -> list[Any]:
    """Two cases of every entry, one of them backward where there is one. The formats take turns."""
    entries: dict[tuple[str, str], list[Any]] = {}
    for case in cases:
        entries.setdefault((case.suite, case.name), []).append(case)
    chosen = []
    for turn, of_entry in enumerate(entries.values()):
        backward = [case for case in of_entry if case.aspect == "backward"]
        others = [case for case in of_entry if case.aspect != "backward"]
        chosen += [group[turn % len(group)] for group in (others, backward) if group]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="")
    parser.add_argument("--match", default="")
    parser.add_argument("--compiled", action="store_true", help="against eager, not the host")
    parser.add_argument("--slice", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--write", type=Path, help="keeps rows, one a line; goes on behind")
    parser.add_argument("--summary", type=Path, help="counts and remaining differences")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.samples)
        return
    start = time.monotonic()
    cases = selected(arguments.suite, arguments.match, arguments.compiled)
    if arguments.slice:
        cases = sliced(cases)
    rows = walk(cases, jobs=arguments.jobs, samples=arguments.samples, kept=arguments.write)
    if arguments.summary:
        summary.write(rows, arguments.summary)
    print(f"{summary.share(rows):.4%} agree")
    print(dict(Counter(row["verdict"] for row in rows)), f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
