"""Attention of few queries, as of one new token: heads, and users, lie one below the other.

A transfer brings a block of keys of several heads, of several users if theirs lie apart. Keys are
the array's stationary operand and few queries stream through it, so scores have keys on
partitions; turned, those of all heads together are rows, of which each instruction takes all.
Values are stationary too, two heads of 64 side by side: the results are turned once for all heads.

Source: stages as in `attention/forward.py`. The vendor has a kernel for the generation of
tokens (nki-library, core/attention/attention_tkg.py); that heads share rows in this way is chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Engine, Program, Role, itemsize
from ..limits import P
from ..pipelining import Item, Window, pipelined, repeated
from .forward import SECTION, Forward
from .heads import Heads, pairs
from .parts import Block, Part, alike, blocks_of, sections, span
from .spec import BLOCK, AttentionSpec, Masks, Tile, Transposer

__all__ = ["attention_of_few_queries", "takes_few"]

WIDTH = 2048  # bytes of a key and its neighbours in other heads (chosen: 64 KiB of SBUF in all)
HEADS = 16  # of 16 bits that are turned one by one (chosen: 32 KiB)
TILES = BLOCK // P


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring tiles of a block that have as many keys each, on as many partitions.

    first, at  the first one's number, and where its scores begin in a row
    """

    tiles: int
    keys: int
    first: int
    at: int


class Spread:
    """Where the keys of a block are: side by side on a partition, or in tiles of 128.

    Which key is where is all the same, if each has its value beside it: then a partition has a run.
    """

    def __init__(self, size: int, runs: bool) -> None:
        self.size, self.tiles, self.runs = size, ceil(size / P), runs
        keys, rest = divmod(size, self.tiles) if runs else (P, size // P)
        left = keys if runs else size % P
        self.groups = [Group(rest, keys + runs, 0, 0)] * bool(rest)
        if self.tiles > rest:
            self.groups.append(Group(self.tiles - rest, left, rest, rest * (keys + runs)))
        self.by_partition, self.by_tile = (self.tiles, 1) if runs else (1, P)

    def each(self) -> Iterator[tuple[int, int, int]]:
        """Of each tile its number, its keys, and where its scores begin in a row."""
        for g in self.groups:
            for t in range(g.tiles):
                yield g.first + t, g.keys, g.at + t * g.keys

    def loads(self) -> Iterator[tuple[int, int, int, int]]:
        """Transfers: the first partition and their number, the first tile and their number."""
        if not self.runs:
            yield from ((0, g.keys, g.first, g.tiles) for g in self.groups)
            return
        keys, rest = divmod(self.size, self.tiles)
        yield 0, keys, 0, self.tiles
        if rest:
            yield keys, 1, 0, rest


def takes_few(a: AttentionSpec) -> bool:
    """Whether the program here can do it, and several heads share rows."""
    return a.queries <= P // 2 and a.group == 1 and not a.causal and not a.stats


def attention_of_few_queries(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """As `attention`, for up to 128 queries of each head of keys."""
    name = f"attention {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=4.0 * a.products)
    _FewQueries(b, a.share(cores).as_one_batch(), chip).program()
    return b.build()


def _evenly(count: int, most: int) -> int:
    """How many to take at a time, so that the last time has about as many."""
    return ceil(count / ceil(count / most))


class _FewQueries(Forward):
    def __init__(self, b: Builder, a: AttentionSpec, chip: Chip) -> None:
        self.b, self.a = b, a
        self.q, self.k, self.v = (a.heads_of(b, name, Role.INPUT) for name in "qkv")
        self.masks, self.transposer = Masks(b, a), Transposer(b, a, slots=4)
        self.out = a.heads_of(b, "out", Role.OUTPUT)
        # Heads of 32 and 64 are turned together: they end on partitions where a tile may start.
        side, size = P // a.dim if a.dim in (32, 64) else 1, int(itemsize(a.compute))
        most = max(1, min(P // a.queries, WIDTH // (a.dim * size), 2 * HEADS * side // size))
        self.of_users = a.batch > 1 and 2 * a.heads <= most
        self.users = _evenly(a.batch, most // a.heads) if self.of_users else 1
        self.heads = a.heads if self.of_users else _evenly(a.heads, most)
        self.stack = min(self.together, side)
        blocks, cuts = ceil(a.keys / BLOCK), ceil(a.keys / SECTION)
        self.one_section, self.length = cuts == 1, ceil(blocks / cuts) * BLOCK
        self.runs = self.k.in_one_run and self.v.in_one_run
        self._operands(3)
        self._of_scores(self.length // BLOCK)
        self._of_tiles()

    @property
    def together(self) -> int:
        """Heads, of all users, that share instructions."""
        return self.users * self.heads

    @property
    def rows(self) -> int:
        return self.together * self.a.queries

    def _operands(self, slots: int) -> None:
        b, a, rows = self.b, self.a, self.rows
        held, wide = self.together * TILES * a.dim, self.stack * a.dim
        self.k_rows = b.sbuf("k rows", held, a.compute, slots=slots)
        self.v_rows = b.sbuf("v rows", held, a.compute, slots=slots)
        columns = ceil(self.together / self.stack) * BLOCK
        self.k_transposed = b.sbuf("k transposed", columns, a.compute, slots=2)
        self.q_rows = b.sbuf("q rows", wide, a.compute, slots=2)
        self.q_transposed = b.sbuf("q transposed", rows, a.compute, slots=2)

    def _of_scores(self, blocks: int) -> None:
        super()._of_scores(blocks)
        b, rows = self.b, self.rows
        self.columns = b.psum("columns", TILES * rows, slots=2)
        self.columns_kept = b.sbuf("columns kept", TILES * rows, "float32", slots=2)
        self.product = b.psum("products", rows, slots=2)
        self.made = b.sbuf("made", rows, "float32", slots=2)
        self.turned = b.psum("turned", self.a.dim)

    # --- loops ---

    def program(self) -> None:
        """One pipeline over all heads, or over all users."""
        a, count, size = self.a, self.a.heads, self.heads
        if self.of_users:
            count, size = a.batch, self.users
        full, rest = divmod(count, size)
        with self.b.loop(1 if self.of_users else a.batch) as self.n:
            self._rounds(full, size, 0)
            if rest:
                self._rounds(1, rest, full * size)

    def _rounds(self, rounds: int, size: int, first: int) -> None:
        if self.of_users:
            self.users = size
        else:
            self.heads = size
        self.size, self.first = size, first
        tile = Tile(self.rows, *divmod(self.a.keys, BLOCK), False)
        parts = [replace(part, start=0) for part in sections(tile, self.length)]  # by its number
        repeated(self.b, parts, rounds, 3, self._in_section, alike)

    def _place(self, item: Item[Part]) -> tuple[Affine, Affine]:
        """An item's first user, and its first head."""
        at = item.round * self.size + self.first
        return (at, Affine()) if self.of_users else (self.n, at)

    def _blocks(
        self, coming: Item[Part] | None, going: Item[Part] | None, gone: Item[Part] | None,
        following: Item[Part] | None,
    ) -> None:  # fmt: skip
        new, old = (x.kind.tile if x else Tile(0, 0, 0, False) for x in (coming, going))
        if gone:
            self._leave()

        def step(window: Window[Block]) -> None:
            now, before = window
            if now and coming and now.kind.coming:
                self._turn_keys(coming, span(now, new)[1], now.kind.coming)
            if before and coming and before.kind.coming:
                self._turn_scores(coming, *span(before, new), before.kind.coming)
            if now and going and now.kind.going:
                self._turn_weights(going, *span(now, old), now.kind.going)
            if before and going and before.kind.going:
                self._multiply_values(before.kind.going, 1 if now and now.kind.going else 0)
            if now and coming and now.kind.coming:
                self._make_columns(now.kind.coming)

        if going:
            self.b.fresh(self.product)
        pipelined(self.b, blocks_of(new, old), 2, step)
        if coming:
            self._close_scores(coming)
        if gone:
            self._turn_result(gone)

    # --- operands ---

    def _above(self, heads: Heads) -> tuple[tuple[int, int], ...]:
        """Strides and counts of users and of heads."""
        here = heads.layout
        return pairs(((here.batch, self.users), (here.head, self.heads)))

    def _bring(self, item: Item[Part]) -> None:
        """Queries with head_dim on partitions, once for each head that is stacked."""
        b, a, rows, q = self.b, self.a, self.rows, self.q
        b.fresh(self.q_rows, self.q_transposed, self.transposer.psum)
        lines = (*self._above(q), *q.lines(a.queries), *pairs([(0, self.stack)]))
        source = q.buffer.box(*lines, (q.layout.dim, a.dim), at=q.at(*self._place(item)))
        wide = self.stack * a.dim
        b.load(self.q_rows.rows(rows, wide), source)
        turned = self.transposer.psum.rows(wide, rows)
        b.emit("nc_transpose", turned, self.q_rows.rows(rows, wide))
        b.emit("tensor_copy", self.q_transposed.rows(wide, rows), turned)

    def _load(self, to: Buffer, heads: Heads, item: Item[Part], start: Affine, size: int) -> None:
        """A block of keys or values: [128 P, heads, tiles, head_dim], or tiles first."""
        b, dim, row = self.b, self.a.dim, heads.layout.row
        b.fresh(to)
        spread, (by_head, by_tile) = Spread(size, self.runs), self._strides(heads)
        for partition, count, first, tiles in spread.loads():
            key = partition * spread.by_partition + first * spread.by_tile
            at = heads.at(*self._place(item), item.index * self.length + start + key)
            held = (pairs([(by_head, self.together)]), pairs([(by_tile, tiles)]))
            read = (self._above(heads), pairs([(spread.by_tile * row, tiles)]))
            if by_tile > by_head:
                held, read = held[::-1], read[::-1]
            here = partition * to.row_elements + first * by_tile
            tile = to.lanes(count, *held[0], *held[1], (1, dim), at=here)
            pattern = ((spread.by_partition * row, count), *read[0], *read[1])
            b.load(tile, heads.buffer.box(*pattern, (heads.layout.dim, dim), at=at))

    def _strides(self, heads: Heads) -> tuple[int, int]:
        """On a partition, from a head to the next and from a tile to the next."""
        dim = self.a.dim
        beside = self.users == 1 and heads.layout.head == dim
        return (dim, self.together * dim) if beside else (TILES * dim, dim)

    def _stacked(self, buffer: Buffer, s: int, rows: int, columns: int, at: Affine) -> Access:
        """Head `s` of those that are stacked."""
        return buffer.rows(rows, columns, at + s * self.a.dim * buffer.row_elements)

    def _keep(self, to: Buffer, made: Buffer, spread: Spread, engine: Engine) -> None:
        """What PSUM has of each tile."""
        for g in spread.groups:
            at = g.first * self.rows
            kept, there = (x.rows(g.keys, g.tiles * self.rows, at) for x in (to, made))
            self.b.emit("tensor_copy", kept, there, engine=engine)

    # --- the newest part: scores ---

    def _turn_keys(self, item: Item[Part], start: Affine, size: int) -> None:
        b, dim, psum, spread = self.b, self.a.dim, self.transposer.psum, Spread(size, self.runs)
        self._load(self.k_rows, self.k, item, start, size)
        b.fresh(self.k_transposed)
        by_head, by_tile = self._strides(self.k)
        for head, count in b.tiles(self.together, self.stack):
            b.fresh(psum)
            for t, keys, at in spread.each():
                shape = (*pairs([(by_head, count)]), (1, dim))
                rows = self.k_rows.lanes(keys, *shape, at=head * by_head + t * by_tile)
                b.emit("nc_transpose", psum.rows(count * dim, keys, at), rows)
            first = head.divided(self.stack) * BLOCK
            to = self.k_transposed.rows(count * dim, size, first)
            b.emit("tensor_copy", to, psum.rows(count * dim, size))

    def _make_columns(self, size: int) -> None:
        """Scores, with keys on partitions: [128 P, tiles, heads, queries]"""
        b, dim, queries, spread = self.b, self.a.dim, self.a.queries, Spread(size, self.runs)
        b.fresh(self.columns, self.columns_kept)
        for head, count in b.tiles(self.together, self.stack):
            for s in range(count):
                place, column = (head + s) * queries, head.divided(self.stack) * BLOCK
                moving = self._stacked(self.q_transposed, s, dim, queries, place)
                for t, keys, at in spread.each():
                    stationary = self._stacked(self.k_transposed, s, dim, keys, column + at)
                    to = self.columns.rows(keys, queries, place + t * self.rows)
                    b.emit("nc_matmul", to, stationary, moving)
        self._keep(self.columns_kept, self.columns, spread, Engine.VECTOR)

    def _turn_scores(self, item: Item[Part], number: Affine, at: Affine, size: int) -> None:
        """Scores of all heads as rows, their greatest, and what hides some."""
        b, rows, spread = self.b, self.rows, Spread(size, self.runs)
        b.fresh(self.scores)
        for t, keys, first in spread.each():
            made = self.columns_kept.rows(keys, rows, t * rows)
            b.emit("nc_transpose", self.scores.rows(rows, keys, first), made)
        scores, masked = self.scores.rows(rows, size), self.masked.rows(rows, size, at)
        top = self.tops.rows(rows, 1, number)
        if not self.masks.given:
            b.emit(
                "tensor_scalar_reduce", (masked, top), scores, op0="multiply", imm0=1.0, op="max"
            )
            return
        key, above = item.index * self.length + at, (self.users, self.heads)
        place = self.masks.of_head(*self._place(item))
        added = self.masks.below(place, key, size, above, self.a.queries)
        for g in spread.groups:
            wide, shape = (
                g.tiles * g.keys,
                ((spread.by_tile, g.tiles), (spread.by_partition, g.keys)),
            )
            hides = added.buffer.lanes(rows, *shape, at=g.first * spread.by_tile)
            here, there = (x.buffer.rows(rows, wide, x.offset + g.at) for x in (scores, masked))
            operands = (here, self.masks.factor.rows(rows, 1), hides)
            b.emit("scalar_tensor_tensor", there, *operands, op0="multiply", op1="add")
        b.emit("tensor_reduce", top, masked, op="max")

    # --- the part before: weights and their product with the values ---

    def _turn_weights(self, item: Item[Part], number: Affine, at: Affine, size: int) -> None:
        self._load(self.v_rows, self.v, item, at, size)
        self._exponentials(item, number, at, size)
        b, psum, rows, spread = self.b, self.transposer.psum, self.rows, Spread(size, self.runs)
        b.fresh(psum, self.weights_transposed)
        for t, keys, first in spread.each():
            b.emit(
                "nc_transpose",
                psum.rows(keys, rows, t * rows),
                self.weights.rows(rows, keys, first),
            )
        self._keep(self.weights_transposed, psum, spread, Engine.VECTOR)

    def _multiply_values(self, size: int, age: int) -> None:
        """[heads that are stacked x head_dim P, heads x queries]"""
        b, dim, queries = self.b, self.a.dim, self.a.queries
        by_head, by_tile = self._strides(self.v)
        for head, count in b.tiles(self.together, self.stack):
            columns, at = count * queries, head * queries
            product = self.product.rows(count * dim, columns, at)
            for t, keys, _ in Spread(size, self.runs).each():
                shape = (*pairs([(by_head, count)]), (1, dim))
                first = head * by_head + t * by_tile
                values = self.v_rows.lanes(keys, *shape, at=first, age=age)
                weights = self.weights_transposed.rows(keys, columns, at + t * self.rows, age=age)
                b.emit("nc_matmul", product, values, weights)

    # --- the oldest part: the result ---

    def _leave(self) -> None:
        """Each head's columns of the products, of the rows that are its own."""
        b, queries, stack, dim = self.b, self.a.queries, self.stack, self.a.dim
        b.fresh(self.made)
        for s in range(min(stack, self.together)):
            shape = (*pairs([(stack * queries, ceil((self.together - s) / stack))]), (1, queries))
            to = self.made.lanes(dim, *shape, at=s * queries)
            at = s * (queries + dim * self.product.row_elements)
            b.emit("tensor_copy", to, self.product.lanes(dim, *shape, at=at))

    def _turn_result(self, item: Item[Part]) -> None:
        b, a, rows = self.b, self.a, self.rows
        b.fresh(self.turned)
        gathered = self.turned.rows(rows, a.dim)
        b.emit("nc_transpose", gathered, self.made.rows(a.dim, rows))
        if not self.one_section:
            gathered = self._gathered(item, gathered)
        if item.kind.closes:
            b.fresh(self.result)
            result, inverse = self.result.rows(rows, a.dim), self.inverse.rows(rows, 1)
            b.emit("tensor_scalar", result, gathered, inverse, op0="multiply")
            out = self.out
            lines = (*self._above(out), *out.lines(a.queries), (out.layout.dim, a.dim))
            b.store(out.buffer.box(*lines, at=out.at(*self._place(item))), result)

    def _finish(self, item: Item[Part]) -> None:
        self._leave()
        self._turn_result(item)
