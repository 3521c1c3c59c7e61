"""Attention with few keys: several heads share the instructions of a step, one pipeline for all.

With 512 keys at most, the scores of a tile of queries are in one PSUM bank, and with fewer keys
those of several heads. A step brings the operands of its heads, transposes them, and makes scores,
their maxima, weights and results with one instruction for all heads where the engines allow it.
The pipeline is three steps deep: scores of the newest, weights of the one before, the result of
the oldest. It runs over the heads of the whole batch and is not drained in between.

Source: the stages are those of `attention/forward.py`; that heads share a step is chosen.
"""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from ...chip import Chip
from ...isa import Affine, Builder, Program
from ..limits import P
from ..pipelining import Item, pipelined
from .short_stages import Stages, Tile, Work
from .spec import BLOCK, AttentionSpec
from .sums import MOST_SUMS

__all__ = ["short_attention", "takes_short"]

UNROLLED = 8  # steps of a loop's body (chosen: the program stays small)


def takes_short(a: AttentionSpec) -> bool:
    """Whether the program here can do it."""
    sums = a.batch * a.heads * ceil(a.queries / P)
    return a.keys <= BLOCK and not (a.stats and sums > MOST_SUMS)


def short_attention(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """As `attention`, for 512 keys at most."""
    name = f"attention {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=4.0 * a.products)
    _Loops(b, a.share(cores).as_one_batch()).program()
    return b.build()


class _Loops(Stages):
    """The order of the steps: one loop where addresses allow it, else loops around a pipeline."""

    def program(self) -> None:
        steps = self.a.heads // (self.kv * self.a.group)
        if self.row_tiles * self.parts > UNROLLED:
            self._long(steps)
        else:
            self._even(steps, self._tiles())
        if self.a.stats:
            self.sums_kept.store(Affine(), self.a.batch * self.a.heads)

    def _tiles(self) -> list[tuple[Tile, int]]:
        """What one step does with the keys it brings: tiles, and the first query of each."""
        a = self.a
        found: list[tuple[Tile, int]] = []
        for part in range(self.parts):
            for first in range(0, a.queries, P):
                rows, opens = min(P, a.queries - first), not found
                seen = min(a.keys, first + rows) if a.causal else a.keys
                hides = a.causal and first < a.keys
                found.append((Tile(rows, seen, opens, hides, part), first))
        return found

    def _long(self, steps: int) -> None:
        """Many tiles of queries: a pipeline over those of one step."""
        a, b = self.a, self.b
        kinds = [replace(tile, part=0) for tile, _ in self._tiles()][: self.row_tiles]

        def work(item: Item[Tile] | None, n: Affine, step: Affine) -> Work | None:
            return Work(item.kind, n, step, item.index * P) if item else None

        with b.loop(a.batch) as n, b.loop(steps) as step, b.loop(self.parts) as part:
            self.moved = part * self.group
            pipelined(b, kinds, 3, lambda window: self.step(*(work(x, n, step) for x in window)))

    def _even(self, steps: int, tiles: list[tuple[Tile, int]]) -> None:
        """One pipeline over the steps of all of the batch, or loops around one."""
        b, batch, self.moved = self.b, self.a.batch, Affine()
        plain = [(tile, first, 0) for tile, first in tiles]
        if batch == 1 or (steps >= batch and steps * len(tiles) > UNROLLED):
            with b.loop(batch) as n:
                self._pipeline(plain, steps, lambda i: (n, i))
        elif steps * len(tiles) <= UNROLLED:
            unrolled = [(tile, first, s) for s in range(steps) for tile, first in tiles]
            self._pipeline(unrolled, batch, lambda i: (i, Affine()))
        else:
            with b.loop(steps) as step:
                self._pipeline(plain, batch, lambda i: (i, step))

    def _pipeline(
        self,
        body: list[tuple[Tile, int, int]],
        count: int,
        place: Callable[[Affine], tuple[Affine, Affine]],
    ) -> None:
        """`body`, a list of tiles, their first queries and steps, `count` times."""
        size = len(body)

        def at(block: Affine, k: int) -> Work | None:
            while k < 0:
                block, k = block + -1, k + size
            if not block.terms and not 0 <= block.const < count:
                return None
            (tile, first, more), (n, step) = body[k], place(block)
            return Work(tile, n, step + more, Affine(first))

        def emit(block: Affine, k: int) -> None:
            self.step(*(at(block, k - age) for age in range(3)))

        ahead = min(count, ceil(2 / size))
        for block in range(ahead):
            for k in range(size):
                emit(Affine(block), k)
        if count > ahead:
            with self.b.loop(count - ahead) as i:
                for k in range(size):
                    emit(i + ahead, k)
        for k in range(2):
            emit(Affine(count + k // size), k % size)
