"""`TRN_EMU_AS=cuda` in torch.distributed: "nccl" is the backend of trn, and cuda its device.

torch compares "nccl" by name and never looks it up among the registered backends, so the class of
trn's groups stands where torch has NCCL's. Only under the option, as docs/decisions/0007 has it.
Checked on torch 2.13.0.
"""

import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch

from .. import _C, trn
from ..importing import when_imported
from ..torch_private import compiled_c10d, utilities
from .cuda_gloo import map_gloo

__all__ = ["asked_by_torch", "hears_real", "install"]

# A fake tensor is on the device that it hears of, and torch has no guard for cuda.
_OWN = re.compile(r"torch\.(distributed|_subclasses|nn\.parallel|_utils)(\.|$)")


# Methods of process groups.
_TAKING_DEVICES = ("_get_backend", "_register_backend", "_start_coalescing", "_end_coalescing")
# Those of groups and of backends, whose errors say which device a tensor is on.
_COLLECTIVES = (
    "_allgather_base _reduce_scatter_base allgather allgather_coalesced "
    "allgather_into_tensor_coalesced allreduce allreduce_coalesced alltoall alltoall_base "
    "broadcast gather recv recv_anysource reduce reduce_scatter reduce_scatter_tensor_coalesced "
    "scatter send"
).split()
_NAMED = re.compile(r"(?<=device=)trn\b|(?<=device type )trn\b|\btrn(?=:\d)")


def asked_by_torch(depth: int) -> bool:
    """Whether torch.distributed, a parallel wrapper or a fake tensor's maker asks: it must hear the
    real device.
    """
    frame = sys._getframe(depth + 1)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back  # another mode hands on what it was asked
    return hears_real(frame.f_globals)


def hears_real(names: Mapping[str, Any]) -> bool:
    """Whether a module with these globals must hear the real device."""
    return _OWN.match(names.get("__name__", "")) is not None


def install(
    translated: Callable[..., Any], mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    """`translated` makes a function that is told trn where it is told cuda; a script's own code
    runs within `mode()`.
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed import distributed_c10d

    _name_the_backend(distributed_c10d)
    map_gloo()
    _translate_groups(distributed_c10d, translated)
    _translate_meshes(translated)
    _prepare_checkpoints()
    if torch.distributed.rpc.is_available():
        from ..torch_private import rpc

        rpc.without_maps()
        rpc.run_within(mode)

    def fsdp(module: Any) -> None:  # its `device_id`
        kind = module.FullyShardedDataParallel
        kind.__init__ = translated(kind.__init__)

    when_imported("torch.distributed.fsdp.fully_sharded_data_parallel", fsdp)


def _name_the_backend(c10d: Any) -> None:
    """The backend trn is called nccl."""
    from ..trn.distributed import bound

    dist: Any = torch.distributed
    group = bound.ProcessGroupTrn
    group.Options = bound.Options
    group.__init__ = _takes_timeout(group.__init__)
    for module in (c10d, dist):
        module.ProcessGroupNCCL = group
    _C.set_backend_name("nccl")  # for profilers of torch
    c10d._NCCL_AVAILABLE = True
    compiled: Any = compiled_c10d
    if not hasattr(compiled, "_hash_tensors"):
        compiled._hash_tensors = _hash_tensors
    if c10d.default_pg_nccl_timeout is None:
        c10d.default_pg_nccl_timeout = c10d.default_pg_timeout
    c10d.Backend.backend_capability["nccl"] = ["trn"]
    c10d.Backend.default_device_backend_map["trn"] = "nccl"
    _translate_config(c10d.BackendConfig)


def _translate_groups(c10d: Any, translated: Callable[..., Any]) -> None:
    """Making groups, and what their members take and tell."""
    for name in ("init_process_group", "new_group", "split_group"):
        told = translated(getattr(c10d, name))
        for module in (c10d, torch.distributed):
            setattr(module, name, told)
    for name in _TAKING_DEVICES:
        setattr(c10d.ProcessGroup, name, translated(getattr(c10d.ProcessGroup, name)))
    compiled: Any = compiled_c10d
    for calling in (compiled.Backend, c10d.ProcessGroup):
        for name in filter(vars(calling).__contains__, _COLLECTIVES):
            setattr(calling, name, _tells_cuda(getattr(calling, name)))
    wrapper: Any = torch.nn.parallel.DistributedDataParallel
    wrapper._check_comm_hook = _allows_bfloat16(wrapper._check_comm_hook)
    c10d.ProcessGroup.barrier = _on_trn(c10d.ProcessGroup.barrier)


def _translate_meshes(translated: Callable[..., Any]) -> None:
    from torch.distributed import device_mesh

    dist: Any = torch.distributed
    mesh = translated(device_mesh.init_device_mesh)
    device_mesh.init_device_mesh = dist.init_device_mesh = mesh
    kind: Any = device_mesh.DeviceMesh
    kind.__init__ = translated(kind.__init__)
    text_of = kind.__repr__
    kind.__repr__ = wraps(text_of)(lambda self: text_of(self).replace("'trn'", "'cuda'"))


def _prepare_checkpoints() -> None:
    # Writers compare it with the device of tensors, of which they hear the real one.
    utilities._get_available_device_type = lambda: "trn"

    refuse = torch.cuda.nccl.version

    def version() -> tuple[int, int, int]:  # torch logs it with each checkpoint
        return (0, 0, 0) if asked_by_torch(1) else refuse()

    torch.cuda.nccl.version = version


def _takes_timeout(init: Callable[..., None]) -> Callable[..., None]:
    """A group that a script makes itself has options, a timeout, or neither."""

    @wraps(init)
    def call(
        self: Any, store: Any, rank: int, size: int, options: Any = None, timeout: Any = None
    ) -> None:
        chosen = type(self).Options() if options is None else options
        if timeout is not None:
            chosen._timeout = timeout
        init(self, store, rank, size, chosen)

    return call


def _tells_cuda(method: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of torch's C++, which knows the device's own name, say that of the script."""

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            error.args = tuple(
                _NAMED.sub("cuda", arg) if isinstance(arg, str) else arg for arg in error.args
            )
            raise

    return call


def _allows_bfloat16(check: Callable[..., None]) -> Callable[..., None]:
    """Hooks that torch refuses by name where it finds no version of CUDA and NCCL with bfloat16."""

    @wraps(check)
    def call(self: Any, hook: Any) -> None:
        if not str(getattr(hook, "__name__", "")).startswith("bf16_compress"):
            return check(self, hook)

        @wraps(hook)
        def allowed(*args: Any) -> Any:
            return hook(*args)

        allowed.__name__ = "allowed"
        return check(self, allowed)

    return call


def _on_trn(barrier: Callable[..., Any]) -> Callable[..., Any]:
    """`group.barrier()`: for NCCL's groups torch takes the device of CUDA itself."""

    @wraps(barrier)
    def call(self: Any, opts: Any = None, timeout: Any = None) -> Any:
        if not isinstance(opts, compiled_c10d.BarrierOptions):
            opts, timeout = compiled_c10d.BarrierOptions(), opts if timeout is None else timeout
        if timeout is not None:
            opts.timeout = timeout
        asked = opts.device is None or opts.device.type == "cuda"
        if asked and any(device.type == "trn" for device in self._device_types):
            opts.device = torch.device("trn", trn.current_device())
        return barrier(self, opts)

    return call


def _hash_tensors(tensors: Sequence[torch.Tensor]) -> int:
    """The same number for the same bytes on every rank.

    Only a torch built with NCCL has it: object collectives log it if TORCH_DISTRIBUTED_DEBUG is
    DETAIL.
    """
    found = 0
    for tensor in tensors:
        found = zlib.crc32(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), found
        )
    return found


def _translate_config(config: Any) -> None:
    """What is asked for on cuda serves trn. A "gloo" group takes tensors of cuda as well."""
    init = config.__init__

    @wraps(init)
    def call(self: Any, backend: Any) -> None:
        text = str(backend)
        init(self, backend if ":" not in text else re.sub(r"\bcuda:", "trn:", text))
        named = {"cuda": "trn"}
        served = {named.get(kind, kind): name for kind, name in self.device_backend_map.items()}
        self._takes_gloo = served.get("trn") == "gloo"
        if self._takes_gloo:
            served["trn"] = torch.distributed.Backend("trn")  # takes options of gloo
        self.device_backend_map = served

    def text_of(self: Any) -> str:  # as the script has asked for it
        asked = self.device_backend_map | ({"trn": "gloo"} if self._takes_gloo else {})
        return ",".join(f"{'cuda' if k == 'trn' else k}:{name}" for k, name in asked.items())

    config.__init__ = call
    config.__repr__ = text_of
