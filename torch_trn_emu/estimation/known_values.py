"""Values of `meta` tensors that depend on no argument: positions, masks of ones, constants.

A function that asks for one (`if mask.all()`, as Hugging Face's masks do) can then be priced. What
is made without a tensor, or of tensors of the host, is computed on the host beside the `meta`
tensor; so is what is made of such values. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import Unimplemented
from ..torch_private import disable_modes, tree_leaves, tree_map
from .meta_results import tensors_in

__all__ = ["KnownValues"]

MOST = 1 << 16  # elements of a tensor whose values are kept (chosen)
_UNWRITTEN = frozenset(
    "empty empty_strided empty_like new_empty new_empty_strided empty_permuted".split()
)
_BY_SHAPE = frozenset("full_like new_full new_ones new_zeros ones_like zeros_like".split())
_BY_DATA = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class KnownValues:
    """The host's twins of `meta` tensors, as long as these live."""

    def __init__(self) -> None:
        self._twins: Any = WeakIdKeyDictionary()
        self._spoiled: set[int] = set()  # storages of twins into which unknown values were written

    def run(self, func: Any, args: Any, kwargs: Any, price: Callable[..., Any]) -> Any:
        """`price(func, args, kwargs, given)`, which runs it on `meta` unless its result is given.

        Given is what the host gets, and results whose size depends on data: those of the twins.
        """
        known = self._computed(func, args, kwargs)
        if known is None:
            self._forget(func, args, kwargs)
            reads = func._opname == "_local_scalar_dense" and _is_meta(args[0])
            if reads or _to_host(func, args, kwargs):
                raise Unimplemented(
                    "the function reads a value of a tensor, which `meta` tensors do not have. "
                    "`trn-emu estimate script.py` runs a script on the host and has them."
                )
            return price(func, args, kwargs)
        given: tuple[Any, ...] = ()
        if _to_host(func, args, kwargs):
            given = (known,)
        elif any(tag in func.tags for tag in _BY_DATA):
            given = (tree_map(_to_meta, known),)
        made = price(func, args, kwargs, given)
        for tensor, twin in zip(tree_leaves(made), tree_leaves(known), strict=True):
            if _is_meta(tensor):
                self._twins[tensor] = twin
        return made

    def gather(self, given: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        """A collective among ranks that are taken to give what this one does.

        A result holds what was given once or several times: once for each rank.
        """
        twin = self.twin(given[0]) if len(given) == 1 else None
        for result in filter(_is_meta, results):
            if twin is not None and _fits(twin, result):
                copies = twin.flatten().repeat(result.numel() // twin.numel())
                self._twins[result] = copies.reshape(result.shape)
            elif result in self._twins:
                self._spoiled.add(self._twins[result].untyped_storage()._cdata)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The same of the twins, or None: not known, or nothing of `meta`."""
        given = tensors_in(args, kwargs)
        makes = torch.device(kwargs.get("device") or "cpu").type == "meta"
        if not makes and not any(map(_is_meta, given)):
            return None
        if func._opname in _UNWRITTEN or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        twin = _shaped if func._opname in _BY_SHAPE else self.twin
        if any(t.numel() > MOST or twin(t) is None for t in given):
            return None
        if not given and _elements(func, args, kwargs) > MOST:
            return None

        def or_same(value: Any) -> Any:
            return twin(value) if isinstance(value, torch.Tensor) else value

        here = {k: "cpu" if k == "device" and v is not None else v for k, v in kwargs.items()}
        with disable_modes(), torch.no_grad():
            return func(*tree_map(or_same, args), **tree_map(or_same, here))

    def twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What has its values; None if they are not known."""
        if tensor.device.type == "cpu":
            return tensor
        twin: torch.Tensor | None = self._twins.get(tensor)
        spoiled = twin is not None and twin.untyped_storage()._cdata in self._spoiled
        return None if spoiled else twin

    def _forget(self, func: Any, args: Any, kwargs: Any) -> None:
        """Of what an operator writes to that is not known."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._spoil(argument, value)
        for argument in func._schema.arguments:
            self._spoil(argument, kwargs.get(argument.name))

    def _spoil(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in tensors_in(value):
            twin = self._twins.get(tensor)
            if twin is not None:
                self._spoiled.add(twin.untyped_storage()._cdata)


def _fits(twin: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether a few elements are some copies of others."""
    each, whole = twin.numel(), result.numel()
    return each > 0 and whole <= MOST and whole % each == 0


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _to_host(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it brings values of `meta` tensors to the host."""
    if func._opname == "copy_":
        return _is_meta(args[1]) and not _is_meta(args[0])
    device = kwargs.get("device")
    copies = func._opname in ("_to_copy", "_copy_from") and device is not None
    return copies and _is_meta(args[0]) and torch.device(device).type == "cpu"


def _shaped(tensor: torch.Tensor) -> torch.Tensor:
    """For what reads sizes alone."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _elements(func: Callable[..., Any], args: Any, kwargs: Any) -> int:
    """Of what a factory makes."""
    made = func(*args, **kwargs)
    return sum(tensor.numel() for tensor in tensors_in(made))
