"""Batch and group norm as programs over planes; statistics come from bn_stats and bn_aggr."""

from ...isa import Access, Affine, Builder, Program, Role
from ..limits import BN_STATS
from ..planes import Chunk, Planes
from .tiles import MOST_CHUNKS, Norm, NormTiles

__all__ = ["channel_norm"]


def channel_norm(planes: Planes, norm: Norm, *, saves: bool = True, cores: int = 1) -> Program:
    """Y = (x - mean) * rstd * weight + bias; stores y and, if it `saves`, mean and rstd."""
    b = Builder(f"norm {planes.rows}x{planes.outer}x{planes.inner}", cores=cores)
    return _Forward(b, planes, norm).build(saves)


class _Forward(NormTiles):
    def __init__(self, b: Builder, planes: Planes, norm: Norm) -> None:
        wanted = {"weight": norm.weight, "bias": norm.bias}
        super().__init__(b, planes, norm, ("x",), "y", 1 if norm.outer else 0, wanted)
        pieces = -(-planes.width // BN_STATS)
        self.stats = b.sbuf("stats", 6 * pieces, "float32", slots=2)
        self.one_by_one = planes.chunks > MOST_CHUNKS
        kept = 2 if self.one_by_one else planes.chunks
        self.triples = b.sbuf("chunks' stats", 3 * kept, "float32", slots=2)
        if self.one_by_one:
            self.joined = b.sbuf("joined stats", 2, "float32", slots=2)
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
                b.load(self.pair.rows(n, 1, k), self.of_partitions(hbm, first, n))
        else:
            if self.one_by_one:
                b.emit("memset", self.triples.rows(n, 3), value=0.0)
            for chunk in self.planes.over_chunks(b):
                self.bring(chunk, first, n)
                self._stats(chunk, n)
            kept = 1 if self.one_by_one else self.planes.chunks
            b.emit("bn_aggr", self.pair.rows(n, 2), self.triples.rows(n, 3 * kept))
        mean, variance = (self.pair.rows(n, 1, k) for k in (0, 1))
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
        pieces = range(0, chunk.elements, BN_STATS)
        for k, start in enumerate(pieces):
            size = min(BN_STATS, chunk.elements - start)
            piece = tile.buffer.rows(n, size, start, part=tile.part)
            b.emit("bn_stats", self.stats.rows(n, 6, 6 * k), piece)
        at = Affine(3) if self.one_by_one else chunk.number * 3
        triple = [self.triples.rows(n, 1, at + k) for k in range(3)]
        both = self.triples.rows(n, 2, at + 1)
        b.emit("bn_aggr", both, self.stats.rows(n, 6 * len(pieces)))
        b.emit("tensor_scalar", triple[2], triple[2], op0="multiply", imm0=float(chunk.elements))
        b.emit("memset", triple[0], value=float(chunk.elements))
        if self.one_by_one:
            self._join(n)

    def _join(self, n: int) -> None:
        """The stats of all chunks so far: (count, mean, variance x count), too."""
        b = self.b
        b.fresh(self.joined)
        count, mean, spread, more = (self.triples.rows(n, 1, k) for k in range(4))
        b.emit("bn_aggr", self.joined.rows(n, 2), self.triples.rows(n, 6))
        b.emit("tensor_tensor", count, count, more, op="add")
        b.emit("tensor_copy", mean, self.joined.rows(n, 1))
        b.emit("tensor_tensor", spread, self.joined.rows(n, 1, 1), count, op="multiply")

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
