"""Measure torch.compile(backend="trn"): against eager trn, and against Inductor on the CPU.

python benchmarks/compile.py [--only WORDS] [--seconds 20]

Rows as in run.py, timed in turn in one process; those of the time to the first step run fresh
processes with empty caches, or with the caches of a process before. Writes compile.json.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import run
from timeit import Timer

import torch
from rich.console import Console
from rich.table import Table
from run import HERE, STEP_NAME, Row, machine, measure, training_step

RESULTS = HERE / "compile.json"


def compiled_step(device: str, backend: str) -> Timer:
    """The step of run.py with its model compiled, the optimizer as it comes."""
    return training_step(device, torch.float32, backend)


def whole_step(device: str, backend: str) -> Timer:
    """The same with `optimizer.step` compiled too."""
    return training_step(device, torch.float32, backend, optimizer_too=True)


def tiny_call(device: str, backend: str) -> Timer:
    """A compiled call with 8 inputs and next to no work."""
    inputs = [torch.ones(2, device=device) for _ in range(8)]
    call = torch.compile(lambda *tensors: sum(tensors), backend=backend, fullgraph=True)

    def once() -> None:
        with torch.no_grad():
            call(*inputs)

    return Timer(once)


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[3])
import torch
from compile import compiled_step
step = compiled_step(sys.argv[1], sys.argv[2])
began = time.perf_counter()
step.timeit(1)
print(time.perf_counter() - began)
"""


class FirstStep:
    """Times the first step of a fresh process; `warm`: one before it has filled the caches."""

    def __init__(self, device: str, backend: str, *, warm: bool) -> None:
        self.arguments, self.warm = [device, backend, str(HERE)], warm

    def timeit(self, number: int) -> float:
        return sum(self._once() for _ in range(number))

    def _once(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds = self._run(folder)
            return self._run(folder) if self.warm else seconds

    def _run(self, folder: str) -> float:
        caches = {"TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor")}
        command = [sys.executable, "-c", PROGRAM, *self.arguments]
        done = run(command, env=os.environ | caches, check=True, capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])


Make = Callable[[], object]


def row(
    name: str,
    against: str,
    target: float,
    a: Make,
    b: Make,
    *,
    unit: str = "x",
    least_rounds: int = 5,
) -> Row:
    return Row(
        name=name,
        against=against,
        target=target,
        sides=lambda _: (a(), b()),  # type: ignore[return-value,arg-type]
        unit=unit,
        least_rounds=least_rounds,
    )


def first(device: str, backend: str, *, warm: bool = False) -> Make:
    return lambda: FirstStep(device, backend, warm=warm)


ROWS = (
    row(
        f"compiled {STEP_NAME}, mxfp8",
        "trn eager, mxfp8",
        0.90,
        lambda: compiled_step("trn", "trn"),
        lambda: compiled_step("trn", ""),
    ),
    row(
        f"whole step compiled: model and optimizer.step, {STEP_NAME}, mxfp8",
        "trn eager, mxfp8",
        0.90,
        lambda: whole_step("trn", "trn"),
        lambda: compiled_step("trn", ""),
    ),
    row(
        f"compiled {STEP_NAME}, mxfp8, to Inductor",
        "CPU Inductor, float32",
        0.95,
        lambda: compiled_step("trn", "trn"),
        lambda: compiled_step("cpu", "inductor"),
    ),
    row(
        "Python overhead of a call with 8 inputs",
        "CPU Inductor",
        40e-6,
        lambda: tiny_call("trn", "trn"),
        lambda: tiny_call("cpu", "inductor"),
        unit="s",
    ),
    row(
        "cold: time to the first compiled step",
        "CPU Inductor",
        0.8,
        first("trn", "trn"),
        first("cpu", "inductor"),
        least_rounds=2,
    ),
    row(
        "warm: the same, caches kept",
        "cold",
        0.25,
        first("trn", "trn", warm=True),
        first("trn", "trn"),
        least_rounds=2,
    ),
)


def predicted() -> dict[str, dict[str, float]]:
    """Counters of one step on the emulated chip, eager and compiled: the reason of the ratio."""
    times = "launch_count host_dispatch_time core_busy_time core_idle_time"
    names = f"{times} hbm_read_bytes hbm_write_bytes"
    found = {}
    for name, backend in (("eager", ""), ("compiled", "trn")):
        step = compiled_step("trn", backend)
        step.timeit(1)
        torch.trn.reset_counters()  # type: ignore[attr-defined]
        step.timeit(1)
        counters = torch.trn.counters()  # type: ignore[attr-defined]
        found[name] = {n: counters[n] for n in names.split()}
        found[name]["step_time"] = counters["core_busy_time"] + counters["core_idle_time"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this; writes no file")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to spend on a row")
    options = parser.parse_args()
    torch.backends.trn.matmul.precision = "mxfp8"  # type: ignore[attr-defined]
    os.environ["TRN_EMU_MATMUL"] = "mxfp8"
    console = Console()
    results = [measure(r, "trn", options.seconds) for r in ROWS if options.only in r.name]
    table = Table("what", "against", "measured", "quartiles", "goal", "")
    for r in results:
        unit, factor = ("us", 1e6) if r.unit == "s" else (r.unit, 1.0)
        spread = " to ".join(f"{q * factor:.2f}" for q in r.quartiles)
        value = f"{r.value * factor:.2f} {unit}"
        table.add_row(r.name, r.against, value, spread, f"{r.target * factor:.2f}", r.verdict)
    console.print(table)
    counters = predicted()
    ratio = counters["compiled"]["step_time"] / counters["eager"]["step_time"]
    console.print(f"predicted step on the chip, compiled to eager: {ratio:.2f}", counters)
    if not options.only:
        content = {
            "command": "python benchmarks/compile.py",
            "machine": machine(),
            "rows": [asdict(r) | {"verdict": r.verdict} for r in results],
            "predicted": counters,
        }
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
