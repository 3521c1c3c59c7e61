"""A script for GPUs: NCCL, cuda devices, DistributedDataParallel, FSDP2. Prints the losses."""

import os
import socket
import tempfile
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from calls import check_calls_of_other_processes
from own_gloo import check_own_gloo
from torch import nn
from torch.distributed import checkpoint
from torch.distributed import tensor as distributed
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel, fully_shard
from torch.distributed.nn import functional
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

local = int(os.environ["LOCAL_RANK"])
assert not torch.cuda.is_initialized()
dist.device_mesh.init_device_mesh("cuda", (int(os.environ["WORLD_SIZE"]),))
assert torch.cuda.current_device() == local  # set by the mesh, as nothing was initialized
with socket.socket() as free:  # for the next group: a rank may still reach the store of this one
    free.bind(("127.0.0.1", 0))
    port = [free.getsockname()[1]]
dist.broadcast_object_list(port)
os.environ["MASTER_PORT"] = str(port[0])
dist.destroy_process_group()
dist.init_process_group("nccl")
assert dist.get_backend() == "nccl"
assert dist.is_nccl_available()
x = torch.ones(4, device=f"cuda:{local}")
dist.all_reduce(x, op=dist.ReduceOp.AVG)
dist.barrier()
assert x.device.type == "cuda"
assert x.tolist() == [1.0] * 4

group, cuda = dist.group.WORLD, torch.device("cuda")
assert isinstance(group._get_backend(cuda), dist.ProcessGroupNCCL)
with warnings.catch_warnings(action="error"):
    dist.distributed_c10d._set_pg_timeout(timedelta(minutes=5), group)
group.barrier().wait()
group.barrier(timedelta(minutes=1)).wait()
group._start_coalescing(cuda)
dist.all_reduce(x, async_op=True)
group._end_coalescing(cuda).wait()

leaf = torch.ones(2, device="cuda", requires_grad=True)
whole = torch.empty(2 * dist.get_world_size(), device="cuda")
functional._all_gather_base(whole, leaf).square().sum().backward()  # torch has NCCL's alone
assert leaf.grad.tolist() == [2.0 * dist.get_world_size()] * 2

torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(8, 8).cuda(), device_ids=[local])
mesh = dist.device_mesh.init_device_mesh("cuda", (dist.get_world_size(),))
assert "'cuda'" in repr(mesh), mesh
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
for hook in (
    default_hooks.bf16_compress_hook,
    default_hooks.bf16_compress_wrapper(default_hooks.allreduce_hook),
):
    narrow = DistributedDataParallel(nn.Linear(8, 8, bias=False).cuda(), device_ids=[local])
    narrow.register_comm_hook(None, hook)
    narrow(torch.full((1, 8), local + 1.01, device="cuda")).sum().backward()
    gradient = narrow.module.weight.grad
    assert torch.equal(gradient, gradient.bfloat16().float()), gradient
wrapped = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cuda", local))
assert next(wrapped.parameters()).is_cuda
here = torch.device("cuda", local)  # the device that torch.distributed heard of, and its text
assert wrapped.compute_device == here
assert {wrapped.compute_device: 1}[here] == 1
offloaded = FullyShardedDataParallel(nn.Linear(8, 8), cpu_offload=CPUOffload(offload_params=True))
offloaded.to("cuda")
message = ""
try:
    offloaded(torch.ones(2, 8))
except RuntimeError as error:
    message = str(error)
assert f"has parameters on cuda:{local}." in message, message
with tempfile.TemporaryDirectory() as folder:
    folders = [folder]
    dist.broadcast_object_list(folders)
    checkpoint.save({"model": sharded.state_dict()}, checkpoint_id=folders[0])
    saved = sharded.weight.full_tensor()
    nn.init.zeros_(sharded.weight)
    checkpoint.load({"model": sharded.state_dict()}, checkpoint_id=folders[0])
    assert torch.equal(sharded.weight.full_tensor(), saved)
    dist.barrier()
with CommDebugMode():  # below a dispatch mode
    rows = distributed.rand(4, 2, device_mesh=mesh, placements=[distributed.Shard(0)])
assert rows.to_local().device.type == "cuda"
places = [f"rank:{rank}/cuda:{rank}" for rank in range(dist.get_world_size())]
with warnings.catch_warnings(action="ignore"):
    pieces = sharded_tensor.rand(ChunkShardingSpec(dim=0, placements=places), (4, 2))
for like in (torch.zeros_like, torch.ones_like, torch.rand_like, torch.empty_like):
    assert like(pieces, dtype=torch.half).local_tensor().device == torch.device("cuda", local)
objects = [None] * dist.get_world_size()
dist.all_gather_object(objects, dist.get_rank())
assert objects == list(range(dist.get_world_size()))
mixed = dist.new_group(backend="cpu:gloo,cuda:nccl")
y = torch.ones(2)
dist.all_reduce(y, group=mixed)
message = ""
try:
    dist.all_reduce(y.cuda(), group=dist.new_group(backend="cpu:gloo"))
except RuntimeError as error:
    message = str(error)
assert "device type cuda" in message, message
assert y.tolist() == [dist.get_world_size()] * 2
slow = dist.new_group(backend="gloo")
for device in ("cpu", "cuda"):
    z = torch.ones(2, device=device)
    dist.all_reduce(z, group=slow)
    assert z.tolist() == [dist.get_world_size()] * 2
    assert z.device.type == device
dist.barrier(slow, device_ids=[local])
store = dist.distributed_c10d._get_default_store()
given = {}, {"timeout": timedelta(minutes=1)}, {"options": dist.ProcessGroupNCCL.Options()}
check_own_gloo(store, dist.get_rank(), dist.get_world_size())
for number, options in enumerate(given):
    folder = dist.PrefixStore(f"by hand {number}", store)
    by_hand = dist.ProcessGroupNCCL(folder, dist.get_rank(), dist.get_world_size(), **options)
    by_hand.allreduce(z).wait()
    assert by_hand.options._timeout == options.get("timeout", timedelta(minutes=30))
comparing = dist.distributed_c10d._create_process_group_wrapper(
    by_hand, "compared", store, dist.get_rank(), dist.get_world_size()
)
message = ""
try:
    comparing.allreduce([torch.ones(2 + dist.get_rank(), device="cuda")])
except RuntimeError as error:
    message = str(error)
assert "ALLREDUCE" in message, message
assert "device=cuda" in message, message
assert "trn" not in message, message
assert dist.get_backend(slow) == "gloo"
check_calls_of_other_processes(dist.get_rank(), dist.get_world_size())
dist.destroy_process_group()
dist.init_process_group("fake", rank=0, world_size=4)
assert dist.get_backend_config() == "cpu:fake,cuda:fake,hpu:fake,xpu:fake"
dist.destroy_process_group()
print("done", flush=True)
