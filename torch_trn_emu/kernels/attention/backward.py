"""The gradients of attention as a program: scores are made again, a block of 512 keys at a time.

Queries, their gradients and their transposed copies stay in SBUF. For each block of keys the
gradients of keys and values gather in PSUM over all tiles of queries, those of queries in SBUF.

Source: nki-library, core/attention/attention_bwd.py: the products, what rounds, the scale applied
as results leave. The order of the loops, and the pipeline of three tiles, which brings operands a
step ahead and goes on from one head to the next where they are short: chosen.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Engine, Program, Role, itemsize
from ..limits import P
from ..pipelining import Item, Window, repeated
from .spec import BLOCK, AttentionSpec, Masks, Transposer, fits, grids, tile_at

__all__ = ["attention_backward"]

UNROLLED = 60  # tiles of queries x blocks of keys of a head that one pipeline has (chosen)


def attention_backward(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """Gradients of q, k and v from out, its gradient and the scores' logsumexp."""
    name = f"attention_backward {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=10.0 * a.products)
    _Backward(b, a.share(cores).as_one_batch(), chip).program()
    return b.build()


@dataclass(frozen=True, slots=True)
class _Queries:
    """A tile of queries against a block of keys.

    diagonal  `causal` hides keys of the block
    start     the block's first key, after that of the loops
    offset    from an item's index to the number of its tile
    head      it is the head's first (opens) or last (closes), where one pipeline has all of a head
    block     the same of the block
    """

    rows: int
    size: int
    diagonal: bool
    start: int = 0
    offset: int = 0
    opens_head: bool = False
    closes_head: bool = False
    opens_block: bool = False
    closes_block: bool = False


class _Backward:
    def __init__(self, b: Builder, a: AttentionSpec, chip: Chip) -> None:
        self.b, self.a = b, a
        self.hbm = {n: a.heads_of(b, n, Role.INPUT) for n in ("g", "q", "k", "v", "out")}
        self.lse = b.hbm("lse", (a.batch * a.heads * a.queries, 1), "float32", Role.INPUT)
        self.masks, self.transposer = Masks(b, a), Transposer(b, a)
        self.hbm |= {n: a.heads_of(b, n, Role.OUTPUT) for n in ("dq", "dk", "dv")}
        tiles, narrow = ceil(a.queries / P), itemsize(a.compute)
        one = a.queries * ((2 * narrow + 4) * a.dim / P + 2 * narrow)  # bytes of a head
        several = a.queries * ((6 * narrow + 16) * a.dim / P + 4 * narrow)
        self.kinds = self._of_head()
        self.whole = len(self.kinds) <= UNROLLED and fits(several, chip)
        self._of_queries(tiles, 3 if self.whole else 2 if fits(2 * one, chip) else 1)
        self._of_keys()
        self._of_blocks()

    def _of_queries(self, tiles: int, slots: int) -> None:
        b, a, two = self.b, self.a, min(slots, 2)
        self.rows = {n: b.sbuf(f"{n} rows", tiles * a.dim, a.compute, slots=slots) for n in "gq"}
        self.transposed = {
            n: b.sbuf(f"{n} transposed", a.queries, a.compute, slots=two) for n in "gq"
        }
        self.shift, self.delta = (
            b.sbuf(n, tiles, "float32", slots=slots) for n in ("shift", "delta")
        )
        self.dq = b.sbuf("dq sum", tiles * a.dim, "float32", slots=slots + self.whole)
        # The sum of g * out takes both as given, not as the array rounds them.
        self.given = {
            n: b.sbuf(f"{n} given", BLOCK // P * a.dim, a.dtype, slots=2) for n in ("g", "out")
        }
        self.work = b.sbuf("work", BLOCK // P * a.dim, "float32", slots=2)

    def _of_keys(self) -> None:
        b, a, block = self.b, self.a, BLOCK // P * self.a.dim
        slots = {"k": 4 if self.whole else 2, "v": 2}
        self.key_rows = {n: b.sbuf(f"{n} rows", block, a.compute, slots=slots[n]) for n in "kv"}
        self.key_transposed = {
            n: b.sbuf(f"{n} transposed", BLOCK, a.compute, slots=2) for n in "kv"
        }
        self.sums = {n: b.psum(f"d{n}", block) for n in "kv"}
        self.stored = b.sbuf("stored", block, a.dtype, slots=6)  # results of two blocks
        if a.group > 1:  # heads of queries that share keys add up their gradients
            length = ceil(a.keys / P) * a.dim
            self.shared = {n: b.sbuf(f"d{n} sum", length, "float32") for n in "kv"}

    def _of_blocks(self) -> None:
        b, a = self.b, self.a
        self.scores, self.wanted = (b.psum(n, BLOCK, slots=2) for n in ("scores", "wanted"))
        self.product = b.psum("product", a.dim, slots=2)
        self.masked = b.sbuf("masked", BLOCK, "float32", slots=2)
        self.errors, self.errors_transposed, self.narrow = (
            b.sbuf(n, BLOCK, a.compute, slots=2) for n in ("errors", "errors transposed", "narrow")
        )
        # The softmax is float32; only what multiplies on the array is rounded.
        self.weights = b.sbuf("weights", BLOCK, "float32", slots=2)

    # --- loops ---

    def program(self) -> None:
        b, a = self.b, self.a
        kv_heads, self.start = a.heads // a.group, Affine()
        if self.whole and a.group == 1:
            with b.loop(a.batch) as self.n:
                self.head = Affine()
                repeated(b, self.kinds, a.heads, 4, self._ahead, _alike)
            return
        with b.loop(a.batch) as self.n, b.loop(kv_heads) as h:
            if a.group > 1:
                for total in self.shared.values():
                    b.emit("memset", total.rows(P, total.row_elements), value=0.0)
            self.kv_head, self.head = h, h * a.group
            if self.whole:
                repeated(b, self.kinds, a.group, 4, self._ahead, _alike)
            else:
                with b.loop(a.group) as g:
                    self.head = h * a.group + g
                    self._block_by_block()
            if a.group > 1:
                self._store_shared()

    def _of_head(self) -> list[_Queries]:
        """The items of a head, block after block."""
        a = self.a
        found: list[_Queries] = []
        for start in range(0, a.keys, BLOCK):
            seeing = self._seeing(start, min(BLOCK, a.keys - start))
            if seeing:
                offset = seeing[0].offset - len(found)
                seeing = [replace(x, start=start, offset=offset) for x in seeing]
                seeing[0] = replace(seeing[0], opens_block=True)
                seeing[-1] = replace(seeing[-1], closes_block=True)
            found += seeing
        found[0] = replace(found[0], opens_head=True)
        found[-1] = replace(found[-1], closes_head=True)
        return found

    def _block_by_block(self) -> None:
        """A head whose blocks have pipelines of their own."""
        self._prepare(self.head)
        for start, size in self._blocks():
            self._bring_keys(self.head, start, size)
            self.start = start
            seeing = self._seeing(start.const if self.a.causal else 0, size)
            if not seeing:
                break
            seeing[0] = replace(seeing[0], opens_block=True)
            seeing[-1] = replace(seeing[-1], closes_block=True)
            repeated(self.b, seeing, 1, 3, self._step, _alike)
        self._store_queries(self.head)

    def _blocks(self) -> Iterator[tuple[Affine, int]]:
        """Blocks of keys: a loop, unless `causal` makes them differ."""
        if not self.a.causal:
            yield from self.b.tiles(self.a.keys, BLOCK)
            return
        for start in range(0, self.a.keys, BLOCK):
            yield Affine(start), min(BLOCK, self.a.keys - start)

    def _seeing(self, start: int, size: int) -> list[_Queries]:
        """Tiles of queries that see keys of a block."""
        a, first = self.a, start // P if self.a.causal else 0
        hidden = first + BLOCK // P if a.causal else 0
        return [
            _Queries(min(P, a.queries - t * P), size, t < hidden, offset=first)
            for t in range(first, ceil(a.queries / P))
        ]

    def _head_of(self, item: Item[_Queries]) -> Affine:
        return self.head + (item.round if self.whole else 0)

    def _from(self, name: str, head: Affine, row: Affine) -> Affine:
        """Where a row of a head lies."""
        of_keys = name.lstrip("d") in ("k", "v") and self.a.group > 1
        return self.hbm[name].at(self.n, self.kv_head if of_keys else head, row)

    def _prepare(self, head: Affine) -> None:
        """Queries and their gradients, transposed, and of each query: -logsumexp, sum(g * out)."""
        b, a = self.b, self.a
        row = (self.n * a.heads + head) * a.queries
        b.fresh(*self.rows.values(), *self.transposed.values(), self.shift, self.delta, self.dq)
        whole = self.dq.rows(P, self.dq.row_elements)
        b.emit("memset", whole, value=0.0, engine=Engine.GPSIMD)
        for grid in grids(a.queries):
            pattern, at = ((1, grid.rows), (P, grid.tiles)), row + grid.first * P
            b.load(grid.column(self.shift), self.lse.box(*pattern, at=at))
        for grid in grids(a.queries):
            shift = grid.column(self.shift)
            b.emit("tensor_scalar", shift, shift, op0="multiply", imm0=-1.0)
        for start, size in b.tiles(a.queries, BLOCK):
            at = tile_at(start, a.dim)
            for n in "gq":
                source = self._from(n, head, start)
                self.transposer.bring(self.rows[n], at, self.hbm[n], source, size)
                self.transposer.transpose(self.transposed[n], start, self.rows[n], at, size)
            b.fresh(self.work, *self.given.values())
            for n, tile in self.given.items():
                source = self._from(n, head, start)
                self.transposer.bring(tile, 0, self.hbm[n], source, size)
            for grid in grids(size):
                g, out = (grid.on_chip(tile, a.dim) for tile in self.given.values())
                work = grid.on_chip(self.work, a.dim)
                b.emit("tensor_tensor", work, g, out, op="multiply")
                delta = grid.column(self.delta, start.divided(P))
                b.emit("tensor_reduce", delta, work, op="add")

    def _bring_keys(self, head: Affine, start: Affine, size: int) -> None:
        for n in "kv":
            rows, transposed = self.key_rows[n], self.key_transposed[n]
            self.b.fresh(rows, transposed)
            self.transposer.bring(rows, 0, self.hbm[n], self._from(n, head, start), size)
            self.transposer.transpose(transposed, 0, rows, 0, size)

    # --- one step of the pipeline of query tiles ---

    def _ahead(self, window: Window[_Queries]) -> None:
        """A step of a pipeline over heads, which brings the operands of the next one."""
        following, *three = window
        self._step(tuple(three), following)

    def _step(self, window: Window[_Queries], following: Item[_Queries] | None = None) -> None:
        """Scores of the newest tile, gradients of keys and values, the oldest's of queries."""
        coming, going, gone = window
        if coming:
            self._products(coming)
        if following:
            self._open(following)
        if gone:
            self._of_gone(gone, _blocks_after(going, coming, following))
        if going:
            self._gather(going, _heads_after(coming, following))
        if coming:
            self._errors(coming, _heads_after(following))
        if going:
            rows, size = going.kind.rows, going.kind.size
            self.b.fresh(self.errors_transposed)
            self.transposer.keep(self.errors_transposed, rows, size, Engine.SCALAR)
        if gone:
            self._add_to_queries(gone, _heads_after(going, coming, following))

    def _open(self, item: Item[_Queries]) -> None:
        head = self._head_of(item)
        if item.kind.opens_head:
            self._prepare(head)
        if item.kind.opens_block:
            self._bring_keys(head, Affine(item.kind.start), item.kind.size)

    def _tile(self, item: Item[_Queries]) -> Affine:
        """The number of the tile of queries."""
        return item.index + item.kind.offset

    def _products(self, item: Item[_Queries]) -> None:
        rows, at = item.kind.rows, self._tile(item) * P
        self.b.fresh(self.scores, self.wanted)
        for psum, n, key in ((self.scores, "q", "k"), (self.wanted, "g", "v")):
            stationary = self.transposed[n].rows(self.a.dim, rows, at)
            moving = self.key_transposed[key].rows(self.a.dim, item.kind.size)
            self._multiply(psum.rows(rows, item.kind.size), stationary, moving)

    def _errors(self, item: Item[_Queries], age: int) -> None:
        """The weights, exp(scores - logsumexp), and errors, (wanted - delta) * weights."""
        b, rows, size, tile = self.b, item.kind.rows, item.kind.size, self._tile(item)
        b.fresh(self.weights, self.errors, self.narrow)
        scores, wanted = (x.rows(rows, size) for x in (self.scores, self.wanted))
        if self.masks.given or item.kind.diagonal:
            b.fresh(self.masked)
            masked, start = self.masked.rows(rows, size), self.start + item.kind.start
            mask = self.masks.of_head(self.n, self._head_of(item))
            self.masks.hide(masked, scores, mask, rows, tile * P, start, size)
            scores = masked
        weights, errors, narrow = (
            x.rows(rows, size) for x in (self.weights, self.errors, self.narrow)
        )
        shift, delta = (x.rows(rows, 1, tile, age=age) for x in (self.shift, self.delta))
        b.emit("activation", weights, scores, shift, op="exp", scale=self.masks.scale)
        b.emit(
            "scalar_tensor_tensor", errors, wanted, delta, weights, op0="subtract", op1="multiply"
        )
        b.emit("tensor_copy", narrow, weights, engine=Engine.GPSIMD)

    def _gather(self, item: Item[_Queries], age: int) -> None:
        rows, size, dim = item.kind.rows, item.kind.size, self.a.dim
        self.transposer.spread(self.errors, rows, size)
        if item.kind.opens_block:
            self.b.fresh(*self.sums.values())
        for n, source, moving in (("k", self.errors, "q"), ("v", self.narrow, "g")):
            given = self.rows[moving].rows(rows, dim, self._tile(item) * dim, age=age)
            for t, count in _tiles(size):
                into = self.sums[n].rows(count, dim, t * dim)
                self._multiply(into, source.rows(rows, count, t * P), given)
        if item.kind.closes_block:
            self._leave(self._head_of(item), self.start + item.kind.start, size)

    def _of_gone(self, item: Item[_Queries], age: int) -> None:
        rows, dim = item.kind.rows, self.a.dim
        self.b.fresh(self.product)
        for t, count in _tiles(item.kind.size):
            stationary = self.errors_transposed.rows(count, rows, t * P)
            keys = self.key_rows["k"].rows(count, dim, t * dim, age=age)
            self._multiply(self.product.rows(rows, dim), stationary, keys)

    def _add_to_queries(self, item: Item[_Queries], age: int) -> None:
        rows, dim = item.kind.rows, self.a.dim
        total = self.dq.rows(rows, dim, self._tile(item) * dim, age=age)
        product = self.product.rows(rows, dim)
        self.b.emit("tensor_tensor", total, total, product, op="add")
        if item.kind.closes_head:
            self._store_queries(self._head_of(item), age)

    def _multiply(self, into: Access, stationary: Access, moving: Access) -> None:
        self.b.emit("nc_matmul", into, stationary, moving, load="background")

    # --- results ---

    def _leave(self, head: Affine, start: Affine, size: int) -> None:
        """The gradients of a block's keys and values leave PSUM."""
        dim = self.a.dim
        for n, total in self.sums.items():
            if self.a.group == 1:
                self._store(f"d{n}", head, start, total, Affine(), size, self._scale(n))
                continue
            for grid in grids(size):
                kept = grid.on_chip(self.shared[n], dim, tile_at(start, dim))
                self.b.emit("tensor_tensor", kept, kept, grid.on_chip(total, dim), op="add")

    def _store_shared(self) -> None:
        for n, total in self.shared.items():
            for start, size in self.b.tiles(self.a.keys, BLOCK):
                at = tile_at(start, self.a.dim)
                self._store(f"d{n}", self.head, start, total, at, size, self._scale(n))

    def _store_queries(self, head: Affine, age: int = 0) -> None:
        """A head's gradients of queries; of the keys that `causal` shows to none of them, zeros."""
        for start, size in self.b.tiles(self.a.queries, BLOCK):
            at = tile_at(start, self.a.dim)
            self._store("dq", head, start, self.dq, at, size, self.a.factor, age)
        for hidden in range(ceil(self.a.queries / BLOCK) * BLOCK, self.a.keys, BLOCK):
            if self.a.causal and self.a.group == 1:
                self._store_nothing(head, hidden, min(BLOCK, self.a.keys - hidden))

    def _store_nothing(self, head: Affine, key: int, size: int) -> None:
        b = self.b
        b.fresh(self.stored)
        b.emit("memset", self.stored.rows(P, self.stored.row_elements), value=0.0)
        for n, grid in product("kv", grids(size)):
            to = grid.in_hbm(self.hbm[f"d{n}"], self._from(f"d{n}", head, Affine(key)))
            b.store(to, grid.on_chip(self.stored, self.a.dim))

    def _scale(self, name: str) -> float:
        return self.a.factor if name == "k" else 1.0

    def _store(
        self, name: str, head: Affine, start: Affine, source: Buffer, at: Affine, size: int,
        factor: float, age: int = 0,
    ) -> None:  # fmt: skip
        """Stores factor x source: tiles side by side from element `at` on, rows from `start` on."""
        dim, here = self.a.dim, self._from(name, head, start)
        self.b.fresh(self.stored)
        for grid in grids(size):
            given = replace(grid.on_chip(source, dim, at), age=age)
            done = grid.on_chip(self.stored, dim)
            self.b.emit("tensor_scalar", done, given, op0="multiply", imm0=factor)
        for grid in grids(size):
            self.b.store(grid.in_hbm(self.hbm[name], here), grid.on_chip(self.stored, dim))


def _alike(kinds: tuple[_Queries | None, ...]) -> Hashable:
    """Of older tiles it does not matter what `causal` hides; of one to come, what it opens does."""
    *following, coming, going, gone = kinds
    ahead = (x and (x if x.opens_block else True) for x in following)
    return (*ahead, coming, *(x and replace(x, diagonal=False) for x in (going, gone)))


def _heads_after(*items: Item[_Queries] | None) -> int:
    """Heads that these items open."""
    return sum(1 for x in items if x and x.kind.opens_head)


def _blocks_after(*items: Item[_Queries] | None) -> int:
    """Blocks that these items open."""
    return sum(1 for x in items if x and x.kind.opens_block)


def _tiles(size: int) -> list[tuple[int, int]]:
    return [(t, min(P, size - t * P)) for t in range(ceil(size / P))]  # (number, how many rows)
