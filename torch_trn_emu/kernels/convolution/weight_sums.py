"""What the two programs of the weights' gradient share: operands, pixels of a tile, results."""

from ...isa import Affine, Buffer, Builder, Role
from ..limits import P
from ..matmul.blocking import Schedule
from ..planes import several
from .shape import Convolution, Volume, Work

__all__ = ["WeightSums", "tiles_of"]


class WeightSums:
    """A program derives from it, and makes the buffers `g_rows`, `sums` and `stored`."""

    g_rows: Buffer  # of the gradient, with a part for each tile of filters
    sums: Buffer
    stored: Buffer

    def __init__(self, b: Builder, spec: Convolution, schedule: Schedule) -> None:
        self.b, self.spec, self.schedule = b, spec, schedule
        f, c = spec.groups * spec.filters, spec.groups * spec.channels
        g = b.hbm("g", (spec.batch, f, *spec.outs), spec.dtype, Role.INPUT)
        x = b.hbm("x", (spec.batch, c, *spec.sizes), spec.dtype, Role.INPUT)
        self.dw = b.hbm("dw", (f, spec.channels, spec.taps), spec.dtype, Role.OUTPUT)
        self.g, self.x = Volume(g, f, spec.outs), Volume(x, c, spec.sizes)
        # Pixels of a tile: images, rows and columns that make at most 128.
        depth, height, width = spec.outs
        self.columns = min(width, P)
        self.rows = max(1, min(height, P // self.columns))
        self.images = max(1, min(spec.batch, P // (height * width))) if depth == 1 else 1
        self.pad = spec.axes[2].padding
        self.pitch = spec.sizes[2] + 2 * self.pad

    def load_g(self, f: Affine, f_tiles: list[int], work: Work) -> None:
        """The gradient's rows of a strip, of filters `f` .. of all groups."""
        _, n0, images, deep, high, j, _ = work
        self.b.fresh(self.g_rows)
        rows, area = (j * high.count + high.first, high.count), high.count * self.spec.outs[2]
        for part, size in enumerate(f_tiles):
            channel = n0 * self.g.channels + f + part * P
            source = self.g.rows(channel, size, images, (deep.first, 1), rows)
            inner = several([(area, images)])
            self.b.load(self.g_rows.lanes(size, *inner, (1, area), part=part), source)

    def store(self, f: Affine, rows: int, c: Affine, size: int, part: int) -> None:
        """The sums of `rows` filters and `size` channels, which part `part` of the buffer holds."""
        b, taps = self.b, self.spec.taps
        b.fresh(self.stored)
        row, count = self.spec.channels * taps, size * taps
        kept = self.stored.rows(rows, count)
        b.emit("tensor_copy", kept, self.sums.rows(rows, count, part=part))
        b.store(self.dw.box((row, rows), (1, count), at=f * row + c * taps), kept)


def tiles_of(size: int) -> list[int]:
    """Tiles of at most 128."""
    return [min(P, size - start) for start in range(0, size, P)]
