"""The stages of a step of attention with few keys: what its heads' instructions are.

Scores of the newest step, weights of the one before, the result of the oldest.
"""

from dataclasses import dataclass, replace
from math import ceil

from ...isa import Access, Affine, Buffer, Builder, Engine, Role, affine, itemsize
from ..limits import BANK_BYTES, P
from .spec import BLOCK, AttentionSpec, Masks, grids
from .sums import Sums

__all__ = ["Stages", "Tile", "Work"]


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of queries of one step.

    part   which of the step's shares of the heads that share its keys
    seen   keys it sees
    opens  it brings keys and values, which those after it use too
    hides  `causal` hides some of the keys
    """

    rows: int
    seen: int
    opens: bool
    hides: bool
    part: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """A tile of a step at a place: batch, the step's number, first query."""

    tile: Tile
    n: Affine
    step: Affine
    first: Affine


# Rows, from which element on; to, at which element; how many; a column's pitch; heads.
_Transpose = tuple[Buffer, int, Buffer, int, int, int, int]


def _group(a: AttentionSpec) -> int:
    """Heads of queries in a step: as many as its PSUM banks take, in whole groups or a share."""
    rows, key_tiles = min(P, a.queries), ceil(a.keys / P)
    most = max(1, min(BLOCK // a.keys, BLOCK // (key_tiles * rows), BLOCK // a.dim))
    return next(
        g
        for g in range(min(most, a.heads), 0, -1)
        if a.heads % g == 0 and (g % a.group == 0 or a.group % g == 0)
    )


class Stages:
    moved: Affine  # heads before those of the loop that is open

    def __init__(self, b: Builder, a: AttentionSpec) -> None:
        self.b, self.a, self.group = b, a, _group(a)
        self.kv = max(1, self.group // a.group)  # heads of keys in a step
        self.parts = max(1, a.group // self.group)  # steps' shares that use the same keys
        self.q, self.k, self.v = (a.heads_of(b, name, Role.INPUT) for name in "qkv")
        self.masks = Masks(b, a)
        self.out = a.heads_of(b, "out", Role.OUTPUT)
        self.row_tiles, self.key_tiles = ceil(a.queries / P), ceil(a.keys / P)
        # Heads of 32 and 64 are transposed together: they end on partitions where a tile may start.
        self.stack = min(self.group, P // a.dim) if a.dim in (32, 64) and a.group == 1 else 1
        self._buffers()

    def _buffers(self) -> None:
        b, a, g, rows = self.b, self.a, self.group, min(P, self.a.queries)
        self.bank = int(BANK_BYTES // itemsize(a.compute))
        self.q_rows = b.sbuf("q rows", g * a.dim, a.compute, slots=2)
        self.k_rows = b.sbuf("k rows", self.key_tiles * self.kv * a.dim, a.compute, slots=2)
        self.v_rows = b.sbuf("v rows", self.key_tiles * self.kv * a.dim, a.compute, slots=3)
        self.transposer = b.psum("transposed", self.bank, a.compute, slots=2)
        columns = ceil(g / self.stack) * rows
        self.k_at = (
            columns if self.row_tiles * self.parts == 1 else 0
        )  # transposed with the queries
        widths = (columns, ceil(self.kv / self.stack) * a.keys)
        if self.k_at:
            self.q_transposed = self.k_transposed = b.sbuf(
                "transposed qk", sum(widths), a.compute, slots=2
            )
        else:
            self.q_transposed, self.k_transposed = (
                b.sbuf(f"{n} transposed", width, a.compute, slots=2)
                for n, width in zip("qk", widths, strict=True)
            )
        self.scores = b.psum("scores", BLOCK, slots=2)
        if a.causal or a.mask is not None:
            self.masked = b.sbuf("masked", g * a.keys, "float32", slots=2)
        self.low = b.sbuf("low", g, "float32", slots=2)
        self.weights = b.sbuf("weights", g * a.keys, a.compute, slots=2)
        self.sums, self.inverse = (b.sbuf(n, g, "float32", slots=2) for n in ("sums", "inverse"))
        self.pitch = self.key_tiles * rows  # of a head in the transposed weights
        self.weights_psum = b.psum("weights transposed psum", g * self.pitch, a.compute, slots=2)
        self.weights_transposed = b.sbuf("weights transposed", g * self.pitch, a.compute, slots=2)
        self.product = b.psum("product", g * a.dim, slots=2)
        self.result = b.sbuf("result", g * a.dim, a.dtype, slots=2)
        if a.stats:
            self.sums_kept = Sums(b, a, a.batch * a.heads, self.scores)

    # --- one step of the pipeline ---

    def step(self, coming: Work | None, going: Work | None, gone: Work | None) -> None:
        if coming:
            self._scores(coming)
        if going:
            self._weigh(going, 1 if coming else 0)
        if gone:
            brought = sum(bool(x and x.tile.opens) for x in (coming, going))
            self._finish(gone, 1 if going else 0, brought)

    def _head(self, work: Work) -> Affine:
        """The first head of queries of a step's tile."""
        return self.moved + (work.step * self.kv * self.a.group + work.tile.part * self.group)

    # --- the newest step: scores and their maxima ---

    def _scores(self, w: Work) -> None:
        b, a, g, rows = self.b, self.a, self.group, w.tile.rows
        b.fresh(self.q_rows, self.q_transposed, self.scores, self.low)
        transposes = [(self.q_rows, 0, self.q_transposed, 0, rows, rows, g)]
        at = self.q.at(w.n, self._head(w), w.first)
        b.load(self.q_rows.rows(rows, g * a.dim), self.q.heads(at, rows, g))
        if w.tile.opens:
            transposes += self._bring(w)
        self._transpose(transposes)
        for h in range(g):
            head = h * self.kv // g
            p, c = h % self.stack * a.dim, h // self.stack
            q = self._at(self.q_transposed, a.dim, rows, c * rows, p)
            k = self.k_at + head // self.stack * a.keys
            moving = self._at(self.k_transposed, a.dim, w.tile.seen, k, p)
            scores = self.scores.rows(rows, w.tile.seen, h * a.keys)
            b.emit("nc_matmul", scores, q, moving, load="background")
        found = self._by_head(self.scores, w.tile)
        if a.causal or self.masks.given:
            b.fresh(self.masked)
        if w.tile.hides or self.masks.given:
            masked = self._by_head(self.masked, w.tile)
            self._hide(w, masked, found)
            found = masked
        low = self.low.rows(rows, g)
        b.emit("tensor_reduce", low, found, op="max")
        b.emit("tensor_scalar", low, low, op0="multiply", imm0=-self.masks.scale)

    def _bring(self, w: Work) -> list[_Transpose]:
        """Keys and values of a step; what of it is to be transposed."""
        b, a = self.b, self.a
        transposes: list[_Transpose] = []
        width = self.kv * a.dim
        b.fresh(self.k_rows, self.v_rows)
        if not self.k_at:
            b.fresh(self.k_transposed)
        for buffer, heads in ((self.k_rows, self.k), (self.v_rows, self.v)):
            for grid in grids(a.keys):
                at = heads.at(w.n, w.step * self.kv, grid.first * P)
                source = heads.heads(at, grid.rows, self.kv, tiles=grid.tiles, tile=P)
                to = buffer.rows(grid.rows, grid.tiles * width, grid.first * width)
                b.load(to, source)
        for t, start in enumerate(range(0, a.keys, P)):
            count, place = min(P, a.keys - start), self.k_at + start
            transposes.append(
                (self.k_rows, t * width, self.k_transposed, place, count, a.keys, self.kv)
            )
        return transposes

    def _transpose(self, transposes: list[_Transpose]) -> None:
        """Rows transposed, so that head_dim lies on partitions.

        What lies side by side in the end leaves PSUM together.
        """
        dim, stack = self.a.dim, self.stack
        pieces = [
            (to, at + c * pitch, source, start + c * stack * dim, count,
             min(stack, heads - c * stack) * dim)
            for source, start, to, at, count, pitch, heads in transposes
            for c in range(ceil(heads / stack))
        ]  # fmt: skip
        held: list[tuple[Buffer, int, Buffer, int, int, int]] = []
        for piece in sorted(pieces, key=lambda x: (x[0].name, x[1])):
            to, at, _, _, count, deep = piece
            used = sum(x[4] for x in held)
            follows = held and held[-1][0] is to and held[-1][1] + held[-1][4] == at
            if held and (not follows or used + count > self.bank or held[-1][5] != deep):
                self._leave(held)
                held = []
            held.append(piece)
        self._leave(held)

    def _leave(self, held: list[tuple[Buffer, int, Buffer, int, int, int]]) -> None:
        b, at = self.b, 0
        b.fresh(self.transposer)
        for _, _, source, start, count, deep in held:
            rows = source.rows(count, deep, start)
            b.emit("nc_transpose", self.transposer.rows(deep, count, at), rows)
            at += count
        (to, first, _, _, _, deep), width = held[0], at
        b.emit("tensor_copy", to.rows(deep, width, first), self.transposer.rows(deep, width))

    def _hide(self, w: Work, masked: Access, scores: Access) -> None:
        """Scores as they leave PSUM, with what the mask adds."""
        rows, seen = w.tile.rows, w.tile.seen
        if self.masks.given:
            at = self.masks.of_head(w.n, self._head(w))
            self.masks.hide_heads(masked, scores, at, rows, w.first, seen, self.group)
            return
        band = self.masks.diagonal(rows, w.first, 0, seen)
        pattern = ((self.masks.band.row_elements, rows), (0, self.group), (1, seen))
        every = replace(band, pattern=pattern)
        self.b.emit("tensor_tensor", masked, scores, every, op="add")

    # --- the step before: weights, their sums, transposed ---

    def _weigh(self, w: Work, age: int) -> None:
        b, a, g, rows, seen = self.b, self.a, self.group, w.tile.rows, w.tile.seen
        b.fresh(self.weights, self.sums, self.inverse, self.weights_psum, self.weights_transposed)
        source = self.masked if w.tile.hides or self.masks.given else self.scores
        for h in range(g):
            both = (
                self.weights.rows(rows, seen, h * a.keys),
                self.sums.rows(rows, 1, h),
            )
            scores = source.rows(rows, seen, h * a.keys, age=age)
            low = self.low.rows(rows, 1, h, age=age)
            b.emit("activation_reduce", both, scores, low, op="exp", scale=self.masks.scale)
        sums = self.sums.rows(rows, g)
        b.emit("reciprocal", self.inverse.rows(rows, g), sums)
        if a.stats:
            head = w.n * a.heads + self._head(w)
            low = self.low.rows(rows, g, age=age)
            self.sums_kept.keep(head, w.first.divided(P), g, sums, low)
        for h in range(g):
            for start in range(0, seen, P):
                count = min(P, seen - start)
                transposed = self.weights_psum.rows(count, rows, self._weights_at(h, start, rows))
                weights = self.weights.rows(rows, count, h * a.keys + start)
                b.emit("nc_transpose", transposed, weights)
        for grid in grids(seen):  # Vector has more to do than Scalar
            width, at = grid.tiles * rows, self._weights_at(0, grid.first * P, rows)
            to, transposed = (
                x.lanes(grid.rows, (self.pitch, g), (1, width), at=at)
                for x in (self.weights_transposed, self.weights_psum)
            )
            b.emit("tensor_copy", to, transposed, engine=Engine.SCALAR)

    def _weights_at(self, h: int, start: int, rows: int) -> int:
        """Where the transposed weights of a head's tile of keys lie."""
        return h * self.pitch + start // P * rows

    # --- the oldest step: the result ---

    def _finish(self, w: Work, age: int, brought: int) -> None:
        b, a, g, rows, seen = self.b, self.a, self.group, w.tile.rows, w.tile.seen
        b.fresh(self.product, self.result)
        for h in range(g):
            head = h * self.kv // g
            for t, start in enumerate(range(0, seen, P)):
                count = min(P, seen - start)
                at = self._weights_at(h, start, rows)
                stationary = self.weights_transposed.rows(count, rows, at, age=age)
                values = (t * self.kv + head) * a.dim
                moving = self.v_rows.rows(count, a.dim, values, age=brought)
                product = self.product.rows(rows, a.dim, h * a.dim)
                b.emit("nc_matmul", product, stationary, moving, load="background")
        shape = ((a.dim, g), (1, a.dim))
        result, product = (x.lanes(rows, *shape) for x in (self.result, self.product))
        inverse = self.inverse.box((g, rows), (1, g), (0, a.dim), age=age)
        b.emit("tensor_tensor", result, product, inverse, op="multiply")
        place = self.out.at(w.n, self._head(w), w.first)
        b.store(self.out.heads(place, rows, g), self.result.rows(rows, g * a.dim))

    # --- views ---

    @staticmethod
    def _at(buffer: Buffer, rows: int, columns: int, at: int, partition: int) -> Access:
        return buffer.rows(rows, columns, affine(partition * buffer.row_elements + at))

    def _by_head(self, buffer: Buffer, tile: Tile) -> Access:
        """The scores of the heads of a step: [rows P, heads, keys seen]"""
        pattern = ((buffer.row_elements, tile.rows), (self.a.keys, self.group), (1, tile.seen))
        return buffer.box(*pattern)
