"""torch.distributed.rpc of a script for CUDA: objects and tensors of the CPU, none of a device."""

from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch.distributed import rpc

__all__ = ["check_calls_of_other_processes"]


def double(x):
    return 2 * x


def on_device(x):
    assert x.cuda().is_cuda
    return torch.ones(2, device="cuda")


def check_calls_of_other_processes(rank: int, world: int) -> None:
    with TemporaryDirectory() as folder:
        name = [f"file://{folder}/calls"]
        dist.broadcast_object_list(name)
        call_others(rank, world, name[0])
        dist.barrier()


def call_others(rank: int, world: int, where: str) -> None:
    maps = {f"worker{other}": {rank: other} for other in range(world)}
    options = rpc.TensorPipeRpcBackendOptions(init_method=where, device_maps=maps, devices=[rank])
    options.set_device_map("worker0", {rank: 0})
    rpc.init_rpc(f"worker{rank}", rank=rank, world_size=world, rpc_backend_options=options)
    other = f"worker{(rank + 1) % world}"
    assert rpc.rpc_sync(other, double, args=(1,)) == 2
    assert rpc.remote(other, double, args=(torch.ones(3),)).to_here().tolist() == [2, 2, 2]
    for what, x in ((double, torch.ones(3, device="cuda")), (on_device, torch.ones(3))):
        message = ""
        try:
            rpc.rpc_sync(other, what, args=(x,))
        except RuntimeError as error:
            message = str(error)
        assert "carries tensors of the CPU only" in message, message
    rpc.shutdown()
