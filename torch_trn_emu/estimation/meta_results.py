"""Results of operators on `meta`, kept by the signature of the call.

torch finds many of them in Python (`torch._refs`), in 0.2 to 2 ms each. An operator whose results
are new tensors gives the same sizes, strides and dtypes whenever those of its operands and its
other arguments are equal. Checked on torch 2.13.0.
"""

from collections.abc import Hashable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch

from ..torch_private import OpOverload

__all__ = ["is_counted", "run_on_meta", "tensors_in"]

FEW = (
    1 << 16
)  # elements of a tensor of whole numbers that an estimate of a script computes (chosen)
MOST = 4096  # signatures that are kept; beyond, the oldest is dropped and found again (chosen)
_DEPENDS_ON_DATA = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_PLAIN = (int, float, complex, bool, str, torch.dtype, torch.device, torch.layout)
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_made: dict[Hashable, Any] = {}


class _NotKept(Exception):
    """A call whose result is not known by its signature."""


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """The tensors among an operator's arguments or results, those of lists and dicts included."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


def is_counted(tensor: torch.Tensor) -> bool:
    """Whether it holds a few whole numbers: sizes, positions, flags."""
    return not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() <= FEW


def run_on_meta(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`; once its signature is known, new tensors of the same layouts."""
    if func._opname.startswith("_foreach_"):
        return _foreach(func, args, kwargs)
    if not _makes_new_tensors(func):
        return func(*args, **kwargs)
    try:
        key = (func, torch.get_default_dtype(), _signature(args), _signature(kwargs))
    except _NotKept:
        return func(*args, **kwargs)
    if key not in _made:
        result = func(*args, **kwargs)
        with suppress(_NotKept):
            _keep(key, _layouts(result, set()))
        return result
    return _tensors(_made[key])


def _keep(key: Hashable, layouts: Any) -> None:
    if len(_made) >= MOST:
        del _made[next(iter(_made))]
    _made[key] = layouts


@cache
def _makes_new_tensors(func: OpOverload) -> bool:
    schema = func._schema
    aliases = any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))
    return not (aliases or func.is_view or any(tag in func.tags for tag in _DEPENDS_ON_DATA))


def _signature(value: Any) -> Hashable:
    kind = type(value)
    if kind in _TENSORS:
        return _layout(value)
    if kind is tuple or kind is list:
        return tuple([_signature(item) for item in value])
    if kind is dict:
        return tuple([(name, _signature(value[name])) for name in sorted(value)])
    if value is None or kind in _PLAIN or kind is torch.memory_format:
        return kind, value  # 1, 1.0 and True are equal
    raise _NotKept


def _layout(tensor: torch.Tensor) -> Hashable:
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise _NotKept
    if any(type(size) is not int for size in tensor.shape):
        raise _NotKept
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type


def _layouts(result: Any, storages: set[int]) -> Any:
    """Arguments of `empty_strided` for each tensor; storages that several share are not kept."""
    if result is None:
        return None
    if isinstance(result, (tuple, list)):
        made = [_layouts(item, storages) for item in result]
        return made if isinstance(result, list) else tuple(made)
    if type(result) is not torch.Tensor or result.device.type != "meta":
        raise _NotKept
    _layout(result)  # raises for what is not strided
    new = _New(result.shape, result.stride(), result.dtype)
    storage, whole = result.untyped_storage(), _tensors(new).untyped_storage()
    if storage._cdata in storages or storage.nbytes() != whole.nbytes():
        raise _NotKept
    storages.add(storage._cdata)
    return new


class _New(NamedTuple):
    """A tensor to be made."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _tensors(layouts: Any) -> Any:
    if type(layouts) is _New:
        return torch.empty_strided(
            layouts.shape, layouts.stride, dtype=layouts.dtype, device="meta"
        )
    if layouts is None:
        return None
    made = [_tensors(item) for item in layouts]
    return made if type(layouts) is list else tuple(made)


def _foreach(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A `foreach` operator does the same for each index of its lists: once for equal ones."""
    lists = [i for i, value in enumerate(args) if isinstance(value, (list, tuple))]
    count = len(args[0])
    apart = any(isinstance(value, (list, tuple)) for value in kwargs.values())
    apart = apart or any(tensor.device.type != "meta" for tensor in tensors_in(args))
    if apart or any(len(args[i]) != count for i in lists):
        return func(*args, **kwargs)
    try:
        rows = [_signature([args[i][row] for i in lists]) for row in range(count)]
    except _NotKept:
        return func(*args, **kwargs)
    first = {key: row for row, key in reversed(list(enumerate(rows)))}
    chosen = sorted(first.values())
    some = [[value[row] for row in chosen] if i in lists else value for i, value in enumerate(args)]
    result = func(*some, **kwargs)
    if result is None:
        return None
    place = {row: index for index, row in enumerate(chosen)}
    return _expanded(result, [place[first[key]] for key in rows])


def _expanded(result: Sequence[torch.Tensor], places: Sequence[int]) -> list[Any]:
    """The result at each of `places`: itself the first time, then a new tensor like it."""
    given: set[int] = set()

    def at(place: int) -> Any:
        like = result[place]
        if place not in given:
            given.add(place)
            return like
        return _tensors(_New(like.shape, like.stride(), like.dtype))

    return [at(place) for place in places]
