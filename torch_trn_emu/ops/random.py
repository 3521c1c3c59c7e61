"""Random numbers: what each distribution makes of an engine's uniform bits, a row each in DRAWS.

The program prices the work; the values a user sees are those of the host's generator. Numbers are
24 of the 32 bits, which float32 holds exactly: k of 0 .. 2^24 - 1. Distributions come from them by
the inverse of their distribution function, the normal one by Box and Muller's method (chosen).
Arguments stay inside the domains of the Scalar engine's tables: sin takes -pi to pi.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log1p, pi
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from .formulas import Made, Value, appended, in_float32

__all__ = ["DRAWS", "draw", "exponential", "parameters", "uniform"]

UNIT = 2.0**-24
# The least number beyond what `random_` gives when no range is named; other dtypes: 2^31.
_ENDS = MappingProxyType(
    {"float32": 2**24, "bfloat16": 2**8, "float16": 2**11, "bool": 2, "uint8": 2**8,
     "int8": 2**7, "int16": 2**15}
)  # fmt: skip


def _counted(made: Made) -> Value:
    """k, from the upper 24 bits: shifts take integers and are instructions of their own."""
    bits = appended(made, "rng", dtype="uint32", seed=1)
    return bits.step("tensor_scalar", dtype="uint32", op0="right_shift", imm0=8)


def uniform(made: Made, start: float = 0.0, end: float = 1.0) -> Value:
    """Start + k / 2^24 (end - start), below `end` but for a rounding."""
    return _counted(made) * (UNIT * (end - start)) + start


def _logarithm(made: Made) -> Value:
    """The logarithm of (k + 1) / 2^24, which is never 0."""
    return ((_counted(made) + 1.0) * UNIT).log()


def exponential(made: Made, rate: float = 1.0) -> Value:
    return _logarithm(made) * (-1.0 / rate)


def _standard_normal(made: Made) -> Value:
    radius = _logarithm(made).sqrt(-2.0)
    return (_counted(made) * (2 * pi * UNIT) - pi).sin() * radius


# --- distributions, of the numbers or tensors that they are given --------------------------------

Given = Value | float


def _normal(made: Made, out: TensorArg, mean: Given = 0.0, deviation: Given = 1.0) -> Value:
    return _standard_normal(made) * deviation + mean


def _log_normal(made: Made, out: TensorArg, mean: Given, deviation: Given) -> Value:
    return _normal(made, out, mean, deviation).exp()


def _uniform(made: Made, out: TensorArg, *given: Any) -> Value:
    return uniform(made, *given)


def _exponential(made: Made, out: TensorArg, rate: Any) -> Value:
    return exponential(made, rate)


def _bernoulli(made: Made, out: TensorArg, p: Given) -> Value:
    """Whether a number is below the probability."""
    return (uniform(made) if isinstance(p, Value) else _counted(made) * UNIT) < p


def _whole(made: Made, out: TensorArg, start: Any = 0, end: Any = None) -> Value:
    """Start .. end - 1; of more than 2^24 numbers, as many of them, evenly apart."""
    span = float((2**31 if end is None else end) - start)
    return uniform(made, 0.0, span).rounded_down() + float(start)


def _geometric(made: Made, out: TensorArg, p: Any) -> Value:
    """1 + floor(log(u) / log(1 - p))"""
    rate = 1 / log1p(-p) if p < 1 else 0.0
    return (_logarithm(made) * rate).rounded_down() + 1.0


def _cauchy(made: Made, out: TensorArg, median: Any, scale: Any) -> Value:
    """The median less the scale times cos(y) / sin(y), y of 0 to pi."""
    y = (_counted(made) + 1.0) * (pi * UNIT)
    cosine = (pi / 2 - y).sin()
    return y.sin().reciprocal() * cosine * -float(scale) + float(median)


@dataclass(frozen=True, slots=True)
class Draw:
    """`takes` are the defaults of what the distribution is given, in the order of the schema."""

    formula: Callable[..., Value]
    takes: tuple[float, ...] = ()


DRAWS: MappingProxyType[str, Draw] = MappingProxyType({
    "uniform": Draw(_uniform, (0.0, 1.0)),
    **dict.fromkeys(("rand", "rand_like"), Draw(_uniform)),
    "normal": Draw(_normal, (0.0, 1.0)),
    "normal_functional": Draw(_normal, (0.0, 1.0)),
    **dict.fromkeys(("randn", "randn_like"), Draw(_normal)),
    "log_normal": Draw(_log_normal, (1.0, 2.0)),
    "exponential": Draw(_exponential, (1.0,)),
    "geometric": Draw(_geometric, (0.5,)),
    "cauchy": Draw(_cauchy, (0.0, 1.0)),
    "bernoulli": Draw(_bernoulli, (0.5,)),
    "random": Draw(_whole), "randint": Draw(_whole), "randint_like": Draw(_whole),
})  # fmt: skip


def given_to(call: Call) -> Sequence[Any]:
    """What the call gives its distribution."""
    overload = call.op.partition(".")[2]
    if DRAWS[call.name].formula is _whole:
        return _range(call, overload)
    tensors_first = call.name == "bernoulli" and overload in ("", "out")
    numbers_first = call.name == "normal" and overload.startswith(("Tensor_", "float_"))
    first = 0 if tensors_first or numbers_first else 1
    takes = DRAWS[call.name].takes
    return tuple(call.argument(first + k, default) for k, default in enumerate(takes))


def _range(call: Call, overload: str) -> Sequence[Any]:
    """Start and end of whole numbers, those of the dtype where the call names none."""
    after = 0 if call.name == "randint" else 1
    named = [a for a in call.arguments[after : after + 2] if isinstance(a, int) or a is None]
    named = [a for a in named if not isinstance(a, bool)]
    if call.name == "random" and not overload.startswith(("from", "to")):
        return (0, _ENDS.get(call.out.dtype, 2**31))
    if "from" in overload or "low" in overload:
        return (named[0], named[1] if len(named) > 1 else None)
    return (0, named[0])


def parameters(call: Call) -> list[TensorArg]:
    """The tensors among them."""
    return [g for g in given_to(call) if isinstance(g, TensorArg)]


def draw(made: Made, call: Call, operands: Sequence[Value]) -> Value:
    """The numbers of a call. Parameters that are tensors are the last of the operands."""
    tensors = iter(operands[len(operands) - len(parameters(call)) :])
    given = [next(tensors) if isinstance(g, TensorArg) else g for g in given_to(call)]
    result = DRAWS[call.name].formula(made, call.out, *given)
    in_float32(made)
    return result
