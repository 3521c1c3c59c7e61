"""Steps of losses, element by element, and of their gradients: a reader of a call for each.

Operands are those of the schema in order: prediction, target, then weights; of a gradient, first
what comes from above, which holds one value if the loss was reduced.
"""

from collections.abc import Callable, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from ..kernels.pointwise import Step, activation, tensor_scalar, tensor_tensor
from .attributes import Reader

__all__ = ["GRADIENTS", "LOSSES", "Loss", "reduction_of"]

NONE, MEAN = 0, 1  # at::Reduction
LEAST_LOGARITHM = -100.0  # of binary cross entropy, as torch cuts it
LEAST_VARIANCE = 1e-12  # in its gradient, as in torch
T, S, A = tensor_tensor, tensor_scalar, activation
Steps = list[Step]


def _complement(of: int) -> Step:
    return S(of, op0="multiply", imm0=-1.0, op1="add", imm1=1.0)


def _squared(call: Call) -> Steps:
    return [T("subtract"), A("square", -1)]


def _absolute(call: Call) -> Steps:
    return [T("subtract"), A("abs", -1)]


def _bent(call: Call, at: float, factor: float) -> Steps:
    """Factor m (d - m / 2) with d = |x - y| and m = d, but for `at` where that is less."""
    return [
        T("subtract"), A("abs", -1), S(-1, op0="min", imm0=at), S(-1, op0="multiply", imm0=-0.5),
        T("add", -3, -1), T("multiply", -1, -3), S(-1, op0="multiply", imm0=factor),
    ]  # fmt: skip


def _smooth(call: Call) -> Steps:
    beta = float(call.argument(3, 1.0))
    return _bent(call, beta, 1 / beta) if beta else _absolute(call)


def _huber(call: Call) -> Steps:
    return _bent(call, float(call.argument(3, 1.0)), 1.0)


def _soft_margin(call: Call) -> Steps:
    return [T("multiply"), A("softplus", -1, scale=-1.0)]


def _cross_entropy(call: Call) -> Steps:
    """-(t log x + (1 - t) log (1 - x)), no logarithm below -100."""
    least: dict[str, Any] = {"op0": "max", "imm0": LEAST_LOGARITHM}
    steps = [
        A("log", 0), S(-1, **least), T("multiply", 1, -1),
        _complement(0), A("log", -1), S(-1, **least), _complement(1), T("multiply", -2, -1),
        T("add", -1, -6), S(-1, op0="multiply", imm0=-1.0),
    ]  # fmt: skip
    return [*steps, T("multiply", -1, 2)] if _given(call, 2) else steps


def _cross_entropy_of_logits(call: Call) -> Steps:
    """(1 - t) x + (1 + (p - 1) t) log (1 + exp(-x)), which is log (1 + exp(x)) - t x for p = 1."""
    weighted, positive = _given(call, 2), _given(call, 3)
    steps = [A("softplus", 0), T("multiply", 1, 0), T("subtract", -2, -1)]
    if positive:
        p = 2 + weighted
        steps = [
            S(p, op0="add", imm0=-1.0), T("multiply", -1, 1), S(-1, op0="add", imm0=1.0),
            A("softplus", 0, scale=-1.0), T("multiply", -1, -2), _complement(1),
            T("multiply", -1, 0), T("add", -1, -3),
        ]  # fmt: skip
    return [*steps, T("multiply", -1, 2)] if weighted else steps


def _given(call: Call, at: int) -> bool:
    return isinstance(call.argument(at), TensorArg)


# --- gradients -----------------------------------------------------------------------------------


def _share(call: Call, at: int = 3) -> float:
    """Of one element in the loss: all of it, or an equal part of the mean."""
    whole = call.argument(at, MEAN) != MEAN
    return 1.0 if whole else 1.0 / max(1, prod(call.argument(1).shape))


def _squared_gradient(call: Call) -> Steps:
    """2 (x - y) grad, over the number of elements for a mean."""
    factor = S(-1, op0="multiply", imm0=2 * _share(call))
    return [T("subtract", 1, 2), factor, T("multiply", 0, -1)]


def _clipped(call: Call, factor: float, most: float) -> Steps:
    """(x - y) factor, cut to -most .. most, times grad."""
    return [
        T("subtract", 1, 2), S(-1, op0="multiply", imm0=factor, op1="max", imm1=-most),
        S(-1, op0="min", imm0=most, op1="multiply", imm1=_share(call)), T("multiply", 0, -1),
    ]  # fmt: skip


def _smooth_gradient(call: Call) -> Steps:
    beta = float(call.argument(4, 1.0))
    if not beta:
        sign = [T("subtract", 1, 2), A("sign", -1), S(-1, op0="multiply", imm0=_share(call))]
        return [*sign, T("multiply", 0, -1)]
    return _clipped(call, 1 / beta, 1.0)


def _huber_gradient(call: Call) -> Steps:
    return _clipped(call, 1.0, float(call.argument(4, 1.0)))


def _soft_margin_gradient(call: Call) -> Steps:
    """-y / (1 + exp(x y)) grad"""
    return [
        T("multiply", 1, 2), A("sigmoid", -1, scale=-1.0), T("multiply", 2, -1),
        S(-1, op0="multiply", imm0=-_share(call)), T("multiply", 0, -1),
    ]  # fmt: skip


def _cross_entropy_gradient(call: Call) -> Steps:
    """(x - t) / (x (1 - x)) grad, the divisor no less than 1e-12."""
    steps = [
        _complement(1), T("multiply", 1, -1), S(-1, op0="max", imm0=LEAST_VARIANCE),
        A("reciprocal", -1), T("subtract", 1, 2), T("multiply", -1, -2),
        S(-1, op0="multiply", imm0=_share(call, 4)), T("multiply", 0, -1),
    ]  # fmt: skip
    return [*steps, T("multiply", -1, 3)] if _given(call, 3) else steps


# --- the tables ----------------------------------------------------------------------------------


class Loss:
    """`steps` of a call, and where its schema has the reduction."""

    def __init__(self, steps: Callable[[Call], Steps], at: int = 2) -> None:
        self.steps, self.at = steps, at

    def __call__(self, call: Call, operands: Sequence[TensorArg]) -> Sequence[Step] | None:
        return self.steps(call) if len(operands) > 1 else None


LOSSES: MappingProxyType[str, Loss] = MappingProxyType({
    "mse_loss": Loss(_squared),
    "l1_loss": Loss(_absolute),
    "smooth_l1_loss": Loss(_smooth),
    "huber_loss": Loss(_huber),
    "soft_margin_loss": Loss(_soft_margin),
    "binary_cross_entropy": Loss(_cross_entropy, 3),
    "binary_cross_entropy_with_logits": Loss(_cross_entropy_of_logits, 4),
})  # fmt: skip

GRADIENTS: MappingProxyType[str, Reader] = MappingProxyType({
    "mse_loss_backward": Loss(_squared_gradient),
    "smooth_l1_loss_backward": Loss(_smooth_gradient),
    "huber_loss_backward": Loss(_huber_gradient),
    "soft_margin_loss_backward": Loss(_soft_margin_gradient),
    "binary_cross_entropy_backward": Loss(_cross_entropy_gradient),
})  # fmt: skip


def reduction_of(call: Call) -> int:
    return int(call.argument(LOSSES[call.name].at, MEAN))
