"""Measure `trn` against the plain CPU of the same host: one row of ROWS per benchmark.

python benchmarks/run.py [--only WORDS] [--seconds 10]

The two sides of a row are timed in turn, A B B A A B ..., in one process; a row's result is the
median over the rounds of A's time divided by B's in the same round. Writes results.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import run
from timeit import Timer
from typing import Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from char_gpt import GPT, Config, loss_of  # noqa: E402  (an example, found by the line above)

RESULTS = HERE / "results.json"
VOCABULARY = 65
STEP = Config(layers=6, width=384, heads=6, context=256, batch=8)
LEAST_ROUNDS = 5
LEAST_SAMPLE_S = 0.02


class Clock(Protocol):
    """As timeit.Timer: seconds for a number of calls."""

    def timeit(self, number: int) -> float: ...


# Builds the two sides on the device named: (what is measured, what it is compared with).
Sides = Callable[[str], tuple[Clock, Clock]]


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    against: str
    target: float
    sides: Sides
    difference: bool = False  # seconds of A minus seconds of B, instead of a ratio
    unless_cpu_flags: tuple[str, ...] = ()  # the target is for hosts that lack all of these
    least_rounds: int = LEAST_ROUNDS


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    against: str
    target: float
    unit: str
    value: float
    quartiles: tuple[float, float]
    measured_s: float
    baseline_s: float
    rounds: int
    target_applies: bool

    @property
    def verdict(self) -> str:
        if not self.target_applies:
            return "other host"
        return "reached" if self.value <= self.target else "missed"


def training_step(device: str, dtype: torch.dtype) -> Timer:
    torch.manual_seed(0)
    model = GPT(VOCABULARY, STEP).to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = torch.randint(VOCABULARY, (2, STEP.batch, STEP.context)).to(device)

    def step() -> None:
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device

    return Timer(step)


def training(dtype: torch.dtype) -> Sides:
    return lambda device: (training_step(device, dtype), training_step("cpu", dtype))


def quantize(dim: int, dtype: torch.dtype) -> Sides:
    def sides(device: str) -> tuple[Timer, Timer]:
        source = torch.randn(4096, 4096).to(dtype)
        target, x = torch.empty_like(source), source.to(device)
        return (
            Timer(lambda: torch.ops.trn.quantize_mx(x, dim=dim)),
            Timer(lambda: target.copy_(source)),
        )

    return sides


def on_both(expression: str, make: Callable[[], dict[str, Tensor]]) -> Sides:
    """The same expression over the same tensors, on the device and on the CPU."""

    def sides(device: str) -> tuple[Timer, Timer]:
        tensors = make()
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        return Timer(expression, globals=moved), Timer(expression, globals=tensors)

    return sides


def matrices(n: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"a": torch.randn(n, n), "b": torch.randn(n, n)}


def mxfp4_product(n: int) -> Sides:
    def sides(device: str) -> tuple[Timer, Timer]:
        a, b = torch.randn(2, n, n)
        x, y = a.to(device), b.to(device)
        mm, element = torch.ops.trn.mx_mm, "float4_e2m1fn"
        return Timer(lambda: mm(x, y, a_element=element, b_element=element)), Timer(lambda: a @ b)

    return sides


def adamw_step(device: str, fused: bool | None) -> Timer:
    torch.manual_seed(0)
    parameters = list(GPT(VOCABULARY, STEP).to(device).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return Timer(torch.optim.AdamW(parameters, lr=1e-4, fused=fused).step)


def adamw(fused: bool | None) -> Sides:
    return lambda device: (adamw_step(device, fused), adamw_step("cpu", fused))


class AfterImportingTorch:
    """Times a statement in fresh interpreters that have imported torch without the package."""

    def __init__(self, statement: str) -> None:
        self.environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        self.program = (
            "import time, torch; began = time.perf_counter()\n"
            f"{statement}\n"
            "print(time.perf_counter() - began)"
        )

    def timeit(self, number: int) -> float:
        command = [sys.executable, "-c", self.program]
        runs = (
            run(command, env=self.environment, check=True, capture_output=True)
            for _ in range(number)
        )
        return sum(float(done.stdout) for done in runs)


FP32, BF16 = torch.float32, torch.bfloat16
STEP_NAME = "training step, GPT 6 x 384, 2,048 tokens, AdamW"

ROWS = (
    Row(name=f"{STEP_NAME}, mxfp8", against="float32", target=0.85, sides=training(FP32)),
    Row(
        name=f"{STEP_NAME}, bfloat16",
        against="bfloat16",
        target=0.10,
        sides=training(BF16),
        unless_cpu_flags=("avx512_bf16", "amx_bf16"),
    ),
    *(
        Row(
            name=f"quantize_mx, 4096 x 4096 {name}, dim {dim}",
            against=f"copy_ of {name}",
            target=target,
            sides=quantize(dim, dtype),
        )
        for name, dtype, target in (("float32", FP32, 1.2), ("bfloat16", BF16, 1.4))
        for dim in (-1, 0)
    ),
    *(
        Row(
            name=f"mm, {n} x {n}, mxfp8",
            against="mm in float32",
            target=target,
            sides=on_both("a @ b", matrices(n)),
        )
        for n, target in ((256, 1.0), (512, 1.0), (1024, 1.05), (2048, 1.05))
    ),
    Row(
        name="mm, 1024 x 1024, mxfp4 on both sides",
        against="mm in float32",
        target=0.95,
        sides=mxfp4_product(1024),
    ),
    Row(
        name="a + b, 16 elements",
        against="a + b",
        target=1.4,
        sides=on_both("a + b", lambda: {"a": torch.randn(16), "b": torch.randn(16)}),
    ),
    Row(name="AdamW step, default", against="the same", target=0.8, sides=adamw(None)),
    Row(name="AdamW step, fused", against="the same", target=1.0, sides=adamw(True)),
    Row(
        name="import torch_trn_emu, after torch",
        against="nothing",
        target=0.3,
        sides=lambda _: (AfterImportingTorch("import torch_trn_emu"), AfterImportingTorch("pass")),
        difference=True,
    ),
)


def cpu_info() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo, empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def machine() -> dict[str, str | int]:
    return {
        "cpu": cpu_info().get("model name", platform.processor()),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def calls_per_sample(clock: Clock) -> int:
    """How many calls make a sample long enough for the clock; also warms up."""
    calls = 1
    while True:
        began = time.perf_counter()
        clock.timeit(calls)
        spent = time.perf_counter() - began
        if spent >= LEAST_SAMPLE_S:
            return calls
        calls = max(2 * calls, int(calls * LEAST_SAMPLE_S / spent))


def measure(row: Row, device: str, budget_s: float) -> Result:
    clocks = row.sides(device)
    calls = [calls_per_sample(clock) for clock in clocks]
    samples: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + budget_s
    while len(samples[0]) < row.least_rounds or time.perf_counter() < end:
        for side in (0, 1) if len(samples[0]) % 2 == 0 else (1, 0):
            samples[side].append(clocks[side].timeit(calls[side]) / calls[side])
    pairs = list(zip(*samples, strict=True))
    values = [a - b if row.difference else a / b for a, b in pairs]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Result(
        name=row.name,
        against=row.against,
        target=row.target,
        unit="s" if row.difference else "x",
        value=median,
        quartiles=(low, high),
        measured_s=statistics.median(samples[0]),
        baseline_s=statistics.median(samples[1]),
        rounds=len(pairs),
        target_applies=not set(row.unless_cpu_flags) & set(cpu_info().get("flags", "").split()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--only", default="", help="rows whose name holds this; writes no file")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to spend on a row")
    options = parser.parse_args()

    if options.device == "trn":
        torch.backends.trn.matmul.precision = "mxfp8"  # type: ignore[attr-defined]
    console = Console()
    results = []
    for row in (row for row in ROWS if options.only in row.name):
        with console.status(row.name):
            results.append(measure(row, options.device, options.seconds))

    table = Table("what", "against, on the CPU", "measured", "quartiles", "goal", "")
    for r in results:
        spread = "{:.2f} to {:.2f}".format(*r.quartiles)
        value = f"{r.value:.2f} {r.unit}"
        table.add_row(r.name, r.against, value, spread, f"{r.target:.2f}", r.verdict)
    console.print(table)
    if not options.only:
        rows = [asdict(r) | {"verdict": r.verdict} for r in results]
        content = {"command": "make bench", "machine": machine(), "rows": rows}
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
