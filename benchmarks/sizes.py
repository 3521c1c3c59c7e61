"""Square matrix multiplies of sampled sizes, worst first: `trn` against the CPU in float32.

python benchmarks/sizes.py [--sample 48] [--seed 0] [--sizes 64-512] [--processor-time]

The sample is of all sizes from 64 to 4096 in steps of 64, three layouts and three policies. Each is
timed in turn with the CPU, at least 9 times, in one process. 48 of them take a few minutes on 2
cores. Processor time is for hosts where other work runs; measure one thread then.
"""

import argparse
import random
import time
from collections.abc import Iterator

import run
import torch
from instruction_sets import LAYOUTS, PAIRS, product
from rich.console import Console
from rich.progress import track
from rich.table import Table
from run import Clock, Row, Sides, measure

import torch_trn_emu
from torch_trn_emu.settings import ISAS

STEP, LARGEST = 64, 4096
POLICIES = ("fp32", "bf16", "mxfp8")


def goal_of(size: int) -> float:
    """The highest ratio to the CPU's time that is acceptable (chosen)."""
    return 1.15 if size < 512 else 1.0


def by_processor(sides: Sides) -> Sides:
    """The same clocks, which count the processor time of the process."""

    def timed(device: str) -> tuple[Clock, Clock]:
        clocks = sides(device)
        for clock in clocks:
            clock.timer = time.process_time  # type: ignore[attr-defined]  # a timeit.Timer's
        return clocks

    return timed


def rows(first: int, last: int, processor_time: bool) -> Iterator[Row]:
    for size in range(first, last + 1, STEP):
        for layout in LAYOUTS:
            for policy in POLICIES:
                sides = product(layout, (size, size), (size, size), policy)
                yield Row(
                    name=f"{layout}, {size} x {size}, {policy}",
                    against="float32",
                    target=goal_of(size),
                    sides=by_processor(sides) if processor_time else sides,
                    least_rounds=PAIRS,
                )


def size_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    sizes = int(first), int(last or first)
    if not 0 < sizes[0] <= sizes[1] or sizes[0] % STEP:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of multiples of {STEP}")
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=48, help="how many multiplies to measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=size_range, default=(STEP, LARGEST), help="64-512")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time for each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()

    if options.processor_time:  # a hypervisor accounts for it late
        run.LEAST_SAMPLE_S = 0.1
    torch.set_num_threads(options.threads)
    every = list(rows(*options.sizes, options.processor_time))
    chosen = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    console = Console()
    found = [
        measure(row, "trn", options.seconds)
        for row in track(chosen, "measuring", console=console, transient=True)
    ]
    found.sort(key=lambda result: result.value / result.target, reverse=True)
    table = Table("what", "against float32", "quartiles", "goal", "us", "CPU, us")
    for r in found:
        table.add_row(
            r.name, f"{r.value:.3g} x", "{:.3g} to {:.3g}".format(*r.quartiles), f"{r.target:.3g}",
            f"{r.measured_s * 1e6:.4g}", f"{r.baseline_s * 1e6:.4g}",
        )  # fmt: skip
    console.print(table)
    above = sum(r.value > r.target for r in found)
    isa = ISAS[torch_trn_emu._C.isa()]
    console.print(
        f"{above} of {len(found)} above their goal; seed {options.seed}, {options.threads} threads,"
        f" {isa}"
    )


if __name__ == "__main__":
    main()
