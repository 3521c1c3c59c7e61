"""A script of another vendor's names: device and backend as told. All-reduce, DDP, FSDP2."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

kind, backend = sys.argv[1:3]
local = int(os.environ["LOCAL_RANK"])
device = torch.device(kind, local)
torch.accelerator.set_device_index(local)
dist.init_process_group(backend)
assert dist.get_backend() == backend, dist.get_backend()
x = torch.ones(4, device=device)
dist.all_reduce(x)
assert x.device.type == kind
assert x.tolist() == [2.0] * 4
torch.manual_seed(0)
replicated = nn.parallel.DistributedDataParallel(nn.Linear(8, 8).to(device), device_ids=[local])
sharded = nn.Linear(8, 8).to(device)
fully_shard(sharded, mesh=dist.init_device_mesh(kind, (2,)))
for model in (replicated, sharded):
    loss = model(torch.full((2, 8), local + 1.0, device=device)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
dist.destroy_process_group()
print("done", backend, flush=True)
