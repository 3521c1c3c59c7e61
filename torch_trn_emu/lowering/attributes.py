"""Recipes that depend on the numbers, flags or dtypes of an elementwise call: a reader for each.

A reader gives the steps, or None where the recipe by name holds. To add one, add a row to READERS.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType

from .call import Call, TensorArg
from .pointwise import Step, copy, tensor_scalar, tensor_tensor

__all__ = ["MADE_VALUES", "READERS", "Reader", "made_value", "rounded_down", "whole"]

WHOLE = "int32"  # numbers beyond it are as large as it can hold
Reader = Callable[[Call, Sequence[TensorArg]], Sequence[Step] | None]

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


def _complement(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Of a truth value."""
    return [tensor_scalar(0, op0="equal", imm0=0.0)] if call.out.dtype == "bool" else None


def _dropped(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Grad * mask * scale"""
    scale = float(call.argument(2, 1.0))
    return [tensor_tensor("multiply"), tensor_scalar(-1, op0="multiply", imm0=scale)]


READERS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "rsub": _reversed,
        "pow": _power,
        "bitwise_not": _complement,
        "native_dropout_backward": _dropped,
    }
)
