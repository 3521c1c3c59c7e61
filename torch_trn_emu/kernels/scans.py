"""Running sums, products, extremes and logarithms of sums, over any layout that chains elements.

`down_columns` has rows or columns on partitions, `scan_few_rows` cuts each of a few rows over
several. A program is the same steps on both: what runs on is a state, from group to group.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NamedTuple, Protocol

from ..isa import Access, Buffer, Builder, Program, Role
from .limits import P

__all__ = ["LEAST", "UNITS", "Layout", "Number", "cumulate", "extremes", "logarithms", "number"]

LEAST = -(2 - 2**-23) * 2.0**127  # of float32: m starts there, so that x - m is a number
UNITS = {"add": 0.0, "multiply": 1.0, "max": -inf, "min": inf}

Group = Any  # elements of all partitions that are worked on at once, as a layout has them
State = Any  # what a chain goes on from


class Number(NamedTuple):
    """A value, and a column that has it on every partition."""

    value: float
    column: Buffer


def number(b: Builder, name: str, value: float) -> Number:
    column = b.sbuf(name, 1, "float32")
    b.emit("memset", column.rows(P, 1), value=value)
    return Number(value, column)


class Layout(Protocol):
    """Where the elements of one core lie, group after group, `size` of them on a partition."""

    b: Builder
    size: int

    def whole(self, name: str, dtype: str, role: Role) -> Buffer: ...
    def state(self, name: str, op: str, start: float, values: int = 1) -> State:
        """Of chains by `op`; `values` are 2 if they fade."""

    def places(self) -> Callable[[Group], Access]:
        """Makes what gives the place of each element of a group along its row."""

    def walk(self) -> Iterator[Group]: ...
    def take(self, buffer: Buffer, hbm: Buffer, group: Group, fill: float) -> Access:
        """Loads a group; `fill` is what its tiles hold where they lack elements."""

    def put(self, hbm: Buffer, buffer: Buffer, group: Group) -> None: ...
    def part(self, buffer: Buffer, group: Group, first: int, count: int) -> Access:
        """`count` elements along every row, of those that the group has, from `first` on."""

    def of(self, buffer: Buffer, group: Group) -> Access: ...
    def length(self, group: Group) -> int:
        """Elements along each row of a group."""

    def chain(
        self, to: Buffer, state: State, x: Buffer, group: Group, *, most: Number | None = None,
        fade: Buffer | None = None, tops: tuple[Access, ...] = (),
    ) -> Access:  # fmt: skip
        """to[r] = (to[r - 1] times fade[r]) op x[r], at `most`; gives what to[0] went on from.

        `fade` is written over. The product of fades up to each is exp(the second of `tops` less
        the first).
        """

    def carry(self, state: State, made: Buffer, group: Group) -> None:
        """The next group goes on from what a chain ended with."""


def cumulate(
    d: Layout, *, op: str, dtype: str = "float32", out_dtype: str = "", slots: int = 3
) -> Program:
    """out[r, c] = in[r, 0] op ... op in[r, c], in float32."""
    b = d.b
    source = d.whole("in", dtype, Role.INPUT)
    out = d.whole("out", out_dtype or dtype, Role.OUTPUT)
    data, result = (b.sbuf(n, d.size, t, slots=slots)
                    for n, t in (("data", dtype), ("result", "float32")))  # fmt: skip
    total = d.state("total", op, UNITS[op])
    for group in d.walk():
        b.fresh(data, result)
        d.take(data, source, group, UNITS[op])
        d.chain(result, total, data, group)
        d.carry(total, result, group)
        d.put(out, result, group)
    return b.build()


def extremes(d: Layout, *, op: str, dtype: str = "float32") -> Program:
    """values[r, c] = the largest or smallest of in[r, : c + 1], index[r, c] = where it is last."""
    b = d.b
    source = d.whole("in", dtype, Role.INPUT)
    values, index = d.whole("values", dtype, Role.OUTPUT), d.whole("index", "int32", Role.OUTPUT)
    data, best, hit, where = (
        b.sbuf(n, d.size, t, slots=2)
        for n, t in (("data", dtype), ("best", "float32"), ("hit", "float32"), ("where", "float32"))
    )
    value, place = d.state("value", op, UNITS[op]), d.state("place", "max", 0.0)
    places = d.places()
    for group in d.walk():
        b.fresh(data, best, hit, where)
        x, y, hits = d.take(data, source, group, UNITS[op]), d.of(best, group), d.of(hit, group)
        d.chain(best, value, data, group)
        d.carry(value, best, group)
        b.emit("tensor_tensor", hits, x, y, op="equal")
        b.emit("tensor_tensor", hits, hits, places(group), op="multiply")
        d.chain(where, place, hit, group)
        d.carry(place, where, group)
        d.put(values, best, group)
        d.put(index, where, group)
    return b.build()


def logarithms(d: Layout, *, dtype: str = "float32") -> Program:
    """out[r, c] = log(exp(in[r, 0]) + ... + exp(in[r, c])): sums of exp(x - m), with m the largest
    so far, cut to finite numbers, each times exp(the m before - m).
    """
    b = d.b
    source, out = d.whole("in", dtype, Role.INPUT), d.whole("out", dtype, Role.OUTPUT)
    data, done = (b.sbuf(n, d.size, dtype, slots=2) for n in ("data", "done"))
    top, power, fade, total = (
        b.sbuf(n, d.size, "float32", slots=k)
        for n, k in (("top", 2), ("power", 1), ("fade", 1), ("total", 2))
    )
    largest, sums = d.state("largest", "max", LEAST), d.state("sum", "add", 0.0, 2)
    most = number(b, "most", -LEAST)
    for group in d.walk():
        b.fresh(data, done, top, power, fade, total)
        x, count = d.take(data, source, group, LEAST), d.length(group)
        to, m, p, f, s = (d.of(t, group) for t in (done, top, power, fade, total))
        before = d.chain(top, largest, data, group, most=most)
        b.emit("tensor_tensor", p, x, m, op="subtract")
        b.emit("activation", p, p, op="exp")
        first, now = (d.part(t, group, 0, 1) for t in (fade, top))
        b.emit("tensor_tensor", first, before, now, op="subtract")
        if count > 1:
            rest, now = (d.part(t, group, 1, count - 1) for t in (fade, top))
            b.emit("tensor_tensor", rest, d.part(top, group, 0, count - 1), now, op="subtract")
        b.emit("activation", f, f, op="exp")
        d.chain(total, sums, power, group, fade=fade, tops=(m, before))
        d.carry(largest, top, group)
        d.carry(sums, total, group)
        b.emit("activation", s, s, op="log")
        b.emit("tensor_tensor", to, s, m, op="add")
        d.put(out, done, group)
    return b.build()
