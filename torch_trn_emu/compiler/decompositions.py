"""What operators become before they are compiled: Inductor's table, less products, with our rows.

A row of `_OURS` makes products of an operator whose kernel on the host follows no policy, or memory
of a tensor that has none. Checked on torch 2.13.0.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import product
from string import ascii_letters
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..torch_private import DispatchKey
from ..torch_private.inductor import lowerings, make_fallback, select_decomp_table
from .apply_precision import PRECISE
from .recurrent_cells import CELLS
from .whole_calls import noted

__all__ = ["decompositions", "kernels_put_away", "traced_whole"]

aten = torch.ops.aten


class _Decompositions(dict[Any, Any]):
    """Pickled by name: torch's caches hash what a graph is compiled with."""

    eager_numbers = False

    def __reduce__(self) -> tuple[Any, ...]:
        return decompositions, (self.eager_numbers,)


@cache
def decompositions(eager_numbers: bool = False) -> dict[Any, Callable[..., Any]]:
    """Inductor's, less those of products: they would be sums in float32, whatever the policy.

    A product that no policy rounds is then a call of aten's kernel. Inductor is told, since in a
    process with `CI` in its environment it refuses an operator that it knows how to decompose.

    eager_numbers  random numbers are those of eager operators, which draw in kernels of their own
    """
    table = {**select_decomp_table(), **_OURS}
    whole = {*PRECISE, *_WHOLE, *(_DRAWING if eager_numbers else ())}
    for op in whole:
        if op not in lowerings or op in _REFUSED:
            make_fallback(op, warn=False, override_decomp=True)
    made = _Decompositions((op, noted(op, table[op])) for op in table if op not in whole)
    made.eager_numbers = eager_numbers
    return made


_DRAWING = (
    aten.bernoulli.p,
    *(
        getattr(aten, name).default
        for name in "native_dropout cauchy exponential geometric log_normal".split()
    ),
)
# Spelled out these are gathers and scatters of elements; the engines have each in one pass.
_ONE_PASS = tuple(
    getattr(getattr(aten, name), overload)
    for names, overloads in (
        ("upsample_linear1d upsample_nearest1d", "default vec"),
        ("upsample_bilinear2d upsample_bicubic2d upsample_nearest2d", "default vec"),
        ("upsample_trilinear3d", "default vec"),
        ("reflection_pad1d reflection_pad2d", "default"),
        ("reflection_pad1d_backward reflection_pad2d_backward", "default"),
        ("max_pool2d_with_indices max_pool2d_with_indices_backward", "default"),
        ("embedding_dense_backward", "default"),
    )
    for name in names.split()
    for overload in overloads.split()
)
# Inductor's own code for them takes some sizes only: it spells the others out as two reductions.
_REFUSED = (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
# Left to aten's kernels as well.
_WHOLE = (
    aten.masked_scatter.default,  # asks what Inductor can do on trn, which is nothing
    aten.multilabel_margin_loss_forward.default,  # torch's counts what comes after the first -1
    *_ONE_PASS,
    *_REFUSED,
)


# Operators that torch has Python kernels for, which spell them out or are wrong.
_SPELLED = re.compile(
    r"(_?upsample_(?!nearest(_exact)?3d).*|hardshrink|softshrink|multi_margin_loss"
    r"|multilabel_margin_loss_forward|dropout)$"
)


def traced_whole() -> AbstractContextManager[None]:
    """Traces operators by their own kernels that torch has Python kernels for: those that resize,
    losses and activations that these spell out, dropout, which they copy where nothing is dropped.
    """
    packets = [getattr(aten, name) for name in dir(aten) if _SPELLED.match(name)]
    ops = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    keys = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
    return kernels_put_away(ops, keys, {aten.dropout.default: _dropout})


@contextmanager
def kernels_put_away(
    ops: Iterable[Any],
    keys: Iterable[DispatchKey],
    instead: Mapping[Any, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Without torch's Python kernels of operators under some keys, or with others."""
    held = [(op, key) for op, key in product(ops, keys) if key in op.py_kernels]
    taken = [(op, key, op.py_kernels.pop(key)) for op, key in held]
    for op, key, _ in taken:
        if op in instead:
            op.py_kernels[key] = instead[op]
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, key, kernel in taken:
            op.py_kernels[key] = kernel
            op._dispatch_cache.clear()


def _dropout(input: Tensor, p: float, train: bool | None) -> Tensor:
    """What the kernel of devices does; on `meta` that is not one call."""
    return aten.native_dropout(input, p, True)[0] if train and p else input


def _addbmm(addend: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """A product that the policy rounds, summed in float32 and rounded once, as eager does."""
    if not addend.is_floating_point():
        return NotImplemented
    wide = torch.promote_types(a.dtype, torch.float32)
    made = alpha * torch.bmm(a.to(wide), b.to(wide)).sum(0)
    if beta != 0:
        made = made + beta * addend.to(wide)
    return made.to(a.dtype)


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    without_a: Sequence[int],
    without_b: Sequence[int],
    without_c: Sequence[int],
    summed: Sequence[int],
    unrolled: int = 1,
) -> Tensor:
    """The sum of a * b * c over dimensions; each tensor lacks some.

    Two products, as eager makes them. It goes through the unrolled dimension one by one: no product
    contracts along that.
    """
    every = ascii_letters[: a.dim() + len(without_a)]
    of_a, of_b, of_c = (
        [x for d, x in enumerate(every) if d not in without]
        for without in (without_a, without_b, without_c)
    )
    gone = {every[d] for d in summed if d != unrolled}
    both = [x for x in every if x in (*of_a, *of_b) and (x in of_c or x not in gone)]
    left = [x for x in every if x not in gone]
    made = _product(_product(a, of_a, b, of_b, both), both, c, of_c, left)
    return made.sum(left.index(every[unrolled])) if unrolled in summed else made


def _product(a: Tensor, of_a: list[str], b: Tensor, of_b: list[str], made: list[str]) -> Tensor:
    made_of = "".join((*of_a, ",", *of_b, "->", *made))
    return torch.einsum(made_of, a, b)


_OURS: MappingProxyType[Any, Callable[..., Any]] = MappingProxyType(
    {
        aten.addbmm.default: _addbmm,
        aten._trilinear.default: _trilinear,
        # of forward-mode gradients; Inductor's code reads what an operator gives it
        aten._efficientzerotensor.default: torch.zeros,
        **CELLS,
    }
)
