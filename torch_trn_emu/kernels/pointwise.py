"""Elementwise operations as engine programs: the tensors as one long row, cut over the partitions.

A step reads operands and makes a result; the steps of one program stay in SBUF. All tensors have
the same number of elements, but for inputs of a single one, which is there for all.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType

from ..chip import Chip
from ..isa import Access, Attribute, Buffer, Builder, Engine, Program, Role, itemsize
from .limits import SLOTS, TILE_BYTES, P
from .runs import spread_runs

__all__ = [
    "Step",
    "activation",
    "constant",
    "copy",
    "instruction",
    "pointwise",
    "tensor_scalar",
    "tensor_tensor",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One instruction of an elementwise program. Operands are input numbers, or -1, -2, ... for
    the results of the steps before, the last one first.
    """

    opcode: str
    reads: tuple[int, ...]
    attributes: MappingProxyType[str, Attribute]
    engine: Engine | None = None  # the first that can run it
    dtype: str = ""  # of an intermediate result; the output's if empty

    def emit(self, b: Builder, to: Access, reads: Sequence[Access]) -> None:
        b.emit(self.opcode, to, *reads, engine=self.engine, **self.attributes)  # type: ignore[arg-type]


def instruction(
    opcode: str, *reads: int, engine: Engine | None = None, dtype: str = "", **attributes: Attribute
) -> Step:
    """A step that is `opcode`, with attributes by name."""
    return Step(
        opcode=opcode,
        reads=reads,
        attributes=MappingProxyType(attributes),
        engine=engine,
        dtype=dtype,
    )


def tensor_tensor(op: str, a: int = 0, b: int = 1, *, engine: Engine = Engine.VECTOR) -> Step:
    """`a op b`, elementwise."""
    return instruction("tensor_tensor", a, b, engine=engine, op=op)


def tensor_scalar(a: int = 0, *, engine: Engine = Engine.VECTOR, **attributes: Attribute) -> Step:
    """`(a op0 imm0) op1 imm1`."""
    given = MappingProxyType(attributes)
    return Step(opcode="tensor_scalar", reads=(a,), attributes=given, engine=engine)


def activation(op: str, a: int = 0, *, scale: float = 1.0) -> Step:
    """`op(a * scale)` on the Scalar engine."""
    return instruction("activation", a, engine=Engine.SCALAR, op=op, scale=scale)


def copy(a: int = 0) -> Step:
    """`a` in the result's dtype."""
    return instruction("tensor_copy", a, engine=Engine.VECTOR)


def constant(value: float) -> Step:
    """Every element is `value`."""
    return instruction("memset", engine=Engine.VECTOR, value=value)


def pointwise(
    name: str,
    elements: int,
    input_dtypes: Sequence[str],
    out_dtype: str,
    steps: Sequence[Step],
    *,
    chip: Chip,
    cores: int = 1,
    outputs: Sequence[int] = (-1,),
    single: Collection[int] = (),
    tile_bytes: int = TILE_BYTES,
) -> Program:
    """`steps` over tensors of `elements` elements, loaded and stored once; one core's share.

    The inputs are called in0, in1, ... and the outputs out, out1, ...; `outputs` are the steps that
    are stored, `single` the inputs of one element. An elementwise program without steps is a copy.
    """
    count = ceil(elements / cores)
    b = Builder(name, cores=cores)
    sizes = [1 if k in single else count for k in range(len(input_dtypes))]
    inputs = [
        b.hbm(f"in{k}", (size,), dtype, Role.INPUT)
        for k, (size, dtype) in enumerate(zip(sizes, input_dtypes, strict=True))
    ]
    dtypes = [steps[k].dtype or out_dtype for k in outputs] if steps else [out_dtype]
    outs = [b.hbm(f"out{k or ''}", (count,), dtype, Role.OUTPUT) for k, dtype in enumerate(dtypes)]
    held = [itemsize(d) for d in (*input_dtypes, *(s.dtype or out_dtype for s in steps))]
    fits = int(chip.sbuf.usable_bytes_per_partition / (SLOTS * sum(held)))
    free = max(1, min(int(tile_bytes / max(held)), fits, ceil(count / P)))
    tiles = [b.sbuf(f"{x.name} tile", free, x.dtype, slots=SLOTS) for x in inputs]
    for k in single:
        b.load(tiles[k].lanes(P, (1, 1)), inputs[k].box((0, P), (1, 1)))
    results = [b.sbuf(f"step {k}", free, s.dtype or out_dtype, slots=SLOTS)
               for k, s in enumerate(steps)]  # fmt: skip
    for start, rows, size in spread_runs(b, count, free):
        read = [t.lanes(rows, (int(k not in single), size)) for k, t in enumerate(tiles)]
        there = (size, rows), (1, size)
        for k, hbm in enumerate(inputs):
            if k not in single:
                b.fresh(tiles[k])
                b.load(read[k], hbm.box(*there, at=start))
        done = _emit(b, steps, results, read, rows, size)
        for out, k in zip(outs, outputs, strict=True):
            b.store(out.box(*there, at=start), done[k] if done else read[0])
    return b.build()


def _emit(
    b: Builder, steps: Sequence[Step], results: Sequence[Buffer], operands: Sequence[Access],
    rows: int, columns: int,
) -> list[Access]:  # fmt: skip
    """The steps on one tile; gives what they make."""
    done: list[Access] = []
    for step, result in zip(steps, results, strict=True):
        b.fresh(result)
        reads = [operands[k] if k >= 0 else done[k] for k in step.reads]
        done.append(result.rows(rows, columns))
        step.emit(b, done[-1], reads)
    return done
