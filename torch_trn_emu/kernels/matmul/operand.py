"""A matmul operand on its way from HBM to the Tensor engine: blocks with K on the partitions.

An operand lies in HBM contraction-major, [K, F], and is loaded as it is, or free-major, [F, K], and
is transposed on the Tensor engine. For MX it is then quantized: groups of 32 neighbours along K.
"""

from collections.abc import Iterator
from copy import copy

from ...isa import Access, Affine, Buffer, Builder, Index, Role, affine, itemsize
from ..limits import BANK_BYTES, P
from ..planes import several
from .packing import K_GROUP, NATURAL_BYTES, Packing, group_of, natural_slots, parts_of_row
from .picked import Picked

__all__ = ["Operand"]


class Operand:
    """One operand: `load` brings a block of its free dimension, `tile` is what a matmul reads."""

    def __init__(
        self,
        b: Builder,
        hbm: Buffer,
        *,
        k: int,
        block: int,
        packing: Packing,
        contraction_major: bool,
        slots: int,
        turn_by_dma: bool = False,
        k_at_once: int | None = None,
    ) -> None:
        self.b, self.hbm, self.k, self.block = b, hbm, k, block
        self.packing, self.contraction_major = packing, contraction_major
        self.turn_by_dma = turn_by_dma and not contraction_major
        self.f = hbm.shape[-1] if contraction_major else hbm.shape[-2]
        self.ready: tuple[Buffer, Buffer] | None = None  # data and scales in HBM, after `restage`
        self.picked: Picked | None = None
        self._cut(k if k_at_once is None else k_at_once, slots, hbm.name)
        if not contraction_major and not turn_by_dma:
            dtype = self.wide.dtype
            length = max(self.chunk * self.group * packing.tile_k * bool(self.full), self.rest)
            slots = natural_slots(block)
            self.natural = b.sbuf(f"{hbm.name} natural", length, dtype, slots=slots)
            bank = int(BANK_BYTES / itemsize(dtype))
            self.transposed = b.psum(f"{hbm.name} transposed", bank, dtype, slots=2)

    def _cut(self, k: int, slots: int, name: str, wide: Buffer | None = None) -> None:
        """Tiles for k elements of K, loaded at a time; `wide`, if given, holds a group or more.

        `full` tiles in whole groups, and `rest` elements, less than a group.
        """
        b, packing, block = self.b, self.packing, self.block
        self.group = group_of(k, packing)
        whole, self.rest = divmod(k, self.group * packing.tile_k)
        self.full, self.parts = whole * self.group, whole + bool(self.rest)
        self.chunk = parts_of_row(k, packing, self.group)
        width = self.group * packing.per_row * block
        self.data = b.sbuf(f"{name} tiles", width, packing.dtype, slots=slots, parts=self.parts)
        self.staged, self.scales = block, self.data
        self.wide = self.data
        if packing.mx:
            self.staged = block if self.contraction_major else min(block, P)
            size = self.group * packing.per_row * self.staged
            self.wide = wide or b.sbuf(f"{name} wide", size, "bfloat16", slots=2)
            self.scales = b.sbuf(
                f"{name} scales",
                self.group * block,
                "float8_e8m0fnu",
                slots=slots,
                parts=self.parts,
                partitions=P // 8,
            )

    def first(self, k: int) -> "Operand":
        """The operand where only k elements of K are loaded, a multiple of its groups of tiles."""
        shorter = copy(self)
        shorter.full, shorter.rest = k // self.packing.tile_k, 0  # whole groups
        shorter.parts = shorter.full // self.group
        return shorter

    def tail(self, k: int) -> "Operand":
        """The last k elements of K, fewer than a group of tiles, in tiles of their own."""
        last = copy(self)
        last._cut(k, 1, f"{self.hbm.name} tail", self.wide if self.packing.mx else None)
        return last

    @property
    def tiles(self) -> int:
        """Whole tiles of K."""
        return self.full + self.rest // self.packing.tile_k

    @property
    def prepared_by_engines(self) -> bool:
        """Whether bringing a block takes more than DMA: a transpose or a quantization."""
        return self.packing.mx or not (self.contraction_major or self.turn_by_dma)

    @staticmethod
    def sbuf_bytes(
        k: int, block: int, packing: Packing, contraction_major: bool, slots: int
    ) -> int:
        """SBUF bytes per partition an operand takes, an upper bound."""
        group = group_of(k, packing)
        tiles = -(-k // (group * packing.tile_k)) * group
        row = packing.per_row * block
        size = tiles * row * itemsize(packing.dtype) * slots
        if packing.mx:
            columns = block if contraction_major else min(block, P)
            size += 2 * group * packing.per_row * columns * 2 + tiles * block * slots
        if not contraction_major:
            natural = max(NATURAL_BYTES, group * packing.tile_k * max(2, itemsize(packing.dtype)))
            size += natural_slots(block) * natural
        return int(size)

    @staticmethod
    def tail_bytes(block: int, packing: Packing) -> int:
        """SBUF bytes per partition the tiles of a tail take, an upper bound."""
        size = K_GROUP * packing.per_row * block * itemsize(packing.dtype)
        return int(size + K_GROUP * block * packing.mx)

    def load(self, f0: Index, fs: int, base: Index = 0, chunk: Index = 0) -> None:
        """Bring elements f0 .. f0+fs of the free dimension, all of K; `base` offsets the tensor.

        chunk  which of the chunks of K that `restage` prepared
        """
        b, tile_k = self.b, self.packing.tile_k
        b.fresh(self.data)
        if self.packing.mx:
            b.fresh(self.scales)
        if self.ready:
            self._move_ready(self.ready, f0, fs, chunk, store=False)
            return
        if self.contraction_major or self.turn_by_dma:
            bring = self._load_straight if self.contraction_major else self._load_turning
            for part, k0, ks in self.k_parts():
                bring(part, k0, ks, f0, fs, base)
            return
        part_k, end = self.group * tile_k, affine(self.full * tile_k)
        for start, size in b.tiles(fs, P):
            first = (affine(f0) + start) * self.k + affine(base)
            for c, k0, ks in b.parts(self.full * tile_k, self.chunk * part_k):
                self._load_natural(first + k0, size, ks)
                with b.loop(ks // part_k) as q:
                    self._turn(c * self.chunk + q, q * part_k, part_k, start, size)
            if self.rest:
                self._load_natural(first + end, size, self.rest)
                self._turn(affine(self.parts - 1), Affine(), self.rest, start, size)

    def k_parts(self) -> Iterator[tuple[Affine, Affine, int]]:
        """(number, first element of K, how many) of the parts that are loaded together."""
        tile_k = self.packing.tile_k
        yield from self.b.parts(self.full * tile_k, self.group * tile_k)
        if self.rest:
            yield affine(self.parts - 1), affine(self.full * tile_k), self.rest

    def restage(self, chunks: int = 1, step: int = 0, start: int = 0) -> None:
        """Bring every block once and put it, as the array reads it, into HBM for later loads.

        chunks  of K, `step` elements of the tensor apart, the first at element `start`
        """
        if self.packing.per_row == 2:
            return  # float8 pairs are loaded as they lie
        b, blocks = self.b, -(-self.f // self.block)

        def scratch(what: str, like: Buffer) -> Buffer:
            shape = (chunks * self.parts, *like.shape)
            name = like.name.removesuffix(" tiles").removesuffix(" scales")
            return b.hbm(f"{name} {what}", shape, like.dtype, Role.SCRATCH, parts=blocks)

        data = scratch("ready", self.data)
        ready = data, scratch("ready scales", self.scales) if self.packing.mx else data
        for f0, fs in b.tiles(self.f, self.block):
            with b.loop(chunks) as c:
                self.load(f0, fs, c * step + start)
                self._move_ready(ready, f0, fs, c, store=True)
        self.ready = ready

    def _move_ready(
        self, ready: tuple[Buffer, Buffer], f0: Index, fs: int, chunk: Index, *, store: bool
    ) -> None:
        """Between a block in SBUF and its place in HBM, part by part of K."""
        b, tile_k = self.b, self.packing.tile_k
        number = affine(f0).divided(self.block)
        pieces = [(self.data, ready[0], 1, self.packing.per_row)]
        if self.packing.mx:
            pieces.append((self.scales, ready[1], 8, 1))

        def move(part: Affine, first: int, tiles: int, p: int) -> None:
            for on_chip, hbm, group, width in pieces:
                row, step = on_chip.row_elements, width * self.block
                inner = several([(step, tiles)])
                pattern = ((row, p // group), *inner, (1, fs * width))
                here = on_chip.box(*pattern, at=first * step, part=part)
                at = (affine(chunk) * self.parts + part) * on_chip.elements + first * step
                there = hbm.box(*pattern, at=at, part=number)
                if store:
                    b.store(there, here)
                else:
                    b.load(here, there)

        for part, _, ks in self.k_parts():
            tiles, less = divmod(ks, tile_k)
            if tiles:
                move(part, 0, tiles, P)
            if less:
                move(part, tiles, 1, self.partitions(less))

    def _stage(self, part: Affine, ks: int) -> Affine:
        """Which part of `wide` takes a part of the data; for MX a tile to be quantized."""
        if not self.packing.mx:
            return part
        self.b.fresh(self.wide)
        if ks % P:  # the chip wants 32 partitions: pad with zeros
            whole = self.wide.rows(self.wide.shape[0], self.wide.row_elements)
            self.b.emit("memset", whole, value=0.0)
        return Affine()

    def _wide(self, part: Affine, p: int, j: int, t: int, offset: int, fs: int) -> Access:
        """Partitions 0..p of tiles 0..t, lanes 0..j of a wide tile, from element `offset` on."""
        inner = several([(self.packing.per_row * self.staged, t), (self.staged, j)])
        return self.wide.lanes(p, *inner, (1, fs), at=offset, part=part)

    def _load_straight(
        self, part: Affine, k0: Affine, ks: int, f0: Index, fs: int, base: Index
    ) -> None:
        wide_part = self._stage(part, ks)
        self._copy_rows(wide_part, k0, ks, f0, fs, base)
        if self.packing.mx:
            self._quantize(part, ks, Affine(), fs)

    def _copy_rows(
        self, part: Affine, k0: Affine, ks: int, f0: Index, fs: int, base: Index
    ) -> None:
        x, tile_k, f = self.packing.per_row, self.packing.tile_k, self.f
        tiles, rest = divmod(ks, tile_k)
        column = affine(f0) + affine(base)
        # MX keeps neighbours along K in one partition; otherwise rows go to partitions in order.
        k_of_p, k_of_j = (x, 1) if self.packing.mx else (1, P)

        def copy(k: Affine, to: int, p: int, j: int, t: int) -> None:
            inner = several([(tile_k * f, t), (k_of_j * f, j)])
            source = self.hbm.box((k_of_p * f, p), *inner, (1, fs), at=k * f + column)
            wide = self._wide(part, p, j, t, to, fs)
            if self.picked:
                self.picked.load(wide, source, k)
            else:
                self.b.load(wide, source)

        if tiles:
            copy(k0, 0, P, x, tiles)
        if not rest:
            return
        start, to = k0 + tiles * tile_k, tiles * x * self.staged
        if self.packing.mx:
            whole, odd = divmod(rest, x)
            if whole:
                copy(start, to, whole, x, 1)
            if odd:
                row = self.wide.row_elements
                copy(start + whole * x, to + whole * row, 1, odd, 1)
        else:
            lanes, odd = divmod(rest, P)
            if lanes:
                copy(start, to, P, lanes, 1)
            if odd:
                copy(start + lanes * P, to + lanes * self.staged, odd, 1, 1)

    def _load_turning(
        self, part: Affine, k0: Affine, ks: int, f0: Index, fs: int, base: Index
    ) -> None:
        """DMA transposes on the way, to lanes of 128 elements of K."""
        full, rest = divmod(ks, P)
        for t, lanes, count in ((0, full, P), (full, 1, rest)):
            if not lanes or not count:
                continue
            at = affine(f0) * self.k + k0 + t * P + affine(base)
            source = self.hbm.box((self.k, fs), (1, lanes * count), at=at)
            inner = (*several([(self.block, lanes)]), (1, fs))
            to = self.data.lanes(count, *inner, at=t * self.block, part=part)
            self.b.emit("dma_transpose", to, source, queue=f"load {self.hbm.name}")

    def _load_natural(self, offset: Affine, rows: int, ks: int) -> None:
        self.b.fresh(self.natural)
        source = self.hbm.box((self.k, rows), (1, ks), at=offset)
        self.b.load(self.natural.rows(rows, ks), source)

    def _turn(self, part: Affine, column: Affine, ks: int, start: Affine, size: int) -> None:
        """Transpose elements `column` .. +ks of the natural tile into rows start .. +size."""
        b, x, wide_part = self.b, self.packing.per_row, self._stage(part, ks)
        to_column = Affine() if self.packing.mx else start
        lanes = [(t, j, self._columns(t, j, ks)) for t in range(self.group) for j in range(x)]
        lanes = [lane for lane in lanes if lane[2]]
        together = max(1, self.transposed.row_elements // P)
        for first in range(0, len(lanes), together):
            b.fresh(self.transposed)
            chosen = lanes[first : first + together]
            for slot, (t, j, count) in enumerate(chosen):
                # MX keeps neighbours along K in one partition; otherwise lanes are 128 apart.
                step, lane = (x, j) if self.packing.mx else (1, j * P)
                at = column + t * self.packing.tile_k + lane
                moving = self.natural.lanes(size, (step, count), at=at)
                b.emit("nc_transpose", self._turned(slot * P, count, size), moving)
            for slot, (t, j, count) in enumerate(chosen):
                at = to_column + (t * x + j) * self.staged
                target = self.wide.rows(count, size, at, part=wide_part)
                b.emit("tensor_copy", target, self._turned(slot * P, count, size))
        if self.packing.mx:
            self._quantize(part, ks, start, size)

    def _turned(self, offset: int, partitions: int, size: int) -> Access:
        return self.transposed.rows(partitions, size, offset)

    def _columns(self, t: int, j: int, ks: int) -> int:
        """How many partitions lane j of tile t fills when the part holds ks elements of K."""
        left = ks - t * self.packing.tile_k
        if self.packing.mx:
            return max(0, min(P, -(-(left - j) // 4)))
        return max(0, min(P, left - j * P))

    def _quantize(self, part: Affine, ks: int, start: Affine, fs: int) -> None:
        """What is staged becomes elements start .. start+fs of the block."""
        staged = self.staged
        for t in range(-(-ks // self.packing.tile_k)):
            p = self.partitions(ks - t * self.packing.tile_k)
            source = self.wide.lanes(p, (1, fs), (staged, 4), at=t * 4 * staged)
            data = self.data.rows(p, fs * 4, start * 4 + t * 4 * self.block, part=part)
            self.b.emit("quantize_mx", (data, self._scale(part, t, p, start, fs)), source)

    def partitions(self, ks: int) -> int:
        """Partitions that ks elements of K take in a tile."""
        ks = min(ks, self.packing.tile_k)
        if self.packing.mx:
            return -(-ks // P) * 32
        return min(ks, P)

    def _scale(self, part: Affine, t: int, p: int, f: Index, fs: int) -> Access:
        return self.scales.rows(p // 8, fs, affine(f) + t * self.block, part=part)

    def scale(self, part: Affine, t: int, ks: int, f: Index, fs: int) -> Access:
        """The scales of elements f .. f+fs of the loaded block, tile t of a part."""
        return self._scale(part, t, self.partitions(ks), f, fs)

    def tile(self, part: Affine, t: int, ks: int, f: Index, fs: int, lane: int = 0) -> Access:
        """Elements f .. f+fs of the loaded block, tile t of a part of the contraction.

        lane  which 128 of a double_row tile, when its contraction is too short for both
        """
        p, per_row = self.partitions(ks), self.packing.per_row
        base = t * per_row * self.block
        if self.packing.mx:
            return self.data.rows(p, fs * 4, affine(f) * 4 + base, part=part)
        both = per_row == 2 and ks >= self.packing.tile_k
        lanes = ((self.block, 2),) if both else ()
        rows = p if both or per_row == 1 else min(P, ks - lane * P)
        at = affine(f) + base + lane * self.block
        return self.data.lanes(rows, *lanes, (1, fs), at=at, part=part)
