"""Random numbers: what each distribution makes of an engine's uniform bits, a row each in DRAWS.

The program prices the work; the values a user sees are those of the host's generator. Numbers are
24 of the 32 bits, which float32 holds exactly: k of 0 .. 2^24 - 1. Distributions come from them by
the inverse of their distribution function, the normal one by Box and Muller's method (chosen).
Arguments stay inside the domains of the Scalar engine's tables: sin takes -pi to pi.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import log1p, pi
from types import MappingProxyType
from typing import Any

from ..calls import Call, TensorArg
from ..isa import Engine
from ..kernels.pointwise import Step, activation, instruction, tensor_scalar, tensor_tensor
from .attributes import rounded_down

__all__ = ["DRAWS", "exponential_steps", "parameters", "steps_of", "uniform_steps"]

UNIT = 2.0**-24
Steps = Sequence[Step]
# The least number beyond what `random_` gives when no range is named; other dtypes: 2^31.
_ENDS = MappingProxyType(
    {"float32": 2**24, "bfloat16": 2**8, "float16": 2**11, "bool": 2, "uint8": 2**8,
     "int8": 2**7, "int16": 2**15}
)  # fmt: skip


def _scaled(op0: str, imm0: float, op1: str = "", imm1: float = 0.0, *, of: int = -1) -> Step:
    second: dict[str, Any] = {"op1": op1, "imm1": imm1} if op1 else {}
    return tensor_scalar(of, op0=op0, imm0=imm0, **second)


def _counted() -> list[Step]:
    """k, from the upper 24 bits: shifts take integers and are instructions of their own."""
    return [
        instruction("rng", engine=Engine.VECTOR, dtype="uint32", seed=1),
        instruction(
            "tensor_scalar", -1, engine=Engine.VECTOR, dtype="uint32", op0="right_shift", imm0=8
        ),
    ]


def uniform_steps(start: float = 0.0, end: float = 1.0) -> list[Step]:
    """Start + k / 2^24 (end - start), below `end` but for a rounding."""
    return [*_counted(), _scaled("multiply", UNIT * (end - start), "add", start)]


def _logarithm() -> list[Step]:
    """The logarithm of (k + 1) / 2^24, which is never 0."""
    return [*_counted(), _scaled("add", 1.0, "multiply", UNIT), activation("log", -1)]


def exponential_steps(rate: float = 1.0) -> list[Step]:
    return [*_logarithm(), _scaled("multiply", -1.0 / rate)]


def _standard_normal() -> list[Step]:
    angle = [*_counted(), _scaled("multiply", 2 * pi * UNIT, "add", -pi), activation("sin", -1)]
    radius = [*_logarithm(), activation("sqrt", -1, scale=-2.0)]
    return [*radius, *angle, tensor_tensor("multiply", -1, -1 - len(angle))]


# --- from calls ----------------------------------------------------------------------------------

Given = Sequence[Any]  # the numbers or tensors that a distribution takes


def _spread(steps: Steps, changes: Sequence[tuple[str, Any]]) -> list[Step]:
    """`steps`, then an operation with each number, or with the next of the tensors."""
    made, tensors = list(steps), count()
    for op, value in changes:
        tensor = isinstance(value, TensorArg)
        made.append(tensor_tensor(op, -1, next(tensors)) if tensor else _scaled(op, float(value)))
    return made


def _normal(given: Given, out: TensorArg) -> Steps:
    mean, deviation = given or (0.0, 1.0)
    tensors = sum(isinstance(v, TensorArg) for v in (mean, deviation))
    if tensors == 2:
        return [*_standard_normal(), tensor_tensor("multiply", -1, 1), tensor_tensor("add", -1, 0)]
    return _spread(_standard_normal(), (("multiply", deviation), ("add", mean)))


def _log_normal(given: Given, out: TensorArg) -> Steps:
    return [*_normal(given, out), activation("exp", -1)]


def _uniform(given: Given, out: TensorArg) -> Steps:
    return uniform_steps(*map(float, given))


def _exponential(given: Given, out: TensorArg) -> Steps:
    return exponential_steps(*map(float, given))


def _bernoulli(given: Given, out: TensorArg) -> Steps:
    """Whether a number is below the probability."""
    if isinstance(given[0], TensorArg):
        return [*uniform_steps(), tensor_tensor("less", -1, 0)]
    return [*_counted(), _scaled("multiply", UNIT, "less", float(given[0]))]


def _whole(given: Given, out: TensorArg) -> Steps:
    """Start .. end - 1; of more than 2^24 numbers, as many of them, evenly apart."""
    start, end = given or (0, _ENDS.get(out.dtype, 2**31))
    span = float((2**31 if end is None else end) - start)
    return [*uniform_steps(0.0, span), *rounded_down(-1), _scaled("add", float(start))]


def _geometric(given: Given, out: TensorArg) -> Steps:
    """1 + floor(log(u) / log(1 - p))"""
    p = float(given[0])
    rate = 1 / log1p(-p) if p < 1 else 0.0
    steps = [*_logarithm(), _scaled("multiply", rate), *rounded_down(-1)]
    return [*steps, _scaled("add", 1.0)]


def _cauchy(given: Given, out: TensorArg) -> Steps:
    """The median less the scale times cos(y) / sin(y), y of 0 to pi."""
    median, scale = given
    cosine = [_scaled("multiply", -1.0, "add", pi / 2), activation("sin", -1)]
    inverse_sine = [activation("sin", -3), activation("reciprocal", -1)]
    return [
        *_counted(), _scaled("add", 1.0, "multiply", pi * UNIT), *cosine, *inverse_sine,
        tensor_tensor("multiply", -1, -3),
        _scaled("multiply", -float(scale), "add", float(median)),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draw:
    """`takes` are the defaults of what the distribution is given, in the order of the schema."""

    steps: Callable[[Given, TensorArg], Steps]
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


def given_to(call: Call) -> Given:
    """What the call gives its distribution."""
    overload = call.op.partition(".")[2]
    if DRAWS[call.name].steps is _whole:
        return _range(call, overload)
    tensors_first = call.name == "bernoulli" and overload in ("", "out")
    numbers_first = call.name == "normal" and overload.startswith(("Tensor_", "float_"))
    first = 0 if tensors_first or numbers_first else 1
    takes = DRAWS[call.name].takes
    return tuple(call.argument(first + k, default) for k, default in enumerate(takes))


def _range(call: Call, overload: str) -> Given:
    """Start and end of whole numbers, none where the call names none."""
    after = 0 if call.name == "randint" else 1
    named = [a for a in call.arguments[after : after + 2] if isinstance(a, int) or a is None]
    named = [a for a in named if not isinstance(a, bool)]
    if call.name == "random" and not overload.startswith(("from", "to")):
        return ()
    if "from" in overload or "low" in overload:
        return (named[0], named[1] if len(named) > 1 else None)
    return (0, named[0])


def parameters(call: Call) -> list[TensorArg]:
    """The tensors among them."""
    return [g for g in given_to(call) if isinstance(g, TensorArg)]


def steps_of(call: Call, operands: Sequence[TensorArg]) -> list[Step]:
    """In float32, but for the bits and the result. Parameters are the last of the operands."""
    steps = DRAWS[call.name].steps(given_to(call), call.out)
    before = len(operands) - len(parameters(call))
    return [
        replace(
            s,
            dtype=s.dtype or "float32",
            reads=tuple(r + before if r >= 0 else r for r in s.reads),
        )
        for s in steps
    ]
