"""Convolution as engine programs: an implicit matmul over channels, one per tap of the filter.

Channels lie on partitions. A tap's product takes the input rows it needs straight from SBUF,
shifted, so no patches are built. All taps and input channels accumulate in one PSUM tile.
"""

from math import ceil

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Index, Program, Role, affine, itemsize
from .blocking import HAND, Schedule

__all__ = ["conv2d"]

P = 128
BANK = 512


def conv2d(
    batch: int,
    channels: int,
    height: int,
    width: int,
    filters: int,
    kernel: int,
    *,
    chip: Chip,
    dtype: str = "bfloat16",
    schedule: Schedule = HAND,
    cores: int = 1,
) -> Program:
    """out[b, f, y, x] = sum of in[b, c, y + i, x + j] * weight[f, c, i, j]; stride 1, no padding.

    Weights come as [c, i, j, f], which the stationary operand wants; filters are split over cores.
    """
    flops = 2.0 * batch * filters * channels * kernel**2 * (height - kernel + 1)
    flops *= width - kernel + 1
    filters = ceil(filters / cores)
    rows, columns = height - kernel + 1, width - kernel + 1
    b = Builder(f"conv2d {channels}x{height}x{width} {filters}", cores=cores, model_flops=flops)
    source = b.hbm("in", (batch, channels, height, width), dtype, Role.INPUT)
    weight = b.hbm("weight", (channels, kernel, kernel, filters), dtype, Role.WEIGHT)
    out = b.hbm("out", (batch, filters, rows, columns), dtype, Role.OUTPUT)
    per_tile = max(1, min(rows, BANK // columns))  # output rows of one PSUM tile
    strip = _strip(rows, per_tile, width, channels, dtype, chip)  # output rows loaded together
    body = _Conv(
        b, source, weight, out, kernel=kernel, per_tile=per_tile, strip=strip, schedule=schedule
    )
    body.load_weights()
    with b.loop(batch) as image:
        for y0, ys in b.tiles(rows, strip):
            body.load_rows(image, y0, ys)
            for y, tile_rows in b.tiles(ys, per_tile):
                body.tiles(image, y0, y, tile_rows)
    return b.build()


def _strip(rows: int, per_tile: int, width: int, channels: int, dtype: str, chip: Chip) -> int:
    """Output rows whose input fits in a quarter of SBUF, a multiple of a PSUM tile's rows."""
    budget = chip.sbuf.usable_bytes_per_partition / 4
    row_bytes = width * itemsize(dtype) * ceil(channels / P)
    return min(ceil(rows / per_tile), max(1, int(budget / row_bytes / per_tile) // 2)) * per_tile


class _Conv:
    def __init__(
        self,
        b: Builder,
        source: Buffer,
        weight: Buffer,
        out: Buffer,
        *,
        kernel: int,
        per_tile: int,
        strip: int,
        schedule: Schedule,
    ) -> None:
        self.b, self.source, self.weight, self.out = b, source, weight, out
        self.kernel, self.schedule = kernel, schedule
        _, self.channels, self.height, self.width = source.shape
        _, self.filters, self.rows, self.columns = out.shape
        self.groups = ceil(self.channels / P)
        self.taps = kernel * kernel
        self.halo = strip + kernel - 1
        self.filter = b.sbuf("filter", self.taps * self.filters, weight.dtype, parts=self.groups)
        self.data = b.sbuf("data", self.halo * self.width, source.dtype, slots=2, parts=self.groups)
        self.psum = b.psum("accumulator", BANK, slots=schedule.psum_slots)
        self.result = b.sbuf("result", per_tile * self.columns, out.dtype, slots=4)

    def load_weights(self) -> None:
        for part, c0, cs in self.b.parts(self.channels, P):
            row = self.filter.row_elements
            self.b.load(
                Access(buffer=self.filter, pattern=((row, cs), (1, row)), part=part),
                Access(buffer=self.weight, offset=c0 * row, pattern=((row, cs), (1, row))),
            )

    def load_rows(self, image: Affine, y0: Affine, ys: int) -> None:
        self.b.fresh(self.data)
        plane, count = self.height * self.width, (ys + self.kernel - 1) * self.width
        for part, c0, cs in self.b.parts(self.channels, P):
            self.b.load(
                Access(
                    buffer=self.data,
                    pattern=((self.data.row_elements, cs), (1, count)),
                    part=part,
                ),
                Access(
                    buffer=self.source,
                    offset=(image * self.channels + c0) * plane + y0 * self.width,
                    pattern=((plane, cs), (1, count)),
                ),
            )

    def tiles(self, image: Affine, y0: Affine, y: Affine, tile_rows: int) -> None:
        b, plane = self.b, self.rows * self.columns
        for f0, fs in b.tiles(self.filters, P):
            b.fresh(self.psum, self.result)
            count = tile_rows * self.columns
            into = Access(buffer=self.psum, pattern=((BANK, fs), (1, count)))
            for part, _, cs in b.parts(self.channels, P):
                for tap in range(self.taps):
                    self._tap(into, part, cs, tap, f0, fs, y, tile_rows)
            width = self.result.row_elements
            kept = Access(buffer=self.result, pattern=((width, fs), (1, count)))
            b.emit("tensor_copy", kept, into)
            target = Access(
                buffer=self.out,
                offset=(image * self.filters + f0) * plane + (y0 + y) * self.columns,
                pattern=((plane, fs), (1, count)),
            )
            b.store(target, kept)

    def _tap(
        self,
        into: Access,
        part: Affine,
        cs: int,
        tap: int,
        f0: Affine,
        fs: int,
        y: Index,
        tile_rows: int,
    ) -> None:
        i, j = divmod(tap, self.kernel)
        stationary = Access(
            buffer=self.filter,
            offset=f0 + tap * self.filters,
            pattern=((self.filter.row_elements, cs), (1, fs)),
            part=part,
        )
        moving = Access(
            buffer=self.data,
            offset=(affine(y) + i) * self.width + j,
            pattern=((self.data.row_elements, cs), (self.width, tile_rows), (1, self.columns)),
            part=part,
        )
        self.b.emit("nc_matmul", into, stationary, moving, load=self.schedule.load)
