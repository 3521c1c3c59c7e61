"""The loops of a product of few rows, which stream through columns of the second factor."""

from collections.abc import Iterator
from math import ceil
from typing import Any

from ...isa import Affine, Builder, affine
from ..limits import P
from .body import Body
from .operand import Operand

__all__ = ["Turned", "TurnedInParts"]


class Turned(Body):
    """The loops of a matmul of few rows, which stream through columns of rhs.

    So the array gives columns of the result. They are turned, and a row has several partitions.
    """

    def __init__(self, b: Builder, left: Operand, right: Operand, *rest: Any) -> None:
        super().__init__(b, left, right, *rest)
        self.made = b.sbuf("columns", P, "float32", slots=2)
        self.turned = b.psum("turned", P, slots=2)

    def _rows(self, m0: Affine, ms: int, n0: Affine, ns: int) -> None:
        """A block, whose sums a bank holds; as many of its pieces as fit are turned at once."""
        self.b.fresh(self.psum)
        pieces, width = divmod(ns, P)
        groups = [(min(P // ms, pieces - first), P, first) for first in range(0, pieces, P // ms)]
        groups += [(1, width, pieces)] * bool(width)
        tile_k = self.left.packing.tile_k
        for part, right, at, ks in self._held(n0, ns):
            for t in range(ceil(ks / tile_k)):
                k = min(ks - t * tile_k, tile_k)
                moving = self.left.tile(part, t, k, Affine(), ms)
                for count, wide, first in groups:
                    for piece in range(count):
                        into = self.psum.lanes(wide, (count, ms), at=first * ms + piece)
                        held = right.tile(at, t, k, (first + piece) * P, wide)
                        self.b.emit("nc_matmul", into, held, moving, load=self.schedule.load)
        for count, wide, first in groups:
            self._leave(m0, ms, n0 + first * P, count, wide, first * ms)

    def _held(self, _n0: Affine, _ns: int) -> Iterator[tuple[Affine, Operand, Affine, int]]:
        """(part of lhs, what holds its columns, in which part, elements) of the contraction."""
        for part, _, ks in self.left.k_parts():
            yield part, self.right, part, ks

    def _leave(self, m0: Affine, ms: int, first: Affine, pieces: int, width: int, at: int) -> None:
        """`pieces` x `width` columns of the result from element `at` of PSUM, turned to rows."""
        b = self.b
        b.fresh(self.made, self.turned, self.result)
        self.leaving.rows(m0, ms, first, pieces * width, pieces)
        made = self.made.rows(width, ms * pieces)
        b.emit("tensor_copy", made, self.psum.rows(width, ms * pieces, at))
        b.emit("nc_transpose", self.turned.rows(ms * pieces, width), made)
        self.leaving.evacuate(self.turned, ms * pieces, 0, width)
        self._finish(m0, ms, first, pieces * width, pieces)


class TurnedInParts(Turned):
    """The same with a contraction too long for SBUF to hold columns of all of it.

    The rows stay in SBUF; of the columns there is what a few transfers bring.
    """

    def __init__(self, b: Builder, left: Operand, right: Operand, *rest: Any) -> None:
        super().__init__(b, left, right, *rest)
        self.last = right.tail(left.rest) if left.rest else right

    def _blocks(self, m: int, n: int) -> None:
        self.left.load(0, m, self.bases[0])
        for n0, ns in self.b.tiles(n, self.plan.block_n):
            self.leaving.columns(n0, ns)
            self._rows(Affine(), m, n0, ns)

    def _held(self, n0: Affine, ns: int) -> Iterator[tuple[Affine, Operand, Affine, int]]:
        left, chunk = self.left, self.plan.chunk
        whole = left.full * left.packing.tile_k
        for number, k0, ks in self.b.parts(whole, chunk):
            right = self.right if ks == chunk else self.right.first(ks)
            self._load(right, k0, n0, ns)
            for part, _, size in right.k_parts():
                yield number * self.right.parts + part, right, part, size
        if left.rest:
            self._load(self.last, affine(whole), n0, ns)
            yield affine(left.parts - 1), self.last, Affine(), left.rest

    def _load(self, right: Operand, k0: Affine, n0: Affine, ns: int) -> None:
        step = right.f if right.contraction_major else 1
        right.load(n0, ns, affine(self.bases[1]) + k0 * step)
