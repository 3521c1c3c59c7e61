"""Sixteen ranks, twice, forked so that torch is imported once. Prints what each rank counted."""

import json
import os
import random
import socket
import sys
import traceback
import warnings
from datetime import timedelta

RANKS, RUNS = 16, 2
os.environ.update(WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS), OMP_NUM_THREADS="1",
                  MASTER_ADDR="127.0.0.1", TRN_EMU_MATMUL="fp32")  # fmt: skip

import torch  # noqa: E402  reads the environment
import torch._dynamo  # noqa: E402  so that no rank imports it, nor what else follows
import torch.distributed as dist  # noqa: E402
import torch.distributed.fsdp  # noqa: E402
from torch import nn  # noqa: E402

import torch_trn_emu  # noqa: E402
import torch_trn_emu.pricing  # noqa: E402
import torch_trn_emu.profiler  # noqa: E402


def train(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(32, 32).to("trn"), device_ids=[rank])
    for _ in range(2):
        model(torch.full((4 + rank, 32), 1.0, device="trn")).square().mean().backward()


def exchange(rank: int, draw: random.Random) -> None:
    """All-to-all with drawn sizes: each rank gets what was meant for it, and nothing is lost."""
    for _ in range(4):
        sizes = [[draw.choice((0, 1, 5, 300)) for _ in range(RANKS)] for _ in range(RANKS)]
        mine = torch.cat([torch.full((n,), rank * 100.0 + to) for to, n in enumerate(sizes[rank])])
        counts = [row[rank] for row in sizes]
        got = torch.empty(sum(counts), device="trn")
        dist.all_to_all_single(got, mine.to("trn"), counts, sizes[rank])
        theirs = [torch.full((n,), r * 100.0 + rank) for r, n in enumerate(counts)]
        assert torch.equal(got.cpu(), torch.cat(theirs))
        moved = torch.tensor([float(mine.numel()), float(got.numel())], device="trn")
        dist.all_reduce(moved)
        assert moved[0].item() == moved[1].item() == sum(map(sum, sizes))


def overlap(rank: int) -> None:
    """Groups of a mesh beside each other, with work in between, and a ring."""
    mesh = dist.init_device_mesh("trn", (4, 4), mesh_dim_names=("dp", "tp"))
    xs, y = [torch.ones(1 << 14, device="trn") for _ in range(4)], torch.ones(64, 64, device="trn")
    works = []
    for x, dim in zip(xs, ("dp", "tp", "dp", "tp"), strict=True):
        works.append(dist.all_reduce(x, group=mesh[dim].get_group(), async_op=True))
        for _ in range(rank % 3):
            y = y @ y / 64
    for work in works:
        work.wait()
    x = torch.stack(xs)
    assert x.min().item() == x.max().item() == 4
    ring = [
        dist.P2POp(dist.isend, x, (rank + 1) % RANKS),
        dist.P2POp(dist.irecv, torch.empty_like(x), (rank - 1) % RANKS),
    ]
    for work in dist.batch_isend_irecv(ring):
        work.wait()


def run(rank: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
    warnings.simplefilter("ignore")
    torch.accelerator.set_device_index(rank)
    dist.init_process_group(timeout=timedelta(seconds=240))
    with torch_trn_emu.profile() as found:
        train(rank)
        exchange(rank, random.Random(16))
        overlap(rank)
    calls = found.recording.collectives
    for c in calls:
        assert c.end_ns > c.start_ns >= max(c.arrivals_ns), c
        assert 0 <= c.exposed_ns <= c.duration_ns, c
    counted = found.counters() | {"ends": sorted(c.end_ns for c in calls)}
    sys.stdout.write(f"counters {rank} {json.dumps(counted, sort_keys=True)}\n")
    dist.destroy_process_group()


def main() -> int:
    wrong = 0
    for _ in range(RUNS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        members = []
        for rank in range(RANKS):
            if (pid := os.fork()) == 0:
                try:
                    run(rank, port)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                sys.stdout.flush()
                os._exit(0)
            members.append(pid)
        wrong += sum(os.waitpid(pid, 0)[1] != 0 for pid in members)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
