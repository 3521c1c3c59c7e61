"""Steps of a row program rewritten before they are emitted: fewer instructions, on two engines.

A graph's operators become a step each. What the vendor's kernels do in one instruction is put
together here: two operations with one value a row each, and the bias of an activation.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ..chip import Chip
from ..isa import OPCODES, Engine
from .row_values import Kind, RowStep, step

__all__ = ["fused", "shared_out"]


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
    by_row = plain and kinds.get(s.reads[1]) is Kind.COLUMN and s.engine in (None, Engine.VECTOR)
    by_row = by_row and kinds.get(s.reads[0], Kind.FULL) is Kind.FULL
    return str(s.attributes[op]) if by_row and op else ""


def _takes(s: RowStep, first: RowStep, kinds: dict[str, Kind]) -> bool:
    """Whether a step can do the work of the one before it, `first`."""
    subtracts = _op_by_row(first, kinds) == "subtract"
    return bool(_op_by_row(s, kinds)) or (
        s.opcode == "activation" and len(s.reads) == 1 and s.kind is Kind.FULL and subtracts
    )


def _with_bias(s: RowStep, first: RowStep) -> Iterator[RowStep]:
    """f(scale * (x - c)) as f(scale * x + b): b is -scale * c."""
    x, c = first.reads
    scale, bias = float(s.attributes.get("scale", 1.0)), f"{s.name} bias"
    yield step(bias, "tensor_scalar", c, kind=Kind.COLUMN, op0="multiply", imm0=-scale)
    yield step(s.name, "activation", x, bias, engine=s.engine, **s.attributes)


def shared_out(steps: Sequence[RowStep], chip: Chip) -> list[RowStep]:
    """Multiplications by constants on Scalar instead of Vector, while that shortens what both do.

    An element of a tile is taken to cost each of them one cycle.
    """
    cycle_s = {
        Engine.VECTOR: 1 / chip.vector_engine.clock_hz,
        Engine.SCALAR: 1 / chip.scalar_engine.clock_hz,
    }
    busy_s = dict.fromkeys(cycle_s, 0.0)
    for s in steps:
        engine = s.engine or (OPCODES[s.opcode].engines[0] if s.opcode in OPCODES else None)
        if engine in busy_s and (s.reduces or s.kind is Kind.FULL):
            busy_s[engine] += cycle_s[engine]
    made = []
    for s in steps:
        after_s = busy_s[Engine.SCALAR] + cycle_s[Engine.SCALAR]
        if _scales(s) and after_s <= busy_s[Engine.VECTOR] - cycle_s[Engine.VECTOR]:
            busy_s[Engine.SCALAR] = after_s
            busy_s[Engine.VECTOR] -= cycle_s[Engine.VECTOR]
            s = step(s.name, "activation", *s.reads, op="copy", scale=s.attributes["imm0"])
        made.append(s)
    return made


def _scales(s: RowStep) -> bool:
    """Whether a step multiplies all of a tile by a constant, and does nothing else."""
    plain = s.opcode == "tensor_scalar" and s.engine in (None, Engine.VECTOR) and len(s.reads) == 1
    multiplies = set(s.attributes) == {"op0", "imm0"} and s.attributes["op0"] == "multiply"
    return plain and multiplies and s.kind is Kind.FULL
