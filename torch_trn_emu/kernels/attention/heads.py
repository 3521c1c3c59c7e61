"""Tensors of heads in HBM, as they lie: views of a projection have strides of their own."""

from dataclasses import dataclass, replace
from math import prod

from ...calls import TensorArg
from ...isa import Access, Affine, Builder, Index, Role, affine

__all__ = ["Heads", "Layout", "Sizes", "layout_of"]

Sizes = tuple[int, int, int, int]  # batch, heads, length, head_dim


@dataclass(frozen=True, slots=True)
class Layout:
    """Strides of a tensor [batch, heads, length, head_dim], in elements.

    folded  heads that are rows of one, in this order before the length, and their stride `among`
    """

    batch: int
    head: int
    row: int
    dim: int = 1
    among: int = 0
    folded: int = 1

    def with_heads_as_rows(self, group: int, length: int) -> "Layout":
        """Of `group` neighbouring heads each, as one of group x length rows."""
        wide = replace(self, head=group * self.head)
        if length == 1:
            return replace(wide, row=self.head)
        if self.head == length * self.row:
            return wide
        return replace(wide, among=self.head, folded=group)

    def of_one_batch(self, batch: int, heads: int) -> "Layout | None":
        """The strides of all heads of all of the batch in one row, if they are evenly apart."""
        if batch == 1:
            return self
        if heads == 1:
            return replace(self, head=self.batch)
        return self if self.batch == heads * self.head else None


def dense(sizes: Sizes) -> Layout:
    _, heads, length, dim = sizes
    return Layout(heads * length * dim, length * dim, dim)


def layout_of(t: TensorArg) -> Layout | None:
    """A tensor's layout; None where several leading dimensions have no common stride."""
    shape, strides = t.shape, t.strides
    head = strides[-3] if len(shape) > 2 else 0
    batch, step = 0, None
    for size, stride in zip(reversed(shape[:-3]), reversed(strides[:-3]), strict=True):
        if size == 1:
            continue
        if step is not None and stride != step:
            return None
        batch, step = (stride if step is None else batch), stride * size
    return Layout(batch, head, strides[-2], strides[-1])


class Heads:
    """A buffer of HBM that holds [batch, heads, length, head_dim]: all that its strides span."""

    def __init__(
        self, b: Builder, name: str, sizes: Sizes, dtype: str, role: Role,
        layout: Layout | None = None,
    ) -> None:  # fmt: skip
        self.dim = sizes[-1]
        self.layout = layout or dense(sizes)
        here, (batch, heads, length, _) = self.layout, sizes
        folded = here.folded
        counts = (batch, heads, folded, length // folded, self.dim)
        strides = (here.batch, here.head, here.among, here.row, here.dim)
        span = 1 + sum((n - 1) * s for n, s in zip(counts, strides, strict=True))
        shape = (prod(sizes[:3]), self.dim) if layout is None else (span,)
        self.buffer = b.hbm(name, shape, dtype, role)

    @property
    def in_one_run(self) -> bool:
        """Whether a head's rows follow each other without gaps."""
        here = self.layout
        return here.folded == 1 and here.row == self.dim and here.dim == 1

    def at(self, batch: Index, head: Index, row: Index = 0) -> Affine:
        """Where a row of a head begins."""
        here = affine(batch) * self.layout.batch + affine(head) * self.layout.head
        return here + affine(row) * self.layout.row

    def rows(self, at: Affine, rows: int, *, tiles: int = 1, tile: int = 0) -> Access:
        """`tiles` tiles of rows, `tile` rows apart: [rows P, tiles, head_dim]"""
        return self.heads(at, rows, 1, tiles=tiles, tile=tile)

    def heads(self, at: Affine, rows: int, heads: int, *, tiles: int = 1, tile: int = 0) -> Access:
        """The same rows of neighbouring heads: [rows P, tiles, heads, head_dim]"""
        by_head = ((self.layout.head, heads),) if heads > 1 else ()
        by_tile = ((tile * self.layout.row, tiles),) if tiles > 1 else ()
        return self._access(at, rows, by_tile + by_head)

    def _access(self, at: Affine, rows: int, between: tuple[tuple[int, int], ...]) -> Access:
        here = self.layout
        lines = ((here.among, here.folded),) if here.folded > 1 else ()
        lines = (*lines, (here.row, rows // here.folded))
        pattern = (*lines, *between, (here.dim, self.dim))
        return self.buffer.box(*pattern, at=at)
