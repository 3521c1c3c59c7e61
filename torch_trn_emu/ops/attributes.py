"""Recipes that depend on the numbers, flags or dtypes of an elementwise call: a reader for each.

A reader gives the steps, or None where the recipe by name holds. To add one, add a row to READERS.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import pi, sqrt
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from ..kernels.pointwise import Step, activation, copy, select, tensor_scalar, tensor_tensor

__all__ = [
    "MADE_VALUES",
    "READERS",
    "Reader",
    "fills_from",
    "made_value",
    "rounded_down",
    "where_it_rounds",
    "whole",
]

WHOLE = "int32"  # numbers beyond it are as large as it can hold
WHOLE_FROM = 2.0**23  # float32 has no fractions from here on
Reader = Callable[[Call, Sequence[TensorArg]], Sequence[Step] | None]

# What operators that make a tensor of one value fill it with; None: with a number of the call.
MADE_VALUES: MappingProxyType[str, float | None] = MappingProxyType(
    dict.fromkeys(("zero", "zeros", "zeros_like", "new_zeros"), 0.0)
    | dict.fromkeys(("ones", "ones_like", "new_ones"), 1.0)
    | dict.fromkeys(("fill", "full", "full_like", "new_full", "scalar_tensor"))
)


def _filling(call: Call) -> Any:
    return call.argument({"scalar_tensor": 0, "new_full": 2}.get(call.name, 1))


def fills_from(call: Call) -> bool:
    """Whether a tensor of the device holds the value that another is filled with."""
    given = _filling(call) if MADE_VALUES[call.name] is None else None
    return isinstance(given, TensorArg) and not given.on_host


def made_value(call: Call) -> float:
    """What a tensor is filled with; 0 where that is a tensor of the host's, whose value is data."""
    value = MADE_VALUES[call.name]
    if value is not None:
        return value
    given = _filling(call)
    return float(given) if isinstance(given, (bool, int, float)) else 0.0


def whole(a: int = 0) -> Step:
    """The nearest whole number, as the engines round; of two the even one."""
    return replace(copy(a), dtype=WHOLE)


def rounded_down(a: int = 0) -> list[Step]:
    """The whole number below: the nearest one, less 1 where that is larger.

    For numbers below 2^31; the result is finite where `a` is not.
    """
    given = a if a >= 0 else a - 1
    return [whole(a), tensor_tensor("greater", -1, given), tensor_tensor("subtract", -2, -1)]


def where_it_rounds(steps: Sequence[Step], a: int = 0) -> list[Step]:
    """The last step's value where operand `a` has a fraction; else `a`: NaN and infinities, too."""
    small = tensor_scalar(-1, op0="less", imm0=WHOLE_FROM)
    return [*steps, activation("abs", a), small, select(-1, -3, a)]


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


def _rounded(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """To the nearest whole number, or to decimals: of x times a power of 10."""
    decimals = int(call.argument(1, 0))
    if not decimals:
        return None
    factor = 10.0 ** abs(decimals)
    up, down = (factor, 1 / factor) if decimals > 0 else (1 / factor, factor)
    scaled = tensor_scalar(0, op0="multiply", imm0=up)
    rounds = [whole(-1), copy(-1), activation("abs", -3)]
    small = tensor_scalar(-1, op0="less", imm0=WHOLE_FROM)
    return [
        scaled,
        *rounds,
        small,
        select(-1, -3, -5),
        tensor_scalar(-1, op0="multiply", imm0=down),
    ]


def _interpolated(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """From the nearer end, as torch: a + w (b - a), or b - (1 - w) (b - a) from w = 1/2 on."""
    between, given = tensor_tensor("subtract", 1, 0), call.argument(2, 0.5)
    if len(operands) == 2 and isinstance(given, (bool, int, float)):
        weight, near = float(given), abs(float(given)) < 0.5
        scaled = tensor_scalar(-1, op0="multiply", imm0=weight if near else 1 - weight)
        last = tensor_tensor("add", 0, -1) if near else tensor_tensor("subtract", 1, -1)
        return [between, scaled, last]
    if len(operands) != 3:
        return None
    return [
        between,
        tensor_tensor("multiply", 2, -1),
        tensor_tensor("add", 0, -1),
        tensor_scalar(2, op0="multiply", imm0=-1.0, op1="add", imm1=1.0),
        tensor_tensor("multiply", -4, -1),
        tensor_tensor("subtract", 1, -1),
        activation("abs", 2),
        tensor_scalar(-1, op0="less", imm0=0.5),
        select(-1, -6, -3),
    ]


def _gelu(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    return [activation("gelu_apprx_tanh")] if "tanh" in call.arguments else None


def _gelu_gradient(call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
    """Of x (1 + t) / 2 with t = tanh(k (x + c x^3)): the engine has the exact one's alone."""
    if "tanh" not in call.arguments:
        return None
    k, c = sqrt(2 / pi), 0.044715
    return [
        activation("square", 1),
        tensor_scalar(-1, op0="multiply", imm0=c, op1="add", imm1=1.0),
        tensor_tensor("multiply", 1, -1),
        activation("tanh", -1, scale=k),
        activation("square", -1),
        tensor_scalar(-1, op0="multiply", imm0=-1.0, op1="add", imm1=1.0),
        tensor_scalar(-6, op0="multiply", imm0=3 * c * k, op1="add", imm1=k),
        tensor_tensor("multiply", -1, -2),
        tensor_tensor("multiply", 1, -1),
        tensor_tensor("add", -6, -1),
        tensor_scalar(-1, op0="add", imm0=1.0, op1="multiply", imm1=0.5),
        tensor_tensor("multiply", 0, -1),
    ]


READERS: MappingProxyType[str, Reader] = MappingProxyType(
    {
        "rsub": _reversed,
        "pow": _power,
        "bitwise_not": _complement,
        "native_dropout_backward": _dropped,
        "gelu": _gelu,
        "gelu_backward": _gelu_gradient,
        "round": _rounded,
        "lerp": _interpolated,
    }
)
