"""torch.distributed: wrappers import and build; what needs a backend says so."""

import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from torch_trn_emu.errors import Unimplemented
from torch_trn_emu.trn.distributed import COLLECTIVES


@pytest.fixture(scope="module", autouse=True)
def group():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


CALLS = {
    "all_reduce": lambda x: dist.all_reduce(x),
    "broadcast": lambda x: dist.broadcast(x, 0),
    "all_gather": lambda x: dist.all_gather([x.clone()], x),
    "reduce_scatter": lambda x: dist.reduce_scatter(x.clone(), [x]),
    "all_to_all": lambda x: dist.all_to_all([x.clone()], [x]),
    "DistributedDataParallel": lambda x: nn.parallel.DistributedDataParallel(nn.Linear(2, 2).to(x.device)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_collective_is_planned(name):
    with pytest.raises(Unimplemented, match=r"trn/distributed.py.*all_reduce\(tensor.cpu\(\)\)"):
        CALLS[name](torch.ones(2, device="trn"))


def test_host_tensors_still_communicate():
    x = torch.ones(2)
    dist.all_reduce(x)
    assert x.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_fsdp_of_one_process_builds_and_runs():
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    x = torch.ones(1, 4, device="trn")
    sharded = nn.Linear(4, 4).to("trn")
    fully_shard(sharded)
    sharded(x).sum().backward()
    assert sharded.weight.grad is not None
    wrapped = FullyShardedDataParallel(nn.Linear(4, 4).to("trn"), device_id=torch.device("trn", 0))
    assert wrapped(x).is_trn


def test_every_collective_of_torch_is_covered():
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1")
    ours = {f"c10d::{name}" for name in COLLECTIVES}
    assert {n for n in registered if n.startswith("c10d::")} - ours == {"c10d::barrier"}
