"""Products under the policies that round: the value by definition, and how far sums may be off.

The operands are rounded as the policy says, and the operator runs on the host in float64. To add an
operator, add a row to PRODUCTS.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[1] / "aten"))
import oracle

# The places of both operands among (input, *args), and along what the second is contracted.
PRODUCTS = {
    "mm": (0, 1, -2),
    "bmm": (0, 1, -2),
    "mv": (0, 1, -1),
    "dot": (0, 1, -1),
    "matmul": (0, 1, -2),
    "__rmatmul__": (1, 0, -2),
    "inner": (0, 1, -1),
    "nn.functional.linear": (0, 1, -1),
    "addmm": (1, 2, -2),
    "addmm.decomposed": (1, 2, -2),
    "addmv": (1, 2, -1),
    "baddbmm": (1, 2, -2),
}
POLICIES = tuple(name for name in oracle.POLICIES if name != "fp32")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
LAST_BIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def wide(tree: Any) -> Any:
    def double(x: Tensor) -> Tensor:
        return x.detach().double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, double, tree)


def magnitudes(tree: Any) -> Any:
    return pytree.tree_map_only((Tensor, float, int), abs, tree)


def roundings(policy: str, a: Tensor, b: Tensor) -> Iterator[tuple[oracle.Rounded, bool]]:
    """How the operands may be rounded, and whether the first one stands for the weight.

    Of operands of other ranks matmul makes one product of matrices, in either order, or a batch.
    """
    linear, _, attention = oracle.POLICIES[policy]
    if a.dim() == 0 or b.dim() == 0:
        yield oracle.GIVEN, False  # a number: nothing is contracted
        return
    if a.dim() < 3 or b.dim() < 3:
        yield linear, False
    if a.dim() >= 3 or b.dim() >= 3:
        yield attention, False
        yield linear, True


def expected(
    op: Any, sample: Any, row: tuple[int, int, int], how: oracle.Rounded, swap: bool
) -> tuple[Tensor, Tensor, int]:
    """The result in float64, the magnitude of its sums, and how many terms they have."""
    first, second, dim = row
    given = wide([sample.input, *sample.args])
    a, b = (([sample.input, *sample.args])[at].detach() for at in (first, second))
    b_dim = dim if b.dim() > 1 else -1
    formats = (how.second, how.first) if swap else (how.first, how.second)
    given[first] = oracle.round_operand(formats[0], a, -1)
    given[second] = oracle.round_operand(formats[1], b, b_dim)
    kwargs = wide(sample.kwargs)
    exact = op(*given, **kwargs)
    return exact, op(*magnitudes(given), **magnitudes(kwargs)), a.shape[-1] if a.dim() else 1


def off_by(op: Any, sample: Any, name: str, policy: str, got: Tensor) -> float:
    """The error of a result, in units of the bound: at most 1."""
    row = PRODUCTS[name]
    operands = [sample.input, *sample.args]
    worst = []
    for how, swap in roundings(policy, operands[row[0]], operands[row[1]]):
        exact, size, k = expected(op, sample, row, how, swap)
        terms = (k + 4) * oracle.UNIT_ROUNDOFF
        bound = terms / (1 - terms) * size
        # A number of another format takes the result's first.
        roundings_made = 2 if 0 in (operands[row[0]].dim(), operands[row[1]].dim()) else 1
        last = roundings_made * LAST_BIT[got.dtype]
        bound = bound + (exact.abs() + bound) * last + 1e-37
        if got.dtype == torch.float16:
            bound = bound + 2.0**-24
        error = (got.cpu().double() - exact).abs() / bound
        error = error[bound.isfinite()]  # sums that overflow, or are scaled by infinity
        worst.append(float(error.amax()) if error.numel() else 0.0)
    return min(worst)
