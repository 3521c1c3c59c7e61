"""Operations with constants done by the instruction that reads them, where it can for nothing.

An activation multiplies by its `scale`, `scalar_tensor_tensor` is a `tensor_tensor` whose first
operand is multiplied on the way, and `tensor_scalar` does two operations in one pass [isa].

Source: [isa] Neuron SDK v2.26.1, nki.isa (costs of the three).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from .values import Input, Kind, RowStep, Values, step

__all__ = ["absorbed"]

COMMUTATIVE = frozenset(("add", "multiply", "max", "min", "logical_and", "logical_or"))


def absorbed(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str]
) -> list[RowStep]:
    """The steps without operations that the only step which reads them does as well."""
    kinds = Values(inputs, steps, ()).kinds
    steps = list(_without_ones(steps, stored, kinds))
    steps = list(_by_truth(steps, stored, kinds))
    made = {s.name: s for s in steps}
    reads = Counter(name for s in steps for name in s.reads)
    for s in steps:
        for name in s.reads:
            first = made.get(name)
            if first is None or name in stored or reads[name] != 1 or not first.has_constant:
                continue
            joined = _joined(first, made[s.name], kinds)
            if joined is not None:
                made[s.name] = joined
                del made[name]
    return list(made.values())


def _without_ones(
    steps: Sequence[RowStep], stored: Collection[str], kinds: Mapping[str, Kind]
) -> Iterator[RowStep]:
    """The steps without products by 1."""
    same: dict[str, str] = {}
    for s in steps:
        s = replace(s, reads=tuple(same.get(r, r) for r in s.reads)) if same else s
        by_one = s.attributes == {"op0": "multiply", "imm0": 1.0} and s.opcode == "tensor_scalar"
        by_one = by_one and not s.dtype and kinds.get(s.reads[0], Kind.FULL) is s.kind  # a product
        if by_one and s.name not in stored:
            same[s.name] = s.reads[0]
        else:
            yield s


def _by_truth(
    steps: Sequence[RowStep], stored: Collection[str], kinds: Mapping[str, Kind]
) -> Iterator[RowStep]:
    """`truth * constant * c` as `truth * (constant * c)`, c one a row: no bit of it changes.

    A truth value is 0 or 1, so that the products round alike.
    """
    made = {s.name: s for s in steps}
    reads = Counter(name for s in steps for name in s.reads)

    def factor_of(s: RowStep) -> RowStep | None:
        """The product of a truth value with a constant that a step multiplies by row."""
        op = s.attributes.get("op") or s.attributes.get("op0")
        by_row = s.opcode in ("tensor_tensor", "tensor_scalar") and op == "multiply"
        if not by_row or s.kind is not Kind.FULL or len(s.reads) != 2 or len(s.attributes) != 1:
            return None
        first, column = made.get(s.reads[0]), kinds.get(s.reads[1])
        if first is None or column is not Kind.COLUMN or not first.has_constant:
            return None
        truth = made.get(first.reads[0])
        is_truth = truth is not None and truth.attributes.get("op0") == "equal"
        alone = reads[first.name] == 1 and first.name not in stored
        is_truth = is_truth and truth is not None and "op1" not in truth.attributes
        return first if is_truth and alone and first.attributes["op0"] == "multiply" else None

    factors = {s.name: first for s in steps if (first := factor_of(s)) is not None}
    gone = {first.name for first in factors.values()}
    for s in steps:
        if s.name in gone:
            continue
        if (first := factors.get(s.name)) is None:
            yield s
            continue
        column = f"{s.name} factor"
        yield step(column, "tensor_scalar", s.reads[1], kind=Kind.COLUMN, **first.attributes)
        yield replace(s, reads=(first.reads[0], column))


def _joined(first: RowStep, s: RowStep, kinds: Mapping[str, Kind]) -> RowStep | None:
    """The second step with the first one's work, or None where an instruction cannot do both."""
    if s.kind is not first.kind or s.dtype:
        return None
    constant, (x,) = first.attributes["imm0"], first.reads
    if s.has_constant:
        second = {"op1": s.attributes["op0"], "imm1": s.attributes["imm0"]}
        return step(s.name, s.opcode, x, kind=s.kind, **first.attributes, **second)
    if s.kind is not Kind.FULL or first.attributes["op0"] != "multiply":
        return None
    if s.opcode == "activation" and s.reads[0] == first.name:
        scale = float(s.attributes.get("scale", 1.0)) * constant
        others = {k: v for k, v in s.attributes.items() if k != "scale"}
        return step(s.name, s.opcode, x, *s.reads[1:], engine=s.engine, scale=scale, **others)
    if s.opcode == "tensor_tensor" and s.on_vector:
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
