"""torch's own suite of process groups, in the wheel: on trn, as "nccl" on CUDA, beside gloo.

A test counts if it passes with gloo on the CPU, or skips there because it needs an accelerator.
Each runs on two ranks with a time limit. Results are kept in docs/distributed_conformance.json, and
a run goes on where the last one stopped; --again runs all, --only PATTERN some.

    python tests/distributed/upstream.py [--seconds 600] [--only all_reduce]
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "distributed_conformance.json"
MODULE = "torch.testing._internal.distributed.distributed_test"
WAYS = {
    "gloo": {"BACKEND": "gloo", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    "trn": {"BACKEND": "nccl", "TRN_EMU_AS": "cuda", "TRN_EMU_MATMUL": "fp32"},
}
LIMIT_S = 60  # of one test

# Runs in a process of its own: tests are given by name, one outcome a line is printed.
RUNNER = f"""
import os, sys, unittest, warnings
warnings.simplefilter("ignore")
import torch
import torch.multiprocessing as mp
if os.environ["BACKEND"] == "nccl":  # trn refuses the question; the suite asks when imported
    torch.cuda.nccl.version = lambda: (2, 28, 0)
    import torch_trn_emu
    # As on CUDA, a fork after the first use is refused; the suite seeds devices before it starts.
    torch_trn_emu._C.is_in_bad_fork = lambda: False
from {MODULE} import DistributedTest, TestDistBackend

class TestTrn(TestDistBackend, DistributedTest._DistTestBase):
    def setUp(self):
        super().setUp()
        # A spawn would import torch once for each rank.
        self._start_processes(mp.get_context("fork").Process)

TestTrn.__module__ = "__main__"
names = sys.argv[1:]
for name in names:
    print("begin", name, flush=True)
    result = unittest.TestResult()
    unittest.TestSuite([TestTrn(name)]).run(result)
    bad = result.errors + result.failures
    word = "failed" if bad else "skipped" if result.skipped else "passed"
    why = bad[0][1] if bad else result.skipped[0][1] if result.skipped else ""
    print("end", name, word, repr(why[-3000:]), flush=True)
"""


def names() -> list[str]:
    code = f"import os; os.environ['BACKEND']='gloo'\nfrom {MODULE} import DistributedTest as D\n"
    code += "print(*[n for n in dir(D._DistTestBase) if n.startswith('test_')])"
    env = os.environ | {"WORLD_SIZE": "2", **WAYS["gloo"]}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.split()


def run(way: str, tests: list[str], until: float) -> dict[str, tuple[str, str]]:
    """Outcomes of tests, one after another; a hanging one is killed and the rest run anew."""
    found: dict[str, tuple[str, str]] = {}
    left = list(tests)
    while left and time.monotonic() < until:
        _run_some(way, left, until, found)
        left = [name for name in left if name not in found]
    return found


def _run_some(way: str, left: list[str], until: float, found: dict[str, tuple[str, str]]) -> None:
    env = os.environ | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", **WAYS[way]}
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", RUNNER, *left], env=env, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    lines: Queue[str] = Queue()

    def read() -> None:
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    current = ""
    try:
        while time.monotonic() < until:
            try:
                line = lines.get(timeout=LIMIT_S if current else 2 * LIMIT_S)
            except Empty:
                found[current or left[0]] = ("hung", f"more than {LIMIT_S} s")
                return
            word, _, rest = line.strip().partition(" ")
            if word == "begin":
                current = rest
            elif word == "end":
                name, outcome, why = rest.split(" ", 2)
                found[name] = (outcome, _short(why))
                current = ""
            elif not line:
                if current:
                    found[current] = ("died", "the process ended")
                return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()


def _short(why: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in eval(why).splitlines()] if why.startswith(("'", '"')) else []
    told = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Failure|Interrupt)\b", line)
    ]
    return (told or [line for line in lines if line] or [""])[-1][:300]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=3600)
    options.add_argument("--only", default="")
    options.add_argument("--again", action="store_true")
    chosen = options.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    tests = [n for n in names() if re.search(chosen.only, n)]
    until = time.monotonic() + chosen.seconds
    for way in WAYS:
        known = {} if chosen.again else results.get(way, {})
        left = [n for n in tests if n not in known]
        share = until if way == "trn" else time.monotonic() + 0.4 * (until - time.monotonic())
        for start in range(0, len(left), 20):
            if time.monotonic() > share:
                break
            found = run(way, left[start : start + 20], share)
            results.setdefault(way, {}).update({n: list(f) for n, f in found.items()})
            RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
    print(summary(results))


def summary(results: dict[str, dict[str, list[str]]]) -> str:
    gloo, trn = results.get("gloo", {}), results.get("trn", {})
    counts = dict(Counter(outcome for outcome, _ in trn.values()))
    counted = [n for n, (o, _) in gloo.items() if o == "passed" and n in trn]
    bad = [n for n in counted if trn[n][0] not in ("passed", "skipped")]
    lines = [
        f"trn: {counts} of {len(trn)}",
        f"pass with gloo on the CPU: {len(counted)}; of these trn: "
        f"{sum(trn[n][0] == 'passed' for n in counted)} passed, "
        f"{sum(trn[n][0] == 'skipped' for n in counted)} skipped, {len(bad)} not",
    ]
    for n, (outcome, why) in sorted(trn.items()):
        if outcome not in ("passed", "skipped"):
            lines.append(f"  {outcome} {n} [gloo {gloo.get(n, ['?'])[0]}]: {why}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
