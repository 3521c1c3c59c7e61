"""Pairs of elements and of the places that they came from, put in order."""

from collections.abc import Sequence

from ..isa import Access, Builder, Engine, Instruction

__all__ = ["SHARED", "exchange"]

SHARED = 256  # pairs from which GpSimd works on their places (chosen)


def exchange(
    b: Builder, lower: Sequence[Access], upper: Sequence[Access],
    outs: Sequence[Sequence[Access]], mask: Access, moved: Access,
) -> list[Instruction]:  # fmt: skip
    """The smaller of each pair and its place go to the first of `outs`, the others to the second.

    Values on the Vector engine. Places go with them, of many on GpSimd, which adds to both what
    they differ by, or nothing: whole numbers below 2^24 are exact.
    """
    (low, low_place), (high, high_place) = outs
    made = [
        b.emit("tensor_tensor", mask, lower[0], upper[0], op="greater"),
        b.emit("tensor_tensor", low, lower[0], upper[0], op="min"),
        b.emit("tensor_tensor", high, lower[0], upper[0], op="max"),
    ]
    if mask.free < SHARED:
        return [
            *made,
            b.emit("select", low_place, mask, upper[1], lower[1]),
            b.emit("select", high_place, mask, lower[1], upper[1]),
        ]
    g = Engine.GPSIMD
    return [
        *made,
        b.emit("tensor_tensor", moved, upper[1], lower[1], engine=g, op="subtract"),
        b.emit("tensor_tensor", moved, moved, mask, engine=g, op="multiply"),
        b.emit("tensor_tensor", low_place, lower[1], moved, engine=g, op="add"),
        b.emit("tensor_tensor", high_place, upper[1], moved, engine=g, op="subtract"),
    ]
