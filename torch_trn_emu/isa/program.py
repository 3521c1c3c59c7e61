"""The waist of the package: a Program is frozen engine instructions, loops, buffers, dependencies.

Everything above makes one (`builder.py` helps), everything below reads one: the machine executes
it, the timing prices it, the counters fold over what retired.

Order. A Program is sequential: an instruction sees what the ones before it wrote. The engines run
ahead of each other all the same; what holds them back is derived from the accesses, per *part* of
a *slot* of a buffer, as the semaphores a compiler would place:

  read after write    waits until the write is done
  write after read    waits until the reads are done, unless the same engine issues both in order
  write after write   the same

A buffer has `parts`, tiles that are tracked apart, and `slots`, copies that rotate: `Fresh` moves
to the next slot, which is how double buffering is written; an access of age 1 goes to the slot
before it, as software pipelines do. HBM tensors have one slot, and only
read after write is ordered there, but in those that are `ordered`: written in place. `Take` gives
a buffer the memory of others, whose uses end first. With `synchronization="explicit"` nothing is
derived: the instructions carry `waits` and `signals`, and the machine reports what they leave
unordered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, lru_cache
from math import prod
from types import MappingProxyType

from ..formats import FORMATS
from .affine import Affine, Index, affine
from .view import Label

__all__ = [
    "Access",
    "Attribute",
    "Buffer",
    "Engine",
    "Fresh",
    "Instruction",
    "Loop",
    "Memory",
    "Node",
    "Program",
    "Residence",
    "Role",
    "Take",
    "Wait",
    "itemsize",
]

_ZERO = Affine()

Attribute = int | float | str | bool | tuple[int, ...]

_INTEGER_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4} | {
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
}


@cache
def itemsize(dtype: str) -> float:
    """Bytes of one element; 0.5 for float4, which is packed two to a byte, 1 for float6."""
    return FORMATS[dtype].storage_bytes if dtype in FORMATS else _INTEGER_BYTES[dtype]


@lru_cache(maxsize=8192)
def _count(dimensions: tuple[tuple[int, int], ...]) -> int:
    """Elements of (stride, count) pairs."""
    return prod(count for _, count in dimensions)


class Memory(str, Enum):
    HBM = "hbm"
    SBUF = "sbuf"
    PSUM = "psum"


class Engine(str, Enum):
    """Instruction streams of one core. `DMA` stands for its queues, each a stream of its own."""

    TENSOR = "tensor"
    VECTOR = "vector"
    SCALAR = "scalar"
    GPSIMD = "gpsimd"
    SYNC = "sync"
    DMA = "dma"


class Role(str, Enum):
    """What a buffer is to the program."""

    INPUT = "input"
    WEIGHT = "weight"
    OUTPUT = "output"
    SCRATCH = "scratch"
    SPILL = "spill"


class Residence(str, Enum):
    """Where the tensor of an HBM buffer is while a graph runs."""

    HBM = "hbm"
    MOVED = "moved"  # in SBUF, where a DMA lays it out anew
    IN_PLACE = "in place"  # in SBUF, where the DMA would put it: that is left out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffer:
    """A region of memory. On chip the shape is [partitions, elements]; in HBM the tensor's.

    ordered  a tensor in HBM that is written in place: its writes wait for earlier reads
    address  on chip, in bytes of each partition; -1 where buffers lie one after the other
    """

    name: str
    memory: Memory
    dtype: str
    shape: tuple[int, ...]
    parts: int = 1
    slots: int = 1
    role: Role = Role.SCRATCH
    ordered: bool = False
    address: int = -1

    @property
    def elements(self) -> int:
        """Elements of one part."""
        return prod(self.shape)

    @property
    def row_elements(self) -> int:
        """Elements per partition of one part, or of all dimensions but the first in HBM."""
        return prod(self.shape[1:])

    @property
    def bytes_per_partition(self) -> int:
        """On-chip bytes of all parts and slots, per partition."""
        return int(-(-self.row_elements * itemsize(self.dtype) // 1)) * self.parts * self.slots

    def box(
        self, *pattern: tuple[int, int], at: Index = 0, part: Index = 0, age: int = 0
    ) -> "Access":
        """(stride, count) pairs from flat element `at` on; the first is the partition dimension."""
        offset, number = affine(at), affine(part)
        return Access(buffer=self, offset=offset, pattern=pattern, part=number, age=age)

    def lanes(
        self, count: int, *free: tuple[int, int], at: Index = 0, part: Index = 0, age: int = 0
    ) -> "Access":
        """(stride, count) pairs on each of `count` partitions, from element `at` on."""
        return self.box((self.row_elements, count), *free, at=at, part=part, age=age)

    def rows(
        self, rows: int, columns: int, at: Index = 0, *, part: Index = 0, age: int = 0
    ) -> "Access":
        """`rows` rows of `columns` elements of the last dimension, from flat element `at` on."""
        return self.box((self.shape[-1], rows), (1, columns), at=at, part=part, age=age)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A strided pattern in one part of a buffer: `offset` in elements, then (stride, count) pairs.

    The first pair is the partition dimension, the others are the free dimensions. Strides count
    elements of the flattened part. Stride 0 broadcasts.

    residence  in HBM, by a DMA: the tensor may stay in SBUF between two programs of a graph
    """

    buffer: Buffer
    offset: Affine = _ZERO
    pattern: tuple[tuple[int, int], ...]
    part: Affine = _ZERO
    age: int = 0  # slots back from the current one
    residence: Residence = Residence.HBM

    @property
    def memory(self) -> Memory:
        """Where the elements are."""
        return self.buffer.memory if self.residence is Residence.HBM else Memory.SBUF

    @property
    def partitions(self) -> int:
        return self.pattern[0][1]

    @property
    def free(self) -> int:
        """Elements per partition."""
        return _count(self.pattern[1:])

    @property
    def elements(self) -> int:
        return _count(self.pattern)

    @property
    def nbytes(self) -> int:
        return int(self.elements * itemsize(self.buffer.dtype))

    @property
    def distinct_bytes(self) -> int:
        """Bytes without what stride 0 repeats."""
        distinct = prod(count for stride, count in self.pattern if stride)
        return int(distinct * itemsize(self.buffer.dtype))

    @property
    def run_elements(self) -> int:
        """Elements of the longest contiguous run inside one partition."""
        run = 1
        for stride, count in reversed(self.pattern[1:]):
            if stride != run and count > 1:
                break
            run *= count
        return run

    @property
    def contiguous(self) -> bool:
        """True if each partition's elements lie next to each other."""
        return self.run_elements == self.free


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold an instruction until `semaphore` has reached `value`."""

    semaphore: str
    value: Affine


_NOTHING: Mapping[str, Attribute] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Instruction:
    """One engine instruction. `opcodes.py` says what `reads`, `writes` and `attributes` mean.

    cores  that run it, where a Program joins some for fewer cores than its own; 0: all of them
    """

    opcode: str
    engine: Engine
    writes: tuple[Access, ...]
    reads: tuple[Access, ...] = ()
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: _NOTHING)
    queue: str = ""  # of a DMA: transfers of one queue start in order
    waits: tuple[Wait, ...] = ()
    signals: tuple[str, ...] = ()  # each is raised by one when the instruction is done
    cores: int = 0

    @property
    def left_out(self) -> bool:
        """Whether it moves nothing: a tensor is in SBUF already, where it is read or written."""
        return any(a.residence is Residence.IN_PLACE for a in (*self.reads, *self.writes))


@dataclass(frozen=True, slots=True, eq=False)
class Fresh:
    """Move `buffer` to its next slot; its content is undefined until written."""

    buffer: Buffer


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """Give `buffer` the memory of others: what is written to it waits until their uses are over.

    On chip they lose what they held. In HBM `buffer` holds what they hold: reads of it wait for
    their writes.
    """

    buffer: Buffer
    of: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loop:
    """`body`, `trip` times, with counter `id` running from 0."""

    id: int
    trip: int
    body: tuple["Node", ...]


Node = Instruction | Fresh | Take | Loop


_UNLABELLED: Mapping[str, Label] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """What one physical core runs. `cores` of them run a copy each, on their share of the data.

    labels  what the HBM buffers stand for, for the machine's inputs and results
    """

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Node, ...]
    cores: int = 1
    model_flops: float = 0.0  # 2 x multiply-adds the user asked for, on all cores
    synchronization: str = "derived"
    labels: Mapping[str, Label] = field(default_factory=lambda: _UNLABELLED)  # by HBM buffer

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction once, in order, however often its loops run it."""
        return _instructions(self.body)

    def loops(self) -> dict[int, int]:
        """Trip count by loop id."""
        return dict(_loops(self.body))


def _instructions(body: tuple[Node, ...]) -> Iterator[Instruction]:
    for node in body:
        if isinstance(node, Instruction):
            yield node
        elif isinstance(node, Loop):
            yield from _instructions(node.body)


def _loops(body: tuple[Node, ...]) -> Iterator[tuple[int, int]]:
    for node in body:
        if isinstance(node, Loop):
            yield node.id, node.trip
            yield from _loops(node.body)
