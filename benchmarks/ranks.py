"""Measure collectives and a DDP step on two ranks against gloo with CPU tensors: processor time.

python benchmarks/ranks.py [--only WORDS] [--rounds 7]

Both ranks run on this host with one thread for operators. The sides of a row are timed in turn in
the same processes; a row's value is the median over the rounds of one's processor time (all threads
of a rank, the mean of the ranks) divided by the other's in the same round. Writes ranks.json.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from char_gpt import GPT, Config, loss_of  # noqa: E402  (an example, found by the line above)

RESULTS = HERE / "ranks.json"
RANKS = 2
STEP = Config(layers=6, width=384, heads=6, context=256, batch=8)
VOCABULARY = 65
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    against: str
    goal: float
    sides: Callable[[], tuple[Call, Call]]
    calls: int  # of each side in a round
    unit: str = "x"  # a ratio; else the first side alone, in us


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    against: str
    goal: float
    unit: str
    value: float
    quartiles: tuple[float, float]
    measured_us: float
    baseline_us: float
    rounds: int


def all_reduce(size_bytes: int, device: str) -> Call:
    x = torch.zeros(size_bytes // 4, device=device)
    return lambda: dist.all_reduce(x)


def memcpy(size_bytes: int) -> Call:
    x = torch.zeros(size_bytes // 4)
    y = torch.empty_like(x)
    return lambda: y.copy_(x)


def ddp_step(device: str) -> Call:
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(GPT(VOCABULARY, STEP).to(device))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(VOCABULARY, (STEP.batch, STEP.context + 1)).to(device)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        if device == "trn":
            torch.accelerator.synchronize()

    return step


KiB, MiB = 1 << 10, 1 << 20
ROWS = (
    Row(name="all_reduce, 4 KiB", against="nothing", goal=20, unit="us", calls=500,
        sides=lambda: (all_reduce(4 * KiB, "trn"), all_reduce(4 * KiB, "cpu"))),
    Row(name="all_reduce, 4 KiB", against="gloo", goal=1, calls=500,
        sides=lambda: (all_reduce(4 * KiB, "trn"), all_reduce(4 * KiB, "cpu"))),
    Row(name="all_reduce, 1 MiB", against="gloo", goal=1, calls=50,
        sides=lambda: (all_reduce(MiB, "trn"), all_reduce(MiB, "cpu"))),
    Row(name="all_reduce, 16 MiB", against="gloo", goal=1, calls=10,
        sides=lambda: (all_reduce(16 * MiB, "trn"), all_reduce(16 * MiB, "cpu"))),
    Row(name="all_reduce, 16 MiB", against="memcpy", goal=1.5, calls=10,
        sides=lambda: (all_reduce(16 * MiB, "trn"), memcpy(16 * MiB))),
    Row(name="all_reduce, 64 MiB", against="memcpy", goal=1.5, calls=4,
        sides=lambda: (all_reduce(64 * MiB, "trn"), memcpy(64 * MiB))),
    Row(name="DDP step, GPT 6 x 384, AdamW, fp32", against="gloo, CPU tensors", goal=1.05, calls=1,
        sides=lambda: (ddp_step("trn"), ddp_step("cpu"))),
)  # fmt: skip


def cpu_us(call: Call, calls: int) -> float:
    """Processor time of a call on this rank, microseconds."""
    dist.barrier(group=dist.group.WORLD, device_ids=[dist.get_rank()])
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls * 1e6


def measure(row: Row, rounds: int) -> list[tuple[float, float]]:
    """Of each round the time of either side, the mean of the ranks."""
    first, second = row.sides()
    for side in (first, second):
        cpu_us(side, max(1, row.calls // 10))
    own = []
    for i in range(rounds):
        order = (first, second) if i % 2 == 0 else (second, first)
        times = {id(side): cpu_us(side, row.calls) for side in order}
        own.append((times[id(first)], times[id(second)]))
    mean = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(mean)
    return [(a, b) for a, b in (mean / RANKS).tolist()]


def result(row: Row, times: list[tuple[float, float]]) -> Result:
    alone = row.unit == "us"
    values = sorted(a if alone else a / b for a, b in times)
    low, _, high = statistics.quantiles(values, n=4)
    return Result(
        name=row.name, against=row.against, goal=row.goal, unit=row.unit,
        value=statistics.median(values), quartiles=(low, high), rounds=len(times),
        measured_us=statistics.median(a for a, _ in times),
        baseline_us=0.0 if alone else statistics.median(b for _, b in times),
    )  # fmt: skip


def run_rank(only: str, rounds: int, out: str) -> None:
    rank = int(os.environ["RANK"])
    torch.accelerator.set_device_index(rank)
    dist.init_process_group("cpu:gloo,trn:trn")
    results = []
    for row in ROWS:
        if only in f"{row.name} {row.against}":
            results.append(asdict(result(row, measure(row, rounds))))
    if rank == 0:
        Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()


def launch(only: str, rounds: int) -> list[dict[str, object]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "results.json")
        common = os.environ | {
            "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "TRN_EMU_MATMUL": "fp32",
        }  # fmt: skip
        command = [sys.executable, __file__, "--only", only, "--rounds", str(rounds), "--out", out]
        ranks = [
            subprocess.Popen(command, env=common | {"RANK": str(r), "LOCAL_RANK": str(r)})
            for r in range(RANKS)
        ]
        if sum(rank.wait() != 0 for rank in ranks):
            raise SystemExit("a rank failed")
        found: list[dict[str, object]] = json.loads(Path(out).read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="", help=argparse.SUPPRESS)  # of a rank
    options = parser.parse_args()
    if options.out:
        return run_rank(options.only, options.rounds, options.out)
    rows = launch(options.only, options.rounds)
    for row in rows:
        print("{name}, against {against}: {value:.3g} {unit} (goal {goal:g})".format(**row))
    if not options.only:
        RESULTS.write_text(json.dumps({"ranks": RANKS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
