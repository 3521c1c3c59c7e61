"""The functions of the engines: ALU operations and activation functions, one row each, in float32.

Sources
  [alu]  Neuron SDK, nki.api.shared: ALU operations of the Vector and GpSimd engines
  [act]  Neuron SDK, nki.api.shared: activation functions of the Scalar engine
The chip evaluates activation functions from piecewise polynomial tables that are not public; here
they are the functions themselves, rounded to float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .lazy_numpy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ACTIVATIONS", "ALU", "REDUCTIONS", "Activation"]


def _erf(x: "Array") -> "Array":
    return np.asarray(np.vectorize(math.erf, otypes=[float])(x))


def _sigmoid(x: "Array") -> "Array":
    return np.exp(-np.logaddexp(0.0, -x))


def _normal_cdf(x: "Array") -> "Array":
    return 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: "Array") -> "Array":
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1.0 + np.tanh(inner))


def _gelu_dx(x: "Array") -> "Array":
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return _normal_cdf(x) + x * density


def _silu_dx(x: "Array") -> "Array":
    s = _sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@dataclass(frozen=True, slots=True)
class Activation:
    """A Scalar engine function. `table` names the coefficients it needs loaded, "" for none."""

    name: str
    function: Callable[["Array"], "Array"]  # on float64
    table: str = ""


# Which functions share a table is not public. Chosen: those made of exp do, the rest stand alone;
# what needs no polynomial needs no table.
_ACTIVATIONS = (
    Activation("copy", lambda x: x),
    Activation("identity", lambda x: x),
    Activation("square", lambda x: x * x),
    Activation("relu", lambda x: np.maximum(x, 0.0)),
    Activation("abs", lambda x: np.abs(x)),
    Activation("sign", lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0))),  # NaN: chosen
    Activation("exp", lambda x: np.exp(x), "exp"),
    Activation("sigmoid", _sigmoid, "sigmoid"),
    Activation("silu", lambda x: x * _sigmoid(x), "sigmoid"),
    Activation("silu_dx", _silu_dx, "sigmoid"),
    Activation("tanh", lambda x: np.tanh(x), "tanh"),
    Activation("softplus", lambda x: np.logaddexp(0.0, x), "softplus"),
    Activation("mish", lambda x: x * np.tanh(np.logaddexp(0.0, x)), "softplus"),
    Activation("gelu", lambda x: x * _normal_cdf(x), "gelu"),
    Activation("gelu_dx", _gelu_dx, "gelu"),
    Activation("gelu_apprx_tanh", _gelu_tanh, "gelu"),
    Activation("gelu_apprx_sigmoid", lambda x: x * _sigmoid(1.702 * x), "gelu"),
    Activation("erf", _erf, "erf"),
    Activation("erf_dx", lambda x: 2.0 / math.sqrt(math.pi) * np.exp(-x * x), "erf"),
    Activation("log", lambda x: np.log(x), "log"),
    Activation("sin", lambda x: np.sin(x), "trig"),
    Activation("arctan", lambda x: np.arctan(x), "trig"),
    Activation("sqrt", lambda x: np.sqrt(x), "sqrt"),
    Activation("rsqrt", lambda x: 1.0 / np.sqrt(x), "rsqrt"),
    Activation("reciprocal", lambda x: 1.0 / x, "reciprocal"),
)
ACTIVATIONS = MappingProxyType({row.name: row for row in _ACTIVATIONS})

Binary = Callable[["Array", "Array"], "Array"]

ALU: MappingProxyType[str, Binary] = MappingProxyType(
    {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "max": lambda a, b: np.maximum(a, b),
        "min": lambda a, b: np.minimum(a, b),
        "abs_max": lambda a, b: np.maximum(np.abs(a), np.abs(b)),
        "abs_min": lambda a, b: np.minimum(np.abs(a), np.abs(b)),
        "power": lambda a, b: np.power(a, b),
        "equal": lambda a, b: a == b,
        "not_equal": lambda a, b: a != b,
        "greater": lambda a, b: a > b,
        "greater_equal": lambda a, b: a >= b,
        "less": lambda a, b: a < b,
        "less_equal": lambda a, b: a <= b,
        "logical_and": lambda a, b: (a != 0) & (b != 0),
        "logical_or": lambda a, b: (a != 0) | (b != 0),
        "logical_xor": lambda a, b: (a != 0) ^ (b != 0),
        "bitwise_and": lambda a, b: a & b,
        "bitwise_or": lambda a, b: a | b,
        "bitwise_xor": lambda a, b: a ^ b,
        "left_shift": lambda a, b: a << b,
        "right_shift": lambda a, b: a >> b,
    }
)

REDUCTIONS: MappingProxyType[str, Callable[["Array"], "Array"]] = MappingProxyType(
    {
        "add": lambda x: x.sum(axis=-1, dtype=x.dtype),
        "multiply": lambda x: x.prod(axis=-1, dtype=x.dtype),
        "max": lambda x: x.max(axis=-1),
        "min": lambda x: x.min(axis=-1),
        "abs_max": lambda x: np.abs(x).max(axis=-1),
        "abs_min": lambda x: np.abs(x).min(axis=-1),
        "logical_and": lambda x: (x != 0).all(axis=-1),
        "logical_or": lambda x: (x != 0).any(axis=-1),
        "bitwise_and": lambda x: np.bitwise_and.reduce(x, axis=-1),
        "bitwise_or": lambda x: np.bitwise_or.reduce(x, axis=-1),
        "bitwise_xor": lambda x: np.bitwise_xor.reduce(x, axis=-1),
    }
)
