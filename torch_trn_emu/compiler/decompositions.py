"""What AOTAutograd decomposes: Inductor's table, less the operators that stay whole.

Checked on torch 2.13.0.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.lowering import lowerings, make_fallback

from .operators import PRECISE

__all__ = ["decompositions"]


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
    table = {**select_decomp_table(), torch.ops.aten.addbmm.default: _addbmm}
    whole = {*PRECISE, *_WHOLE, *(_DRAWING if eager_numbers else ())}
    for op in whole:
        if op not in lowerings:
            make_fallback(op, warn=False, override_decomp=True)
    made = _Decompositions((op, table[op]) for op in table if op not in whole)
    made.eager_numbers = eager_numbers
    return made


_DRAWING = (
    torch.ops.aten.bernoulli.p,
    *(
        getattr(torch.ops.aten, name).default
        for name in "native_dropout cauchy exponential geometric log_normal".split()
    ),
)
# Left to aten's kernels as well.
_WHOLE = (
    torch.ops.aten.masked_scatter.default,  # asks what Inductor can do on trn, which is nothing
)


def _addbmm(addend: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """A product that the policy rounds, summed in float32 and rounded once, as eager does."""
    if not addend.is_floating_point():
        return NotImplemented
    wide = torch.promote_types(a.dtype, torch.float32)
    made = alpha * torch.bmm(a.to(wide), b.to(wide)).sum(0)
    if beta != 0:
        made = made + beta * addend.to(wide)
    return made.to(a.dtype)
