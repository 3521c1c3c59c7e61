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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen, run
from timeit import Timer
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torch_trn_emu

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
    unit: str = "x"  # a ratio; else A minus B, in seconds or GiB
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


def training_step(
    device: str, dtype: torch.dtype, backend: str = "", *, optimizer_too: bool = False
) -> Timer:
    """Forward, backward and optimizer; the model compiled, where a backend is named."""
    torch.manual_seed(0)
    model = GPT(VOCABULARY, STEP).to(device, dtype)
    call: Any = torch.compile(model, backend=backend) if backend else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    update = torch.compile(optimizer.step, backend=backend) if optimizer_too else optimizer.step
    x, y = torch.randint(VOCABULARY, (2, STEP.batch, STEP.context)).to(device)

    def step() -> None:
        loss = loss_of(call, x, y)
        optimizer.zero_grad()
        loss.backward()
        update()
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


class Printed:
    """The seconds that a program prints, in a fresh interpreter without the package's autoload."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

    def timeit(self, number: int) -> float:
        command = [sys.executable, "-c", self.program]
        runs = (
            run(command, env=self.environment, cwd=HERE, check=True, capture_output=True, text=True)
            for _ in range(number)
        )
        return sum(float(done.stdout) for done in runs)


def after_importing_torch(statement: str) -> Printed:
    return Printed(
        "import time, torch; began = time.perf_counter()\n"
        f"{statement}\n"
        "print(time.perf_counter() - began)"
    )


def printed(program: str) -> Sides:
    """A program that prints seconds, against nothing."""
    return lambda _: (Printed(program), Printed("print(0.0)"))


class Elsewhere:
    """A training step in a process of its own, with more in its environment."""

    def __init__(self, device: str, dtype: torch.dtype, environment: Mapping[str, str]) -> None:
        program = (
            "import sys, torch; from run import training_step\n"
            "torch.backends.trn.matmul.precision = 'mxfp8'\n"
            f"step = training_step({device!r}, {dtype})\n"
            "for line in sys.stdin: print(step.timeit(int(line)), flush=True)"
        )
        self.process = Popen(
            [sys.executable, "-c", program],
            env=os.environ | environment,
            cwd=HERE,
            stdin=PIPE,
            stdout=PIPE,
            text=True,
        )

    def timeit(self, number: int) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(number, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()


def without_pricing() -> Path:
    """A folder with the package as it is, but a library built without the pricing hook."""
    folder = HERE.parent / "build" / "no-pricing"
    package, source = folder / "torch_trn_emu", HERE.parent / "torch_trn_emu"
    package.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = ("cmake", "-S", HERE.parent, "-B", folder, "-G", "Ninja", "-DTRN_PRICING=OFF",
               f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
               f"-DPython_EXECUTABLE={sys.executable}",
               f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}")  # fmt: skip
    run(command, env=environment, check=True, capture_output=True)
    run(("cmake", "--build", folder), env=environment, check=True, capture_output=True)
    for part in source.iterdir():
        link = package / part.name
        if part.suffix != ".so" and part.name != "__pycache__" and not link.exists():
            link.symlink_to(part)
    return folder


def counting(device: str) -> tuple[Clock, Clock]:
    """The package as it is, and one that cannot price."""
    folders = (HERE.parent, without_pricing())
    counted, uncounted = (Elsewhere(device, FP32, {"PYTHONPATH": str(f)}) for f in folders)
    return counted, uncounted


# ATen, oneDNN, MKL and this package, on a host that has more.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "TRN_EMU_ISA": "avx2",
}


def limited(dtype: torch.dtype) -> Sides:
    return lambda device: (Elsewhere(device, dtype, AVX2), Elsewhere("cpu", dtype, AVX2))


class Profiled:
    """Times a step while a profile records it."""

    def __init__(self, timer: Timer) -> None:
        self.timer = timer

    def timeit(self, number: int) -> float:
        with torch_trn_emu.profile():
            return self.timer.timeit(number)


def profiling(device: str) -> tuple[Clock, Clock]:
    return Profiled(training_step(device, FP32)), training_step(device, FP32)


FIRST_USE = """
import statistics, time, torch, torch_trn_emu
from torch_trn_emu import _C
from torch_trn_emu.trn import pricer
from run import training_step
torch.backends.trn.matmul.precision = "mxfp8"
times = []
def timed(*call):
    began = time.perf_counter()
    price = pricer._price(*call)
    times.append(time.perf_counter() - began)
    return price
_C.set_pricer(timed)
training_step("trn", torch.float32).timeit(1)
print(statistics.median(times))
"""

SCHEDULING = """
import time
from torch_trn_emu.chip import get_chip
from torch_trn_emu.kernels.matmul import matmul
from torch_trn_emu.timing import price
chip = get_chip("trn3")
program = matmul(2048, 2048, 2048, chip=chip)
def seconds():
    began = time.perf_counter()
    total_s = price(program, chip, extrapolate=False).total_s
    return (time.perf_counter() - began) * 20e6 / (total_s * chip.base_clock_hz)
print(min(seconds() for _ in range(5)))
"""


def first_price(n: int) -> Sides:
    """Lowering, scheduling and counting of a product that was not priced yet."""
    return printed(
        "import time\n"
        "from torch_trn_emu.chip import get_chip\n"
        "from torch_trn_emu.calls import Call, Target\n"
        "from torch_trn_emu.ops import dense\n"
        "from torch_trn_emu.pricing import price_call\n"
        "target = Target(get_chip('trn3'), 2)\n"
        "def seconds(n):\n"
        "    x = dense((n, n), 'BFloat16')\n"
        "    began = time.perf_counter()\n"
        "    price_call(Call('aten::mm', (x, x), (x,), 'bf16'), target)\n"
        "    return time.perf_counter() - began\n"
        f"seconds(128)\nprint(seconds({n}))"
    )


# A GPT of 24 layers, 2,048 wide, and a vocabulary of 50,257: 1.3 billion parameters.
ESTIMATE = """
import resource, sys, time, torch, torch_trn_emu
from char_gpt import GPT, Config, loss_of
with torch.device("meta"):
    model = GPT(50257, Config(layers=24, width=2048, heads=16, context=2048, batch=1))
    x, y = torch.zeros(2, 1, 2048, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters())
def step():
    loss_of(model, x, y).backward()
    optimizer.step()
began = time.perf_counter()
torch_trn_emu.estimate(step)
"""
SECONDS = "print(time.perf_counter() - began)"
GIBIBYTES = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
PATH = f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / 'examples')!r}]\n"


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
            name=f"{STEP_NAME}, {name}, both limited to AVX2",
            against=against,
            target=target,
            sides=limited(dtype),
            least_rounds=3,
        )
        for name, against, dtype, target in (
            ("mxfp8", "float32", FP32, 0.85),
            ("bfloat16", "bfloat16", BF16, 0.10),
        )
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
        sides=lambda _: (
            after_importing_torch("import torch_trn_emu"),
            after_importing_torch("pass"),
        ),
        unit="s",
    ),
    Row(
        name=f"{STEP_NAME}, counted",
        against="the pricing hook compiled out",
        target=1.03,
        sides=counting,
    ),
    Row(name=f"{STEP_NAME}, profiled", against="not profiled", target=1.15, sides=profiling),
    Row(
        name="schedule 20 million cycles, nothing extrapolated",
        against="nothing",
        target=1.0,
        sides=printed(SCHEDULING),
        unit="s",
    ),
    *(
        Row(
            name=f"first price of mm, {n} x {n}, bfloat16",
            against="nothing",
            target=target,
            sides=first_price(n),
            unit="s",
        )
        for n, target in ((2048, 0.02), (8192, 0.2))
    ),
    Row(
        name="first use of a signature, median of the training step's",
        against="nothing",
        target=0.005,
        sides=printed(PATH + FIRST_USE),
        unit="s",
    ),
    Row(
        name="estimate of a training step, GPT 24 x 2048 on meta",
        against="nothing",
        target=20.0,
        sides=printed(PATH + ESTIMATE + SECONDS),
        unit="s",
    ),
    Row(
        name="memory for that estimate",
        against="nothing",
        target=2.0,
        sides=printed(PATH + ESTIMATE + GIBIBYTES),
        unit="GiB",
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
    values = [a / b if row.unit == "x" else a - b for a, b in pairs]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Result(
        name=row.name,
        against=row.against,
        target=row.target,
        unit=row.unit,
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
        spread = "{:.3g} to {:.3g}".format(*r.quartiles)
        value = f"{r.value:.3g} {r.unit}"
        table.add_row(r.name, r.against, value, spread, f"{r.target:.3g}", r.verdict)
    console.print(table)
    if not options.only:
        rows = [asdict(r) | {"verdict": r.verdict} for r in results]
        content = {"command": "make bench", "machine": machine(), "rows": rows}
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
