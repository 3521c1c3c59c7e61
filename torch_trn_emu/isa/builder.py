"""Makes Programs: open loops with `with`, get tiles by start and size, emit instructions in order.

b = Builder("copy")
x, y = b.hbm("x", (m, n), "float32", Role.INPUT), b.hbm("y", (m, n), "float32", Role.OUTPUT)
t = b.sbuf("t", n, "float32", slots=2)
for row, rows in b.tiles(m, 128):
    b.fresh(t)
    b.load(tile(t, (0, 0), (rows, n)), tile(x, (row, 0), (rows, n)))
    b.store(tile(y, (row, 0), (rows, n)), tile(t, (0, 0), (rows, n)))
program = b.build()
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import MappingProxyType

from ..errors import EmulatorBug
from .affine import Affine, Index, affine
from .opcodes import OPCODES
from .program import (
    Access,
    Attribute,
    Buffer,
    Engine,
    Fresh,
    Instruction,
    Loop,
    Memory,
    Node,
    Program,
    Role,
    Wait,
)

__all__ = ["Builder", "tile"]

PARTITIONS = 128


def tile(
    buffer: Buffer,
    start: Sequence[Index],
    size: Sequence[int],
    *,
    part: Index = 0,
    order: Sequence[int] | None = None,
    split: int = 1,
    step: Sequence[int] | None = None,
) -> Access:
    """The box of `size` at `start` of a buffer, one entry per dimension of its shape.

    order  the buffer's dimensions in the tile's order; (1, 0) reads a matrix transposed
    split  how many leading tile dimensions make up the partition dimension (must be mergeable)
    step   distance between elements taken, per dimension; 0 repeats one element
    """
    shape = buffer.shape
    strides = [prod(shape[d + 1 :]) for d in range(len(shape))]
    offset = Affine()
    for position, stride in zip(start, strides, strict=True):
        offset = offset + affine(position) * stride
    steps = step or (1,) * len(shape)
    pairs = [(strides[d] * steps[d], size[d]) for d in order or range(len(shape))]
    head = pairs[:split]
    if split > 1:
        head = [(head[-1][0], prod(count for _, count in head))]
    return Access(
        buffer=buffer,
        offset=offset,
        pattern=tuple(head + [p for p in pairs[split:] if p[1] != 1 or len(pairs) == split + 1]),
        part=affine(part),
    )


class Builder:
    """Collects the nodes of one Program."""

    def __init__(self, name: str, *, cores: int = 1, model_flops: float = 0.0) -> None:
        self.name, self.cores, self.model_flops = name, cores, model_flops
        self.synchronization = "derived"
        self._buffers: list[Buffer] = []
        self._bodies: list[list[Node]] = [[]]
        self._loops = 0

    def hbm(
        self, name: str, shape: Sequence[int], dtype: str, role: Role, *, parts: int = 1
    ) -> Buffer:
        """A tensor in device memory, or `parts` of them that are tracked apart."""
        whole = tuple(shape)
        return self._add(
            Buffer(name=name, memory=Memory.HBM, dtype=dtype, shape=whole, parts=parts, role=role)
        )

    def sbuf(
        self,
        name: str,
        free: int,
        dtype: str,
        *,
        slots: int = 1,
        parts: int = 1,
        partitions: int = PARTITIONS,
    ) -> Buffer:
        """A tile buffer in SBUF."""
        return self._on_chip(Memory.SBUF, name, free, dtype, slots, parts, partitions)

    def psum(
        self,
        name: str,
        free: int,
        dtype: str = "float32",
        *,
        slots: int = 1,
        parts: int = 1,
        partitions: int = PARTITIONS,
    ) -> Buffer:
        """A tile buffer in PSUM."""
        return self._on_chip(Memory.PSUM, name, free, dtype, slots, parts, partitions)

    def _on_chip(
        self,
        memory: Memory,
        name: str,
        free: int,
        dtype: str,
        slots: int,
        parts: int,
        partitions: int,
    ) -> Buffer:
        shape = (partitions, free)
        return self._add(
            Buffer(name=name, memory=memory, dtype=dtype, shape=shape, parts=parts, slots=slots)
        )

    def _add(self, buffer: Buffer) -> Buffer:
        self._buffers.append(buffer)
        return buffer

    @contextmanager
    def loop(self, trip: int) -> Iterator[Affine]:
        """Repeat what is emitted inside; gives the counter. One trip makes no loop."""
        if trip == 1:
            yield Affine()
            return
        loop_id, self._loops = self._loops, self._loops + 1
        self._bodies.append([])
        yield Affine(0, ((loop_id, 1),))
        body = tuple(self._bodies.pop())
        if body and trip:
            self._bodies[-1].append(Loop(id=loop_id, trip=trip, body=body))

    def tiles(self, extent: int, size: int) -> Iterator[tuple[Affine, int]]:
        """Cut `extent` into tiles: a loop over the full ones, then the ragged end.

        The body of the `for` statement is emitted once for each of the two.
        """
        full, rest = divmod(extent, size)
        if full:
            with self.loop(full) as counter:
                yield counter * size, size
        if rest:
            yield Affine(full * size), rest

    def parts(self, extent: int, size: int) -> Iterator[tuple[Affine, Affine, int]]:
        """`tiles` with the number of the tile, to index the parts of a buffer."""
        full, rest = divmod(extent, size)
        if full:
            with self.loop(full) as counter:
                yield counter, counter * size, size
        if rest:
            yield Affine(full), Affine(full * size), rest

    def fresh(self, *buffers: Buffer) -> None:
        """Move each buffer to its next slot, in the order of their making: some give a set."""
        in_order = sorted(buffers, key=self._buffers.index)
        self._bodies[-1].extend(map(Fresh, in_order))

    def emit(
        self,
        opcode: str,
        writes: Access | tuple[Access, ...],
        *reads: Access,
        engine: Engine | None = None,
        queue: str = "",
        waits: tuple[Wait, ...] = (),
        signals: tuple[str, ...] = (),
        **attributes: Attribute,
    ) -> Instruction:
        """Append an instruction; without `engine`, the first that can run it."""
        row = OPCODES.get(opcode)
        if row is None:
            raise EmulatorBug(f"{self.name}: no opcode {opcode!r} in isa/opcodes.py")
        instruction = Instruction(
            opcode=opcode,
            engine=engine or row.engines[0],
            writes=writes if isinstance(writes, tuple) else (writes,),
            reads=reads,
            attributes=MappingProxyType(attributes),
            queue=queue,
            waits=waits,
            signals=signals,
        )
        self._bodies[-1].append(instruction)
        return instruction

    def again(self, instructions: Sequence[Instruction]) -> None:
        """Append instructions that were emitted before."""
        self._bodies[-1].extend(instructions)

    def load(self, to: Access, source: Access) -> Instruction:
        """`dma_copy` on the queue of the tensor read."""
        return self.emit("dma_copy", to, source, queue=f"load {source.buffer.name}")

    def store(self, to: Access, source: Access) -> Instruction:
        """`dma_copy` on the queue of the tensor written."""
        return self.emit("dma_copy", to, source, queue=f"store {to.buffer.name}")

    def build(self) -> Program:
        if len(self._bodies) != 1:
            raise EmulatorBug(f"{self.name}: a loop is still open")
        return Program(
            name=self.name,
            buffers=tuple(self._buffers),
            body=tuple(self._bodies[0]),
            cores=self.cores,
            model_flops=self.model_flops,
            synchronization=self.synchronization,
        )
