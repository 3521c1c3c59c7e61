"""One pass over lists of tensors of the same lengths, seen as one run of elements each.

Operands have names. Tiles are loaded, worked on in place, and stored; values that all elements
share (a learning rate, a step count) are one column that every partition holds.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any

from ..chip import Chip
from ..isa import Access, Buffer, Builder, Engine, Program, Role, itemsize
from .limits import SLOTS, TILE_BYTES, P
from .runs import run_of, spread_runs

__all__ = ["Tiles", "pass_over"]


class Tiles:
    """The tile being worked on: `x("name")` is its part of an operand or a temporary."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.rows, self.count = P, 1
        self.buffers: dict[str, Buffer] = {}
        self.shared: dict[str, Buffer] = {}

    def __call__(self, name: str) -> Access:
        if name in self.shared:
            return self.shared[name].rows(self.rows, 1)
        return self.buffers[name].rows(self.rows, self.count)

    def constant(self, value: float) -> str:
        """The name of a column that holds `value`."""
        name = f"constant {value!r}"
        if name not in self.shared:
            self.column(name)
            self.b.emit("memset", self(name), value=value)
        return name

    def column(self, name: str) -> None:
        self.shared[name] = self.b.sbuf(name, 1, "float32")

    def share(self, name: str, dtype: str) -> None:
        """Bring a tensor of one element to every partition, as float32."""
        one = self.b.hbm(name, (1,), dtype, Role.INPUT)
        self.column(name)
        tile = self(name)
        if dtype != "float32":
            raw = self.b.sbuf(f"{name} raw", 1, dtype)
            tile = raw.rows(P, 1)
        self.b.load(tile, one.box((0, P), (0, 1)))
        if dtype != "float32":
            self.b.emit("tensor_copy", self(name), tile)

    def scalar(self, to: str, a: str, *operands: str, **ops: Any) -> None:
        """`(a op0 x) op1 y`, x and y immediates or columns."""
        self.b.emit("tensor_scalar", self(to), self(a), *map(self, operands), **ops)

    def tensor(self, to: str, a: str, op: str, c: str) -> None:
        self.b.emit("tensor_tensor", self(to), self(a), self(c), op=op)

    def scaled(self, to: str, a: str, column: str, op: str, c: str) -> None:
        """`a * column op c`."""
        operands = (self(a), self(column), self(c))
        self.b.emit("scalar_tensor_tensor", self(to), *operands, op0="multiply", op1=op)

    def act(self, to: str, a: str, op: str, scale: float = 1.0) -> None:
        self.b.emit("activation", self(to), self(a), engine=Engine.SCALAR, op=op, scale=scale)

    def choose(self, to: str, predicate: str, a: str, c: str) -> None:
        self.b.emit("select", self(to), self(predicate), self(a), self(c))


def pass_over(
    name: str,
    elements: int,
    operands: Mapping[str, str],
    *,
    stored: Sequence[str],
    work: Sequence[str],
    shared: Mapping[str, str],
    first: Callable[[Tiles], None],
    each: Callable[[Tiles], None],
    chip: Chip,
    cores: int = 1,
    last: Callable[[Tiles], None] | None = None,
) -> Program:
    """A Program that runs `each` over all tiles, `first` before and `last` after them.

    operands  dtype by name; those in `stored` are written back, as "new NAME"
    work      float32 temporaries
    shared    dtype by name of tensors with one element, on every partition as float32
    """
    count = ceil(elements / cores)
    b = Builder(name, cores=cores)
    inputs = {n: b.hbm(n, (count,), dtype, Role.INPUT) for n, dtype in operands.items()}
    outputs = {n: b.hbm(f"new {n}", (count,), operands[n], Role.OUTPUT) for n in stored}
    held = SLOTS * (sum(map(itemsize, operands.values())) + 4 * len(work))
    fits = int((chip.sbuf.usable_bytes_per_partition - 4096) / held)
    free = max(1, min(TILE_BYTES // 4, fits, ceil(count / P)))
    tiles = Tiles(b)
    for n, dtype in shared.items():
        tiles.share(n, dtype)
    first(tiles)
    for n in (*operands, *work):
        tiles.buffers[n] = b.sbuf(f"{n} tile", free, operands.get(n, "float32"), slots=SLOTS)
    for start, rows, size in spread_runs(b, count, free):
        tiles.rows, tiles.count = rows, size
        b.fresh(*tiles.buffers.values())
        for n, hbm in inputs.items():
            b.load(tiles(n), run_of(hbm, start, rows, size, size))
        each(tiles)
        for n, hbm in outputs.items():
            b.store(run_of(hbm, start, rows, size, size), tiles(n))
    if last:
        tiles.rows, tiles.count = P, 1
        last(tiles)
    return b.build()
