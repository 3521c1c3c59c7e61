"""Batch and group norm, forward and backward, as programs over planes (`planes.py`).

Statistics come from bn_stats and bn_aggr. What fits stays in SBUF between the two passes, longer
partitions are loaded again. Parameters are one a partition ("row") or one for every outer index of
a row ("outer": the channels of a group).
"""

from dataclasses import dataclass

from ..chip import Chip
from ..isa import Access, Affine, Buffer, Builder, Program, Role, itemsize
from .planes import Chunk, Planes, columns

__all__ = ["Norm", "channel_norm", "channel_norm_backward"]

BN_STATS = 512
RESIDENT_BYTES = 40 * 1024  # of an operand that is kept between two passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """What a norm does: parameters, statistics, numbers.

    outer      parameters lie along the outer dimension instead of one a row
    given      mean and variance are operands (evaluation)
    momentum   of the running statistics to update, or None
    """

    weight: bool = True
    bias: bool = True
    outer: bool = False
    given: bool = False
    momentum: float | None = None
    eps: float = 1e-5
    dtype: str = "float32"
    parameters: str = "float32"


def channel_norm(
    planes: Planes, norm: Norm, *, chip: Chip, saves: bool = True, cores: int = 1
) -> Program:
    """Y = (x - mean) * rstd * weight + bias; stores y and, if it `saves`, mean and rstd."""
    b = Builder(f"norm {planes.rows}x{planes.outer}x{planes.inner}", cores=cores)
    return _Forward(b, planes, norm, chip).build(saves)


def channel_norm_backward(
    planes: Planes, norm: Norm, *, chip: Chip, wants: tuple[bool, bool, bool], cores: int = 1
) -> Program:
    """Gradients of x, weight and bias from g, x, mean and rstd (or, if `given`, the variance).

    With parameters along the outer dimension, those gradients are stored for every partition.
    """
    b = Builder(f"norm_backward {planes.rows}x{planes.outer}x{planes.inner}", cores=cores)
    return _Backward(b, planes, norm, chip).build(wants)


class _Norm:
    def __init__(
        self,
        b: Builder,
        planes: Planes,
        norm: Norm,
        loaded: tuple[str, ...],
        stored: str,
        held: int,
    ) -> None:
        self.b, self.planes, self.norm = b, planes, norm
        self.partitions = planes.repeats * planes.rows
        shape = (planes.whole,)
        self.hbm = {n: b.hbm(n, shape, norm.dtype, Role.INPUT) for n in loaded}
        self.out = b.hbm(stored, shape, norm.dtype, Role.OUTPUT)
        size = planes.per_row * itemsize(norm.dtype) * len(loaded)
        self.resident = size <= RESIDENT_BYTES
        parts = planes.chunks if self.resident else 1
        width = planes.width
        self.tiles = {
            n: b.sbuf(f"{n} tile", width, norm.dtype, slots=2, parts=parts) for n in loaded
        }
        self.made = [b.sbuf(f"work {k}", width, "float32", slots=2) for k in range(held)]
        self.result = b.sbuf(f"{stored} tile", width, norm.dtype, slots=2)
        self.parameters: dict[str, Buffer] = {}
        self.small: dict[str, Buffer] = {}
        wide = planes.outer if norm.outer else 1
        for name, present in (("weight", norm.weight), ("bias", norm.bias)):
            if present and (name == "weight" or isinstance(self, _Forward)):
                length = planes.rows * wide
                self.parameters[name] = b.hbm(name, (length,), norm.parameters, Role.WEIGHT)
                self.small[name] = b.sbuf(f"{name} tile", wide, norm.parameters, slots=2)

    def column(self, name: str, count: int = 1) -> Buffer:
        """A small float32 tile, made at first use."""
        if name not in self.small:
            slots = 2 if count <= 512 else 1
            self.small[name] = self.b.sbuf(name, count, "float32", slots=slots)
        return self.small[name]

    def at(self, name: str, partitions: int, offset: Affine | int = 0) -> Access:
        return columns(self.small[name], partitions, 1, offset)

    def statistic(self, name: str, role: Role) -> Buffer:
        return self.b.hbm(name, (self.partitions,), "float32", role)

    def of_partitions(self, hbm: Buffer, first: Affine, partitions: int) -> Access:
        return Access(buffer=hbm, offset=first, pattern=((1, partitions), (1, 1)))

    def bring(self, chunk: Chunk, first: Affine, partitions: int) -> None:
        for name, hbm in self.hbm.items():
            if not self.resident:
                self.b.fresh(self.tiles[name])
            self.b.load(
                self.tile(name, partitions, chunk), self.planes.box(hbm, first, partitions, chunk)
            )

    def tile(self, name: str, partitions: int, chunk: Chunk) -> Access:
        return self.shaped(self.tiles[name], partitions, chunk, resident=self.resident)

    def shaped(
        self, buffer: Buffer, partitions: int, chunk: Chunk, *, resident: bool = False
    ) -> Access:
        """[partitions, outer, inner] of a work tile."""
        pattern = ((buffer.row_elements, partitions), (chunk.inner, chunk.outer), (1, chunk.inner))
        part = chunk.number if resident else Affine()
        return Access(buffer=buffer, pattern=pattern, part=part)

    def bring_parameters(self, row: Affine, rows: int, repeats: int) -> None:
        wide = self.planes.outer if self.norm.outer else 1
        for name, hbm in self.parameters.items():
            tile = self.small[name]
            self.b.fresh(tile)
            for r in range(repeats):
                to = Access(
                    buffer=tile,
                    offset=Affine(r * rows * wide),
                    pattern=((wide, rows), (1, wide)),
                )
                source = Access(buffer=hbm, offset=row * wide, pattern=((wide, rows), (1, wide)))
                self.b.load(to, source)

    def repeated(self, name: str, partitions: int, chunk: Chunk) -> Access:
        """A parameter of the outer dimension, for every inner element."""
        tile = self.small[name]
        pattern = ((tile.row_elements, partitions), (1, chunk.outer), (0, chunk.inner))
        return Access(buffer=tile, offset=chunk.o0, pattern=pattern)


class _Forward(_Norm):
    def __init__(self, b: Builder, planes: Planes, norm: Norm, chip: Chip) -> None:
        super().__init__(b, planes, norm, ("x",), "y", 1 if norm.outer else 0)
        pieces = -(-planes.width // BN_STATS)
        self.stats = b.sbuf("stats", 6 * pieces, "float32", slots=2)
        self.triples = b.sbuf("chunks' stats", 3 * planes.chunks, "float32", slots=2)
        self.pair = b.sbuf("mean and variance", 2, "float32", slots=2)
        for name in ("rstd", "scale", "shift", "spread"):
            self.column(name)

    def build(self, saves: bool) -> Program:
        b, norm = self.b, self.norm
        running = norm.given or norm.momentum is not None
        self.running = (
            {n: self.statistic(n, Role.INPUT) for n in ("running_mean", "running_var")}
            if running
            else {}
        )
        self.saved = {n: self.statistic(n, Role.OUTPUT) for n in ("mean", "rstd")} if saves else {}
        if norm.momentum is not None:
            self.updated = {
                n: self.statistic(f"new {n}", Role.OUTPUT) for n in ("running_mean", "running_var")
            }
            self.old = [self.column("old mean"), self.column("old variance")]
        for first, row, rows, repeats in self.planes.over_rows(b):
            self._rows(first, row, rows, repeats)
        return b.build()

    def _rows(self, first: Affine, row: Affine, rows: int, repeats: int) -> None:
        b, n = self.b, rows * repeats
        b.fresh(self.pair, self.triples, *(self.small[k] for k in ("rstd", "scale", "shift")))
        self.bring_parameters(row, rows, repeats)
        if self.resident:
            b.fresh(*self.tiles.values())
        if self.norm.given:
            for k, hbm in enumerate(self.running.values()):
                b.load(columns(self.pair, n, 1, k), self.of_partitions(hbm, first, n))
        else:
            for chunk in self.planes.over_chunks(b):
                self.bring(chunk, first, n)
                self._stats(chunk, n)
            b.emit(
                "bn_aggr",
                columns(self.pair, n, 2),
                columns(self.triples, n, 3 * self.planes.chunks),
            )
        mean, variance = (columns(self.pair, n, 1, k) for k in (0, 1))
        b.emit("tensor_scalar", self.at("rstd", n), variance, op0="add", imm0=self.norm.eps)
        b.emit("activation", self.at("rstd", n), self.at("rstd", n), op="rsqrt")
        if self.norm.momentum is not None:
            self._update(first, n, (mean, variance))
        for hbm, tile in zip(self.saved.values(), (mean, self.at("rstd", n)), strict=False):
            b.store(self.of_partitions(hbm, first, n), tile)
        self._scales(n, mean)
        for chunk in self.planes.over_chunks(b):
            if not self.resident or self.norm.given:
                self.bring(chunk, first, n)
            self._apply(chunk, first, n)

    def _stats(self, chunk: Chunk, n: int) -> None:
        """(count, mean, variance x count) of a chunk, from pieces of 512."""
        b = self.b
        b.fresh(self.stats, self.small["spread"])
        tile = self.tile("x", n, chunk)
        row = tile.pattern[0][0]
        pieces = range(0, chunk.elements, BN_STATS)
        for k, start in enumerate(pieces):
            size = min(BN_STATS, chunk.elements - start)
            piece = Access(
                buffer=tile.buffer,
                offset=Affine(start),
                pattern=((row, n), (1, size)),
                part=tile.part,
            )
            b.emit("bn_stats", columns(self.stats, n, 6, 6 * k), piece)
        triple = [columns(self.triples, n, 1, chunk.number * 3 + k) for k in range(3)]
        both = Access(
            buffer=self.triples,
            offset=chunk.number * 3 + 1,
            pattern=((self.triples.row_elements, n), (1, 2)),
        )
        b.emit("bn_aggr", both, columns(self.stats, n, 6 * len(pieces)))
        b.emit("tensor_scalar", triple[2], triple[2], op0="multiply", imm0=float(chunk.elements))
        b.emit("memset", triple[0], value=float(chunk.elements))

    def _update(self, first: Affine, n: int, pair: tuple[Access, Access]) -> None:
        """Running = (1 - momentum) running + momentum new, with the unbiased variance."""
        b, momentum, count = self.b, self.norm.momentum or 0.0, self.planes.per_row
        unbiased = (1.0, count / max(1, count - 1))
        names = ("old mean", "old variance")
        for name, new, factor, (key, hbm) in zip(
            names, pair, unbiased, self.running.items(), strict=True
        ):
            b.fresh(self.small[name], self.small["spread"])
            old, share = self.at(name, n), self.at("spread", n)
            b.load(old, self.of_partitions(hbm, first, n))
            b.emit("tensor_scalar", share, new, op0="multiply", imm0=momentum * factor)
            b.emit("tensor_scalar", old, old, op0="multiply", imm0=1 - momentum)
            b.emit("tensor_tensor", old, old, share, op="add")
            b.store(self.of_partitions(self.updated[key], first, n), old)

    def _scales(self, n: int, mean: Access) -> None:
        """Y = x scale + shift; parameters along the outer dimension come after."""
        b, one = self.b, not self.norm.outer
        scale, shift = self.at("scale", n), self.at("shift", n)
        if one and self.norm.weight:
            b.emit("tensor_tensor", scale, self.at("rstd", n), self.at("weight", n), op="multiply")
        else:
            b.emit("tensor_copy", scale, self.at("rstd", n))
        b.emit("tensor_tensor", shift, mean, scale, op="multiply")
        if one and self.norm.bias:
            b.emit("tensor_tensor", shift, self.at("bias", n), shift, op="subtract")
        else:
            b.emit("tensor_scalar", shift, shift, op0="multiply", imm0=-1.0)

    def _apply(self, chunk: Chunk, first: Affine, n: int) -> None:
        b = self.b
        b.fresh(self.result, *self.made)
        done = self.shaped(self.result, n, chunk)
        steps = [
            (k, op) for k, op in (("weight", "multiply"), ("bias", "add")) if k in self.parameters
        ]
        steps = steps if self.norm.outer else []
        to = self.shaped(self.made[0], n, chunk) if steps else done
        operands = (self.tile("x", n, chunk), self.at("scale", n), self.at("shift", n))
        b.emit("tensor_scalar", to, *operands, op0="multiply", op1="add")
        for k, (name, op) in enumerate(steps):
            source, to = to, done if k == len(steps) - 1 else to
            b.emit("tensor_tensor", to, source, self.repeated(name, n, chunk), op=op)
        b.store(self.planes.box(self.out, first, n, chunk), done)


class _Backward(_Norm):
    def __init__(self, b: Builder, planes: Planes, norm: Norm, chip: Chip) -> None:
        super().__init__(b, planes, norm, ("g", "x"), "dx", 2)
        self.count = planes.outer * planes.inner_chunks
        for name in ("dw of chunks", "db of chunks"):
            self.column(name, self.count)
        for name in ("dw", "db"):
            self.column(name, planes.outer if norm.outer else 1)
        self.column("weighted", planes.outer)
        for name in ("mean tile", "rstd tile", "k", "mh", "mhx"):
            self.column(name)

    def build(self, wants: tuple[bool, bool, bool]) -> Program:
        b, norm = self.b, self.norm
        self.wants = wants
        names = ("mean", "variance" if norm.given else "rstd")
        self.given = [self.statistic(n, Role.INPUT) for n in names]
        wide = self.planes.outer if norm.outer else 1
        shape = (self.partitions * wide,)
        self.gradients = {
            n: b.hbm(n, shape, "float32", Role.OUTPUT)
            for n, wanted in zip(("dw", "db"), wants[1:], strict=True)
            if wanted
        }
        for first, row, rows, repeats in self.planes.over_rows(b):
            self._rows(first, row, rows, repeats)
        return b.build()

    def _rows(self, first: Affine, row: Affine, rows: int, repeats: int) -> None:
        b, n = self.b, rows * repeats
        b.fresh(*(t for k, t in self.small.items() if k not in self.parameters))
        self.bring_parameters(row, rows, repeats)
        if self.resident:
            b.fresh(*self.tiles.values())
        for name, hbm in zip(("mean tile", "rstd tile"), self.given, strict=True):
            b.load(self.at(name, n), self.of_partitions(hbm, first, n))
        rstd = self.at("rstd tile", n)
        if self.norm.given:
            b.emit("tensor_scalar", rstd, rstd, op0="add", imm0=self.norm.eps)
            b.emit("activation", rstd, rstd, op="rsqrt")
        sums = self.gradients or not self.norm.given
        if sums:
            for chunk in self.planes.over_chunks(b):
                self.bring(chunk, first, n)
                self._sums(chunk, n)
            self._totals(first, n)
        if self.wants[0]:
            for chunk in self.planes.over_chunks(b):
                if not (self.resident and sums):
                    self.bring(chunk, first, n)
                self._into_x(chunk, first, n)

    def _xhat(self, chunk: Chunk, n: int) -> Access:
        xhat = self.shaped(self.made[0], n, chunk)
        operands = (self.tile("x", n, chunk), self.at("mean tile", n), self.at("rstd tile", n))
        self.b.emit("tensor_scalar", xhat, *operands, op0="subtract", op1="multiply")
        return xhat

    def _sums(self, chunk: Chunk, n: int) -> None:
        """Over the inner dimension, of g and of g xhat."""
        b = self.b
        b.fresh(*self.made)
        g, xhat = self.tile("g", n, chunk), self._xhat(chunk, n)
        b.emit("tensor_tensor", xhat, g, xhat, op="multiply")
        at = chunk.o0 * self.planes.inner_chunks + chunk.s_number
        for name, data in (("dw of chunks", xhat), ("db of chunks", g)):
            b.emit("tensor_reduce", columns(self.small[name], n, chunk.outer, at), data, op="add")

    def _totals(self, first: Affine, n: int) -> None:
        b, outer, per = self.b, self.planes.outer, self.planes.inner_chunks
        wide = outer if self.norm.outer else 1
        for name in ("dw", "db"):
            total = columns(self.small[name], n, wide)
            parts = self.small[f"{name} of chunks"]
            shape = ((per, outer), (1, per)) if wide > 1 else ((1, self.count),)
            source = Access(buffer=parts, pattern=((parts.row_elements, n), *shape))
            if wide == self.count:
                b.emit("tensor_copy", total, columns(parts, n, wide))
            else:
                b.emit("tensor_reduce", total, source, op="add")
            if name in self.gradients:
                to = Access(
                    buffer=self.gradients[name],
                    offset=first * wide,
                    pattern=((wide, n), (1, wide)),
                )
                b.store(to, total)
        if self.norm.given:
            return
        for name, of in (("mh", "db"), ("mhx", "dw")):  # means of h and of h xhat, h = g weight
            to = self.at(name, n)
            source = columns(self.small[of], n, wide)
            if wide > 1:
                weighted = columns(self.small["weighted"], n, outer)
                if self.norm.weight:
                    weight = columns(self.small["weight"], n, outer)
                    b.emit("tensor_tensor", weighted, source, weight, op="multiply")
                    source = weighted
                b.emit("tensor_reduce", to, source, op="add")
                source = to
            elif self.norm.weight:
                b.emit("tensor_tensor", to, source, self.at("weight", n), op="multiply")
                source = to
            b.emit("tensor_scalar", to, source, op0="multiply", imm0=1.0 / self.planes.per_row)

    def _into_x(self, chunk: Chunk, first: Affine, n: int) -> None:
        """Dx = rstd (h - mean(h) - xhat mean(h xhat))."""
        b = self.b
        b.fresh(self.result, *self.made)
        h = self.tile("g", n, chunk)
        work, done = self.shaped(self.made[1], n, chunk), self.shaped(self.result, n, chunk)
        if self.norm.weight and self.norm.outer:
            b.emit("tensor_tensor", work, h, self.repeated("weight", n, chunk), op="multiply")
            h = work
        elif self.norm.weight:
            b.emit("tensor_scalar", work, h, self.at("weight", n), op0="multiply")
            h = work
        if not self.norm.given:
            xhat = self._xhat(chunk, n)
            means = (self.at("mhx", n), self.at("mh", n))
            b.emit("tensor_scalar", xhat, xhat, *means, op0="multiply", op1="add")
            b.emit("tensor_tensor", work, h, xhat, op="subtract")
            h = work
        b.emit("tensor_scalar", done, h, self.at("rstd tile", n), op0="multiply")
        b.store(self.planes.box(self.out, first, n, chunk), done)
