"""Concatenations along the last dimension of parts of tensors as long: columns in another order.

Rotary embeddings have `cat((-x[..., n:], x[..., :n]), -1)`: a region over rows reads the parts
where they are, and does what is done to a part alone, its sign say (`kernels/rows/joined.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.fx import Node

from ..kernels.rows.joined import Piece
from ..kernels.rows.layout import FLOATS
from .calls import tensor_of
from .nodes import is_item
from .region import KNOWN

__all__ = ["JoinedColumns", "joined_columns", "joined_later"]

aten = torch.ops.aten

MOST_COLUMNS = 1024  # of a block that no two tiles share (chosen)
_SPLITS = frozenset((aten.split.Tensor, aten.split_with_sizes.default))


class _Part(NamedTuple):
    of: Node
    piece: Piece
    folded: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class JoinedColumns:
    """Tensors, one for each piece, and the nodes that only change a piece."""

    sources: tuple[Node, ...]
    pieces: tuple[Piece, ...]
    folded: tuple[Node, ...]


def joined_later(node: Node) -> bool:
    """Whether the concatenation that alone reads what a node makes does its work."""
    if len(node.users) != 1 or _factor(node) is None:
        return False
    (user,) = node.users
    while _factor(user) is not None and len(user.users) == 1:
        (user,) = user.users
    found = joined_columns(user)
    return found is not None and node in found.folded


def joined_columns(node: Node) -> JoinedColumns | None:
    """What a concatenation joins; None for other nodes, and where a part is something else."""
    if node.target is not aten.cat.default or not isinstance(node.args[0], (list, tuple)):
        return None
    out = tensor_of(node)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if out is None or not out.shape or dim not in (-1, len(out.shape) - 1):
        return None
    if out.torch_dtype not in KNOWN or not 1 < out.shape[-1] <= MOST_COLUMNS or not out.numel:
        return None
    parts = [_part(given, node) for given in node.args[0]]
    sources = [tensor_of(p.of) if p else None for p in parts]
    if any(s is None or s.on_host or s.dtype != out.dtype or s.shape != out.shape
           for s in sources):  # fmt: skip
        return None
    known = [p for p in parts if p]
    if out.torch_dtype not in FLOATS and any(p.folded for p in known):
        return None  # unsigned integers wrap around
    filled = [p for p in known if p.piece.size]
    return JoinedColumns(
        tuple(p.of for p in filled),
        tuple(p.piece for p in filled),
        tuple(dict.fromkeys(n for p in known for n in p.folded)),
    )


def _part(given: object, reader: Node) -> _Part | None:
    """A part of a tensor's columns, times a number."""
    folded: list[Node] = []
    factor = 1.0
    while isinstance(given, Node) and (times := _factor(given)) is not None:
        if set(given.users) != {folded[-1] if folded else reader}:
            break
        factor *= times
        folded.append(given)
        given = given.args[0]
    if not isinstance(given, Node):
        return None
    *_, whole = _wholes(given)
    part, of = given.meta.get("val"), whole.meta.get("val")
    if not isinstance(part, torch.Tensor) or not isinstance(of, torch.Tensor) or not part.dim():
        return None
    alike = part.shape[:-1] == of.shape[:-1] and part.stride() == of.stride()
    first = part.storage_offset() - of.storage_offset()
    if not alike or not isinstance(first, int) or not isinstance(part.stride(-1), int):
        return None
    if part.stride(-1) == 0 or first % part.stride(-1) or not isinstance(part.shape[-1], int):
        return None
    return _Part(whole, Piece(first // part.stride(-1), part.shape[-1], factor), tuple(folded))


def _wholes(node: Node) -> Iterator[Node]:
    """A node, and what it is a part of."""
    yield node
    while True:
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return
        if is_item(node) and source.target in _SPLITS:
            source = source.args[0]
        elif node.target is not aten.slice.Tensor:
            return
        assert isinstance(source, Node)
        node = source
        yield node


def _factor(node: Node) -> float | None:
    """The number by which a node multiplies its operand; None for other nodes."""
    if node.target is aten.neg.default:
        return -1.0
    by = node.args[1] if node.target is aten.mul.Tensor else None
    plain = isinstance(by, (int, float)) and not isinstance(by, bool)
    return float(by) if plain else None  # type: ignore[arg-type]
