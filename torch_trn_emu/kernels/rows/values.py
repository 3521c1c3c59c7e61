"""What a program over rows consists of: inputs, steps with one value an element or a row, outputs.

A step's result is FULL [R, C], a COLUMN [R, 1] (one value a row) or a ROW [1, C] (summed over the
rows). Inputs and steps are called by name; softmax's gradient, for example:
    [step("gy", "tensor_tensor", "g", "y", op="multiply"), reduced("s", "gy"), ...]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

from ...isa import Engine

__all__ = [
    "JOINED",
    "MOST_SUMMED",
    "NEUTRAL",
    "SUMMING",
    "Input",
    "Kind",
    "Output",
    "RowStep",
    "Values",
    "column_sum",
    "reduced",
    "step",
]

# Instructions that also add up what they make, by those that do not. [isa] 16384 elements at most
SUMMING = MappingProxyType({"activation": "activation_reduce", "exponential": "exponential"})
MOST_SUMMED = 16384

JOINED = "joined"  # no instruction, but one for each piece: `rows/joined.py`

# What changes no result, by the operation of a reduction.
NEUTRAL = MappingProxyType(
    {
        "add": 0.0,
        "max": -inf,
        "min": inf,
        "multiply": 1.0,
        "logical_and": 1.0,
        "logical_or": 0.0,
        "abs_max": 0.0,
        "abs_min": inf,
    }
)


class Kind(str, Enum):
    FULL = "full"
    COLUMN = "column"
    ROW = "row"
    ONE = "one"  # one value for all


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    dtype: str
    kind: Kind = Kind.FULL


@dataclass(frozen=True, slots=True)
class Output:
    name: str  # of the step stored
    dtype: str
    stored: str = ""  # the buffer's name; "out" and the step's if empty


@dataclass(frozen=True, slots=True)
class RowStep:
    """One instruction for every tile of rows, or the sum over the rows for `column_sum`."""

    name: str
    opcode: str
    reads: tuple[str, ...]
    attributes: MappingProxyType[str, Any]
    kind: Kind
    engine: Engine | None = None
    dtype: str = ""  # that the result is rounded to, float32 if empty

    @property
    def reduces(self) -> bool:
        return self.opcode == "tensor_reduce"

    @property
    def on_vector(self) -> bool:
        """Whether the Vector engine may run it."""
        return self.engine in (None, Engine.VECTOR)

    @property
    def has_constant(self) -> bool:
        """Whether it is one operation with a constant, on a whole tile or on one value a row."""
        one = set(self.attributes) == {"op0", "imm0"} and len(self.reads) == 1
        plain = self.opcode == "tensor_scalar" and one and not self.dtype
        return plain and self.on_vector and self.kind in (Kind.FULL, Kind.COLUMN)

    @property
    def aligned(self) -> tuple[str, ...]:
        """The operands of which an element of the result reads the same element alone."""
        return self.reads[len(self.attributes["pieces"]) :] if self.opcode == JOINED else self.reads

    def is_sum_of(self, other: "RowStep") -> bool:
        """Whether the instruction that makes `other` adds its rows up as well."""
        adds = self.reduces and self.attributes == {"op": "add"}
        return adds and self.reads == (other.name,) and other.opcode in SUMMING


def step(
    name: str,
    opcode: str,
    *reads: str,
    kind: Kind = Kind.FULL,
    engine: Engine | None = None,
    dtype: str = "",
    **attributes: Any,
) -> RowStep:
    """An elementwise instruction; operands are FULL, ROW (repeated), COLUMN (one a row) or ONE."""
    return RowStep(name, opcode, reads, MappingProxyType(attributes), kind, engine, dtype)


def reduced(name: str, of: str, op: str = "add") -> RowStep:
    """The reduction of every row of a FULL value."""
    return RowStep(name, "tensor_reduce", (of,), MappingProxyType({"op": op}), Kind.COLUMN)


def column_sum(name: str, of: str) -> RowStep:
    """The sum over the rows of a FULL value."""
    return RowStep(name, "column_sum", (of,), MappingProxyType({}), Kind.ROW)


class Values(NamedTuple):
    """What a program reads, computes and stores."""

    inputs: Sequence[Input]
    steps: Sequence[RowStep]
    outputs: Sequence[Output]

    @property
    def kinds(self) -> dict[str, Kind]:
        return {i.name: i.kind for i in self.inputs} | {s.name: s.kind for s in self.steps}
