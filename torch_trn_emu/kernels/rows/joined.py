"""A value joined of pieces: columns of others in another order, block by block of a row.

Rotary embeddings read `cat((-x[..., n:], x[..., :n]), -1)`. The pieces are copied within SBUF, or
an operation of two tensors reads them where they are, an instruction for each piece.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import lcm
from types import MappingProxyType
from typing import NamedTuple

from ...isa import Access, Builder, Engine
from .fold_constants import COMMUTATIVE
from .values import JOINED, Input, Kind, RowStep, Values, step

__all__ = ["Piece", "block_of", "emit_joined", "joined", "read_in_pieces"]


class Piece(NamedTuple):
    """`size` columns of each block of an operand, from `first` on, times `factor`."""

    first: int
    size: int
    factor: float = 1.0


def joined(name: str, *pieces: tuple[str, Piece]) -> RowStep:
    """Each block of a FULL value, of columns of the same block of others."""
    return step(name, JOINED, *(x for x, _ in pieces), pieces=tuple(p for _, p in pieces))


def block_of(steps: Sequence[RowStep]) -> int:
    """The elements of a row that these steps cannot part: rows consist of such blocks."""
    return lcm(*(sum(p.size for p in _pieces(s)) for s in steps if s.opcode == JOINED))


def _pieces(s: RowStep) -> tuple[Piece, ...]:
    return tuple(Piece(*p) for p in s.attributes["pieces"])


def read_in_pieces(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str]
) -> list[RowStep]:
    """The steps; a joined value that one `tensor_tensor` alone reads is not made any more.

    It is made where that saves time: 16-bit tensors are added and multiplied at twice the rate,
    but not with a factor as well.
    """
    kinds = Values(inputs, steps, ()).kinds
    reads = Counter(name for s in steps for name in s.reads)
    ready = {
        s.name: s
        for s in steps
        if s.opcode == JOINED and reads[s.name] == 1 and s.name not in stored
    }
    found = [_with_pieces(s, ready, kinds) for s in steps]
    gone = {s.name for s in ready.values()} - {name for s in found for name in s.reads}
    return [s for s in found if s.name not in gone]


def _with_pieces(s: RowStep, ready: Mapping[str, RowStep], kinds: Mapping[str, Kind]) -> RowStep:
    first = next((ready[name] for name in s.reads if name in ready), None)
    on_vector = s.opcode == "tensor_tensor" and s.on_vector
    if first is None or not on_vector or s.kind is not Kind.FULL:
        return s
    op, (other,) = s.attributes["op"], [name for name in s.reads if name != first.name]
    in_order = s.reads[0] == first.name or op in COMMUTATIVE
    short = first.dtype and any(p.factor != 1 for p in _pieces(first))
    if not in_order or short or kinds[other] not in (Kind.FULL, Kind.ROW):
        return s
    attributes = MappingProxyType({**first.attributes, "op": op})
    return replace(s, opcode=JOINED, reads=(*first.reads, other), attributes=attributes)


def emit_joined(b: Builder, s: RowStep, to: Access, reads: Sequence[Access]) -> None:
    """An instruction for each piece; the last of `reads` is the other operand of `op`, if any."""
    op, start, pieces = s.attributes.get("op"), 0, _pieces(s)
    block, others = sum(p.size for p in pieces), reads[len(pieces) :]
    for source, p in zip(reads, pieces, strict=False):
        here = _in_blocks(to, block, start, p.size)
        operands = [_in_blocks(source, block, p.first, p.size)]
        operands += [_in_blocks(other, block, start, p.size) for other in others]
        start += p.size
        if op and p.factor == 1:
            b.emit("tensor_tensor", here, *operands, op=op)
        elif op:
            scaled = "scalar_tensor_tensor"
            b.emit(scaled, here, *operands, op0="multiply", imm0=p.factor, op1=op)
        elif s.engine is Engine.SCALAR:
            b.emit("activation", here, *operands, op="copy", scale=p.factor)
        elif p.factor == 1:
            b.emit("tensor_copy", here, *operands)
        else:
            b.emit("tensor_scalar", here, *operands, op0="multiply", imm0=p.factor)


def _in_blocks(a: Access, block: int, first: int, count: int) -> Access:
    """Some columns of each block of a tile's lines."""
    *outer, (stride, elements) = a.pattern
    if elements > block:
        outer.append((block * stride, elements // block))
    return replace(a, offset=a.offset + first * stride, pattern=(*outer, (stride, count)))
