"""Matrix multiplication as engine programs: blocks, buffering, transposes and MX quantization.

`matmul/blocking.py` says how the product is cut and holds the schedules; `matmul/operand.py`
brings the operands.
"""

from math import ceil
from typing import Any, NamedTuple

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Index, Memory, Program, Role, affine, itemsize
from ..limits import BANK, P
from .blocking import (
    COMPILER,
    HAND,
    Chunks,
    Cut,
    Plan,
    Schedule,
    dma_turns,
    packing_of,
    plan_few,
    plan_of,
    repeats_preparation,
    share_of_core,
)
from .epilogue import Epilogue, Finisher
from .evacuation import PLAIN, Evacuation, Leaving
from .operand import Operand
from .picked import Picked

__all__ = ["COMPILER", "HAND", "Schedule", "matmul"]


def matmul(
    m: int,
    k: int,
    n: int,
    *,
    chip: Chip,
    compute: str = "bfloat16",
    lhs_dtype: str = "bfloat16",
    rhs_dtype: str = "bfloat16",
    out_dtype: str = "bfloat16",
    lhs_layout: str = "mk",
    rhs_layout: str = "kn",
    batch: int = 1,
    cores: int = 1,
    schedule: Schedule = COMPILER,
    leaving: Leaving = PLAIN,
    epilogue: Epilogue | None = None,
    picked: int = 0,
) -> Program:
    """out[b, m, n] = lhs[b] @ rhs[b], accumulated in float32, in the best blocking of `schedule`.

    compute  the operands' format on the array: a float format, or "mxfp8", "mxfp8_e5m2"
    layouts  "mk" or "km", "kn" or "nk": the order in memory, last dimension contiguous
    cores    the first free dimension long enough is split over them; the program is one core's
    leaving   what is added, scaled and applied as results leave PSUM
    epilogue  what is computed of the results and stored instead of them
    picked    rhs is a table of so many matrices, of which an index for each of the batch picks one
    """
    flops = 2.0 * batch * m * k * n
    if cores > 1:
        batch, m, n = share_of_core(batch, m, n, cores)
    b = Builder(f"matmul {m}x{k}x{n} {compute}", cores=cores, model_flops=flops)
    packing, majors = packing_of(compute, chip), (lhs_layout == "km", rhs_layout == "kn")
    sizes = (batch, m, k, n)
    lhs, rhs = _given(b, sizes, (lhs_dtype, rhs_dtype), majors, picked)
    out = _results(b, (batch, m, n), out_dtype, epilogue)
    held = itemsize(out.dtype) * schedule.result_slots + leaving.bytes_per_column
    held += epilogue.column_bytes if epilogue else 0
    cut = Cut(
        m=m, k=k, n=n, packing=packing, majors=majors, dtypes=(lhs_dtype, rhs_dtype),
        bytes_per_column=held, chip=chip, schedule=schedule,
    )  # fmt: skip
    whole = picked > 0 and k <= schedule.long_contraction
    plan = plan_few(cut) or plan_of(cut, whole=whole)
    left, right = _operands(b, (lhs, rhs), cut, plan)
    if picked:
        if plan.chunk or packing.mx or not majors[1] or (batch == 1 and n > plan.block_n):
            raise KeyError("matrices picked in chunks, in MX formats or transposed, or very wide")
        right.picked = Picked(b, rhs, batch)
    kind = _Chunked if plan.chunk else _Turned if plan.turned else _Body
    body = kind(b, left, right, out, plan, schedule, leaving)
    if epilogue is not None:
        body.finisher = Finisher(b, epilogue, (batch, m, n), plan.width)
    streams = right if plan.m_outside else left
    if isinstance(body, _Chunked):
        body.prepare(sizes)
    elif batch == 1 and repeats_preparation(plan, m, n) and streams.prepared_by_engines:
        streams.restage()
    body.product(sizes)
    return b.build()


def _given(
    b: Builder,
    sizes: tuple[int, int, int, int],
    dtypes: tuple[str, str],
    majors: tuple[bool, bool],
    picked: int,
) -> tuple[Buffer, Buffer]:
    """The factors in HBM; `majors` says which have the contraction before the free dimension."""
    batch, m, k, n = sizes
    shapes = [(batch, k, free) if major else (batch, free, k)
              for free, major in zip((m, n), majors, strict=True)]  # fmt: skip
    lhs = b.hbm("lhs", shapes[0], dtypes[0], Role.INPUT)
    return lhs, b.hbm("rhs", (picked or batch, *shapes[1][1:]), dtypes[1], Role.WEIGHT)


def _results(
    b: Builder, shape: tuple[int, int, int], dtype: str, epilogue: Epilogue | None
) -> Buffer:
    """Where results go; with an epilogue, which stores its own, a name for them only."""
    if epilogue is None:
        return b.hbm("out", shape, dtype, Role.OUTPUT)
    return Buffer(name="out", memory=Memory.HBM, dtype="float32", shape=shape)


def _operands(
    b: Builder, tensors: tuple[Buffer, Buffer], cut: Cut, plan: Plan
) -> tuple[Operand, Operand]:
    """Both factors in blocks of the plan; the one that streams by may turn in the DMA engines."""
    blocks, slots = (plan.block_m, plan.block_n), (plan.lhs_slots, plan.rhs_slots)
    left, right = (
        Operand(
            b,
            tensors[i],
            k=cut.k,
            block=blocks[i],
            packing=plan.packing(cut),
            contraction_major=cut.majors[i],
            slots=slots[i],
            turn_by_dma=(plan.m_outside == bool(i) or plan.chunk > 0)
            and dma_turns(tensors[i].dtype, cut.packing, cut.chip),
            k_at_once=plan.chunk or None,
        )
        for i in (0, 1)
    )
    return left, right


class _Tile(NamedTuple):
    """Rows and columns of a block of the result that a PSUM bank holds."""

    row: Affine
    rows: int
    column: Affine
    columns: int


class _Body:
    """The loops of a blocked matmul."""

    def __init__(
        self,
        b: Builder,
        left: Operand,
        right: Operand,
        out: Buffer,
        plan: Plan,
        schedule: Schedule,
        leaving: Leaving,
    ) -> None:
        self.b, self.left, self.right, self.out = b, left, right, out
        self.plan, self.schedule = plan, schedule
        self.pairs = [(left, right)]
        self.bases: tuple[Index, Index, Index] = (0, 0, 0)
        self.finisher: Finisher | None = None
        self.psum = b.psum("accumulator", P if plan.turned else BANK, slots=schedule.psum_slots)
        self.result = b.sbuf("result", plan.width, out.dtype, slots=schedule.result_slots)
        self.leaving = Evacuation(
            b, leaving, self.result, halves=left.tiles <= 4, by_tile=plan.turned
        )

    def product(self, sizes: tuple[int, int, int, int]) -> None:
        """All of the batch."""
        batch, m, k, n = sizes
        with self.b.loop(batch) as i:
            self.bases = (i * (m * k), i * (k * n), i * (m * n))
            if self.right.picked:
                self.right.picked.choose(i)
                self.bases = (self.bases[0], 0, self.bases[2])
            self.leaving.batch = i
            self._blocks(m, n)

    def _blocks(self, m: int, n: int) -> None:
        b, plan = self.b, self.plan
        if plan.m_outside:
            for m0, ms in b.tiles(m, plan.block_m):
                self.left.load(m0, ms, self.bases[0])
                for n0, ns in b.tiles(n, plan.block_n):
                    self.right.load(n0, ns, self.bases[1])
                    self.leaving.columns(n0, ns)
                    self._rows(m0, ms, n0, ns)
        else:
            for n0, ns in b.tiles(n, plan.block_n):
                self.right.load(n0, ns, self.bases[1])
                self.leaving.columns(n0, ns)
                for m0, ms in b.tiles(m, plan.block_m):
                    self.left.load(m0, ms, self.bases[0])
                    self._rows(m0, ms, n0, ns)

    def _rows(self, m0: Affine, ms: int, n0: Affine, ns: int) -> None:
        b = self.b
        for row, rows in b.tiles(ms, P):
            b.fresh(self.result)
            self.leaving.rows(m0 + row, rows, n0, ns)
            for column, columns in b.tiles(ns, BANK):
                b.fresh(self.psum)
                tile = _Tile(row, rows, column, columns)
                for left, right in self.pairs:
                    self._accumulate(left, right, tile)
                self._add_earlier(tile)
                self.leaving.evacuate(self.psum, rows, column, columns)
            self._finish(m0 + row, rows, n0, ns)

    def _finish(self, row: Affine, rows: int, n0: Affine, ns: int, pieces: int = 1) -> None:
        """What is done with a tile of results, and its way to HBM."""
        if self.finisher:
            self.finisher.finish(self.result, row, n0, rows, ns, self.bases[2], pieces)
            return
        at = row * self.out.shape[-1] + n0 + affine(self.bases[2])
        made = self.result.rows(rows * pieces, ns // pieces)
        self.b.store(self.out.rows(rows, ns, at), made)

    def _add_earlier(self, tile: _Tile) -> None:
        """Add to PSUM what earlier chunks of the contraction left: here there are none."""

    def _accumulate(self, left: Operand, right: Operand, tile: _Tile) -> None:
        tile_k = left.packing.tile_k
        for part, _, ks in left.k_parts():
            for t in range(ceil(ks / tile_k)):
                self._multiply(left, right, part, t, min(ks - t * tile_k, tile_k), tile)

    def _multiply(
        self, left: Operand, right: Operand, part: Affine, t: int, ks: int, tile: _Tile
    ) -> None:
        b, load = self.b, self.schedule.load
        into = self.psum.rows(tile.rows, tile.columns)
        row, column = (part, t, ks, tile.row, tile.rows), (part, t, ks, tile.column, tile.columns)
        if left.packing.mx:
            operands = left.tile(*row), right.tile(*column), left.scale(*row), right.scale(*column)
            b.emit("nc_matmul_mx", into, *operands, load=load)
            return
        double = left.packing.per_row == 2 and ks >= left.packing.tile_k
        mode: dict[str, Any] = {"perf_mode": "double_row"} if double else {}
        for lane in range(1 if double else ceil(ks / P)):
            b.emit("nc_matmul", into, left.tile(*row, lane), right.tile(*column, lane), load=load,
                   **mode)  # fmt: skip


class _Turned(_Body):
    """The loops of a matmul of few rows, which stream through columns of rhs.

    So the array gives columns of the result. They are turned, and a row has several partitions.
    """

    def __init__(self, b: Builder, left: Operand, right: Operand, *rest: Any) -> None:
        super().__init__(b, left, right, *rest)
        self.made = b.sbuf("columns", P, "float32", slots=2)
        self.turned = b.psum("turned", P, slots=2)

    def _rows(self, m0: Affine, ms: int, n0: Affine, ns: int) -> None:
        pieces = min(BANK, P * (P // ms)) // P
        for column, columns in self.b.tiles(ns, pieces * P):
            whole, rest = divmod(columns, P)
            if whole:
                self._columns(m0, ms, n0, column, whole, P)
            if rest:
                self._columns(m0, ms, n0, column + whole * P, 1, rest)

    def _columns(
        self, m0: Affine, ms: int, n0: Affine, column: Affine, pieces: int, width: int
    ) -> None:
        """`pieces` x `width` columns of the result, from `column` of the block on."""
        b, first = self.b, n0 + column
        b.fresh(self.psum, self.made, self.turned, self.result)
        self.leaving.rows(m0, ms, first, pieces * width, pieces)
        tile_k = self.left.packing.tile_k
        for part, _, ks in self.left.k_parts():
            for t in range(ceil(ks / tile_k)):
                at = part, t, min(ks - t * tile_k, tile_k)
                for piece in range(pieces):
                    into = self.psum.lanes(width, (pieces, ms), at=piece)
                    held = self.right.tile(*at, column + piece * P, width)
                    moving = self.left.tile(*at, Affine(), ms)
                    b.emit("nc_matmul", into, held, moving, load=self.schedule.load)
        made = self.made.rows(width, ms * pieces)
        b.emit("tensor_copy", made, self.psum.rows(width, ms * pieces))
        b.emit("nc_transpose", self.turned.rows(ms * pieces, width), made)
        self.leaving.evacuate(self.turned, ms * pieces, 0, width)
        self._finish(m0, ms, first, pieces * width, pieces)


class _Chunked(_Body):
    """The loops of a matmul whose contraction passes in chunks: partial sums stay in SBUF."""

    def __init__(self, b: Builder, left: Operand, right: Operand, *rest: Any) -> None:
        super().__init__(b, left, right, *rest)
        self.sums = b.sbuf("sums", self.plan.block_n, "float32", parts=ceil(self.plan.block_m / P))
        cut = Chunks.of(left.k, self.plan.chunk, left.packing)
        last = []  # what the last step multiplies, and where in K it starts
        if cut.groups:
            pair = left.first(cut.groups), right.first(cut.groups)
            last.append((pair, cut.count * cut.size))
        if cut.tail:
            pair = left.tail(cut.tail), right.tail(cut.tail)
            last.append((pair, cut.count * cut.size + cut.groups))
        self.count, self.repeated = cut.count, cut.count if last else cut.count - 1
        self.last = last or [((left, right), self.repeated * cut.size)]

    def prepare(self, sizes: tuple[int, int, int, int]) -> None:
        """Keep in HBM, as the array reads it, what engines would prepare for several blocks."""
        batch, m, _, n = sizes
        uses = ceil(n / self.plan.block_n), ceil(m / self.plan.block_m)
        for i, main in enumerate((self.left, self.right)):
            if batch > 1 or uses[i] <= 2 or not main.prepared_by_engines:
                continue
            step = main.f if main.contraction_major else 1
            main.restage(self.count, self.plan.chunk * step)
            for pair, k0 in self.last:
                if pair[i] is not main:
                    pair[i].ready = None
                    pair[i].restage(start=k0 * step)

    def _blocks(self, m: int, n: int) -> None:
        b, plan, main = self.b, self.plan, (self.left, self.right)
        for m0, ms in b.tiles(m, plan.block_m):
            for n0, ns in b.tiles(n, plan.block_n):
                self.leaving.columns(n0, ns)
                self._load(main, 0, m0, ms, n0, ns)
                self._sum(ms, ns, first=True)
                if self.repeated > 1:
                    with b.loop(self.repeated - 1) as i:
                        self._load(main, i + 1, m0, ms, n0, ns)
                        self._sum(ms, ns, first=False)
                for pair, k0 in self.last:
                    if pair == main:
                        self._load(main, self.repeated, m0, ms, n0, ns)
                    else:
                        self._load(pair, 0, m0, ms, n0, ns, k0)
                self.pairs = [pair for pair, _ in self.last]
                self._rows(m0, ms, n0, ns)

    def _load(
        self,
        pair: tuple[Operand, Operand],
        chunk: Index,
        m0: Affine,
        ms: int,
        n0: Affine,
        ns: int,
        start: int = 0,
    ) -> None:
        k0 = affine(chunk) * self.plan.chunk + start
        for operand, f0, fs, base in zip(pair, (m0, n0), (ms, ns), self.bases[:2], strict=True):
            step = operand.f if operand.contraction_major else 1
            operand.load(f0, fs, affine(base) + k0 * step, chunk)

    def _sum(self, ms: int, ns: int, *, first: bool) -> None:
        """The product of a chunk, to the sums of its block."""
        b = self.b
        for row, rows in b.tiles(ms, P):
            for column, columns in b.tiles(ns, BANK):
                b.fresh(self.psum)
                tile = _Tile(row, rows, column, columns)
                self._accumulate(self.left, self.right, tile)
                source, to = self.psum.rows(rows, columns), self._sums(tile)
                if first:
                    b.emit("tensor_copy", to, source)
                else:
                    b.emit("tensor_tensor", to, to, source, op="add")

    def _add_earlier(self, tile: _Tile) -> None:
        into = self.psum.rows(tile.rows, tile.columns)
        self.b.emit("tensor_tensor", into, into, self._sums(tile), op="add")

    def _sums(self, tile: _Tile) -> Access:
        part = tile.row.divided(P)
        return self.sums.rows(tile.rows, tile.columns, tile.column, part=part)
