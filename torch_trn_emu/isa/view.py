"""What an HBM buffer stands for: elements of a call's tensors, in an order.

A program computes on buffers. The lowering that makes it says of each HBM buffer which View of an
argument, a result or a value between programs its elements are. The machine is fed and read by
these labels alone; timing and counters do not look at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

__all__ = ["Label", "Source", "View", "dense_strides"]

# ("argument", 1, 3): of argument 1, which is a list, tensor 3; ("result", 0); ("made", name): a
# value that one program of a call makes and another reads; ("constant", 1.0).
Source = tuple[str | int | float, ...]


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a tensor's memory, counted from the tensor's first element.

    dtype    torch's name
    strides  in elements; 0 repeats
    """

    source: Source
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def reach(self) -> int:
        """Elements of memory from the tensor's first to the view's last."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.offset + 1 + last if self.elements else 0

    def over(self, shape: tuple[int, ...]) -> "View":
        """Broadcast to a shape, as torch does."""
        missing = len(shape) - len(self.shape)
        strides = tuple(
            s if n == m else 0
            for n, m, s in zip(self.shape, shape[missing:], self.strides, strict=True)
        )
        return replace(self, shape=shape, strides=(0,) * missing + strides)

    def permuted(self, order: Sequence[int]) -> "View":
        return replace(
            self,
            shape=tuple(self.shape[d] for d in order),
            strides=tuple(self.strides[d] for d in order),
        )

    def at(self, dim: int, index: int) -> "View":
        """One index of a dimension, which is left out."""
        keep = [d for d in range(len(self.shape)) if d != dim]
        return replace(self.permuted(keep), offset=self.offset + index * self.strides[dim])

    def span(self) -> "View":
        """The memory from the first element to the last."""
        return replace(self, shape=(self.reach - self.offset,), strides=(1,))


@dataclass(frozen=True, slots=True)
class Split:
    """How a buffer holds one core's part of a tensor: `sizes` and `strides` of it in the buffer.

    axis   the dimension that cores share
    whole  its size over all cores, of which the last ones may have less than others
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    axis: int
    whole: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a buffer's elements are, in order: those of `views`, one view after the other.

    before  what an output holds before the program runs, if it reads or keeps that
    outer   cores share a buffer as columns of [outer, rest]: core 1's follow those of core 0
    step    or, if not 0, a core's first element is that many after the first of the core before
    split   then, what of the buffer a core with less than others does not have
    """

    views: tuple[View, ...]
    before: tuple[View, ...] = ()
    outer: int = 1
    step: int = 0
    split: Split | None = None

    @property
    def elements(self) -> int:
        return sum(v.elements for v in self.views)
