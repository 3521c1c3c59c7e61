"""Scaled dot product attention as a flash-style program: scores never leave the chip.

Queries lie on partitions, 128 a tile. While the Tensor engine makes the scores of one tile and the
Vector engine finds their maximum, the Scalar engine exponentiates those of the tile before, whose
weights are transposed on the Tensor engine and multiply the values [cte]. Keys that do not fit
are taken in sections, and the sums are rescaled when the maximum grows.

Source: [cte] nki-library, core/attention/attention_cte.py (groups of 128 queries in a software
pipeline, blocks of 512 keys, one maximum for all keys of a section). Weights are transposed on the
Tensor engine, not by DMA, on every chip, and the pipeline is two tiles deep, not three: chosen.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Builder, Program, Role, itemsize
from ..limits import P
from ..pipelining import Item, Window, pipelined
from .spec import BLOCK, AttentionSpec, Masks, Tile, Transposer, fits, grids, tile_at, tiles_of

__all__ = ["attention"]

SECTION = 4096  # chosen: two in flight take what [cte] gives to one section of 8192


def attention(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """out[h] = softmax(q[h] @ k[h].T * scale + mask) @ v[h], and `lse` with a.stats.

    Heads lie one after the other, [batch * heads * length, head_dim]; head_dim is 128 at most.
    """
    name = f"attention {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=4.0 * a.products)
    _Forward(b, a.share(cores), chip).program()
    return b.build()


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile of queries with one section of its keys."""

    tile: Tile  # blocks of the section
    start: int  # its first key
    opens: bool
    closes: bool


@dataclass(frozen=True, slots=True)
class _Block:
    """What one step of two parts' pipelines works on: keys of the newer one, of the older one."""

    coming: int
    going: int
    ends: bool  # the block after the full ones


def _sections(tile: Tile, length: int) -> list[_Part]:
    count, at_once = max(1, ceil(tile.seen / length)), length // BLOCK
    parts = []
    for s in range(count):
        closes = s == count - 1
        full = tile.full - s * at_once if closes else at_once
        last, diagonal = (tile.last, tile.diagonal) if closes else (0, False)
        parts.append(_Part(Tile(tile.rows, full, last, diagonal), s * length, s == 0, closes))
    return parts


class _Forward:
    def __init__(self, b: Builder, a: AttentionSpec, chip: Chip) -> None:
        self.b, self.a = b, a
        self.q, self.k, self.v = (a.heads_of(b, name, Role.INPUT) for name in "qkv")
        self.masks, self.transposer = Masks(b, a), Transposer(b, a)
        self.out = a.heads_of(b, "out", Role.OUTPUT)
        if a.stats:
            self.lse = b.hbm("lse", (a.batch * a.heads * a.queries, 1), "float32", Role.OUTPUT)
            self.totals, self.shifts = (
                b.sbuf(name, ceil(a.queries / P), "float32", slots=2)
                for name in ("totals", "shifts")
            )
        # Scores of two sections, and keys and values of two heads, if they fit.
        held, each = 2 * itemsize("float32"), 2 * itemsize(a.compute) * a.dim / min(a.dim, P)
        whole = fits(a.keys * (held + each), chip)
        ahead = 2 if fits(a.keys * (held + 2 * each), chip) else 1
        self.length = a.keys if whole else SECTION
        self.one_section = whole
        self._operands(ahead)
        self._of_scores(ceil(min(a.keys, self.length) / BLOCK))
        self._of_tiles()

    def _operands(self, slots: int) -> None:
        b, a, tiles = self.b, self.a, ceil(self.a.keys / P)
        self.k_rows = b.sbuf("k rows", BLOCK // P * a.dim, a.compute, slots=2)
        self.k_transposed = b.sbuf("k transposed", a.keys, a.compute, slots=slots)
        self.v_rows = b.sbuf("v rows", tiles * a.dim, a.compute, slots=slots)
        self.q_rows = b.sbuf("q rows", a.dim, a.compute, slots=2)
        self.q_transposed = b.sbuf("q transposed", P, a.compute, slots=2)

    def _of_scores(self, blocks: int) -> None:
        b, compute = self.b, self.a.compute
        self.scores = b.psum("scores", BLOCK, slots=2)
        self.masked = b.sbuf("masked", blocks * BLOCK, "float32", slots=2)
        self.tops = b.sbuf("tops", blocks, "float32", slots=2)
        self.weights = b.sbuf("weights", BLOCK, compute, slots=3)
        self.weights_transposed = b.sbuf("weights transposed", BLOCK, compute, slots=2)
        self.parts = b.sbuf("parts", blocks, "float32", slots=2)
        self.product = b.psum("product", self.a.dim, slots=2)

    def _of_tiles(self) -> None:
        b, a = self.b, self.a
        self.low, self.shift, self.part, self.total, self.keep, self.inverse = (
            b.sbuf(name, 1, "float32", slots=2)
            for name in ("low", "shift", "part", "total", "keep", "inverse")
        )
        self.result = b.sbuf("result", a.dim, a.dtype, slots=2)
        if not self.one_section:
            self.sum = b.sbuf("sum", a.dim, "float32", slots=2)
            self.grown = b.sbuf("grown", 1, "float32", slots=2)

    # --- loops ---

    def program(self) -> None:
        b, a = self.b, self.a
        kv_heads = a.heads // a.group
        with b.loop(a.batch) as n, b.loop(kv_heads) as h:
            self._keys_and_values(n, h)
            with b.loop(a.group) as g:
                head = h * a.group + g
                self.row = (n * a.heads + head) * a.queries
                self.q_at, self.out_at = self.q.at(n, head), self.out.at(n, head)
                self.mask_at = self.masks.of_head(n, head)
                self._head()

    def _keys_and_values(self, n: Affine, head: Affine) -> None:
        b, a = self.b, self.a
        b.fresh(self.k_transposed, self.v_rows)
        for start, size in b.tiles(a.keys, BLOCK):
            b.fresh(self.k_rows)
            self.transposer.bring(self.k_rows, 0, self.k, self.k.at(n, head, start), size)
            self.transposer.transpose(self.k_transposed, start, self.k_rows, 0, size)
            values = self.v.at(n, head, start)
            self.transposer.bring(self.v_rows, tile_at(start, a.dim), self.v, values, size)

    def _head(self) -> None:
        tiles = tiles_of(self.a)
        if self.a.stats:
            self.b.fresh(self.totals, self.shifts)
        if self.one_section:
            parts = [_Part(tile, 0, True, True) for tile in tiles]
            pipelined(self.b, parts, 3, self._step, _alike)
        else:
            first = 0
            for tile, equal in groupby(tiles):
                count = len(list(equal))
                with self.b.loop(count) as i:
                    self.tile_at = i + first
                    pipelined(self.b, _sections(tile, self.length), 3, self._step, _alike)
                first += count
        if self.a.stats:
            self._store_stats()

    def _tile(self, item: Item[_Part]) -> Affine:
        """The number of an item's tile of queries."""
        return item.index if self.one_section else self.tile_at

    def _first(self, item: Item[_Part]) -> Affine:
        """The first query of an item."""
        return self._tile(item) * P

    # --- one step of the pipeline of tiles ---

    def _step(self, window: Window[_Part]) -> None:
        """Scores of the newest part, weights of the one before, the result of the oldest."""
        coming, going, gone = window
        self.age = 1 if coming else 0  # of what belongs to `going` in buffers that `coming` fills
        if coming:
            self._open_scores(coming)
        if gone and not self.one_section:  # the next section's sums go on from these
            self._finish(gone)
        if going:
            self._open_weights(going)
        self._blocks(coming, going, gone if self.one_section else None)
        if coming:
            self._close_scores(coming)
        if going:
            self._close_weights(going)

    def _blocks(
        self, coming: Item[_Part] | None, going: Item[_Part] | None, gone: Item[_Part] | None
    ) -> None:
        new, old = (x.kind.tile if x else Tile(0, 0, 0, False) for x in (coming, going))
        both = min(new.full, old.full)
        blocks = [_Block(BLOCK, BLOCK, False)] * both
        blocks += [_Block(BLOCK, 0, False)] * (new.full - both)
        blocks += [_Block(0, BLOCK, False)] * (old.full - both)
        if new.last or old.last:
            blocks.append(_Block(new.last, old.last, True))

        def step(window: Window[_Block]) -> None:
            now, before = window
            if now and coming and now.kind.coming:
                hides = now.kind.ends and new.diagonal
                self._scores(coming, *_span(now, new), now.kind.coming, hides)
            if now and going and now.kind.going:
                self._weights(going, *_span(now, old), now.kind.going)
            if before is None:
                if gone:
                    self._finish(gone)
                if going:
                    self.b.fresh(self.product)
            elif going and before.kind.going:
                self._multiply(going, _span(before, old)[1], before.kind.going)
            if now and going and now.kind.going:
                self.transposer.keep(self.weights_transposed, old.rows, now.kind.going)

        pipelined(self.b, blocks, 2, step)
        if gone and not blocks:
            self._finish(gone)

    # --- the newest part: scores and their maximum ---

    def _open_scores(self, item: Item[_Part]) -> None:
        b, a, rows = self.b, self.a, item.kind.tile.rows
        b.fresh(self.masked, self.tops)
        if not item.kind.opens:
            return
        b.fresh(self.q_rows, self.q_transposed)
        at = self.q_at + self._first(item) * self.q.layout.row
        b.load(self.q_rows.rows(rows, a.dim), self.q.rows(at, rows))
        self.transposer.transpose(self.q_transposed, 0, self.q_rows, 0, rows)

    def _scores(
        self, item: Item[_Part], number: Affine, at: Affine, size: int, hides: bool
    ) -> None:
        b, rows = self.b, item.kind.tile.rows
        b.fresh(self.scores)
        scores, key = self.scores.rows(rows, size), at + item.kind.start
        moving = self.k_transposed.rows(self.a.dim, size, key)
        stationary = self.q_transposed.rows(self.a.dim, rows)
        b.emit("nc_matmul", scores, stationary, moving, load="background")
        masked, top = self.masked.rows(rows, size, at), self.tops.rows(rows, 1, number)
        if not self.masks.given and not hides:
            both = (masked, top)
            b.emit("tensor_scalar_reduce", both, scores, op0="multiply", imm0=1.0, op="max")
            return
        self.masks.hide(masked, scores, self.mask_at, rows, self._first(item), key, size)
        b.emit("tensor_reduce", top, masked, op="max")

    def _close_scores(self, item: Item[_Part]) -> None:
        """The bias of the exponential: the greatest score, scaled and negated."""
        b, tile = self.b, item.kind.tile
        b.fresh(self.low)
        low = self.low.rows(tile.rows, 1)
        b.emit("tensor_reduce", low, self.tops.rows(tile.rows, tile.blocks), op="max")
        b.emit("tensor_scalar", low, low, op0="multiply", imm0=-self.masks.scale)

    # --- the part before: weights and their product with the values ---

    def _open_weights(self, item: Item[_Part]) -> None:
        b, rows = self.b, item.kind.tile.rows
        low, shift = self.low.rows(rows, 1), self.shift.rows(rows, 1)
        if item.kind.opens:
            b.fresh(self.shift)
            shift = self.shift.rows(rows, 1)
            b.emit("activation", shift, low, op="copy")
        else:
            b.fresh(self.grown, self.keep)
            grown, keep = self.grown.rows(rows, 1), self.keep.rows(rows, 1)
            b.emit("tensor_tensor", grown, shift, low, op="min")
            b.emit("tensor_tensor", keep, grown, shift, op="subtract")
            b.emit("activation", keep, keep, op="exp")
            b.emit("tensor_copy", shift, grown)
        b.fresh(self.parts)

    def _weights(self, item: Item[_Part], number: Affine, at: Affine, size: int) -> None:
        """exp(score * scale + shift), transposed so that keys lie on partitions."""
        b, rows = self.b, item.kind.tile.rows
        b.fresh(self.weights)
        written = (self.weights.rows(rows, size), self.parts.rows(rows, 1, number))
        masked = self.masked.rows(rows, size, at, age=self.age)
        shift = self.shift.rows(rows, 1)
        b.emit("activation_reduce", written, masked, shift, op="exp", scale=self.masks.scale)
        self.transposer.spread(self.weights, rows, size)

    def _multiply(self, item: Item[_Part], at: Affine, size: int) -> None:
        b, a, rows = self.b, self.a, item.kind.tile.rows
        product = self.product.rows(rows, a.dim)
        first = tile_at(at + item.kind.start, a.dim)
        for t in range(ceil(size / P)):
            count = min(P, size - t * P)
            stationary = self.weights_transposed.rows(count, rows, t * P)
            values = self.v_rows.rows(count, a.dim, first + t * a.dim)
            b.emit("nc_matmul", product, stationary, values, load="background")

    def _close_weights(self, item: Item[_Part]) -> None:
        """The sum of the weights and, of all keys' weights, its inverse."""
        b, tile = self.b, item.kind.tile
        b.fresh(self.total if item.kind.opens else self.part)
        part, total = self.part.rows(tile.rows, 1), self.total.rows(tile.rows, 1)
        parts = self.parts.rows(tile.rows, tile.blocks)
        if item.kind.opens:
            b.emit("tensor_reduce", total, parts, op="add")
        else:
            keep = self.keep.rows(tile.rows, 1)
            b.emit("tensor_reduce", part, parts, op="add")
            b.emit("tensor_scalar", total, total, keep, part, op0="multiply", op1="add")
        if item.kind.closes:
            b.fresh(self.inverse)
            b.emit("reciprocal", self.inverse.rows(tile.rows, 1), total)
            if self.a.stats:
                at = self._tile(item)
                shift = self.shift.rows(tile.rows, 1)
                b.emit("tensor_copy", self.totals.rows(tile.rows, 1, at), total)
                b.emit("tensor_copy", self.shifts.rows(tile.rows, 1, at), shift)

    def _store_stats(self) -> None:
        """The logarithms of a head at once: the Scalar engine loads its tables anew for them."""
        b = self.b
        for grid in grids(self.a.queries):
            totals, shifts = grid.column(self.totals), grid.column(self.shifts)
            b.emit("activation", totals, totals, op="log")
            b.emit("tensor_tensor", totals, totals, shifts, op="subtract")
            pattern = ((1, grid.rows), (P, grid.tiles))
            at = self.row + grid.first * P
            b.store(self.lse.box(*pattern, at=at), totals)

    # --- the oldest part: the result ---

    def _finish(self, item: Item[_Part]) -> None:
        b, a, rows = self.b, self.a, item.kind.tile.rows
        gathered = self.product.rows(rows, a.dim)
        if not self.one_section:
            gathered = self._gathered(item, gathered)
        if item.kind.closes:
            b.fresh(self.result)
            result, inverse = self.result.rows(rows, a.dim), self.inverse.rows(rows, 1)
            b.emit("tensor_scalar", result, gathered, inverse, op0="multiply")
            at = self.out_at + self._first(item) * self.out.layout.row
            b.store(self.out.rows(at, rows), result)

    def _gathered(self, item: Item[_Part], product: Access) -> Access:
        """The sum over sections up to this one."""
        b, rows = self.b, item.kind.tile.rows
        if item.kind.opens:
            b.fresh(self.sum)
        gathered, keep = self.sum.rows(rows, self.a.dim), self.keep.rows(rows, 1)
        if item.kind.opens:
            b.emit("tensor_copy", gathered, product)
        else:
            b.emit(
                "scalar_tensor_tensor", gathered, gathered, keep, product, op0="multiply", op1="add"
            )
        return gathered


def _alike(kinds: tuple[_Part | None, ...]) -> Hashable:
    """Of the oldest part nothing matters but its rows, and whether it ends the tile."""
    *newer, gone = kinds
    return (*newer, gone and (gone.tile.rows, gone.opens, gone.closes))


def _span(item: Item[_Block], tile: Tile) -> tuple[Affine, Affine]:
    """A block's number in its section, and its first key."""
    number = Affine(tile.full) if item.kind.ends else item.index
    return number, number * BLOCK
