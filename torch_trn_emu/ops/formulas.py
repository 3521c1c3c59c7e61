"""Elementwise operators as formulas: an operation on a value is an instruction of the program.

`(x + 1.0).log()` is two steps, the second of which reads what the first makes. Two operations with
numbers one after the other are one instruction, unless something else reads what is between them.
Steps come in the order in which Python works a formula out.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..engines.arithmetic import ACTIVATIONS as FUNCTIONS
from ..isa import Attribute, Engine
from ..kernels.pointwise import Step, instruction

__all__ = ["Made", "Value", "appended", "filled", "finished", "in_float32", "steps_of"]

Made = list[Step]  # which read operands by number, and the results of others as ~n
WHOLE = "int32"  # numbers beyond it are as large as it can hold
WHOLE_FROM = 2.0**23  # float32 has no fractions from here on


class Value:
    """An operand, or what a step makes; operations with it append to the steps `made`.

    Functions of the Scalar engine are methods by name, of x * scale: `x.exp(scale)`.
    """

    def __init__(self, made: Made, at: int) -> None:
        self.made, self.at = made, at

    def __getattr__(self, op: str) -> Callable[..., "Value"]:
        if op not in FUNCTIONS:
            raise AttributeError(op)

        def apply(scale: float = 1.0) -> Value:
            return self.step("activation", engine=Engine.SCALAR, op=op, scale=scale)

        return apply

    def step(
        self, opcode: str, *others: "Value", engine: Engine = Engine.VECTOR, dtype: str = "",
        **attributes: Attribute,
    ) -> "Value":  # fmt: skip
        """What an instruction makes of the value and others."""
        reads = (self.at, *(other.at for other in others))
        return appended(self.made, opcode, *reads, engine=engine, dtype=dtype, **attributes)

    def by(self, op: str, other: "Value | float", engine: Engine = Engine.VECTOR) -> "Value":
        """`self op other`"""
        if isinstance(other, Value):
            return self.step("tensor_tensor", other, engine=engine, op=op)
        return self.step("tensor_scalar", op0=op, imm0=other)

    def __add__(self, other: "Value | float") -> "Value":
        return self.by("add", _real(other))

    def __sub__(self, other: "Value | float") -> "Value":
        return self.by("subtract", other) if isinstance(other, Value) else self + -float(other)

    def __rsub__(self, number: float) -> "Value":
        return self * -1.0 + number

    def __neg__(self) -> "Value":
        return self * -1.0

    def __mul__(self, other: "Value | float") -> "Value":
        return self.by("multiply", _real(other))

    def __truediv__(self, other: "Value | float") -> "Value":
        return self * (other.reciprocal() if isinstance(other, Value) else 1 / other)

    def __lt__(self, other: "Value | float") -> "Value":
        return self.by("less", _real(other))

    def __le__(self, other: "Value | float") -> "Value":
        return self.by("less_equal", _real(other))

    def __gt__(self, other: "Value | float") -> "Value":
        return self.by("greater", _real(other))

    def __ge__(self, other: "Value | float") -> "Value":
        return self.by("greater_equal", _real(other))

    def equals(self, other: "Value | float") -> "Value":
        return self.by("equal", other)

    def differs(self, other: "Value | float") -> "Value":
        return self.by("not_equal", other)

    def maximum(self, other: "Value | float") -> "Value":
        return self.by("max", other)

    def minimum(self, other: "Value | float") -> "Value":
        return self.by("min", other)

    def between(self, low: float, high: float) -> "Value":
        """Cut to low .. high."""
        return self.maximum(low).minimum(high)

    def where(self, on_true: "Value | float", on_false: "Value | float") -> "Value":
        """The one or the other, by a truth value."""
        both = (on_true, on_false)
        chosen = [v if isinstance(v, Value) else filled(self.made, v) for v in both]
        return self.step("select", *chosen)

    def copied(self, dtype: str = "") -> "Value":
        return self.step("tensor_copy", dtype=dtype)

    def nearest(self) -> "Value":
        """The nearest whole number, as the engines round; of two the even one."""
        return self.copied(WHOLE)

    def rounded_down(self) -> "Value":
        """The whole number below: the nearest one, less 1 where that is larger.

        For numbers below 2^31; the result is finite where the value is not.
        """
        whole = self.nearest()
        return whole - (whole > self)

    def where_it_rounds(self, rounded: "Value") -> "Value":
        """`rounded` where there is a fraction; else as it is: NaN and infinities, too."""
        return (self.abs() < WHOLE_FROM).where(rounded, self)

    def truncated(self) -> "Value":
        below = self.abs().rounded_down()
        return self.where_it_rounds(self.sign() * below)


def _real(other: Value | float) -> Value | float:
    return other if isinstance(other, Value) else float(other)


def appended(
    made: Made, opcode: str, *reads: int, engine: Engine = Engine.VECTOR, dtype: str = "",
    **attributes: Attribute,
) -> Value:  # fmt: skip
    made.append(instruction(opcode, *reads, engine=engine, dtype=dtype, **attributes))
    return Value(made, ~(len(made) - 1))


def filled(made: Made, value: float) -> Value:
    """Every element is `value`."""
    return appended(made, "memset", value=value)


def in_float32(made: Made) -> None:
    """Whatever the dtype of the result, steps without one make float32."""
    made[:] = [replace(s, dtype=s.dtype or "float32") for s in made]


def steps_of(formula: Callable[..., Value], operands: int) -> list[Step]:
    """The steps of a formula of so many operands, whose result is the last."""
    made: Made = []
    return finished(made, formula(*(Value(made, k) for k in range(operands))))


def finished(made: Made, *results: Value) -> list[Step]:
    """The steps, with operations with numbers in pairs; the last of the results is the last."""
    reads = Counter([*(r for s in made for r in s.reads), *(v.at for v in results)])
    alone = [_has_number(s) for s in made]
    follows = [n > 0 and alone[n - 1] and alone[n] and s.reads == (~(n - 1),)
               and reads[~(n - 1)] == 1 for n, s in enumerate(made)]  # fmt: skip
    steps: Made = []
    places: dict[int, int] = {}
    for n, s in enumerate(made):
        if follows[n] and [*follows, False].index(False, n + 1) % 2 != n % 2:
            steps[-1] = _pair(steps[-1], s)  # the last two of several
        else:
            steps.append(replace(s, reads=tuple(places.get(r, r) for r in s.reads)))
        places[~n] = ~(len(steps) - 1)
    for value in results:
        value.at = places[value.at]
    assert results[-1].at == ~(len(steps) - 1)
    return [replace(s, reads=tuple(r if r >= 0 else ~r - n for r in s.reads))
            for n, s in enumerate(steps)]  # fmt: skip


def _has_number(s: Step) -> bool:
    plain = s.opcode == "tensor_scalar" and set(s.attributes) == {"op0", "imm0"}
    return plain and s.dtype in ("", "float32")


def _pair(first: Step, second: Step) -> Step:
    more: dict[str, Any] = {"op1": second.attributes["op0"], "imm1": second.attributes["imm0"]}
    attributes = MappingProxyType({**first.attributes, **more})
    return replace(first, attributes=attributes, dtype=second.dtype)
