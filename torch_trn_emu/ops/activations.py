"""Activation functions that take numbers, and their gradients, as formulas.

Operands are those of the schema in order; of a gradient, first what comes from above.
"""

from collections.abc import Callable, Sequence
from math import inf
from types import MappingProxyType

from ..calls import Call
from .formulas import Value

__all__ = ["ACTIVATIONS", "Reader"]

# The formula of a call for its operands, or None where the one by name and number of them holds.
Reader = Callable[[Call, Sequence[Value]], Value | None]
LINEAR = 17.0  # where log(1 + exp(x)) is x in float32
_LARGEST = MappingProxyType({"bfloat16": 3.3895313892515355e38, "float16": 65504.0})


def _n(call: Call, at: int, default: float = 0.0) -> float:
    """A number of the call."""
    return float(call.argument(at, default))


def _unit(x: Value, alpha: float, scale: float, stretch: float) -> Value:
    """Scale x above 0, and alpha scale (exp(stretch x) - 1) below."""
    below = (x.minimum(0.0).exp(stretch) - 1.0) * (alpha * scale)
    return x.relu() * scale + below


def _elu_backward(call: Call, g: Value, x: Value) -> Value:
    alpha, scale, stretch = (_n(call, k, 1.0) for k in (1, 2, 3))
    if call.argument(4, False):  # from the result, which holds the exponential
        below = (x + alpha * scale) * stretch
    else:
        below = x.minimum(0.0).exp(stretch) * (alpha * scale * stretch)
    return g * (x > 0.0).where(scale, below)


def _leaky_relu(call: Call, x: Value) -> Value:
    slope = _n(call, 1, 0.01)
    return x.by("max" if slope <= 1 else "min", x * slope)


def _prelu(call: Call, x: Value, weight: Value) -> Value:
    above = x.maximum(0.0)
    return x.minimum(0.0) * weight + above


def _hardtanh_backward(call: Call, g: Value, x: Value) -> Value:
    above = x > _n(call, 2)
    return g * ((x < _n(call, 3)) * above)


def _softplus(call: Call, x: Value) -> Value:
    """Beyond the threshold it is x, as it is to float32's last bit from `LINEAR` on."""
    beta, most = _n(call, 1, 1.0), _n(call, 2, 20.0)
    made = x.softplus(beta)
    if beta != 1:
        made = made * (1 / beta)
    return made if most >= LINEAR else (x * beta > most).where(x, made)


def _softplus_backward(call: Call, g: Value, x: Value) -> Value:
    beta, most = _n(call, 2, 1.0), _n(call, 3, 20.0)
    made = g * x.sigmoid(beta)
    return made if most >= LINEAR else (x * beta > most).where(g, made)


def _mish_backward(call: Call, g: Value, x: Value) -> Value:
    """Grad (t + x sigmoid(x) (1 - t^2)), t = tanh(softplus(x))"""
    t = x.softplus().tanh()
    rest = 1.0 - t.square()
    return g * (x.silu() * rest + t)


def _logit(call: Call, x: Value) -> Value:
    """log(x) - log(1 - x), x first cut to eps .. 1 - eps where that is given."""
    eps = call.argument(1)
    cut = x if eps is None else x.between(eps, 1 - eps)
    return cut.log() - (1.0 - cut).log()


def _logit_backward(call: Call, g: Value, x: Value) -> Value:
    """Grad / (x (1 - x)), and 0 outside of eps .. 1 - eps; without those NaN outside of 0 .. 1."""
    if call.argument(2) is None:
        return g * (x * (1.0 - x)).rsqrt().square()
    above = x >= _n(call, 2)
    inside = (x <= 1 - _n(call, 2)) * above
    return inside.where(g / (x * (1.0 - x)), 0.0)


def _nan_to_num(call: Call, x: Value) -> Value:
    most = _LARGEST.get(call.out.dtype, 3.4028234663852886e38)
    made = x.equals(x).where(x, _n(call, 1))
    for at, infinite, default in ((2, inf, most), (3, -inf, -most)):
        made = made.equals(infinite).where(_n(call, at, default), made)
    return made


def _takes(tensors: int, formula: Callable[..., Value]) -> Reader:
    """None where numbers of the call are tensors."""

    def read(call: Call, operands: Sequence[Value]) -> Value | None:
        return formula(call, *operands) if len(operands) == tensors else None

    return read


# fmt: off
ACTIVATIONS: MappingProxyType[str, Reader] = MappingProxyType({
    "elu":           _takes(1, lambda c, x: _unit(x, *(_n(c, k, 1) for k in (1, 2, 3)))),
    "elu_backward":  _takes(2, _elu_backward),
    "celu":          _takes(1, lambda c, x: _unit(x, _n(c, 1, 1), 1.0, 1 / _n(c, 1, 1))),
    "leaky_relu":    _takes(1, _leaky_relu),
    "leaky_relu_backward": _takes(2, lambda c, g, x: g * ((x > 0.0) * (1 - _n(c, 2, 0.01))
                                                          + _n(c, 2, 0.01))),
    "_prelu_kernel": _takes(2, _prelu),
    "hardtanh":      _takes(1, lambda c, x: x.between(_n(c, 1, -1), _n(c, 2, 1))),
    "hardtanh_backward":   _takes(2, _hardtanh_backward),
    "threshold":     _takes(1, lambda c, x: (x <= _n(c, 1)).where(_n(c, 2), x)),
    "threshold_backward":  _takes(2, lambda c, g, x: g * (x > _n(c, 2))),
    "softplus":      _takes(1, _softplus),
    "softplus_backward":   _takes(2, _softplus_backward),
    "softshrink":    _takes(1, lambda c, x: x - x.between(-_n(c, 1, 0.5), _n(c, 1, 0.5))),
    "softshrink_backward": _takes(2, lambda c, g, x: g * (x.abs() > _n(c, 2))),
    "hardshrink":    _takes(1, lambda c, x: x * (x.abs() > _n(c, 1, 0.5))),
    "hardshrink_backward": _takes(2, lambda c, g, x: g * (x.abs() > _n(c, 2))),
    "mish_backward": _takes(2, _mish_backward),
    "logit":         _takes(1, _logit),
    "logit_backward":      _takes(2, _logit_backward),
    "nan_to_num":    _takes(1, _nan_to_num),
})
# fmt: on
