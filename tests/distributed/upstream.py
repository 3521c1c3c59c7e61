"""torch's own suite of process groups, in the wheel, on trn tensors beside gloo on the CPU.

There are three ways to run a test: `gloo` on the CPU; `cuda`, the suite's variants for
accelerators, as "nccl" on trn; `trn`, its variants for the CPU, with trn as the default device. A
test that skips on two ranks runs on four, then on eight. It counts if it passes with gloo or needs
an accelerator. Results are kept in docs/distributed_conformance.json, from which a table of
docs/distributed.md is made. A run continues the last one; --again runs the chosen tests anew,
--failed those that failed.

    python tests/distributed/upstream.py [--seconds 600] [--only all_reduce] [--ways trn,cuda]
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
from pathlib import Path
from queue import Empty, Queue

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "distributed_conformance.json"
MODULE = "torch.testing._internal.distributed.distributed_test"
WAYS = {
    "gloo": {"BACKEND": "gloo", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    "cuda": {"BACKEND": "nccl", "TRN_EMU_AS": "cuda", "TRN_EMU_MATMUL": "fp32"},
    "trn": {"BACKEND": "gloo", "TRN_EMU_MATMUL": "fp32"},
}
WORLDS = (2, 4, 8)
LIMIT_S = 300  # of one test

# Runs in a process of its own: tests are given by name, one outcome a line is printed.
RUNNER = f"""
import os, sys, unittest, warnings
warnings.simplefilter("ignore")
way = sys.argv[1]
import torch
import torch.multiprocessing as mp
if way != "gloo":
    import torch_trn_emu
    # As on CUDA, a fork after the first use is refused; the suite seeds devices before it starts.
    torch_trn_emu._C.is_in_bad_fork = lambda: False
if way == "cuda":  # trn refuses the question; the suite asks when imported
    torch.cuda.nccl.version = lambda: (2, 28, 0)
import {MODULE} as suite
from {MODULE} import DistributedTest, TestDistBackend

if way == "trn":  # the tests are those for gloo, the group is trn's
    init = suite.dist.init_process_group
    suite.dist.init_process_group = lambda *a, **n: init(*a, **n | {{"backend": "trn"}})
    for names in (suite.PROFILING_SUPPORTED_BACKENDS, suite.SEND_RECV_PROFILING_SUPPORTED_BACKENDS):
        names.append("trn")

class TestTrn(TestDistBackend, DistributedTest._DistTestBase):
    def setUp(self):
        super().setUp()
        # A spawn would import torch once for each rank.
        self._start_processes(mp.get_context("fork").Process)

    @classmethod
    def _run(cls, rank, *args, **named):
        if way == "trn":
            torch.accelerator.set_device_index(rank)
            torch.set_default_device("trn")
            # The names of old are of the CPU whatever the default is.
            torch.DoubleTensor = lambda *size: torch.empty(*size, dtype=torch.double)
            torch.FloatTensor = lambda *size: torch.empty(*size)
        super()._run(rank, *args, **named)

TestTrn.__module__ = "__main__"
for name in sys.argv[2:]:
    print("begin", name, flush=True)
    result = unittest.TestResult()
    unittest.TestSuite([TestTrn(name)]).run(result)
    bad = result.errors + result.failures
    word = "failed" if bad else "skipped" if result.skipped else "passed"
    why = bad[0][1] if bad else result.skipped[0][1] if result.skipped else ""
    print("end", name, word, repr(why[-6000:]), flush=True)
"""

Outcome = tuple[str, str]

# Why a test that counts does not pass; a pattern of its name each.
REASONS = {
    "monitored_barrier": "gloo's own function: torch refuses it for every other backend, NCCL too",
    "ddp_logging_data_cpu": "torch names each backend of a plug-in `custom` in this record",
    "ddp_uneven_inputs": "convolutions of 10^14 operations: more than the suite allows in 400 s",
}


def names() -> list[str]:
    code = f"import os; os.environ['BACKEND']='gloo'\nfrom {MODULE} import DistributedTest as D\n"
    code += "print(*[n for n in dir(D._DistTestBase) if n.startswith('test_')])"
    env = os.environ | {"WORLD_SIZE": "2", **WAYS["gloo"]}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.split()


def run(way: str, world: int, tests: list[str], until: float) -> dict[str, Outcome]:
    """Outcomes of tests, one after another; a hanging one is killed and the rest run anew."""
    found: dict[str, Outcome] = {}
    left = list(tests)
    while left and time.monotonic() < until:
        _run_some(way, world, left, until, found)
        left = [name for name in left if name not in found]
    return found


def _run_some(
    way: str, world: int, left: list[str], until: float, found: dict[str, Outcome]
) -> None:
    count = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", RUNNER, way, *left], env=os.environ | count | WAYS[way],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
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
                if current or left[0] not in found:
                    found[current or left[0]] = ("died", "the process ended")
                return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        child.wait()


def _short(why: str) -> str:
    """The line that says most: the first error of a rank, else the last line."""
    lines = [line.strip() for line in eval(why).splitlines()] if why.startswith(("'", '"')) else []
    told = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Failure|Interrupt)\b", line)
    ]
    told = [line for line in told if "exited with error code" not in line] or told
    return (told or [line for line in lines if line] or [""])[-1][:300]


def needs_more_ranks(outcome: Outcome) -> bool:
    return outcome[0] == "skipped" and bool(
        re.search(r"world.?size|small_worldsize|Need at least|requires at least", outcome[1], re.I)
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=float, default=7200)
    options.add_argument("--only", default="")
    options.add_argument("--ways", default=",".join(WAYS))
    options.add_argument("--again", action="store_true")
    options.add_argument("--failed", action="store_true")
    chosen = options.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    tests = [n for n in names() if re.search(chosen.only, n)]
    until = time.monotonic() + chosen.seconds
    for way in chosen.ways.split(","):
        known = results.setdefault(way, {})
        if chosen.again or chosen.failed:
            for n in tests:
                if chosen.again or known.get(n, ["passed"])[0] not in ("passed", "skipped"):
                    known.pop(n, None)
        for world in WORLDS:
            small = [n for n in tests if n in known and needs_more_ranks(known[n])]
            left = [n for n in tests if n not in known] if world == 2 else small
            for start in range(0, len(left), 20):
                found = run(way, world, left[start : start + 20], until)
                known.update({n: list(f) for n, f in found.items()})
                RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")
    print(summary(results))


def counted(results: dict[str, dict[str, Outcome]]) -> dict[str, Outcome]:
    """The outcome on trn of each test that gloo passes or leaves to an accelerator.

    That of the variant for accelerators, unless it skips.
    """
    found = {}
    for name, (outcome, _) in results.get("gloo", {}).items():
        on_trn = [results.get(way, {}).get(name, ("", "")) for way in ("cuda", "trn")]
        ran = [o for o in on_trn if o[0] not in ("", "skipped")]
        if outcome == "passed" or (outcome == "skipped" and ran):
            found[name] = tuple((ran or on_trn)[0])
    return found


def reason(name: str) -> str:
    return next((text for word, text in REASONS.items() if word in name), "")


def summary(results: dict[str, dict[str, Outcome]]) -> str:
    found = counted(results)
    passed = sum(outcome == "passed" for outcome, _ in found.values())
    lines = [f"{passed} of {len(found)} pass ({100 * passed / max(1, len(found)):.1f} %)"]
    lines += [
        f"  {o} {n}: {reason(n) or why}" for n, (o, why) in sorted(found.items()) if o != "passed"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
