"""Scaled dot product attention as a flash-style program: scores never leave the chip.

Queries lie on partitions, 128 a tile. While the Tensor engine makes the scores of one tile and the
Vector engine finds their maximum, the Scalar engine exponentiates those of the tile before, whose
weights are transposed on the Tensor engine and multiply the values [cte]. Keys that do not fit
are taken in sections, and the sums are rescaled when the maximum grows.

Source: [cte] nki-library, core/attention/attention_cte.py (groups of 128 queries in a software
pipeline for each head, blocks of 512 keys, one maximum for all keys of a section). Weights are
transposed on the Tensor engine, not by DMA, on every chip, only a tile's last product waits for the
next step, and the pipeline of short heads goes on from one to the next: chosen.
"""

from dataclasses import replace
from itertools import groupby
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Builder, Program, Role, itemsize
from ..limits import P
from ..pipelining import Item, Window, pipelined, repeated
from .parts import Block, Part, alike, sections, span
from .spec import BLOCK, AttentionSpec, Masks, Tile, Transposer, fits, tile_at, tiles_of
from .sums import Sums

__all__ = ["attention"]

SECTION = 4096  # chosen: two in flight take what [cte] gives to one section of 8192
UNROLLED = 16  # tiles of heads that share keys, beyond which a pipeline has one head [cte]
SUMS = 1024  # tiles whose sums are kept until the logarithms are taken (chosen: 8 KiB)


def attention(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """out[h] = softmax(q[h] @ k[h].T * scale + mask) @ v[h], and `lse` with a.stats.

    Heads lie one after the other, [batch * heads * length, head_dim]; head_dim is 128 at most.
    """
    name = f"attention {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=4.0 * a.products)
    _Forward(b, a.share(cores).as_one_batch(), chip).program()
    return b.build()


class _Forward:
    def __init__(self, b: Builder, a: AttentionSpec, chip: Chip) -> None:
        self.b, self.a = b, a
        self.q, self.k, self.v = (a.heads_of(b, name, Role.INPUT) for name in "qkv")
        self.masks, self.transposer = Masks(b, a), Transposer(b, a)
        self.out = a.heads_of(b, "out", Role.OUTPUT)
        # Scores of two sections, and keys and values of two heads, if they fit.
        held, each = 2 * itemsize("float32"), 2 * itemsize(a.compute) * a.dim / min(a.dim, P)
        whole = fits(a.keys * (held + each), chip)
        ahead = 2 if fits(a.keys * (held + 2.5 * each), chip) else 1
        self.length = a.keys if whole else SECTION
        self.one_section, self.tiles = whole, tiles_of(a)
        many = a.group * len(self.tiles)
        self.over_heads = ahead == 2 and whole and many <= UNROLLED
        self.kept = max(1, SUMS // many)  # heads of keys whose queries' sums are kept
        self._operands(ahead)
        self._of_scores(ceil(min(a.keys, self.length) / BLOCK))
        self._of_tiles()
        if a.stats:
            kept = min(self.kept, a.heads // a.group) * a.group
            self.sums_kept = Sums(b, a, kept, self.scores)

    def _operands(self, slots: int) -> None:
        b, a, tiles = self.b, self.a, ceil(self.a.keys / P)
        self.k_rows = b.sbuf("k rows", BLOCK // P * a.dim, a.compute, slots=6)
        self.k_transposed = b.sbuf("k transposed", a.keys, a.compute, slots=slots)
        self.v_rows = b.sbuf("v rows", tiles * a.dim, a.compute, slots=slots + (slots > 1))
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
        with b.loop(a.batch) as self.n:
            for first, count in b.tiles(a.heads // a.group, self.kept):
                self.first_head = first
                if self.over_heads:
                    self.head, self.member = self.first_head, Affine()
                    self._tiles_of_heads(count)
                else:
                    self._one_by_one(count)
                if a.stats:
                    kept = self.n * a.heads + first * a.group
                    self.sums_kept.store(kept, count * a.group)

    def _tiles_of_heads(self, heads: int) -> None:
        """One pipeline over the tiles of several heads."""
        parts = [
            Part(tile, 0, True, True, member, not (member or t))
            for member in range(self.a.group)
            for t, tile in enumerate(self.tiles)
        ]
        repeated(self.b, parts, heads, 4, self._ahead, alike)

    def _one_by_one(self, heads: int) -> None:
        """Heads of keys one after the other."""
        b, a = self.b, self.a
        with b.loop(heads) as h:
            self.head, self.member = self.first_head + h, Affine()
            self._keys_and_values(self.head)
            if self.one_section:
                parts = [Part(tile, 0, True, True) for tile in self.tiles]
                repeated(b, parts, a.group, 4, self._ahead, alike)
                return
            with b.loop(a.group) as self.member:
                self._in_sections()

    def _in_sections(self) -> None:
        first = 0
        for tile, equal in groupby(self.tiles):
            count = len(list(equal))
            with self.b.loop(count) as i:
                self.tile_at = i + first
                pipelined(self.b, sections(tile, self.length), 3, self._in_section, alike)
            first += count

    def _keys_and_values(self, head: Affine) -> None:
        b, a, n = self.b, self.a, self.n
        # Which key is where is all the same, if each has its value beside it.
        free = not (a.causal or self.masks.given) and self.k.in_one_run and self.v.in_one_run
        b.fresh(self.k_transposed, self.v_rows)
        for start, size in b.tiles(a.keys, BLOCK):
            b.fresh(self.k_rows)
            keys = self.k.at(n, head, start)
            self.transposer.bring(self.k_rows, 0, self.k, keys, size, any_order=free)
            self.transposer.transpose(self.k_transposed, start, self.k_rows, 0, size)
            values = self.v.at(n, head, start)
            at = tile_at(start, a.dim)
            self.transposer.bring(self.v_rows, at, self.v, values, size, any_order=free)

    def _place(self, item: Item[Part]) -> tuple[Affine, Affine]:
        """An item's head of keys, and its head of queries."""
        by_head, member = (item.round, Affine()) if self.over_heads else (Affine(), item.round)
        head = self.head + by_head
        return head, head * self.a.group + self.member + member + item.kind.member

    def _tile(self, item: Item[Part]) -> Affine:
        """The number of an item's tile of queries."""
        if not self.one_section:
            return self.tile_at
        return item.index + -item.kind.member * len(self.tiles)

    def _first(self, item: Item[Part]) -> Affine:
        """The first query of an item."""
        return self._tile(item) * P

    # --- one step of the pipeline of tiles ---

    def _ahead(self, window: Window[Part]) -> None:
        """A step that brings the operands of the next one."""
        following, *three = window
        coming, going, gone = three
        self._step(coming, going, gone, following)

    def _in_section(self, window: Window[Part]) -> None:
        coming, going, gone = window
        if coming and coming.kind.opens:
            self._bring(coming)
        self._step(coming, going, gone, None)

    def _step(
        self, coming: Item[Part] | None, going: Item[Part] | None, gone: Item[Part] | None,
        following: Item[Part] | None,
    ) -> None:  # fmt: skip
        """Scores of the newest part, weights of the one before, the result of the oldest."""
        self.age = 1 if coming else 0  # of what belongs to `going` in buffers that `coming` fills
        self.brought = 1 if coming and coming.kind.brings else 0  # since `going` opened
        if coming:
            _, of_queries = self._place(coming)
            self.mask_at = self.masks.of_head(self.n, of_queries)
            self.b.fresh(self.masked, self.tops)
        if gone and not self.one_section:  # the next section's sums go on from these
            self._finish(gone)
        if going:
            self._open_weights(going)
        self._blocks(coming, going, gone if self.one_section else None, following)
        if going:
            self._close_weights(going)

    def _blocks(
        self, coming: Item[Part] | None, going: Item[Part] | None, gone: Item[Part] | None,
        following: Item[Part] | None,
    ) -> None:  # fmt: skip
        new, old = (x.kind.tile if x else Tile(0, 0, 0, False) for x in (coming, going))
        both = min(new.full, old.full)
        blocks = [Block(BLOCK, BLOCK, False)] * both
        blocks += [Block(BLOCK, 0, False)] * (new.full - both)
        blocks += [Block(0, BLOCK, False)] * (old.full - both)
        if new.last or old.last:
            blocks.append(Block(new.last, old.last, True))
        if going and self.one_section:
            last = max(k for k, block in enumerate(blocks) if block.going)
            blocks[last] = replace(blocks[last], later=True)

        def step(window: Window[Block]) -> None:
            now, before, last = window
            if now and coming and now.kind.coming:
                hides = now.kind.ends and new.diagonal
                self._scores(coming, *span(now, new), now.kind.coming, hides)
            if before and not last and gone:
                self._end(gone, going)
            if before and not last and going and (old.blocks > 1 or not self.one_section):
                self.b.fresh(self.product)
            if before and not now and coming:
                self._close_scores(coming)
            if before and not now and following:
                self._bring(following)
            if before and going and before.kind.going:
                self._weights(going, *span(before, old), before.kind.going)
            if last and going and last.kind.going and not last.kind.later:
                self._multiply(going, span(last, old)[1], last.kind.going, self.brought)
            if before and going and before.kind.going:
                self.transposer.keep(self.weights_transposed, old.rows, before.kind.going)

        pipelined(self.b, blocks, 3, step)
        if gone and not blocks:
            self._end(gone, going)
        if following and not blocks:
            self._bring(following)

    def _end(self, gone: Item[Part], going: Item[Part] | None) -> None:
        """The product with the values of the oldest tile's last block, and its result."""
        tile = gone.kind.tile
        if tile.blocks == 1:
            self.b.fresh(self.product)
        start, size = (tile.full, tile.last) if tile.last else (tile.full - 1, BLOCK)
        brought = self.brought + (1 if going and going.kind.brings else 0)
        self._multiply(gone, Affine(start * BLOCK), size, brought)
        self._finish(gone)

    # --- the newest part: scores and their maximum ---

    def _bring(self, item: Item[Part]) -> None:
        """The operands of a tile, with head_dim on partitions."""
        b, a, rows = self.b, self.a, item.kind.tile.rows
        head, of_queries = self._place(item)
        if item.kind.brings:
            self._keys_and_values(head)
            self.brought += 1
        b.fresh(self.q_rows, self.q_transposed)
        at = self.q.at(self.n, of_queries, self._first(item))
        b.load(self.q_rows.rows(rows, a.dim), self.q.rows(at, rows))
        self.transposer.transpose(self.q_transposed, 0, self.q_rows, 0, rows)

    def _scores(self, item: Item[Part], number: Affine, at: Affine, size: int, hides: bool) -> None:
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

    def _close_scores(self, item: Item[Part]) -> None:
        """The bias of the exponential: the greatest score, scaled and negated."""
        b, tile = self.b, item.kind.tile
        b.fresh(self.low)
        low = self.low.rows(tile.rows, 1)
        b.emit("tensor_reduce", low, self.tops.rows(tile.rows, tile.blocks), op="max")
        b.emit("tensor_scalar", low, low, op0="multiply", imm0=-self.masks.scale)

    # --- the part before: weights and their product with the values ---

    def _open_weights(self, item: Item[Part]) -> None:
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

    def _weights(self, item: Item[Part], number: Affine, at: Affine, size: int) -> None:
        """exp(score * scale + shift), transposed so that keys lie on partitions."""
        b, rows = self.b, item.kind.tile.rows
        b.fresh(self.weights)
        written = (self.weights.rows(rows, size), self.parts.rows(rows, 1, number))
        masked = self.masked.rows(rows, size, at, age=self.age)
        shift = self.shift.rows(rows, 1)
        b.emit("activation_reduce", written, masked, shift, op="exp", scale=self.masks.scale)
        self.transposer.spread(self.weights, rows, size)

    def _multiply(self, item: Item[Part], key: Affine, size: int, brought: int) -> None:
        b, a, rows = self.b, self.a, item.kind.tile.rows
        product = self.product.rows(rows, a.dim)
        first = tile_at(key + item.kind.start, a.dim)
        for t in range(ceil(size / P)):
            count = min(P, size - t * P)
            stationary = self.weights_transposed.rows(count, rows, t * P)
            at = first + t * a.dim
            values = self.v_rows.rows(count, a.dim, at, age=brought)
            b.emit("nc_matmul", product, stationary, values, load="background")

    def _close_weights(self, item: Item[Part]) -> None:
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
                head = self._place(item)[1] + self.first_head * -self.a.group
                shift = self.shift.rows(tile.rows, 1)
                self.sums_kept.keep(head, self._tile(item), 1, total, shift)

    # --- the oldest part: the result ---

    def _finish(self, item: Item[Part]) -> None:
        b, a, rows = self.b, self.a, item.kind.tile.rows
        gathered = self.product.rows(rows, a.dim)
        if not self.one_section:
            gathered = self._gathered(item, gathered)
        if item.kind.closes:
            b.fresh(self.result)
            result, inverse = self.result.rows(rows, a.dim), self.inverse.rows(rows, 1)
            b.emit("tensor_scalar", result, gathered, inverse, op0="multiply")
            at = self.out.at(self.n, self._place(item)[1], self._first(item))
            b.store(self.out.rows(at, rows), result)

    def _gathered(self, item: Item[Part], product: Access) -> Access:
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
