"""Recipes that depend on the numbers, flags or dtypes of an elementwise call: a reader for each.

A reader gives the steps, or None where the recipe by name holds. To add one, add a row to READERS.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType

from .call import Call, TensorArg
from .pointwise import Step, activation, copy, tensor_scalar, tensor_tensor

__all__ = ["MADE_VALUES", "READERS", "made_value", "rounded_down", "whole"]

WHOLE = "int32"  # numbers beyond it are as large as it can hold
Reader = Callable[[Call, Sequence[TensorArg]], Sequence[Step] | None]
MEAN = 1  # at::Reduction

# What operators that make a tensor of one value fill it with; None: with a number of the call.
MADE_VALUES: MappingProxyType[str, float | None] = MappingProxyType(
    dict.fromkeys(("zero", "zeros", "zeros_like", "new_zeros"), 0.0)
    | dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0)
    | dict.fromkeys(("fill", "full", "full_like", "new_full", "scalar_tensor"))
)


def made_value(call: Call) -> float:
    """What a tensor is filled with; 0 where that is a tensor's value, which is data."""
    value = MADE_VALUES[call.name]
    if value is not None:
        return value
    given = call.argument({"scalar_tensor": 0, "new_full": 2}.get(call.name, 1))
    return float(given) if isinstance(given, (bool, int, float)) else 0.0


def whole(a: int = 0) -> Step:
    """The nearest whole number, as the engines round; of two the even one."""
    return replace(copy(a), dtype=WHOLE)


def rounded_down(a: int = 0) -> list[Step]:
    """The whole number below: the nearest one, less 1 where that is larger."""
    given = a if a >= 0 else a - 1
    return [whole(a), tensor_tensor("greater", -1, given), tensor_tensor("subtract", -2, -1)]


def _reversed(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Other - alpha * self."""
    alpha = float(call.argument(2, 1))
    scaled = [tensor_scalar(0, op0="multiply", imm0=alpha)] if alpha != 1 else []
    mine = -1 if scaled else 0
    if len(operands) == 2:
        return [*scaled, tensor_tensor("subtract", 1, mine)]
    return [tensor_scalar(0, op0="multiply", imm0=-alpha, op1="add", imm1=float(call.argument(1)))]


def _power(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """A number to the power of a tensor."""
    base = call.argument(0)
    if not isinstance(base, (int, float)):
        return None
    return [tensor_scalar(0, op0="power", imm0=float(base), reverse0=True)]


def _quotient(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Rounded, where the call says so."""
    if not any(mode in call.arguments[2:] for mode in ("floor", "trunc")):
        return None
    if len(operands) == 2:
        return [activation("reciprocal", 1), tensor_tensor("multiply", 0, -1), *rounded_down(-1)]
    value = call.argument(1)
    inverse = 1 / value if isinstance(value, (int, float)) and value else 1.0
    return [tensor_scalar(0, op0="multiply", imm0=inverse), *rounded_down(-1)]


def _complement(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Of a truth value."""
    return [tensor_scalar(0, op0="equal", imm0=0.0)] if call.out.dtype == "bool" else None


def _dropped(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Grad * mask * scale"""
    scale = float(call.argument(2, 1.0))
    return [tensor_tensor("multiply"), tensor_scalar(-1, op0="multiply", imm0=scale)]


def _share(call: Call) -> float:
    """Of one element in the loss: all of it, or an equal part of the mean."""
    return 1.0 / max(1, prod(call.argument(1).shape)) if call.argument(3, MEAN) == MEAN else 1.0


def _squared_error(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """2 (x - y) grad, over the number of elements for a mean."""
    if len(operands) != 3:
        return None
    factor = tensor_scalar(-1, op0="multiply", imm0=2 * _share(call))
    return [tensor_tensor("subtract", 1, 2), factor, tensor_tensor("multiply", 0, -1)]


def _smooth_error(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """(x - y) / beta cut to -1 .. 1, times grad, over the number of elements for a mean."""
    beta = float(call.argument(4, 1.0))
    if len(operands) != 3 or not beta:
        return None
    return [
        tensor_tensor("subtract", 1, 2),
        tensor_scalar(-1, op0="multiply", imm0=1 / beta, op1="max", imm1=-1.0),
        tensor_scalar(-1, op0="min", imm0=1.0, op1="multiply", imm1=_share(call)),
        tensor_tensor("multiply", 0, -1),
    ]


READERS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "rsub": _reversed,
        "pow": _power,
        "div": _quotient,
        "true_divide": _quotient,
        "bitwise_not": _complement,
        "native_dropout_backward": _dropped,
        "mse_loss_backward": _squared_error,
        "smooth_l1_loss_backward": _smooth_error,
    }
)
