"""Simulated time on every rank: the latest arrival, what is exposed, and equal counters."""

import json
from datetime import timedelta

import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD, run_checks

KEYS = ("cc_op_count", "cc_op_active_time", "cc_exposed_time", "host_dispatch_time")


def now() -> int:
    from torch_trn_emu import _C

    torch.trn.synchronize()
    return _C.host_ns(RANK)


def everyone(number: int) -> list[int]:
    found = [torch.zeros(1, dtype=torch.int64, device=DEVICE) for _ in range(WORLD)]
    dist.all_gather(found, torch.tensor([number], device=DEVICE))
    return [int(x) for x in found]


def check_a_collective_starts_at_the_latest_arrival():
    dist.barrier()
    x = torch.ones(1 << 16, device=DEVICE)
    for _ in range(50 * RANK):  # the last rank is late
        x = x * 1.0
    before = now()
    dist.all_reduce(x)
    after = now()
    arrivals, ends = everyone(before), everyone(after)
    assert all(end >= max(arrivals) for end in ends), (arrivals, ends)
    assert max(ends) - min(ends) < 1000, ends


def check_exposed_is_at_most_active():
    torch.trn.reset_counters()
    y = torch.ones(256, 256, device=DEVICE)
    works = [dist.all_reduce(torch.ones(1 << 18, device=DEVICE), async_op=True) for _ in range(4)]
    for _ in range(20):
        y = y @ y * 1e-3
    for work in works:
        work.wait()
    found = torch.trn.counters()
    assert found["cc_op_count"] == 4
    assert 0 <= found["cc_exposed_time"] <= found["cc_op_active_time"]


def check_work_hides_communication():
    def exposed(matmuls: int) -> float:
        dist.barrier()
        x, y = torch.ones(1 << 22, device=DEVICE), torch.ones(1024, 1024, device=DEVICE)
        torch.trn.reset_counters()
        work = dist.all_reduce(x, async_op=True)
        for _ in range(matmuls):
            y = y @ y
        work.wait()
        torch.trn.synchronize()
        return torch.trn.counters()["cc_exposed_time"]

    assert exposed(0) > exposed(4)


def check_counters_of_two_runs():
    print("counters", json.dumps({k: torch.trn.counters()[k] for k in KEYS}), flush=True)


if __name__ == "__main__":
    run_checks(dict(globals()), timeout=timedelta(seconds=120))
