"""The same rows under every instruction set of the host: `trn` against the plain CPU in float32.

python benchmarks/instruction_sets.py [--only WORDS] [--seconds 4] [--threads 2]

Each instruction set has a process of its own, in which ATen, oneDNN, MKL and this package are held
to it. A row's two sides are timed in turn there, at least 9 times each, and the sets take turns row
by row. Writes its run to instruction_sets.json, in place of the last one on such a processor. A new
row is a line of ROWS.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, Popen
from timeit import Timer
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from run import AVX2, FP32, STEP_NAME, Result, Row, Sides, adamw, machine, measure, training
from torch import Tensor, nn

import torch_trn_emu
from torch_trn_emu.settings import ISAS

RESULTS = Path(__file__).parent / "instruction_sets.json"
PAIRS = 9
# Names of torch_trn_emu.settings.ISAS as columns.
COLUMNS = {
    "plain": "plain",
    "avx2": "AVX2",
    "avx512": "AVX512",
    "avx512_bf16": "AVX512 BF16",
    "amx_bf16": "AMX BF16",
}
AVX512 = {
    "ATEN_CPU_CAPABILITY": "avx512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    "TRN_EMU_ISA": "avx512",
}


def product(
    expression: str, a: tuple[int, int], b: tuple[int, int], policy: str = "mxfp8"
) -> Sides:
    """A product of float32 matrices under a policy."""

    def sides(device: str) -> tuple[Timer, Timer]:
        tensors = {"a": torch.randn(a), "b": torch.randn(b)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        setup = f"torch.backends.trn.matmul.precision = {policy!r}"
        return (
            Timer(expression, setup, globals=moved | {"torch": torch}),
            Timer(expression, globals=tensors),
        )

    return sides


def of_module(make: Callable[[], nn.Module], *shape: int, policy: str, back: bool = False) -> Sides:
    """A module's forward pass without gradients, or its backward pass alone."""

    def one(device: str) -> Timer:
        torch.manual_seed(0)
        module, x = make().to(device), torch.randn(shape).to(device).requires_grad_(back)
        setup = f"torch.backends.trn.matmul.precision = {policy!r}"
        if not back:
            return Timer(
                "with torch.no_grad(): module(x)",
                setup,
                globals={"torch": torch, "module": module, "x": x},
            )
        found: Any = module(x)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        inputs = [x, *module.parameters()]
        grad = torch.ones_like(out)
        return Timer(
            "torch.autograd.grad(out, inputs, grad, retain_graph=True)",
            setup,
            globals={"torch": torch, "out": out, "inputs": inputs, "grad": grad},
        )

    return lambda device: (one(device), one("cpu"))


def attention(*, back: bool) -> Sides:
    """Causal attention of 8 x 6 heads, 256 tokens of 64."""

    class Attention(nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            query, key, value = qkv.unbind(0)
            return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    return of_module(Attention, 3, 8, 6, 256, 64, policy="mxfp8", back=back)


def linear(dtype: torch.dtype) -> Sides:
    """One row by a weight of 2048 x 2048, both in `dtype`."""

    def sides(device: str) -> tuple[Timer, Timer]:
        tensors = {
            "x": torch.randn(1, 2048, dtype=dtype),
            "w": torch.randn(2048, 2048, dtype=dtype),
        }
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        call = "linear(x, w)"
        extra = {"linear": nn.functional.linear}
        return Timer(call, globals=moved | extra), Timer(call, globals=tensors | extra)

    return sides


def stored(element: str, rows: int) -> Sides:
    """A few rows by a weight of 2048 x 2048 that is stored in MX, against both in float32."""

    def sides(device: str) -> tuple[Timer, Timer]:
        x, w = torch.randn(rows, 2048), torch.randn(2048, 2048)
        codes = dict(zip(("x", "xs"), torch.ops.trn.quantize_mx(x.to(device)), strict=True))
        w_codes, w_scales = torch.ops.trn.quantize_mx(w.to(device), element=element)
        codes |= {"w": w_codes.t(), "ws": w_scales.t(), "mx": torch.ops.trn.mx_matmul}
        return (
            Timer("mx(x, xs, w, ws)", globals=codes),
            Timer("linear(x, w)", globals={"linear": nn.functional.linear, "x": x, "w": w}),
        )

    return sides


def overhead(device: str) -> tuple[Timer, Timer]:
    a, b = torch.randn(2, 16)
    return (
        Timer("a + b", globals={"a": a.to(device), "b": b.to(device)}),
        Timer("a + b", globals={"a": a, "b": b}),
    )


def conv() -> nn.Module:
    return nn.Conv2d(64, 64, 3, padding=1)


def lstm() -> nn.Module:
    return nn.LSTM(128, 256)


def gru() -> nn.Module:
    return nn.GRU(128, 256)


LAYOUTS = ("a @ b", "a @ b.t()", "a.t() @ b")
X, W, G = (2048, 384), (1152, 384), (2048, 1152)


def row(name: str, target: float, sides: Sides, against: str = "float32") -> Row:
    return Row(name=name, against=against, target=target, sides=sides, least_rounds=PAIRS)


ROWS = (
    row(f"{STEP_NAME}, mxfp8", 0.88, training(FP32)),
    row("x @ w.t(), 2048 x 384 x 1152, mxfp8", 0.90, product("a @ b.t()", X, W)),
    row("input gradient g @ w, 2048 x 1152 x 384, mxfp8", 0.90, product("a @ b", G, W)),
    row("weight gradient g.t() @ x, 1152 x 2048 x 384, mxfp8", 0.90, product("a.t() @ b", G, X)),
    row(
        "weight gradient g.t() @ x, 1152 x 2048 x 384, bf16",
        0.90,
        product("a.t() @ b", G, X, "bf16"),
    ),
    *(
        row(f"{layout}, {n} x {n}, mxfp8", target, product(layout, (n, n), (n, n)))
        for n, target in ((64, 1.15), (256, 1.05), (512, 0.90))
        for layout in LAYOUTS
    ),
    row("linear, 1 x 2048 x 2048, float32, mxfp8", 1.0, linear(torch.float32)),
    row("linear, 1 x 2048 x 2048, bfloat16, mxfp8", 1.0, linear(torch.bfloat16), "bfloat16"),
    *(
        row(f"{rows} x 2048 x 2048, weight stored in {name}", 1.0, stored(element, rows))
        for rows in (1, 16)
        for name, element in (("MXFP8", "float8_e4m3fn"), ("MXFP4", "float4_e2m1fn"))
    ),
    *(
        row(
            f"{name} 128 -> 256, 50 steps, batch 16, {policy}",
            1.1,
            of_module(make, 50, 16, 128, policy=policy),
        )
        for name, make in (("LSTM", lstm), ("GRU", gru))
        for policy in ("fp32", "mxfp8")
    ),
    row(
        "LSTM 128 -> 256, 50 steps, batch 16, backward, mxfp8",
        1.1,
        of_module(lstm, 50, 16, 128, policy="mxfp8", back=True),
    ),
    *(
        row(
            f"convolution 3 x 3, 64 channels of 32 x 32, batch 8, {what}, mxfp8",
            0.95,
            of_module(conv, 8, 64, 32, 32, policy="mxfp8", back=what == "backward"),
        )
        for what in ("forward", "backward")
    ),
    row("attention, 48 heads, 256 x 64, causal, forward, mxfp8", 0.80, attention(back=False)),
    row("attention, 48 heads, 256 x 64, causal, backward, mxfp8", 0.90, attention(back=True)),
    row("AdamW step, 11 million parameters, default", 0.80, adamw(None), "the same"),
    row("AdamW step, 11 million parameters, fused", 0.90, adamw(True), "the same"),
    row("a + b, 16 elements", 1.4, overhead, "a + b"),
)


def serve(seconds: float, threads: int) -> None:
    """Measure the rows whose numbers come on stdin, one a line; a line of JSON for each."""
    torch.set_num_threads(threads)
    column = COLUMNS[ISAS[torch_trn_emu._C.isa()]]
    print(json.dumps(machine() | {"column": column}), flush=True)
    for line in sys.stdin:
        torch.backends.trn.matmul.precision = "mxfp8"  # type: ignore[attr-defined]
        print(json.dumps(asdict(measure(ROWS[int(line)], "trn", seconds))), flush=True)


class Child:
    """A process that is held to an instruction set."""

    def __init__(self, environment: dict[str, str], options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--serve", "--seconds", str(options.seconds)]
        self.process = Popen(
            [*command, "--threads", str(options.threads)],
            env=os.environ | environment,
            stdin=PIPE,
            stdout=PIPE,
            text=True,
        )
        self.machine = self.read()
        self.name = str(self.machine.pop("column"))

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process that measures ended early: its error is above")
        return json.loads(line)  # type: ignore[no-any-return]

    def measure(self, number: int) -> Result:
        assert self.process.stdin is not None
        print(number, file=self.process.stdin, flush=True)
        return Result(**self.read())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def is_quiet() -> bool:
    """Whether little else runs: the load of the last minute is below a half."""
    return os.getloadavg()[0] < 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this; writes no file")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to spend on a row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.seconds, options.threads)

    quiet = is_quiet()
    children = [Child({}, options)]
    levels = list(COLUMNS.values())
    for name, environment in (("AVX512", AVX512), ("AVX2", AVX2)):
        if levels.index(name) < levels.index(children[0].name):
            children.append(Child(environment, options))
    console = Console()
    table = Table("what", "against", *(child.name for child in children), "goal", "pairs")
    kept = []
    for number, one in enumerate(ROWS):
        if options.only not in one.name:
            continue
        with console.status(one.name):
            found = {child.name: child.measure(number) for child in children}
        kept.append(
            {
                "name": one.name,
                "against": one.against,
                "target": one.target,
                "measured": {name: asdict(r) for name, r in found.items()},
            }
        )
        cells = (
            f"{r.value:.3g} ({r.quartiles[0]:.3g} to {r.quartiles[1]:.3g})" for r in found.values()
        )
        pairs = min(r.rounds for r in found.values())
        table.add_row(one.name, one.against, *cells, f"{one.target:.3g}", str(pairs))
    for child in children:
        child.end()
    console.print(table)
    if not options.only:
        run = {"command": "make benchmark", "machine": children[0].machine, "quiet": quiet}
        keep(run | {"rows": kept})


def keep(run: dict[str, Any]) -> None:
    """Writes a run, in place of the one on the same processor."""
    before = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    cpu = run["machine"]["cpu"]
    runs = [run, *(other for other in before if other["machine"]["cpu"] != cpu)]
    RESULTS.write_text(json.dumps({"runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
