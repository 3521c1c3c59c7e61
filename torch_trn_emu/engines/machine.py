"""The machine: executes a Program literally, instruction by instruction. Slow, and the definition.

It is stricter than the chip. Memory that was not written is NaN and reading it raises; what lies
outside a buffer raises; a program that asks for more than the chip has is refused; and with
explicit synchronization, a read or write that no semaphore orders after the one before it is a race
and raises.

Values are held as float32 (which holds every narrower float exactly) or int64, and are rounded to
the buffer's dtype when written: to nearest even, floats overflow to inf, integers saturate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..errors import UndefinedOnChip
from ..formats import FORMATS
from ..isa import (
    Access,
    Buffer,
    Fresh,
    Instruction,
    Loop,
    Memory,
    Node,
    Program,
    Role,
    Take,
    validate,
)
from . import BEHAVIOURS
from .lazy_numpy import np
from .races import RaceDetector

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Machine"]

_INTEGER_RANGES = {
    "bool": (0, 1),
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


@dataclass(slots=True)
class _Region:
    """The content of one part of one slot."""

    values: "Array"
    written: "npt.NDArray[np.bool_]"


@dataclass(slots=True)
class _State:
    """Memories, current slots, loop counters and random words drawn, of one run."""

    regions: dict[tuple[int, int, int], _Region] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    counters: dict[int, int] = field(default_factory=dict)
    drawn: int = 0


class Machine:
    """Runs Programs on a chip's engines and memories."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.executed = 0

    def run(
        self, program: Program, inputs: Mapping[str, "npt.ArrayLike"], drawn: int = 0
    ) -> dict[str, "Array"]:
        """Execute `program` and give its output tensors by name.

        inputs  one array per input or weight tensor, of its shape; rounded to its dtype
        drawn   random words that the core's generator has given before

        Raises ChipLimit if the program exceeds the chip, UndefinedOnChip for what the vendor
        leaves undefined.
        """
        validate(program, self.chip)
        state = _State(drawn=drawn)
        races = RaceDetector() if program.synchronization == "explicit" else None
        for b in program.buffers:
            if b.name in inputs and b.memory is Memory.HBM:
                region = _region(state, b, 0)
                region.values[:] = _rounded(np.asarray(inputs[b.name]).reshape(-1), b.dtype)
                region.written[:] = True
        with np.errstate(all="ignore"):  # the engines' arithmetic has NaN and infinities
            self._body(program.body, state, races)
        outputs = (b for b in program.buffers if b.role is Role.OUTPUT)
        return {b.name: _whole(state, b) for b in outputs}

    def _body(self, body: tuple[Node, ...], state: _State, races: "RaceDetector | None") -> None:
        for node in body:
            if isinstance(node, Loop):
                for counter in range(node.trip):
                    state.counters[node.id] = counter
                    self._body(node.body, state, races)
            elif isinstance(node, Fresh):
                _rotate(state, node.buffer)
            elif isinstance(node, Take):
                _poison(state, node)
            else:
                if races is not None:
                    races.observe(node, state.counters)
                self._execute(node, state)

    def _execute(self, i: Instruction, state: _State) -> None:
        self.executed += 1
        reads = [_read(state, i, access) for access in i.reads]
        old = _peek(state, i.writes[0]) if i.writes else np.empty(0)
        behaviour = BEHAVIOURS[i.opcode]
        if behaviour.draws:
            reads.append(np.asarray(state.drawn))
            state.drawn += old.size
        if behaviour.accumulates:
            reads.append(_was_written(state, i.writes[0]))
        results = behaviour.run(i, reads, old)
        for access, result in zip(i.writes, results, strict=True):
            _write(state, access, result)


def _is_integer(dtype: str) -> bool:
    return dtype in _INTEGER_RANGES


def _rounded(values: "Array", dtype: str) -> "Array":
    """`values` as the dtype holds them, in the machine's storage type."""
    if _is_integer(dtype):
        if values.dtype.kind in "iu":
            wide = values.astype(np.int64)
        else:
            wide = np.nan_to_num(np.rint(np.asarray(values, dtype=np.float64)))
        low, high = _INTEGER_RANGES[dtype]
        return np.asarray(np.clip(wide, low, high), dtype=np.int64)
    single = np.asarray(values, dtype=np.float32)
    if dtype == "float32":
        return single
    from ..formats.codec import round_to

    if dtype == "float8_e8m0fnu":  # a scale holds powers of two, which arrive exact
        return single
    return round_to(FORMATS[dtype], values).astype(np.float32)


def _region(state: _State, buffer: Buffer, part: int, age: int = 0) -> _Region:
    slot = (state.slots.get(id(buffer), 0) - age) % buffer.slots
    key = (id(buffer), slot, part)
    if key not in state.regions:
        integer = _is_integer(buffer.dtype)
        values = np.zeros(buffer.elements, np.int64 if integer else np.float32)
        if not integer:
            values[:] = np.nan
        state.regions[key] = _Region(values, np.zeros(buffer.elements, bool))
    return state.regions[key]


def _rotate(state: _State, buffer: Buffer) -> None:
    slot = (state.slots.get(id(buffer), -1) + 1) % buffer.slots
    state.slots[id(buffer)] = slot
    for part in range(buffer.parts):
        state.regions.pop((id(buffer), slot, part), None)


def _poison(state: _State, take: Take) -> None:
    """What is taken holds nothing any more: a read of it raises."""
    if take.buffer.memory is Memory.HBM:
        return  # one name more for what lies there
    taken = {id(b) for b in take.of}
    for key in [k for k in state.regions if k[0] in taken]:
        del state.regions[key]


def _positions(access: Access, counters: Mapping[int, int]) -> "npt.NDArray[np.int64]":
    """Where the elements lie, in the shape of the access."""
    index = np.asarray(access.offset.at(counters), dtype=np.int64)
    for stride, count in access.pattern:
        index = index[..., None] + stride * np.arange(count)
    return index


def _read(state: _State, i: Instruction, access: Access) -> "Array":
    region = _region(state, access.buffer, access.part.at(state.counters), access.age)
    index = _positions(access, state.counters)
    written = region.written[index]
    if not written.all():
        first = tuple(int(x) for x in np.argwhere(~written)[0])
        raise UndefinedOnChip(
            f"{i.opcode} on the {i.engine.value} engine reads {access.buffer.name} at "
            f"{list(first)}, where nothing was written. The chip would read what is left there."
        )
    return region.values[index]


def _peek(state: _State, access: Access) -> "Array":
    """What a destination holds, NaN where nothing was written."""
    region = _region(state, access.buffer, access.part.at(state.counters), access.age)
    return region.values[_positions(access, state.counters)]


def _was_written(state: _State, access: Access) -> "npt.NDArray[np.bool_]":
    region = _region(state, access.buffer, access.part.at(state.counters), access.age)
    return region.written[_positions(access, state.counters)]


def _write(state: _State, access: Access, result: "Array") -> None:
    region = _region(state, access.buffer, access.part.at(state.counters), access.age)
    index = _positions(access, state.counters)
    values = _rounded(np.asarray(result), access.buffer.dtype)
    region.values[index] = np.broadcast_to(values.reshape(index.shape), index.shape)
    region.written[index] = True


def _whole(state: _State, buffer: Buffer) -> "Array":
    region = _region(state, buffer, 0)
    if not region.written.all():
        count = int((~region.written).sum())
        raise UndefinedOnChip(
            f"{count} of {prod(buffer.shape)} elements of output {buffer.name} were never written."
        )
    return region.values.reshape(buffer.shape)
