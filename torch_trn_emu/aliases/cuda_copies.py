"""What `torch.nn.DataParallel` and `torch.nn.parallel.comm` call to copy tensors between devices of
cuda. Only a torch built with CUDA has it. Complex tensors travel as pairs of real numbers.

Checked on torch 2.13.0.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .. import trn
from ..torch_private import set_functions_of_torch_c

__all__ = ["map_copies"]

Tensors = Sequence[torch.Tensor]


def _at(index: int | None) -> torch.device:
    """A device by its number; -1 is the host, None the current device."""
    if index == -1:
        return torch.device("cpu")
    return torch.device("trn", trn.current_device() if index is None else index)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _broadcast(tensor: torch.Tensor, devices: Sequence[int]) -> list[torch.Tensor]:
    first = bool(devices) and (tensor.is_cpu or tensor.get_device() == devices[0])
    _check(first, "broadcast: the first device must be that of the tensor, and there must be one")
    return [tensor.to(_at(index)) for index in devices]


def _broadcast_out(tensor: torch.Tensor, out: Tensors) -> list[torch.Tensor]:
    for index, result in enumerate(out):
        _check(not result.is_cpu, f"broadcast: output {index} is not on a device of cuda")
        same = result.shape == tensor.shape
        _check(same, f"broadcast: output {index} has another shape than the tensor")
        result.copy_(tensor)
    return list(out)


def _broadcast_coalesced(
    tensors: Tensors, devices: Sequence[int], buffer_size: int
) -> list[list[torch.Tensor]]:
    there = all(not t.is_cpu and t.get_device() == devices[0] for t in tensors)
    _check(there, "broadcast_coalesced: all tensors must be on devices[0]")
    return [[_real(t).to(_at(index)) for t in tensors] for index in devices]


def _pieces(tensor: torch.Tensor, count: int, sizes: Any, dim: int) -> Tensors:
    _check(tensor.numel() > 0, "scatter: the tensor must not be empty")
    if sizes is None:
        return tensor.chunk(count, dim)
    fits = len(sizes) == count and sum(sizes) == tensor.size(dim) and min(sizes) > 0
    _check(fits, f"scatter: chunk sizes {list(sizes)} do not make up {tensor.size(dim)} elements")
    pieces: Tensors = tensor.split(list(sizes), dim)
    return pieces


def _scatter(
    tensor: torch.Tensor, devices: Sequence[int], chunk_sizes: Any, dim: int, streams: Any = None
) -> list[torch.Tensor]:
    _check(bool(devices), "scatter: no devices")
    dim %= max(1, tensor.dim())
    pieces = _pieces(tensor, len(devices), chunk_sizes, dim)
    return [_real(piece).to(_at(index)) for piece, index in zip(pieces, devices, strict=False)]


def _scatter_out(
    tensor: torch.Tensor, out: Tensors, dim: int, streams: Any = None
) -> list[torch.Tensor]:
    _check(all(not t.is_cpu for t in out), "scatter: outputs must be on devices of cuda")
    pieces = _pieces(tensor, len(out), [t.size(dim) for t in out], dim)
    for result, piece in zip(out, pieces, strict=True):
        result.copy_(piece)
    return list(out)


def _gather(tensors: Tensors, dim: int, destination: int | None) -> torch.Tensor:
    _check(bool(tensors), "gather: no tensors")
    _check(all(not t.is_cpu for t in tensors), "gather: tensors must be on devices of cuda")
    return torch.cat([_real(t).to(_at(destination)) for t in tensors], dim % tensors[0].dim())


def _gather_out(tensors: Tensors, out: torch.Tensor, dim: int) -> torch.Tensor:
    _check(bool(tensors), "gather: no tensors")
    whole = torch.cat([t.to(out.device) for t in tensors], dim)
    _check(whole.shape == out.shape, f"gather: output of {out.shape} for {whole.shape}")
    return out.copy_(whole)


def map_copies() -> None:
    """Put them where torch looks, which has none of its own."""
    functions = (
        _broadcast, _broadcast_coalesced, _broadcast_out, _gather, _gather_out, _scatter,
        _scatter_out,
    )  # fmt: skip
    set_functions_of_torch_c({function.__name__: function for function in functions})
