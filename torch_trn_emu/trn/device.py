"""Devices: one index is one logical NeuronCore of the emulated chip."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import torch

from .. import _C
from ..errors import Unsupported
from ..host import host_device
from ..settings import DEVICE_TYPE, settings
from .registration import startup_error

__all__ = [
    "DeviceProperties",
    "can_device_access_peer",
    "current_device",
    "device",
    "device_count",
    "device_of",
    "get_arch_list",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "get_gencode_flags",
    "get_sync_debug_mode",
    "index_of",
    "init",
    "ipc_collect",
    "is_available",
    "is_initialized",
    "is_tf32_supported",
    "set_device",
    "set_sync_debug_mode",
    "synchronize",
]

Device = torch.device | str | int | None

_initialized = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProperties:
    """Properties of one logical NeuronCore."""

    name: str
    total_memory: int  # bytes of HBM
    chip: str
    nc_version: int  # NeuronCore version: 2 on trn1, 3 on trn2, 4 on trn3
    physical_cores: int  # NeuronCores behind this logical one (LNC)
    logical_core: int  # its number on the chip
    sbuf_bytes: int  # of all physical cores behind it
    psum_bytes: int

    @property
    def major(self) -> int:
        return self.nc_version

    @property
    def minor(self) -> int:
        return 0

    @property
    def uuid(self) -> UUID:
        """The same for the same core of the same chip in every process."""
        return uuid5(NAMESPACE_OID, f"{self.chip}:{self.logical_core}")

    @property
    def multi_processor_count(self) -> int:
        """The number of cores that work in parallel; for scripts written for CUDA."""
        return self.physical_cores

    @property
    def gcnArchName(self) -> str:
        """The name, as in torch's builds for CUDA."""
        return self.name


def is_available() -> bool:
    """Whether a trn device is available: True unless the environment has invalid settings."""
    return bool(_C.device_count() > 0)


def is_initialized() -> bool:
    """Whether this process has used a trn device."""
    return _initialized and not _is_in_bad_fork()


def init() -> None:
    """Initialize trn now instead of at first use. Raises an error for invalid settings."""
    _lazy_init()


def _is_in_bad_fork() -> bool:
    return bool(_C.is_in_bad_fork())


def _lazy_init() -> None:
    global _initialized
    if _is_in_bad_fork():
        raise RuntimeError(
            "Cannot re-initialize trn in forked subprocess. To use trn with multiprocessing, you "
            "must use the 'spawn' start method"
        )
    if (error := startup_error()) is not None:
        raise error
    if not _initialized:
        _C.register_fork_handler()
        _initialized = True


def index_of(device: Device = None, *, optional: bool = True) -> int:
    """The index that `device` names; None and a bare "trn" are the current device.

    Raises ValueError for a device of another type, RuntimeError for an index that does not exist.
    """
    if device is None and optional:
        return current_device()
    if not isinstance(device, int):
        device = torch.device(device)  # type: ignore[arg-type]
        if device.type != DEVICE_TYPE:
            raise ValueError(f"Expected a {DEVICE_TYPE} device, but got: {device}")
        device = -1 if device.index is None else device.index
    if device < 0:
        return current_device()
    _C.check_index(device)
    return device


def device_count() -> int:
    """Return the number of visible logical NeuronCores."""
    return int(_C.device_count())


def current_device() -> int:
    """Return the index of this thread's current device."""
    _lazy_init()
    return int(_C.current_device())


def set_device(device: Device) -> None:
    """Set this thread's current device."""
    _lazy_init()
    if (index := index_of(device, optional=False)) >= 0:
        _C.exchange_device(index)


def _exchange_device(index: int) -> int:
    return int(_C.exchange_device(index)) if index >= 0 else -1


def _maybe_exchange_device(index: int) -> int:
    return _exchange_device(index)


class device:
    """Context manager that makes `device` the current one; a negative index leaves it unchanged."""

    def __init__(self, device: Any) -> None:
        self.idx = device if isinstance(device, int) else index_of(device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        _lazy_init()
        self.prev_idx = _exchange_device(self.idx)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _exchange_device(self.prev_idx)


class device_of(device):
    """Context manager that makes the device of `tensor` current, if it is a trn tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.get_device() if tensor.device.type == DEVICE_TYPE else -1)


def get_device_properties(device: Device = None) -> DeviceProperties:
    """Properties of a logical core. Raises RuntimeError for an index that does not exist."""
    _lazy_init()
    index, s = index_of(device), settings()
    return DeviceProperties(
        name=emulated_name(),
        total_memory=s.chip.hbm_bytes_per_logical_core(s.lnc),
        chip=s.chip.name,
        nc_version=s.chip.nc_version,
        physical_cores=s.lnc,
        logical_core=s.visible_cores[index],
        sbuf_bytes=s.lnc * s.chip.sbuf.partitions * s.chip.sbuf.bytes_per_partition,
        psum_bytes=s.lnc * s.chip.psum.partitions * s.chip.psum.bytes_per_partition,
    )


def emulated_name() -> str:
    """Name of the emulated chip, for which nothing is initialized."""
    return f"AWS Trainium{settings().chip.name.removeprefix('trn')} (emulated)"


def get_device_name(device: Device = None) -> str:
    """Name of the emulated chip."""
    return get_device_properties(device).name


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """(NeuronCore version, 0)."""
    return get_device_properties(device).nc_version, 0


def synchronize(device: Device = None) -> None:
    """Wait, in simulated time, until all work of the core has finished.

    On a CPU host results are in memory when an op returns: only the simulated clock waits. On a
    CUDA host the GPU is waited for as well.
    """
    _lazy_init()
    _C.synchronize(index_of(device))
    if host_device().type == "cuda":
        torch.cuda.synchronize(host_device())


def can_device_access_peer(device: Device, peer_device: Device) -> bool:
    """Whether one core can read the other's HBM: all cores are on one chip. Not for itself."""
    _lazy_init()
    return index_of(device) != index_of(peer_device)


def is_tf32_supported() -> bool:
    """False: the formats of products are those of the policy, docs/precision.md."""
    return False


def get_arch_list() -> list[str]:
    """Empty: no kernels are compiled ahead for a generation of the chip."""
    return []


def get_gencode_flags() -> str:
    """Empty, likewise."""
    return ""


def ipc_collect() -> None:
    """Nothing to do: tensors that other processes share are freed with their last owner."""


def get_sync_debug_mode() -> int:
    """0: synchronizing calls are not reported."""
    return 0


def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Accepts "default" or 0. Raises Unsupported for others: waits are not watched here."""
    if debug_mode not in (0, "default"):
        raise Unsupported(
            f"torch.{DEVICE_TYPE}.set_sync_debug_mode({debug_mode!r}): calls that wait for the "
            "device are not watched. torch_trn_emu.profile() shows the waits."
        )
