"""Steps of a row program put together before they are emitted: fewer instructions.

A graph's operators become a step each. What the vendor's kernels do in one instruction is put
together here: two operations with one value a row each, and the bias of an activation.
`rows/balance_engines.py` then shares them out between the engines.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ...isa import Engine
from .values import Kind, RowStep, step

__all__ = ["bias_of", "fused"]


def fused(steps: Sequence[RowStep], stored: Collection[str]) -> list[RowStep]:
    """Pairs of steps as one, where the first one's value is neither `stored` nor read again."""
    return list(_fused(steps, stored))


def _fused(steps: Sequence[RowStep], stored: Collection[str]) -> Iterator[RowStep]:
    kinds = {s.name: s.kind for s in steps}
    reads = Counter(name for s in steps for name in s.reads)
    by_row = {s.name: s for s in steps if _op_by_row(s, kinds)}
    taken = {
        s.reads[0]
        for s in steps
        if s.reads and s.reads[0] in by_row and s.reads[0] not in stored
        and reads[s.reads[0]] == 1 and _takes(s, by_row[s.reads[0]], kinds)
    }  # fmt: skip
    taken -= {by_row[name].reads[0] for name in taken}  # pairs, not chains
    for s in steps:
        if s.name in taken:
            continue
        if not s.reads or s.reads[0] not in taken:
            yield s
        elif s.opcode == "activation":
            yield from _with_bias(s, by_row[s.reads[0]])
        else:
            first = by_row[s.reads[0]]
            before, after = _op_by_row(first, kinds), _op_by_row(s, kinds)
            operands = (*first.reads, s.reads[1])
            yield step(s.name, "tensor_scalar", *operands, op0=before, op1=after)


def _op_by_row(s: RowStep, kinds: dict[str, Kind]) -> str:
    """The operation of a tile with one value a row, "" for another step."""
    op = {"tensor_tensor": "op", "tensor_scalar": "op0"}.get(s.opcode)
    plain = op and set(s.attributes) == {op} and len(s.reads) == 2 and s.kind is Kind.FULL
    plain = plain and not s.dtype
    by_row = plain and kinds.get(s.reads[1]) is Kind.COLUMN and s.engine in (None, Engine.VECTOR)
    by_row = by_row and kinds.get(s.reads[0], Kind.FULL) is Kind.FULL
    return str(s.attributes[op]) if by_row and op else ""


def _takes(s: RowStep, first: RowStep, kinds: dict[str, Kind]) -> bool:
    """Whether a step can do the work of the one before it, `first`."""
    subtracts = _op_by_row(first, kinds) == "subtract"
    return bool(_op_by_row(s, kinds)) or (
        s.opcode == "activation"
        and len(s.reads) == 1
        and s.kind is Kind.FULL
        and subtracts
        and not s.dtype
    )


def bias_of(s: RowStep) -> str:
    """The name of the step that makes the bias of an activation put together here."""
    return f"{s.name} bias"


def _with_bias(s: RowStep, first: RowStep) -> Iterator[RowStep]:
    """f(scale * (x - c)) as f(scale * x + b): b is -scale * c."""
    x, c = first.reads
    scale, bias = float(s.attributes.get("scale", 1.0)), bias_of(s)
    yield step(bias, "tensor_scalar", c, kind=Kind.COLUMN, op0="multiply", imm0=-scale)
    yield step(s.name, "activation", x, bias, engine=s.engine, **s.attributes)
