"""What `torch.cuda.nccl` calls: collectives over devices of one process, as copies and sums of
those devices.

Only a torch built with CUDA has it. Sums are in float32 or wider, in the order of the inputs,
rounded once, as those of torch.distributed are. Streams and communicators are checked and left
aside: an operation follows those before it on its tensors. Checked on torch 2.13.0.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
from typing import Any

import torch

from ..torch_private import set_functions_of_torch_c

__all__ = ["map_nccl"]

Tensors = Sequence[torch.Tensor]

_SUM, _PROD, _MAX, _MIN, _AVG = range(5)  # NCCL's numbers
_STEPS: MappingProxyType[int, Callable[..., torch.Tensor]] = MappingProxyType(
    {
        _SUM: torch.add,
        _PROD: torch.mul,
        _MAX: torch.maximum,
        _MIN: torch.minimum,
        _AVG: torch.add,
    }
)
_FLOAT8 = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip
_NUMBERS = (
    torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.int32,
    torch.int8, torch.uint8,
)  # fmt: skip
_ID_BYTES = 128


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_tensor(tensor: torch.Tensor, first: torch.Tensor) -> None:
    _check(
        not tensor.is_cpu and tensor.layout is torch.strided,
        "input and output elements have to be cuda dense Tensors",
    )
    same = tensor.dtype == first.dtype
    _check(same, "all inputs and outputs must be of the same Tensor dtype")
    _check(tensor.is_contiguous(), "all inputs and outputs have to be contiguous")


def _checked(elements: Iterable[torch.Tensor], streams: Any, comms: Any) -> list[torch.Tensor]:
    inputs = list(elements)
    _check(bool(inputs), "input sequence can't be empty")
    first = inputs[0]
    for tensor in inputs:
        _check_tensor(tensor, first)
        same = tensor.numel() == first.numel()
        _check(same, "all inputs must have the same number of elements")
    devices = {tensor.get_device() for tensor in inputs}
    _check(len(devices) == len(inputs), "inputs must be on unique devices")
    known = first.dtype in (*_NUMBERS, *_FLOAT8, torch.bool)
    _check(known, f"Unconvertible NCCL type {first.dtype}")
    for name, given in (("streams", streams), ("communicators", comms)):
        fits = given is None or len(given) == len(inputs)
        _check(fits, f"number of {name} is not equal to number of inputs")
    return inputs


def _check_output(source: torch.Tensor, output: torch.Tensor, size: int) -> None:
    _check_tensor(output, source)
    here = source.get_device() == output.get_device()
    _check(here, "input and output must be on the same device")
    _check(output.numel() == size, "output must be of size input_size * size_multiplier")


def _check_outputs(inputs: Tensors, outputs: Tensors, size: int) -> None:
    _check(
        len(inputs) == len(outputs),
        "inputs and outputs sequences have to be of the same length, but got input of length "
        f"{len(inputs)} and output of length {len(outputs)}",
    )
    for source, output in zip(inputs, outputs, strict=True):
        _check_output(source, output, size)


def _reduced(parts: Iterable[torch.Tensor], device: torch.device, op: int) -> torch.Tensor:
    """The parts reduced on a device, flat, in their dtype."""
    own, *others = (part.reshape(-1).to(device) for part in parts)
    dtype = own.dtype
    _check(op in _STEPS, f"NCCL has no reduction of number {op}")
    if dtype in _FLOAT8:
        raise RuntimeError(f"NCCL reduces no {dtype}: it moves its bytes alone")
    if dtype == torch.bool:
        own, others = own.to(torch.uint8), [other.to(torch.uint8) for other in others]
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else own.dtype
    found = own.to(wide)
    for other in others:
        found = _STEPS[op](found, other.to(wide))
    if op == _AVG:
        count = 1 + len(others)
        exact = found.is_floating_point()
        found = found / count if exact else found.div(count, rounding_mode="trunc")
    return found.to(dtype)


@torch.no_grad()
def _nccl_reduce(
    inputs: Iterable[torch.Tensor],
    output: torch.Tensor,
    root: int = 0,
    op: int = _SUM,
    streams: Any = None,
    comms: Any = None,
) -> None:
    given = _checked(inputs, streams, comms)
    _check(0 <= root < len(given), "invalid root")
    _check_output(given[root], output, given[0].numel())
    output.copy_(_reduced(given, output.device, op).view(output.shape))


@torch.no_grad()
def _nccl_all_reduce(
    inputs: Iterable[torch.Tensor],
    outputs: Iterable[torch.Tensor],
    op: int = _SUM,
    streams: Any = None,
    comms: Any = None,
) -> None:
    given, out = _checked(inputs, streams, comms), list(outputs)
    _check_outputs(given, out, given[0].numel())
    found = _reduced(given, out[0].device, op)
    for output in out:
        output.copy_(found.view(output.shape))


@torch.no_grad()
def _nccl_broadcast(
    inputs: Iterable[torch.Tensor], root: int = 0, streams: Any = None, comms: Any = None
) -> None:
    given = _checked(inputs, streams, comms)
    _check(0 <= root < len(given), "invalid root")
    for tensor in given[:root] + given[root + 1 :]:
        tensor.copy_(given[root].view(tensor.shape))


@torch.no_grad()
def _nccl_all_gather(
    inputs: Iterable[torch.Tensor],
    outputs: Iterable[torch.Tensor],
    streams: Any = None,
    comms: Any = None,
) -> None:
    given, out = _checked(inputs, streams, comms), list(outputs)
    size = given[0].numel()
    _check_outputs(given, out, size * len(given))
    for output in out:
        for place, tensor in zip(output.view(len(given), size), given, strict=True):
            place.copy_(tensor.view(-1))


@torch.no_grad()
def _nccl_reduce_scatter(
    inputs: Iterable[torch.Tensor],
    outputs: Iterable[torch.Tensor],
    op: int = _SUM,
    streams: Any = None,
    comms: Any = None,
) -> None:
    given, out = _checked(inputs, streams, comms), list(outputs)
    whole = given[0].numel()
    _check(whole % len(given) == 0, "output must be of size input_size * size_multiplier")
    size = whole // len(given)
    _check_outputs(given, out, size)
    parts = [tensor.view(len(given), size) for tensor in given]
    for index, output in enumerate(out):
        found = _reduced([part[index] for part in parts], output.device, op)
        output.copy_(found.view(output.shape))


def _nccl_unique_id() -> bytes:
    """An identifier of a communicator: as many bytes as NCCL's, each time others."""
    return os.urandom(_ID_BYTES)


def map_nccl() -> None:
    """Put them where torch looks, which has none of its own."""
    functions = (
        _nccl_all_gather, _nccl_all_reduce, _nccl_broadcast, _nccl_reduce, _nccl_reduce_scatter,
        _nccl_unique_id,
    )  # fmt: skip
    set_functions_of_torch_c({function.__name__: function for function in functions})
