"""Measure `trn` on a CUDA host against plain CUDA on the same GPU: one row of ROWS per benchmark.

TRN_EMU_HOST=cuda python benchmarks/cuda_host.py [--only WORDS] [--rounds 20]

The two sides of a row are timed in turn by CUDA events, in one process; a row's result is the
median over the rounds of A's time divided by B's. Writes results-cuda.json with the GPU's name.
Needs a CUDA GPU; nothing is written without one.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from gpt124m import GPT, Shape  # noqa: E402  (an example, found by the line above)

from torch_trn_emu.host import host_name, missing_for_cuda  # noqa: E402

RESULTS = HERE / "results-cuda.json"
WARM_UP = 3  # Triton compiles, cuBLAS chooses
SHAPE = Shape()
BATCH = 8

Step = Callable[[], object]
Sides = Callable[[], tuple[Step, Step]]


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    against: str
    goal: float  # reached when the ratio is no larger
    sides: Sides


def training_step(device: str, dtype: torch.dtype, fused: bool | None = None) -> Step:
    """Eager, or compiled with the option `fuse_producers`."""
    torch.manual_seed(0)
    model: torch.nn.Module = GPT(SHAPE).to(device, dtype)
    if fused is not None:
        compiled = torch.compile(model, backend="trn", options={"fuse_producers": fused})
        model = cast(torch.nn.Module, compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    codes = torch.randint(SHAPE.vocabulary, (BATCH, SHAPE.context + 1)).to(device)

    def step() -> None:
        logits = model(codes[:, :-1]).flatten(0, 1).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, codes[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def training(on_trn: torch.dtype, plain: torch.dtype) -> Sides:
    return lambda: (training_step("trn", on_trn), training_step("cuda", plain))


def compiled_training() -> tuple[Step, Step]:
    return training_step("trn", half, fused=True), training_step("trn", half, fused=False)


def gelu(shape: tuple[int, int]) -> Sides:
    def sides() -> tuple[Step, Step]:
        x = torch.randn(shape, device="cuda").bfloat16()
        ops = torch.ops.trn
        return (
            lambda: ops.gelu_operand(x, keep=False),
            lambda: ops.round_operand(F.gelu(x), "mxfp8", -1),
        )

    return sides


def quantize(dim: int, dtype: torch.dtype) -> Sides:
    """Against copying as many bytes as quantisation reads and writes: half are read."""

    def sides() -> tuple[Step, Step]:
        x = torch.randn(8192, 8192, device="cuda").to(dtype)
        moved = x.numel() * (x.element_size() + 1 + 1 / 32)
        source = torch.empty(int(moved / 2), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return lambda: torch.ops.trn.quantize_mx(x, dim=dim), lambda: target.copy_(source)

    return sides


def product(n: int) -> Sides:
    def sides() -> tuple[Step, Step]:
        a, b = torch.randn(2, n, n, device="cuda").bfloat16()
        return lambda: torch.ops.trn.mx_mm(a, b), lambda: torch.mm(a, b)

    return sides


half, single = torch.bfloat16, torch.float32
ROWS = (
    Row(name="training step, GPT 124M, mxfp8, bfloat16", against="bfloat16 on CUDA", goal=1.15,
        sides=training(half, half)),
    Row(name="training step, GPT 124M, mxfp8, bfloat16", against="float32 on CUDA", goal=0.70,
        sides=training(half, single)),
    Row(name="training step, GPT 124M, mxfp8, bfloat16, compiled, producers fused",
        against="producers apart", goal=1.0, sides=compiled_training),
    Row(name="gelu_operand, 8192 x 8192 bfloat16", against="gelu, then round_operand", goal=0.6,
        sides=gelu((8192, 8192))),
    Row(name="quantize_mx, 8192 x 8192 bfloat16, dim -1", against="copy of as many bytes",
        goal=1 / 0.75, sides=quantize(-1, half)),
    Row(name="quantize_mx, 8192 x 8192 bfloat16, dim 0", against="copy of as many bytes",
        goal=1 / 0.75, sides=quantize(0, half)),
    Row(name="quantize_mx, 8192 x 8192 float32, dim -1", against="copy of as many bytes",
        goal=1 / 0.75, sides=quantize(-1, single)),
    Row(name="mx_mm, 8192 x 8192 x 8192 bfloat16, quantisation included",
        against="torch.mm in bfloat16", goal=1.10, sides=product(8192)),
)  # fmt: skip


def milliseconds(step: Step) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def measure(row: Row, rounds: int) -> dict[str, object]:
    a, b = row.sides()
    for _ in range(WARM_UP):
        a(), b()
    torch.cuda.synchronize()
    pairs = [(milliseconds(a), milliseconds(b)) for _ in range(rounds)]
    ratios = [mine / other for mine, other in pairs]
    result = {key: value for key, value in asdict(row).items() if key != "sides"}
    return result | {
        "ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
        "measured_ms": statistics.median(mine for mine, _ in pairs),
        "baseline_ms": statistics.median(other for _, other in pairs),
        "rounds": rounds,
    }


def machine() -> dict[str, object]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="words in the names of the rows to measure")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if missing := missing_for_cuda():
        sys.exit(f"benchmarks/cuda_host.py needs {missing}")
    if host_name() != "cuda":
        sys.exit("benchmarks/cuda_host.py measures a CUDA host: set TRN_EMU_HOST=cuda.")
    chosen = [row for row in ROWS if options.only in row.name]
    results = []
    for row in chosen:
        results.append(result := measure(row, options.rounds))
        verdict = "reached" if float(str(result["ratio"])) <= row.goal else "missed"
        print(f"{row.name} / {row.against}: {result['ratio']:.3f}, goal {row.goal:.2f}, {verdict}")
    if chosen == list(ROWS):
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
