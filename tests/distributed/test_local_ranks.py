"""Random DTensors under LocalTensorMode: one process simulates all ranks."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed import tensor as dt
from torch.distributed._local_tensor import LocalTensorMode
from torch.distributed.device_mesh import init_device_mesh

RANKS = 4


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=0, world_size=RANKS)
    with LocalTensorMode(RANKS):
        yield init_device_mesh("trn", (RANKS,))
    dist.destroy_process_group()


def of_each_rank(x):
    return [part.cpu() for _, part in sorted(x.to_local()._local_tensors.items())]


@pytest.mark.parametrize("given", [False, True])
def test_shards_draw_their_own_numbers_and_replicas_the_same(mesh, given):
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        generator = torch.Generator("trn").manual_seed(6) if given else None
        for placement in (dt.Shard(0), dt.Replicate()):
            x = dt.distribute_tensor(torch.zeros(8, device="trn"), mesh, [placement])
            for _ in range(2):
                drawn.append(of_each_rank(x.uniform_(generator=generator)))
    first, second = drawn[:4], drawn[4:]
    for one, same in zip(first, second, strict=True):
        assert all(map(torch.equal, one, same)), "the seed decides"
    for number, parts in enumerate(first):
        alike = [torch.equal(parts[0], part) for part in parts[1:]]
        assert not any(alike) if number < 2 else all(alike)
        assert not number % 2 or not torch.equal(parts[0], first[number - 1][0])


def test_the_state_of_all_ranks_advances_alike(mesh):
    torch.manual_seed(5)
    dt.randn(8, device_mesh=mesh, placements=[dt.Shard(0)])
    parts = dt.rand(8, device_mesh=mesh, placements=[dt.Replicate()])
    assert all(torch.equal(part, of_each_rank(parts)[0]) for part in of_each_rank(parts))
