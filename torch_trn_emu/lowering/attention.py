"""Scaled dot product attention as flash-style programs: scores never leave the chip.

Queries lie on partitions. For every block of keys the Tensor engine makes the scores, the Vector
engine their maximum, the Scalar engine the exponentials with their sum; the block's weights turn
on the Tensor engine and multiply the values. Sums are rescaled when the maximum grows.
Under `causal` the blocks right of the diagonal are left out.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role, affine, rows_of

__all__ = ["attention", "attention_backward"]

P = 128
KEYS = 512  # of a block: one PSUM bank of scores
SLICE = 4  # query tiles that share a loop when there are many


def _spans(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int, int]]:
    """Runs of full query tiles: (first tile, how many, keys seen, ragged rows or 0)."""
    full, rest = divmod(queries, P)
    if not causal:
        spans = [(0, full, keys, 0)] if full else []
        return spans + ([(full, 1, keys, rest)] if rest else [])
    together = max(1, ceil(full / 16)) if full > 16 else 1
    spans = []
    for first in range(0, full, together):
        count = min(together, full - first)
        # The run's average: exact when a run is one tile.
        seen = int((first + (count + 1) / 2) * P) + keys - queries
        spans.append((first, count, max(1, min(keys, seen)), 0))
    if rest:
        spans.append((full, 1, keys, rest))
    return spans


class _Heads:
    """What forward and backward share: operands turned so that head_dim lies on partitions."""

    def __init__(self, b: Builder, dtype: str, chip: Chip) -> None:
        self.b, self.dtype, self.chip = b, dtype, chip
        self.turned = b.psum("turned", 4 * P, dtype, slots=1)

    def natural(self, name: str, hbm: Buffer, length: int, dim: int, base: Affine) -> Buffer:
        """[length, dim] with 128 rows a tile: [128P, tiles, dim]."""
        tiles = ceil(length / P)
        tile = self.b.sbuf(name, tiles * dim, self.dtype, slots=1)
        self.b.fresh(tile)
        full, rest = divmod(length, P)
        if full:
            source = Access(buffer=hbm, offset=base, pattern=((dim, P), (P * dim, full), (1, dim)))
            to = Access(buffer=tile, pattern=((tiles * dim, P), (dim, full), (1, dim)))
            self.b.load(to, source)
        if rest:
            source = rows_of(hbm, rest, dim, base + full * P * dim)
            self.b.load(rows_of(tile, rest, dim, full * dim), source)
        return tile

    def transposed(self, name: str, natural: Buffer, length: int, dim: int) -> Buffer:
        """[dim P, length] from the natural tiles; at most 128 of head_dim."""
        b, made = self.b, self.b.sbuf(name, length, self.dtype, slots=1)
        b.fresh(made)
        for t in range(ceil(length / P)):
            size = min(P, length - t * P)
            b.fresh(self.turned)
            b.emit(
                "nc_transpose",
                rows_of(self.turned, dim, size),
                rows_of(natural, size, dim, t * dim),
            )
            b.emit("tensor_copy", rows_of(made, dim, size, t * P), rows_of(self.turned, dim, size))
        return made


def attention(
    heads: int,
    queries: int,
    keys: int,
    dim: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    compute: str = "bfloat16",
    causal: bool = False,
    scale: float | None = None,
    cores: int = 1,
) -> Program:
    """out[h] = softmax(q[h] @ k[h].T * scale) @ v[h]; heads are split over the cores.

    head_dim beyond 128 is priced as several heads of 128 (inferred).
    """
    flops = 4.0 * heads * queries * keys * dim / (2 if causal else 1)
    heads, dim = heads * ceil(dim / P), min(dim, P)
    heads = ceil(heads / cores)
    factor = dim**-0.5 if scale is None else scale
    b = Builder(f"attention {heads}x{queries}x{keys}x{dim}", cores=cores, model_flops=flops)
    q, k, v, out = (
        b.hbm(n, (heads * length, dim), dtype, role)
        for n, length, role in (
            ("q", queries, Role.INPUT),
            ("k", keys, Role.INPUT),
            ("v", keys, Role.INPUT),
            ("out", queries, Role.OUTPUT),
        )
    )
    shared = _Heads(b, compute, chip)
    state = _Forward(b, shared, queries, keys, dim, factor, causal, out)
    with b.loop(heads) as h:
        k_natural = shared.natural("k rows", k, keys, dim, h * (keys * dim))
        v_rows = shared.natural("v rows", v, keys, dim, h * (keys * dim))
        k_turned = shared.transposed("k turned", k_natural, keys, dim)
        for first, count, seen, rest in _spans(queries, keys, causal):
            with b.loop(count) as i:
                row = (i + first) * P
                base = h * (queries * dim) + row * dim
                state.tile(q, base, rest or P, seen, first, k_turned, v_rows)
    return b.build()


class _Forward:
    def __init__(
        self,
        b: Builder,
        shared: _Heads,
        queries: int,
        keys: int,
        dim: int,
        factor: float,
        causal: bool,
        out: Buffer,
    ) -> None:
        self.b, self.shared, self.dim, self.out = b, shared, dim, out
        self.queries, self.keys, self.factor, self.causal = queries, keys, factor, causal
        wide = min(KEYS, keys)
        self.q_rows = b.sbuf("q rows", dim, shared.dtype, slots=2)
        self.q_turned = b.sbuf("q turned", P, shared.dtype, slots=2)
        self.scores = b.psum("scores", KEYS, slots=2)
        self.masked = b.sbuf("masked", wide, "float32", slots=2)
        self.weights = b.sbuf("weights", wide, shared.dtype, slots=2)
        self.weights_turned = b.sbuf("weights turned", P * ceil(wide / P), shared.dtype, slots=2)
        self.product = b.psum("product", dim, slots=2)
        self.sum = b.sbuf("sum", dim, "float32", slots=2)
        self.result = b.sbuf("result", dim, out.dtype, slots=2)
        self.low, self.low_before, self.total, self.part, self.keep, self.block_low = (
            b.sbuf(n, 1, "float32", slots=2)
            for n in ("low", "low before", "total", "part", "keep", "block low")
        )

    def tile(
        self,
        q: Buffer,
        base: Affine,
        rows: int,
        seen: int,
        first: int,
        k_turned: Buffer,
        v_rows: Buffer,
    ) -> None:
        b, dim, turned = self.b, self.dim, self.shared.turned
        b.fresh(self.q_rows, self.q_turned, self.low, self.total, self.sum, self.result, turned)
        b.load(rows_of(self.q_rows, rows, dim), rows_of(q, rows, dim, base))
        b.emit("nc_transpose", rows_of(turned, dim, rows), rows_of(self.q_rows, rows, dim))
        b.emit("tensor_copy", rows_of(self.q_turned, dim, rows), rows_of(turned, dim, rows))
        for n, start in enumerate(range(0, seen, KEYS)):
            size = min(KEYS, seen - start)
            diagonal = self.causal and start + size > first * P + self.keys - self.queries
            self._block(rows, start, size, n == 0, first if diagonal else -1, k_turned, v_rows)
        b.emit("reciprocal", rows_of(self.total, rows, 1), rows_of(self.total, rows, 1))
        done = rows_of(self.result, rows, dim)
        each = rows_of(self.total, rows, 1)
        b.emit("tensor_scalar", done, rows_of(self.sum, rows, dim), each, op0="multiply")
        b.store(rows_of(self.out, rows, dim, base), done)

    def _block(
        self,
        rows: int,
        start: int,
        size: int,
        is_first: bool,
        diagonal: int,
        k_turned: Buffer,
        v_rows: Buffer,
    ) -> None:
        b, dim, one = self.b, self.dim, rows_of
        b.fresh(self.scores, self.weights, self.weights_turned, self.product, self.part)
        scores = one(self.scores, rows, size)
        moving = one(k_turned, dim, size, start)
        b.emit("nc_matmul", scores, one(self.q_turned, dim, rows), moving)
        if diagonal >= 0:  # row + first - column >= 0 keeps
            b.fresh(self.masked)
            base = diagonal * P + self.keys - self.queries - start
            masked = one(self.masked, rows, size)
            b.emit("affine_select", masked, scores, channel=1, step=-1, base=base, on_false=-3e38)
            scores = masked
        # The minimum of -scores x scale, which the exponential takes as its bias.
        b.fresh(self.block_low)
        low = one(self.block_low, rows, 1)
        b.emit("tensor_reduce", low, scores, op="max", negate=True)
        b.emit("tensor_scalar", low, low, op0="multiply", imm0=self.factor)
        if is_first:
            b.emit("tensor_copy", one(self.low, rows, 1), low)
        else:
            b.fresh(self.keep)
            kept, before = one(self.keep, rows, 1), one(self.low_before, rows, 1)
            b.fresh(self.low_before)
            b.emit("tensor_copy", before, one(self.low, rows, 1))
            b.emit("tensor_tensor", one(self.low, rows, 1), before, low, op="min")
            b.emit("tensor_tensor", kept, one(self.low, rows, 1), before, op="subtract")
            b.emit("activation", kept, kept, op="exp")
        written = (one(self.weights, rows, size), one(self.part, rows, 1))
        b.emit(
            "activation_reduce", written, scores, one(self.low, rows, 1), op="exp",
            scale=self.factor,
        )  # fmt: skip
        tiles = ceil(size / P)
        turned = self.shared.turned
        b.fresh(turned)
        for t in range(tiles):
            count = min(P, size - t * P)
            block = one(self.weights, rows, count, t * P)
            b.emit("nc_transpose", one(turned, count, rows, t * P), block)
            b.emit(
                "tensor_copy",
                one(self.weights_turned, count, rows, t * P),
                one(turned, count, rows, t * P),
            )
        for t in range(tiles):
            count = min(P, size - t * P)
            value = one(v_rows, count, dim, (start // P + t) * dim)
            stationary = one(self.weights_turned, count, rows, t * P)
            b.emit("nc_matmul", one(self.product, rows, dim), stationary, value)
        total, part = one(self.total, rows, 1), one(self.part, rows, 1)
        gathered, product = one(self.sum, rows, dim), one(self.product, rows, dim)
        if is_first:
            b.emit("tensor_copy", total, part)
            b.emit("tensor_copy", gathered, product)
            return
        each = one(self.keep, rows, 1)
        b.emit("tensor_scalar", total, total, each, part, op0="multiply", op1="add")
        b.emit("scalar_tensor_tensor", gathered, gathered, each, product, op0="multiply", op1="add")


def attention_backward(
    heads: int,
    queries: int,
    keys: int,
    dim: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    compute: str = "bfloat16",
    causal: bool = False,
    scale: float | None = None,
    cores: int = 1,
) -> Program:
    """Gradients of q, k and v from out, its gradient and the scores' logsumexp.

    The scores are made again; five products of a block of 128 queries and 128 keys.
    """
    flops = 10.0 * heads * queries * keys * dim / (2 if causal else 1)
    heads, dim = heads * ceil(dim / P), min(dim, P)
    heads = ceil(heads / cores)
    factor = dim**-0.5 if scale is None else scale
    b = Builder(f"attention_backward {heads}x{queries}x{keys}", cores=cores, model_flops=flops)
    body = _Backward(b, heads, queries, keys, dim, factor, causal, dtype, compute, chip)
    with b.loop(heads) as h:
        body.head(h)
    return b.build()


class _Backward:
    def __init__(
        self,
        b: Builder,
        heads: int,
        queries: int,
        keys: int,
        dim: int,
        factor: float,
        causal: bool,
        dtype: str,
        compute: str,
        chip: Chip,
    ) -> None:
        self.b, self.queries, self.keys, self.dim = b, queries, keys, dim
        self.factor, self.causal = factor, causal
        self.shared = _Heads(b, compute, chip)
        lengths = {"g": queries, "q": queries, "k": keys, "v": keys, "out": queries}
        self.hbm = {
            n: b.hbm(n, (heads * length, dim), dtype, Role.INPUT) for n, length in lengths.items()
        }
        self.hbm["lse"] = b.hbm("lse", (heads * queries, 1), "float32", Role.INPUT)
        for n, length in (("dq", queries), ("dk", keys), ("dv", keys)):
            self.hbm[n] = b.hbm(n, (heads * length, dim), dtype, Role.OUTPUT)
        key_tiles = ceil(keys / P)
        self.dk, self.dv = (b.sbuf(n, key_tiles * dim, "float32") for n in ("dk sum", "dv sum"))
        self.dq = b.sbuf("dq sum", dim, "float32", slots=2)
        self.stored = b.sbuf("stored", dim, dtype, slots=4)
        self.scores = b.psum("scores", P, slots=1)
        self.wanted = b.psum("wanted", P, slots=1)
        self.product = b.psum("product", dim, slots=2)
        self.weights = b.sbuf("weights", P, compute, slots=2)
        self.errors = b.sbuf("errors", P, "float32", slots=2)
        self.narrow = b.sbuf("errors narrow", P, compute, slots=2)
        self.turned = b.sbuf("errors turned", P, compute, slots=2)
        self.masked = b.sbuf("masked", P, "float32", slots=2)
        self.work = b.sbuf("work", dim, "float32", slots=2)
        self.rows = {n: b.sbuf(f"{n} tile", dim, compute, slots=2) for n in ("g", "q", "out")}
        self.head_first = {n: b.sbuf(f"{n} turned", P, compute, slots=2) for n in ("g", "q")}
        self.lse, self.delta = (b.sbuf(n, 1, "float32", slots=2) for n in ("lse tile", "delta"))

    def head(self, h: Affine) -> None:
        b, dim, keys = self.b, self.dim, self.keys
        base = h * (keys * dim)
        k_rows = self.shared.natural("k rows", self.hbm["k"], keys, dim, base)
        v_rows = self.shared.natural("v rows", self.hbm["v"], keys, dim, base)
        k_turned = self.shared.transposed("k turned", k_rows, keys, dim)
        v_turned = self.shared.transposed("v turned", v_rows, keys, dim)
        for total in (self.dk, self.dv):
            b.emit("memset", rows_of(total, P, total.row_elements), value=0.0)
        for first, count, seen, rest in _spans(self.queries, keys, self.causal):
            with b.loop(count) as i:
                row = h * self.queries + (i + first) * P
                self._queries(row, rest or P, seen, first, k_rows, k_turned, v_turned)
        for name, total in (("dk", self.dk), ("dv", self.dv)):
            for t in range(ceil(keys / P)):
                size = min(P, keys - t * P)
                self._store(name, base + t * P * dim, rows_of(total, size, dim, t * dim), size)

    def _store(self, name: str, at: Affine, source: Access, size: int) -> None:
        self.b.fresh(self.stored)
        done = rows_of(self.stored, size, self.dim)
        self.b.emit("tensor_copy", done, source)
        self.b.store(rows_of(self.hbm[name], size, self.dim, at), done)

    def _queries(
        self,
        row: Affine,
        rows: int,
        seen: int,
        first: int,
        k_rows: Buffer,
        k_turned: Buffer,
        v_turned: Buffer,
    ) -> None:
        b, dim, turned = self.b, self.dim, self.shared.turned
        b.fresh(*self.rows.values(), *self.head_first.values())
        b.fresh(self.lse, self.delta, self.work, self.dq)
        for n, tile in self.rows.items():
            b.load(rows_of(tile, rows, dim), rows_of(self.hbm[n], rows, dim, row * dim))
        b.load(rows_of(self.lse, rows, 1), rows_of(self.hbm["lse"], rows, 1, row))
        low = rows_of(self.lse, rows, 1)
        b.emit("tensor_scalar", low, low, op0="multiply", imm0=-1.0)
        for n, tile in self.head_first.items():
            b.fresh(turned)
            b.emit("nc_transpose", rows_of(turned, dim, rows), rows_of(self.rows[n], rows, dim))
            b.emit("tensor_copy", rows_of(tile, dim, rows), rows_of(turned, dim, rows))
        work = rows_of(self.work, rows, dim)
        g, out = (rows_of(self.rows[n], rows, dim) for n in ("g", "out"))
        b.emit("tensor_tensor", work, g, out, op="multiply")
        b.emit("tensor_reduce", rows_of(self.delta, rows, 1), work, op="add")
        gathered = rows_of(self.dq, rows, dim)
        b.emit("memset", gathered, value=0.0)
        for t in range(ceil(seen / P)):
            size = min(P, seen - t * P)
            diagonal = self.causal and t * P + size > first * P + self.keys - self.queries
            self._block(rows, t, size, first if diagonal else -1, k_rows, k_turned, v_turned)
        self._store("dq", affine(row) * dim, gathered, rows)

    def _block(
        self,
        rows: int,
        t: int,
        size: int,
        diagonal: int,
        k_rows: Buffer,
        k_turned: Buffer,
        v_turned: Buffer,
    ) -> None:
        b, dim, one, turned = self.b, self.dim, rows_of, self.shared.turned
        b.fresh(self.scores, self.wanted, self.weights, self.errors, self.narrow, self.turned)
        scores = one(self.scores, rows, size)
        q, g = (one(self.head_first[n], dim, rows) for n in ("q", "g"))
        b.emit("nc_matmul", scores, q, one(k_turned, dim, size, t * P))
        wanted = one(self.wanted, rows, size)
        b.emit("nc_matmul", wanted, g, one(v_turned, dim, size, t * P))
        if diagonal >= 0:
            b.fresh(self.masked)
            base = diagonal * P + self.keys - self.queries - t * P
            masked = one(self.masked, rows, size)
            b.emit("affine_select", masked, scores, channel=1, step=-1, base=base, on_false=-3e38)
            scores = masked
        weights, errors = one(self.weights, rows, size), one(self.errors, rows, size)
        b.emit("activation", weights, scores, one(self.lse, rows, 1), op="exp", scale=self.factor)
        # errors = weights x (wanted - delta) x scale
        delta = one(self.delta, rows, 1)
        b.emit(
            "tensor_scalar", errors, wanted, delta, op0="subtract", op1="multiply",
            imm1=self.factor,
        )  # fmt: skip
        narrow = one(self.narrow, rows, size)
        b.emit("tensor_tensor", narrow, errors, weights, op="multiply")
        self._add(self.dv, t, size, weights, one(self.rows["g"], rows, dim))
        self._add(self.dk, t, size, narrow, one(self.rows["q"], rows, dim))
        b.fresh(turned)
        b.emit("nc_transpose", one(turned, size, rows), narrow)
        b.emit("tensor_copy", one(self.turned, size, rows), one(turned, size, rows))
        b.fresh(self.product)
        product = one(self.product, rows, dim)
        stationary = one(self.turned, size, rows)
        b.emit("nc_matmul", product, stationary, one(k_rows, size, dim, t * dim))
        gathered = one(self.dq, rows, dim)
        b.emit("tensor_tensor", gathered, gathered, product, op="add")

    def _add(self, total: Buffer, t: int, size: int, stationary: Access, moving: Access) -> None:
        b, dim = self.b, self.dim
        b.fresh(self.product)
        product = rows_of(self.product, size, dim)
        b.emit("nc_matmul", product, stationary, moving)
        gathered = rows_of(total, size, dim, t * dim)
        b.emit("tensor_tensor", gathered, gathered, product, op="add")
