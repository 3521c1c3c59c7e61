"""Copies whose source or result is not one long run, and gathers of single elements.

A copy of runs has one DMA descriptor a run; two-dimensional transposes turn on the Tensor engine.
"""

from math import ceil, prod

from ..calls import TensorArg
from ..isa import Affine, Builder, Program, Role, itemsize
from .limits import P
from .runs import runs

__all__ = ["copy_runs", "longest_run", "run_of_copy", "transposed"]

TILE_BYTES = 8 * 1024


def longest_run(t: TensorArg) -> int:
    """Elements of a tensor that lie next to each other in memory, in the order of its shape."""
    run = 1
    for size, stride in zip(reversed(t.shape), reversed(t.strides), strict=True):
        if size == 1:
            continue
        if stride != run:
            break
        run *= size
    return run


def transposed(t: TensorArg) -> tuple[int, int, int] | None:
    """(batch, rows, columns) of a tensor whose last two dimensions are exchanged in memory."""
    kept = [(n, s) for n, s in zip(t.shape, t.strides, strict=True) if n != 1]
    if len(kept) < 2 or kept[-1][1] == 1:
        return None
    (rows, outer), (columns, inner) = kept[-2:]
    if outer != 1 or inner < rows:
        return None
    return prod(n for n, _ in kept[:-2]), rows, columns


def run_of_copy(run: int, dtype: str) -> int:
    """Elements that a copy moves as one run, of a run in memory."""
    return min(run, max(1, int(TILE_BYTES / itemsize(dtype))))


def copy_runs(
    elements: int,
    run: int,
    dtype: str,
    out_dtype: str,
    *,
    cores: int = 1,
    strided: str = "in",
) -> Program:
    """Runs of `run` elements that lie apart in the source ("in") or the result ("out")."""
    run = run_of_copy(run, dtype)
    count = ceil(ceil(elements / run) / cores)
    group = max(1, min(int(TILE_BYTES / itemsize(dtype) / run), ceil(count / P)))
    b = Builder(f"copy {count} runs of {run}", cores=cores)
    apart, tight = 2 * run, run  # anything that breaks the run
    pitch_in, pitch_out = (apart, tight) if strided == "in" else (tight, apart)
    # A strided result is written here and there; only what is dense counts as the tensor.
    source = b.hbm("in", (count, pitch_in), dtype, Role.INPUT)
    out = b.hbm("out", (count, pitch_out), out_dtype, Role.OUTPUT)
    data = b.sbuf("data", group * run, dtype, slots=2)
    cast = b.sbuf("cast", group * run, out_dtype, slots=2) if dtype != out_dtype else data

    def move(first: Affine, rows: int, together: int) -> None:
        b.fresh(data)
        inner = ((run, together), (1, run))

        def in_hbm(buffer_pitch: int) -> tuple[tuple[int, int], ...]:
            return ((group * buffer_pitch, rows), (buffer_pitch, together), (1, run))

        on_chip = data.box((group * run, rows), *inner)
        b.load(on_chip, source.box(*in_hbm(pitch_in), at=first * pitch_in))
        if cast is not data:
            b.fresh(cast)
            made = cast.box((group * run, rows), *inner)
            b.emit("tensor_copy", made, on_chip)
            on_chip = made
        b.store(out.box(*in_hbm(pitch_out), at=first * pitch_out), on_chip)

    for first, rows, together in runs(b, count, group):
        move(first, rows, together)
    return b.build()
