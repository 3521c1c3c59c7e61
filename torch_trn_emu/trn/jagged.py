"""Gradients of weights that multiply jagged nested tensors: as those of dense tensors.

torch's formulas for jagged tensors are written in Python and call `matmul`, which would take its
second operand, an activation, for the weight. Checked on torch 2.13.0.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ..importing import when_imported
from ..settings import DEVICE_TYPE
from ..torch_private import JAGGED_OPERATORS

__all__ = ["install_jagged"]

_LINEAR, _NO_WEIGHT = 0, -1  # csrc/aten/product_roles.h

Formula = Callable[..., Any]


def install_jagged() -> None:
    """Replace the formulas once a program imports them."""
    when_imported(JAGGED_OPERATORS, _replace)


def _replace(module: Any) -> None:
    table, aten = module.JAGGED_OPS_TABLE, torch.ops.aten
    formulas = {
        aten.linear_backward.default: _linear_backward,
        aten.matmul_backward.default: _matmul_backward,
    }
    for op, formula in formulas.items():
        if op in table:
            table[op] = formula(table[op])


def _of_weight(a: Tensor, b: Tensor) -> Tensor:
    """The product of two activations [rows, m] and [rows, n] over all rows."""
    made: Tensor = torch.ops.trn.product_of_role(a.t(), b, _LINEAR, _NO_WEIGHT)
    return made


def _rows(x: Any, width: int) -> Tensor:
    rows: Tensor = x._values.reshape(-1, width)
    return rows


def _linear_backward(torchs: Formula) -> Formula:
    @wraps(torchs)
    def formula(x: Any, grad: Any, weight: Tensor, mask: Sequence[bool]) -> Any:
        if x.device.type != DEVICE_TYPE or not mask[1]:
            return torchs(x, grad, weight, mask)
        of_x, _, of_bias = torchs(x, grad, weight, [mask[0], False, mask[2]])
        of_weight = _of_weight(_rows(grad, weight.size(0)), _rows(x, weight.size(1)))
        return of_x, of_weight, of_bias

    return formula


def _matmul_backward(torchs: Formula) -> Formula:
    """Of a jagged tensor by one matrix: the rows of all sequences make one product."""

    @wraps(torchs)
    def formula(grad: Any, x: Any, other: Any, mask: Sequence[bool]) -> Any:
        by_matrix = x.is_nested and not other.is_nested and other.dim() == 2
        if grad is None or not (by_matrix and mask[1] and x.device.type == DEVICE_TYPE):
            return torchs(grad, x, other, mask)
        of_x, _ = torchs(grad, x, other, [mask[0], False])
        return of_x, _of_weight(_rows(grad, other.size(1)), _rows(x, other.size(0))).t()

    return formula
