"""Losses, element by element, and their gradients, as formulas.

Operands are those of the schema in order: prediction, target, then weights; of a gradient, first
what comes from above, which holds one value if the loss was reduced.
"""

from collections.abc import Callable, Sequence
from math import prod
from types import MappingProxyType

from ..calls import Call, TensorArg
from .formulas import Value

__all__ = ["GRADIENTS", "LOSSES", "Loss", "reduction_of"]

NONE, MEAN = 0, 1  # at::Reduction
LEAST_LOGARITHM = -100.0  # of binary cross entropy, as torch cuts it
LEAST_VARIANCE = 1e-12  # in its gradient, as in torch


def _squared(call: Call, x: Value, y: Value, *_: Value) -> Value:
    return (x - y).square()


def _absolute(call: Call, x: Value, y: Value, *_: Value) -> Value:
    return (x - y).abs()


def _bent(x: Value, y: Value, at: float, factor: float) -> Value:
    """Factor m (d - m / 2) with d = |x - y| and m = d, but for `at` where that is less."""
    distance = (x - y).abs()
    m = distance.minimum(at)
    return (distance + m * -0.5) * m * factor


def _smooth(call: Call, x: Value, y: Value, *_: Value) -> Value:
    beta = float(call.argument(3, 1.0))
    return _bent(x, y, beta, 1 / beta) if beta else _absolute(call, x, y)


def _huber(call: Call, x: Value, y: Value, *_: Value) -> Value:
    return _bent(x, y, float(call.argument(3, 1.0)), 1.0)


def _soft_margin(call: Call, x: Value, y: Value, *_: Value) -> Value:
    return (x * y).softplus(-1.0)


def _cross_entropy(call: Call, x: Value, t: Value, *rest: Value) -> Value:
    """-(t log x + (1 - t) log (1 - x)), no logarithm below -100."""
    first = t * x.log().maximum(LEAST_LOGARITHM)
    loss = -((1.0 - x).log().maximum(LEAST_LOGARITHM) * (1.0 - t) + first)
    return loss * rest[0] if _given(call, 2) else loss


def _cross_entropy_of_logits(call: Call, x: Value, t: Value, *weights: Value) -> Value:
    """(1 - t) x + (1 + (p - 1) t) log (1 + exp(-x)), which is log (1 + exp(x)) - t x for p = 1."""
    weighted, positive = _given(call, 2), _given(call, 3)
    if positive:
        factor = (weights[weighted] - 1.0) * t + 1.0
        second = x.softplus(-1.0) * factor
        loss = (1.0 - t) * x + second
    else:
        loss = x.softplus() - t * x
    return loss * weights[0] if weighted else loss


def _given(call: Call, at: int) -> bool:
    return isinstance(call.argument(at), TensorArg)


# --- gradients -----------------------------------------------------------------------------------


def _share(call: Call, at: int = 3) -> float:
    """Of one element in the loss: all of it, or an equal part of the mean."""
    whole = call.argument(at, MEAN) != MEAN
    return 1.0 if whole else 1.0 / max(1, prod(call.argument(1).shape))


def _squared_gradient(call: Call, g: Value, x: Value, y: Value, *_: Value) -> Value:
    """2 (x - y) grad, over the number of elements for a mean."""
    return g * ((x - y) * (2 * _share(call)))


def _smooth_gradient(call: Call, g: Value, x: Value, y: Value, *_: Value) -> Value:
    beta = float(call.argument(4, 1.0))
    if not beta:
        return g * ((x - y).sign() * _share(call))
    return g * (((x - y) * (1 / beta)).between(-1.0, 1.0) * _share(call))


def _huber_gradient(call: Call, g: Value, x: Value, y: Value, *_: Value) -> Value:
    most = float(call.argument(4, 1.0))
    return g * (((x - y) * 1.0).between(-most, most) * _share(call))


def _soft_margin_gradient(call: Call, g: Value, x: Value, y: Value, *_: Value) -> Value:
    """-y / (1 + exp(x y)) grad"""
    return g * (y * (x * y).sigmoid(-1.0) * -_share(call))


def _cross_entropy_gradient(call: Call, g: Value, x: Value, t: Value, *rest: Value) -> Value:
    """(x - t) / (x (1 - x)) grad, the divisor no less than 1e-12."""
    inverse = (x * (1.0 - x)).maximum(LEAST_VARIANCE).reciprocal()
    gradient = g * ((x - t) * inverse * _share(call, 4))
    return gradient * rest[0] if _given(call, 3) else gradient


# --- the tables ----------------------------------------------------------------------------------


class Loss:
    """The formula of a call, and where its schema has the reduction."""

    def __init__(self, formula: Callable[..., Value], at: int = 2) -> None:
        self.formula, self.at = formula, at

    def __call__(self, call: Call, operands: Sequence[Value]) -> Value:
        return self.formula(call, *operands)


LOSSES: MappingProxyType[str, Loss] = MappingProxyType({
    "mse_loss": Loss(_squared),
    "l1_loss": Loss(_absolute),
    "smooth_l1_loss": Loss(_smooth),
    "huber_loss": Loss(_huber),
    "soft_margin_loss": Loss(_soft_margin),
    "binary_cross_entropy": Loss(_cross_entropy, 3),
    "binary_cross_entropy_with_logits": Loss(_cross_entropy_of_logits, 4),
})  # fmt: skip

GRADIENTS: MappingProxyType[str, Loss] = MappingProxyType({
    "mse_loss_backward": Loss(_squared_gradient),
    "smooth_l1_loss_backward": Loss(_smooth_gradient),
    "huber_loss_backward": Loss(_huber_gradient),
    "soft_margin_loss_backward": Loss(_soft_margin_gradient),
    "binary_cross_entropy_backward": Loss(_cross_entropy_gradient),
})  # fmt: skip


def reduction_of(call: Call) -> int:
    return int(call.argument(LOSSES[call.name].at, MEAN))
