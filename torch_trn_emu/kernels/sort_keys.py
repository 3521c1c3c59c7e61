"""Numbers as keys that the engines order as torch does: NaN is larger than infinity.

A key is half the number, so that there is room for what is not finite above all that is; rows are
filled up with more than that. Halving is exact but for numbers below 2^-125. What the engines'
maximum of NaN and a number is, is not public, so NaN must not meet it.
"""

from math import nan

from ..chip import Chip
from ..formats import FORMATS
from ..isa import Access, Builder, Engine

__all__ = ["INFINITE", "PADDING", "SEARCHED", "Halves", "Keys"]

SEARCHED = ("float32", "bfloat16", "float16")  # what max8 reads (documented)

# The largest finite key is just below 2^127; bfloat16 has these two.
INFINITE, NOT_A_NUMBER, PADDING = 2.0**127, 1.5 * 2.0**127, 3.0e38


class Halves:
    """Keys of numbers times `sign` for max8, where NaN is found as the engines order it.

    bounded  infinity too is more than what rows are filled up with
    same     numbers are their own keys
    """

    def __init__(
        self, b: Builder, sign: float, chip: Chip, *, bounded: bool, same: bool = False
    ) -> None:
        self.b, self.sign, self.bounded, self.same = b, sign, bounded, same
        self.engine = Engine.SCALAR if chip.nc_version >= 4 else Engine.GPSIMD

    def make(self, to: Access, source: Access, spare: Access) -> None:
        b, scale = self.b, self.sign / 2
        if self.same:
            return
        if not self.bounded:
            b.emit("activation", to, source, op="copy", scale=scale)
            return
        b.emit("tensor_scalar", to, source, engine=self.engine, op0="multiply", imm0=scale,
               op1="max", imm1=-INFINITE)  # fmt: skip

    def undo(self, to: Access, source: Access, spare: Access) -> None:
        scale = 1.0 if self.same else 2 * self.sign
        self.b.emit("tensor_scalar", to, source, op0="multiply", imm0=scale)


class Keys:
    """Keys of numbers times `sign`; the larger number has the larger key, for sign -1 the smaller.

    Integers are their own keys.
    """

    def __init__(self, b: Builder, sign: float, dtype: str) -> None:
        self.b, self.sign, self.floats = b, sign, dtype in FORMATS
        if self.floats:
            self.key, self.value = (b.sbuf(n, 1, "float32") for n in ("key of NaN", "NaN"))
            for column, value in ((self.key, sign * NOT_A_NUMBER), (self.value, nan)):
                whole = column.box((1, column.shape[0]), (1, 1))
                b.emit("memset", whole, value=value)

    def make(self, to: Access, source: Access, spare: Access) -> None:
        b = self.b
        if not self.floats:
            b.emit("tensor_scalar", to, source, op0="multiply", imm0=self.sign)
            return
        b.emit("tensor_scalar", to, source, op0="multiply", imm0=self.sign / 2, op1="min",
               imm1=INFINITE)  # fmt: skip
        b.emit("tensor_scalar", to, to, op0="max", imm0=-INFINITE)
        b.emit("tensor_tensor", spare, source, source, op="equal")
        of_all = self.key.box((1, to.partitions), (0, to.free))
        b.emit("select", to, spare, to, of_all)

    def undo(self, to: Access, source: Access, spare: Access) -> None:
        b = self.b
        if not self.floats:
            b.emit("tensor_scalar", to, source, op0="multiply", imm0=self.sign)
            return
        between = (INFINITE + NOT_A_NUMBER) / 2
        b.emit("tensor_scalar", spare, source, op0="multiply", imm0=self.sign, op1="greater",
               imm1=between)  # fmt: skip
        b.emit("tensor_scalar", to, source, op0="multiply", imm0=2 * self.sign)
        of_all = self.value.box((1, to.partitions), (0, to.free))
        b.emit("select", to, spare, of_all, to)
