"""A script for GPUs: NCCL, cuda devices, DistributedDataParallel, FSDP2. Prints the losses."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

local = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
dist.init_process_group("nccl")
assert dist.get_backend() == "nccl"
assert dist.is_nccl_available()
x = torch.ones(4, device=f"cuda:{local}")
dist.all_reduce(x, op=dist.ReduceOp.AVG)
dist.barrier()
assert x.device.type == "cuda"
assert x.tolist() == [1.0] * 4

torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(8, 8).cuda(), device_ids=[local])
mesh = dist.device_mesh.init_device_mesh("cuda", (dist.get_world_size(),))
sharded = nn.Linear(8, 8).cuda()
fully_shard(sharded, mesh=mesh)
for net in (model, sharded):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        loss = net(torch.full((2, 8), local + 1.0, device="cuda")).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print("loss", loss.item())
objects = [None] * dist.get_world_size()
dist.all_gather_object(objects, dist.get_rank())
assert objects == list(range(dist.get_world_size()))
mixed = dist.new_group(backend="cpu:gloo,cuda:nccl")
y = torch.ones(2)
dist.all_reduce(y, group=mixed)
assert y.tolist() == [dist.get_world_size()] * 2
dist.destroy_process_group()
print("done", flush=True)
