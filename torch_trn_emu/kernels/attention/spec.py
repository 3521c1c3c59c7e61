"""What the programs of attention share: sizes, masks, and operands with head_dim on partitions."""

from dataclasses import dataclass, replace
from math import ceil

from ...chip import Chip
from ...isa import Access, Affine, Buffer, Builder, Engine, Index, Role, affine, itemsize
from ..limits import P
from .heads import Heads, Layout, Sizes

__all__ = [
    "BLOCK",
    "HIDDEN",
    "AttentionSpec",
    "Mask",
    "Masks",
    "Tile",
    "Transposer",
    "fits",
    "grids",
    "tile_at",
    "tiles_of",
]

BLOCK = 512  # keys of a block: scores that one PSUM bank holds
HIDDEN = -3e38  # what a key that is not seen adds to a score; exp gives 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A mask in memory: its strides along batch, head, query and key, 0 where it repeats.

    dtype   "bool" hides where it is False, another one is added to the scores
    folded  heads that are queries of one, before its own, and their stride `among`
    """

    strides: tuple[int, int, int, int]
    elements: int
    dtype: str
    among: int = 0
    folded: int = 1

    def with_heads_as_queries(self, group: int, queries: int) -> "Mask":
        """Of `group` neighbouring heads each, as one of group x queries queries."""
        by_batch, by_head, by_row, by_key = self.strides
        strides = (by_batch, group * by_head, by_row if queries > 1 else by_head, by_key)
        if queries == 1 or by_head == queries * by_row:
            return replace(self, strides=strides)
        return replace(self, strides=strides, among=by_head, folded=group)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """softmax(q @ k.T * scale + mask) @ v for `batch * heads` heads of queries.

    kv_heads  of keys and values, each read by heads / kv_heads heads of queries; 0: one each
    causal    a query sees the keys up to its own index
    compute   the operands' format on the array
    stats     the forward pass stores the logsumexp of the scores as well
    layouts   where tensors lie, by name; others one head after the other
    """

    batch: int
    heads: int
    queries: int
    keys: int
    dim: int
    kv_heads: int = 0
    dtype: str = "bfloat16"
    compute: str = "bfloat16"
    causal: bool = False
    scale: float | None = None
    mask: Mask | None = None
    stats: bool = False
    layouts: tuple[tuple[str, Layout], ...] = ()

    @property
    def group(self) -> int:
        """Heads of queries that share keys and values."""
        return self.heads // (self.kv_heads or self.heads)

    @property
    def factor(self) -> float:
        return self.dim**-0.5 if self.scale is None else self.scale

    @property
    def products(self) -> float:
        """Multiply-adds of one of the products."""
        seen = self.queries * self.keys * (0.5 if self.causal else 1.0)
        return float(self.batch * self.heads * seen * self.dim)

    def heads_of(self, b: Builder, name: str, role: Role) -> Heads:
        """The buffer of an operand or a result."""
        of_keys = name.lstrip("d") in ("k", "v")
        heads = self.heads // self.group if of_keys else self.heads
        sizes: Sizes = (self.batch, heads, self.keys if of_keys else self.queries, self.dim)
        return Heads(b, name, sizes, self.dtype, role, dict(self.layouts).get(name))

    def share(self, cores: int) -> "AttentionSpec":
        """One core's part: of the batch or the heads, whichever leaves the least idle."""
        sizes = {"batch": self.batch, "kv_heads": self.kv_heads or self.heads}
        name = min(sizes, key=lambda n: ceil(sizes[n] / cores) / sizes[n])
        part = ceil(sizes[name] / cores)
        if name == "batch":
            return replace(self, batch=part)
        return replace(self, heads=part * self.group, kv_heads=part)

    def as_one_batch(self) -> "AttentionSpec":
        """All heads of the batch in one row, where they lie evenly apart."""
        kv_heads = self.heads // self.group
        found: list[tuple[str, Layout]] = []
        for name, layout in self.layouts:
            merged = layout.of_one_batch(
                self.batch, kv_heads if name.lstrip("d") in ("k", "v") else self.heads
            )
            if merged is None:
                return self
            found.append((name, merged))
        mask = self.mask
        if mask is not None and self.batch > 1:
            by_batch, by_head, by_row, by_key = mask.strides
            if self.heads == 1:
                mask = replace(mask, strides=(by_batch, by_batch, by_row, by_key))
            elif by_batch != self.heads * by_head:
                return self
        return replace(
            self,
            batch=1,
            heads=self.batch * self.heads,
            kv_heads=self.batch * kv_heads,
            mask=mask,
            layouts=tuple(found),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of queries: its rows, and the blocks of keys it sees.

    full      whole blocks, of which no key is hidden by `causal`
    last      keys of the block after them, 0 for none
    diagonal  whether `causal` hides keys of that block
    """

    rows: int
    full: int
    last: int
    diagonal: bool

    @property
    def blocks(self) -> int:
        return self.full + (self.last > 0)

    @property
    def seen(self) -> int:
        return self.full * BLOCK + self.last


def tiles_of(a: AttentionSpec) -> list[Tile]:
    """The tiles of 128 queries, in order."""
    return [_tile(a, first) for first in range(0, a.queries, P)]


def _tile(a: AttentionSpec, first: int) -> Tile:
    rows, start = min(P, a.queries - first), first // BLOCK * BLOCK
    if a.causal and start < a.keys:
        return Tile(rows, start // BLOCK, min(BLOCK, a.keys - start), True)
    return Tile(rows, *divmod(a.keys, BLOCK), False)


@dataclass(frozen=True, slots=True)
class Grid:
    """`tiles` tiles of `rows` rows, from tile `first` of 128 rows on."""

    rows: int
    tiles: int
    first: int

    def on_chip(self, buffer: Buffer, columns: int, at: Index = 0) -> Access:
        """Their columns side by side, the first tile's at element `at`: [rows P, tiles, columns]"""
        pattern = ((buffer.row_elements, self.rows), (columns, self.tiles), (1, columns))
        offset = affine(at) + self.first * columns
        return buffer.box(*pattern, at=offset)

    def column(self, buffer: Buffer, at: Index = 0) -> Access:
        """One value a row: [rows P, tiles]"""
        return buffer.rows(self.rows, self.tiles, affine(at) + self.first)

    def in_hbm(self, heads: Heads, base: Affine) -> Access:
        """Rows of a head, the first one at element `base`."""
        at = base + self.first * P * heads.layout.row
        return heads.rows(at, self.rows, tiles=self.tiles, tile=P)


def grids(size: int) -> list[Grid]:
    """`size` rows: the tiles of 128, then the ragged one."""
    full, rest = divmod(size, P)
    whole = [Grid(P, full, 0)] if full else []
    return whole + ([Grid(rest, 1, full)] if rest else [])


def tile_at(first: Affine, columns: int) -> Affine:
    """Where the row `first` lies, with tiles of 128 rows side by side."""
    return first.divided(P) * columns


class Transposer:
    """Operands brought into SBUF, and transposed so that head_dim lies on partitions."""

    def __init__(self, b: Builder, a: AttentionSpec) -> None:
        self.b, self.dim, self.dtype = b, a.dim, a.compute
        self.psum = b.psum(
            "transposed", BLOCK, a.compute, slots=2 if itemsize(a.compute) < 4 else 1
        )

    def bring(
        self, to: Buffer, at: Index, hbm: Heads, base: Affine, size: int, *, any_order: bool = False
    ) -> None:
        """[size, dim] from HBM with 128 rows a tile, side by side from element `at` on.

        any_order  a partition may have several rows of one run, for longer transfers
        """
        for grid in grids(size):
            source = grid.in_hbm(hbm, base)
            if any_order and grid.tiles > 1:
                run = grid.tiles * self.dim
                source = hbm.buffer.box((run, grid.rows), (1, run), at=base)
            self.b.load(grid.on_chip(to, self.dim, at), source)

    def transpose(self, to: Buffer, at: Index, rows: Buffer, row_at: Index, size: int) -> None:
        """[size, dim] from tiles side by side into [dim, size], 512 of them at most."""
        self.b.fresh(self.psum)
        for t in range(ceil(size / P)):
            count = min(P, size - t * P)
            source = rows.rows(count, self.dim, affine(row_at) + t * self.dim)
            self.b.emit("nc_transpose", self.psum.rows(self.dim, count, t * P), source)
        transposed = self.psum.rows(self.dim, size)
        self.b.emit("tensor_copy", to.rows(self.dim, size, at), transposed)

    def spread(self, columns: Buffer, rows: int, size: int) -> None:
        """[rows, size] in tiles of 128 columns that become partitions, side by side in PSUM."""
        self.b.fresh(self.psum)
        for t in range(0, size, P):
            count = min(P, size - t)
            source = columns.rows(rows, count, t)
            self.b.emit("nc_transpose", self.psum.rows(count, rows, t), source)

    def keep(self, to: Buffer, rows: int, size: int, engine: Engine = Engine.VECTOR) -> None:
        """What `spread` left in PSUM, in SBUF."""
        for grid in grids(size):
            pattern = ((BLOCK, grid.rows), (P, grid.tiles), (1, rows))
            target, source = (buffer.box(*pattern, at=grid.first * P) for buffer in (to, self.psum))
            self.b.emit("tensor_copy", target, source, engine=engine)


class Masks:
    """Hides keys: `scores` become scores + mask in SBUF, as they leave PSUM."""

    def __init__(self, b: Builder, a: AttentionSpec) -> None:
        self.b, self.a = b, a
        if a.causal:
            self.band = self._band()
        if a.mask is not None:
            self.hbm = b.hbm("mask", (a.mask.elements,), a.mask.dtype, Role.INPUT)
            self.tile = b.sbuf("mask tile", BLOCK, a.mask.dtype, slots=2)
            self.added = b.sbuf("mask added", BLOCK, "float32", slots=2)
            self.factor = b.sbuf("factor", 1, "float32")
            b.emit("memset", self.factor.rows(P, 1), value=a.factor)

    @property
    def given(self) -> bool:
        return self.a.mask is not None

    @property
    def scale(self) -> float:
        """What the exponential multiplies; a given mask is added to scores scaled before."""
        return 1.0 if self.given else self.a.factor

    def _band(self) -> Buffer:
        """[128P, 896F]: 0 where column <= row + 384, which a tile reads from its diagonal on."""
        width = BLOCK + (BLOCK - P)
        band = self.b.sbuf("diagonal", width, "float32")
        whole = band.rows(P, width)
        self.b.emit("memset", whole, value=0.0)
        self.b.emit(
            "affine_select", whole, whole, channel=1, step=-1, base=BLOCK - P, on_false=HIDDEN
        )
        return band

    def hide(
        self, to: Access, scores: Access, head: Affine, rows: int, first: Index, start: Index,
        size: int,
    ) -> None:  # fmt: skip
        """Scores of the queries from `first` on with the keys from `start` on, some hidden."""
        if not self.given:
            band = self.diagonal(rows, first, start, size)
            self.b.emit("tensor_tensor", to, scores, band, op="add")
            return
        added, factor = self._load(head, rows, first, start, size), self.factor.rows(rows, 1)
        self.b.emit("scalar_tensor_tensor", to, scores, factor, added, op0="multiply", op1="add")

    def diagonal(self, rows: int, first: Index, start: Index, size: int) -> Access:
        """What hides keys from `start` on that come after the queries from `first` on."""
        at = affine(start) + (BLOCK - P) + affine(first) * -1
        return self.band.rows(rows, size, at)

    def hide_heads(
        self, to: Access, scores: Access, at: Affine, rows: int, first: Index, size: int,
        heads: int,
    ) -> None:  # fmt: skip
        """With a given mask, the scores of neighbouring heads: [rows P, heads, size]"""
        mask = self.a.mask
        assert mask is not None
        _, by_head, _, _ = mask.strides
        added = self._load(at, rows, first, 0, size, heads if by_head else 1)
        pattern = ((added.buffer.row_elements, rows), (size if by_head else 0, heads), (1, size))
        every, factor = replace(added, pattern=pattern), self.factor.rows(rows, 1)
        self.b.emit("scalar_tensor_tensor", to, scores, factor, every, op0="multiply", op1="add")

    def _load(
        self, head: Affine, rows: int, first: Index, start: Index, size: int, heads: int = 1
    ) -> Access:
        """The given mask of a block, as float32 to be added; of several heads side by side."""
        mask, b = self.a.mask, self.b
        assert mask is not None
        b.fresh(self.tile)
        _, by_head, by_row, by_key = mask.strides
        offset = head + affine(first) * by_row + affine(start) * by_key
        lines = ((mask.among, mask.folded),) if mask.folded > 1 else ()
        lines = (*lines, (by_row, rows // mask.folded))
        pattern = (*lines, *(((by_head, heads),) if heads > 1 else ()), (by_key, size))
        tile = self.tile.rows(rows, heads * size)
        b.load(tile, self.hbm.box(*pattern, at=offset))
        if mask.dtype != "bool":
            return tile
        b.fresh(self.added)
        added = self.added.rows(rows, heads * size)
        b.emit("tensor_scalar", added, tile, op0="subtract", imm0=1.0, op1="multiply", imm1=-HIDDEN)
        return added

    def of_head(self, batch: Affine, head: Affine) -> Affine:
        """Where a head's mask begins."""
        if self.a.mask is None:
            return Affine()
        by_batch, by_head, _, _ = self.a.mask.strides
        return batch * by_batch + head * by_head


def fits(nbytes: float, chip: Chip) -> bool:
    """Whether buffers of so many bytes a partition leave room for the small ones."""
    return nbytes <= 0.85 * chip.sbuf.usable_bytes_per_partition  # chosen: they take about 15 KiB
