"""The gradient of a bias: sums over everything but the channels."""

from ..isa import Builder, Program, Role
from .planes import Planes

__all__ = ["channel_sums"]


def channel_sums(planes: Planes, *, dtype: str, cores: int = 1) -> Program:
    """db[c] = the sum of g over images and pixels."""
    b = Builder(f"channel sums {planes.rows}", cores=cores)
    g = b.hbm("g", (planes.whole,), dtype, Role.INPUT)
    out = b.hbm("db", (planes.rows,), dtype, Role.OUTPUT)
    data = b.sbuf("data", planes.width, dtype, slots=3)
    parts = b.sbuf("sums of chunks", planes.chunks, "float32", slots=2)
    total = b.sbuf("sum", 1, dtype, slots=2)
    for first, _, rows, repeats in planes.over_rows(b):
        n = rows * repeats
        b.fresh(parts, total)
        for chunk in planes.over_chunks(b):
            b.fresh(data)
            tile = data.lanes(n, (chunk.inner, chunk.outer), (1, chunk.inner))
            b.load(tile, planes.box(g, first, n, chunk))
            flat = data.rows(n, chunk.elements)
            b.emit("tensor_reduce", parts.rows(n, 1, chunk.number), flat, op="add")
        b.emit("tensor_reduce", total.rows(n, 1), parts.rows(n, planes.chunks), op="add")
        b.store(out.box((1, n), (1, 1), at=first), total.rows(n, 1))
    return b.build()
