"""Operations with constants done by the instruction that reads them, where it can for nothing.

An activation multiplies by its `scale`, `scalar_tensor_tensor` is a `tensor_tensor` whose first
operand is multiplied on the way, and `tensor_scalar` does two operations in one pass [isa].

Source: [isa] Neuron SDK v2.26.1, nki.isa (costs of the three).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ...isa import Engine
from .values import Input, Kind, RowStep, Values, step

__all__ = ["absorbed"]

COMMUTATIVE = frozenset(("add", "multiply", "max", "min"))


def absorbed(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str]
) -> list[RowStep]:
    """The steps without operations that the only step which reads them does as well."""
    made = {s.name: s for s in steps}
    kinds = Values(inputs, steps, ()).kinds
    reads = Counter(name for s in steps for name in s.reads)
    for s in steps:
        for name in s.reads:
            first = made.get(name)
            if first is None or name in stored or reads[name] != 1 or not _is_plain(first):
                continue
            joined = _joined(first, made[s.name], kinds)
            if joined is not None:
                made[s.name] = joined
                del made[name]
    return list(made.values())


def _is_plain(s: RowStep) -> bool:
    """One operation with a constant, on a whole tile."""
    on_vector = s.opcode == "tensor_scalar" and s.engine in (None, Engine.VECTOR)
    one = set(s.attributes) == {"op0", "imm0"} and len(s.reads) == 1
    return on_vector and s.kind is Kind.FULL and one and not s.dtype


def _joined(first: RowStep, s: RowStep, kinds: Mapping[str, Kind]) -> RowStep | None:
    """The second step with the first one's work, or None where an instruction cannot do both."""
    if s.kind is not Kind.FULL or s.dtype:
        return None
    constant, (x,) = first.attributes["imm0"], first.reads
    if _is_plain(s):
        second = {"op1": s.attributes["op0"], "imm1": s.attributes["imm0"]}
        return step(s.name, s.opcode, x, **first.attributes, **second)
    if first.attributes["op0"] != "multiply":
        return None
    if s.opcode == "activation" and s.reads[0] == first.name:
        scale = float(s.attributes.get("scale", 1.0)) * constant
        others = {k: v for k, v in s.attributes.items() if k != "scale"}
        return step(s.name, s.opcode, x, *s.reads[1:], engine=s.engine, scale=scale, **others)
    if s.opcode == "tensor_tensor" and s.engine in (None, Engine.VECTOR):
        return _with_factor(first, s, kinds)
    return None


def _with_factor(first: RowStep, s: RowStep, kinds: Mapping[str, Kind]) -> RowStep | None:
    """`(x * constant) op other`, in whichever order they were given."""
    constant, (x,), op = first.attributes["imm0"], first.reads, s.attributes["op"]
    comes_first = s.reads[0] == first.name
    (other,) = (name for name in s.reads if name != first.name)
    if Kind.COLUMN in (kinds.get(other), kinds.get(x)):
        return None
    if not comes_first and op == "subtract":
        constant, op = -constant, "add"
    elif not comes_first and op not in COMMUTATIVE:
        return None
    return step(s.name, "scalar_tensor_tensor", x, other, op0="multiply", imm0=constant, op1=op)
