"""The gradients of attention as a program: scores are made again, a block of 512 keys at a time.

Queries, their gradients and their transposed copies stay in SBUF. For each block of keys the
gradients of keys and values gather in PSUM over all tiles of queries, those of queries in SBUF.

Source: nki-library, core/attention/attention_bwd.py: the products, what rounds, the scale applied
as results leave. The order of the loops and the pipeline of three tiles: chosen.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Engine, Program, Role, itemsize
from ..limits import P
from ..pipelining import Item, Window, pipelined
from .spec import BLOCK, AttentionSpec, Masks, Transposer, fits, grids, tile_at

__all__ = ["attention_backward"]


def attention_backward(a: AttentionSpec, *, chip: Chip, cores: int = 1) -> Program:
    """Gradients of q, k and v from out, its gradient and the scores' logsumexp."""
    name = f"attention_backward {a.batch}x{a.heads}x{a.queries}x{a.keys}x{a.dim}"
    b = Builder(name, cores=cores, model_flops=10.0 * a.products)
    _Backward(b, a.share(cores), chip).program()
    return b.build()


@dataclass(frozen=True, slots=True)
class _Queries:
    """A tile of queries against a block of keys."""

    rows: int
    diagonal: bool  # `causal` hides keys of the block


class _Backward:
    def __init__(self, b: Builder, a: AttentionSpec, chip: Chip) -> None:
        self.b, self.a = b, a
        self.hbm = {n: a.heads_of(b, n, Role.INPUT) for n in ("g", "q", "k", "v", "out")}
        self.lse = b.hbm("lse", (a.batch * a.heads * a.queries, 1), "float32", Role.INPUT)
        self.masks, self.transposer = Masks(b, a), Transposer(b, a)
        self.hbm |= {n: a.heads_of(b, n, Role.OUTPUT) for n in ("dq", "dk", "dv")}
        each = (2 * itemsize(a.compute) + 4) * a.dim / P + 2 * itemsize(a.compute)
        self._of_queries(2 if fits(2 * a.queries * each, chip) else 1)
        self._of_keys()
        self._of_blocks()

    def _of_queries(self, slots: int) -> None:
        b, a, tiles = self.b, self.a, ceil(self.a.queries / P)
        self.rows = {n: b.sbuf(f"{n} rows", tiles * a.dim, a.compute, slots=slots) for n in "gq"}
        self.transposed = {
            n: b.sbuf(f"{n} transposed", a.queries, a.compute, slots=slots) for n in "gq"
        }
        self.shift, self.delta = (
            b.sbuf(n, tiles, "float32", slots=slots) for n in ("shift", "delta")
        )
        self.dq = b.sbuf("dq sum", tiles * a.dim, "float32", slots=slots)
        # The sum of g * out takes both as given, not as the array rounds them.
        self.given = {
            n: b.sbuf(f"{n} given", BLOCK // P * a.dim, a.dtype, slots=2) for n in ("g", "out")
        }
        self.work = b.sbuf("work", BLOCK // P * a.dim, "float32", slots=2)

    def _of_keys(self) -> None:
        b, a, block = self.b, self.a, BLOCK // P * self.a.dim
        self.key_rows = {n: b.sbuf(f"{n} rows", block, a.compute, slots=2) for n in "kv"}
        self.key_transposed = {
            n: b.sbuf(f"{n} transposed", BLOCK, a.compute, slots=2) for n in "kv"
        }
        self.sums = {n: b.psum(f"d{n}", block) for n in "kv"}
        self.stored = b.sbuf("stored", block, a.dtype, slots=2)
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
        kv_heads = a.heads // a.group
        with b.loop(a.batch) as n, b.loop(kv_heads) as h:
            self.at = {x: self.hbm[x].at(n, h) for x in ("k", "v", "dk", "dv")}
            if a.group > 1:
                for total in self.shared.values():
                    b.emit("memset", total.rows(P, total.row_elements), value=0.0)
            with b.loop(a.group) as g:
                head = h * a.group + g
                self.row = (n * a.heads + head) * a.queries
                self.at |= {x: self.hbm[x].at(n, head) for x in ("g", "q", "out", "dq")}
                self.mask_at = self.masks.of_head(n, head)
                self._head()
            if a.group > 1:
                self._store_shared()

    def _head(self) -> None:
        self._prepare()
        for start, size in self._blocks():
            self._bring_keys(start, size)
            self.start, self.size = start, size
            seeing = self._seeing(start)
            if not seeing:
                self._nothing()
            pipelined(self.b, seeing, 3, self._step, _alike)
            self._leave(start, size)
        for start, size in self.b.tiles(self.a.queries, BLOCK):
            at = tile_at(start, self.a.dim)
            self._store("dq", start, self.dq, at, size, self.a.factor)

    def _blocks(self) -> Iterator[tuple[Affine, int]]:
        """Blocks of keys: a loop, unless `causal` makes them differ."""
        if not self.a.causal:
            yield from self.b.tiles(self.a.keys, BLOCK)
            return
        for start in range(0, self.a.keys, BLOCK):
            yield Affine(start), min(BLOCK, self.a.keys - start)

    def _seeing(self, start: Affine) -> list[_Queries]:
        """Tiles of queries that see keys of the block."""
        a, self.first = self.a, start.const // P if self.a.causal else 0
        return [
            _Queries(min(P, a.queries - t * P), a.causal and t < self.first + BLOCK // P)
            for t in range(self.first, ceil(a.queries / P))
        ]

    def _prepare(self) -> None:
        """Queries and their gradients, transposed, and of each query: -logsumexp, sum(g * out)."""
        b, a = self.b, self.a
        b.fresh(*self.rows.values(), *self.transposed.values(), self.shift, self.delta, self.dq)
        whole = self.dq.rows(P, self.dq.row_elements)
        b.emit("memset", whole, value=0.0, engine=Engine.GPSIMD)
        for grid in grids(a.queries):
            pattern, at = ((1, grid.rows), (P, grid.tiles)), self.row + grid.first * P
            shift = grid.column(self.shift)
            b.load(shift, self.lse.box(*pattern, at=at))
            b.emit("tensor_scalar", shift, shift, op0="multiply", imm0=-1.0)
        for start, size in b.tiles(a.queries, BLOCK):
            at = tile_at(start, a.dim)
            for n in "gq":
                self.transposer.bring(self.rows[n], at, self.hbm[n], self._from(n, start), size)
                self.transposer.transpose(self.transposed[n], start, self.rows[n], at, size)
            b.fresh(self.work, *self.given.values())
            for n, tile in self.given.items():
                self.transposer.bring(tile, 0, self.hbm[n], self._from(n, start), size)
            for grid in grids(size):
                g, out = (grid.on_chip(tile, a.dim) for tile in self.given.values())
                work = grid.on_chip(self.work, a.dim)
                b.emit("tensor_tensor", work, g, out, op="multiply")
                delta = grid.column(self.delta, start.divided(P))
                b.emit("tensor_reduce", delta, work, op="add")

    def _from(self, name: str, row: Affine) -> Affine:
        """Where a row of the head lies."""
        return self.at[name] + row * self.hbm[name].layout.row

    def _of_query(self, buffer: Buffer, first: Affine, rows: int) -> Access:
        """A column of a value for each query."""
        return buffer.rows(rows, 1, first.divided(P))

    def _bring_keys(self, start: Affine, size: int) -> None:
        for n in "kv":
            rows, transposed = self.key_rows[n], self.key_transposed[n]
            self.b.fresh(rows, transposed, self.sums[n])
            self.transposer.bring(rows, 0, self.hbm[n], self._from(n, start), size)
            self.transposer.transpose(transposed, 0, rows, 0, size)

    # --- one step of the pipeline of query tiles ---

    def _step(self, window: Window[_Queries]) -> None:
        """Scores of the newest tile, gradients of keys and values, the oldest's of queries."""
        coming, going, gone = window
        if coming:
            self._products(coming)
        if gone:
            self._of_gone(gone)
        if going:
            self._gather(going)
        if coming:
            self._errors(coming)
        if going:
            rows = going.kind.rows
            self.b.fresh(self.errors_transposed)
            self.transposer.keep(self.errors_transposed, rows, self.size, Engine.SCALAR)
        if gone:
            self._add_to_queries(gone)

    def _tile(self, item: Item[_Queries]) -> Affine:
        """The number of the tile of queries."""
        return item.index + self.first

    def _first(self, item: Item[_Queries]) -> Affine:
        return self._tile(item) * P

    def _products(self, item: Item[_Queries]) -> None:
        rows, at = item.kind.rows, self._first(item)
        self.b.fresh(self.scores, self.wanted)
        for psum, n, key in ((self.scores, "q", "k"), (self.wanted, "g", "v")):
            stationary = self.transposed[n].rows(self.a.dim, rows, at)
            moving = self.key_transposed[key].rows(self.a.dim, self.size)
            self._multiply(psum.rows(rows, self.size), stationary, moving)

    def _errors(self, item: Item[_Queries]) -> None:
        """The weights, exp(scores - logsumexp), and errors, (wanted - delta) * weights."""
        b, rows, first = self.b, item.kind.rows, self._first(item)
        b.fresh(self.weights, self.errors, self.narrow)
        scores, wanted = (x.rows(rows, self.size) for x in (self.scores, self.wanted))
        if self.masks.given or item.kind.diagonal:
            b.fresh(self.masked)
            masked = self.masked.rows(rows, self.size)
            self.masks.hide(masked, scores, self.mask_at, rows, first, self.start, self.size)
            scores = masked
        weights, errors, narrow = (
            x.rows(rows, self.size) for x in (self.weights, self.errors, self.narrow)
        )
        shift, delta = (self._of_query(x, first, rows) for x in (self.shift, self.delta))
        b.emit("activation", weights, scores, shift, op="exp", scale=self.masks.scale)
        b.emit(
            "scalar_tensor_tensor", errors, wanted, delta, weights, op0="subtract", op1="multiply"
        )
        b.emit("tensor_copy", narrow, weights, engine=Engine.GPSIMD)

    def _gather(self, item: Item[_Queries]) -> None:
        rows, dim = item.kind.rows, self.a.dim
        self.transposer.spread(self.errors, rows, self.size)
        for n, source, moving in (("k", self.errors, "q"), ("v", self.narrow, "g")):
            given = self.rows[moving].rows(rows, dim, self._tile(item) * dim)
            for t, count in _tiles(self.size):
                into = self.sums[n].rows(count, dim, t * dim)
                self._multiply(into, source.rows(rows, count, t * P), given)

    def _of_gone(self, item: Item[_Queries]) -> None:
        rows, dim = item.kind.rows, self.a.dim
        self.b.fresh(self.product)
        for t, count in _tiles(self.size):
            stationary = self.errors_transposed.rows(count, rows, t * P)
            keys = self.key_rows["k"].rows(count, dim, t * dim)
            self._multiply(self.product.rows(rows, dim), stationary, keys)

    def _add_to_queries(self, item: Item[_Queries]) -> None:
        rows, dim = item.kind.rows, self.a.dim
        total = self.dq.rows(rows, dim, self._tile(item) * dim)
        product = self.product.rows(rows, dim)
        self.b.emit("tensor_tensor", total, total, product, op="add")

    def _multiply(self, into: Access, stationary: Access, moving: Access) -> None:
        self.b.emit("nc_matmul", into, stationary, moving, load="background")

    # --- results ---

    def _nothing(self) -> None:
        """Keys behind the last query of `causal` have no gradient."""
        for total in self.sums.values():
            self.b.emit("memset", total.rows(P, total.row_elements), value=0.0)

    def _leave(self, start: Affine, size: int) -> None:
        """The gradients of a block's keys and values leave PSUM."""
        dim = self.a.dim
        for n, total in self.sums.items():
            if self.a.group == 1:
                self._store(f"d{n}", start, total, Affine(), size, self._scale(n))
                continue
            for grid in grids(size):
                kept = grid.on_chip(self.shared[n], dim, tile_at(start, dim))
                self.b.emit("tensor_tensor", kept, kept, grid.on_chip(total, dim), op="add")

    def _store_shared(self) -> None:
        for n, total in self.shared.items():
            for start, size in self.b.tiles(self.a.keys, BLOCK):
                at = tile_at(start, self.a.dim)
                self._store(f"d{n}", start, total, at, size, self._scale(n))

    def _scale(self, name: str) -> float:
        return self.a.factor if name == "k" else 1.0

    def _store(
        self, name: str, start: Affine, source: Buffer, at: Affine, size: int, factor: float
    ) -> None:
        """Stores factor x source: tiles side by side from element `at` on, rows from `start` on."""
        dim = self.a.dim
        self.b.fresh(self.stored)
        for grid in grids(size):
            done = grid.on_chip(self.stored, dim)
            given = grid.on_chip(source, dim, at)
            self.b.emit("tensor_scalar", done, given, op0="multiply", imm0=factor)
            self.b.store(grid.in_hbm(self.hbm[name], self._from(name, start)), done)


def _alike(kinds: tuple[_Queries | None, ...]) -> Hashable:
    """Of older tiles nothing matters but their rows."""
    newest, *older = kinds
    return (newest, *(kind and kind.rows for kind in older))


def _tiles(size: int) -> list[tuple[int, int]]:
    """Tiles of 128 in `size`: (number, how many)."""
    return [(t, min(P, size - t * P)) for t in range(ceil(size / P))]
