"""Which tensors of a graph stay in SBUF between the program that makes them and their readers.

The vendor's compiler keeps there what fits (*inferred*: its documentation calls what goes to HBM a
spill). Here a tensor stays that is made and read within one schedule, is small, and finds room
beside every program that runs until its last reader does. Its store is left out. A reader that
wants each element in the partition where it was made leaves out its load as well; any other lays
the tensor out anew, by DMA from SBUF to SBUF, also of another core (nki.isa.sendrecv).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil, prod

from torch import Tensor
from torch.fx import Node

from ..chip import Chip
from ..isa import Access, Engine, Instruction, Loop, Memory, Program, Residence, Role
from ..isa import Node as ProgramNode
from .nodes import users_of
from .programs import Lowered
from .region import Region

__all__ = ["staying"]

MOST_BYTES = 24 << 10  # of a partition, for one tensor (chosen)

_COPIES = ("dma_copy", "dma_transpose")
_READ = (Role.INPUT, Role.WEIGHT)
_Place = tuple[int, str]  # a part by number, and its buffer


@dataclass(slots=True)
class _Uses:
    """Where a tensor is written and read, in order."""

    writes: list[_Place] = field(default_factory=list)
    reads: list[_Place] = field(default_factory=list)
    known: bool = True  # whether these are all


@dataclass(frozen=True, slots=True)
class _Moves:
    """What the DMAs of a program do with one of its buffers.

    layout  of each its opcode, the element it begins at, by how much that moves with loops of how
            many trips, and its pattern
    """

    layout: tuple[tuple[object, ...], ...]
    bytes_per_partition: int


def staying(parts: Sequence[Lowered], regions: Sequence[Region], chip: Chip) -> tuple[Lowered, ...]:
    """The parts of one schedule, with the tensors that stay in SBUF."""
    programs = [p.program for p in parts if p.program is not None]
    used = [_bytes_on_chip(program) for program in programs]
    found: list[dict[str, Residence]] = [{} for _ in parts]
    for uses in _made_and_read(parts, regions):
        (maker, made), *readers = (*uses.writes, *uses.reads)
        needed = _needed([(programs[k], name) for k, name in ((maker, made), *readers)])
        span = range(maker, max((k for k, _ in readers), default=maker) + 1)
        room = chip.sbuf.usable_bytes_per_partition - max(used[k] for k in span)
        if not 0 < needed <= min(room, MOST_BYTES):
            continue
        for k in span:
            used[k] += needed
        found[maker][made] = Residence.IN_PLACE
        for k, read in readers:
            alike = read in parts[k].whole and programs[k].cores == programs[maker].cores
            alike &= _moves(programs[k], read) == _moves(programs[maker], made)
            found[k][read] = Residence.IN_PLACE if alike else Residence.MOVED
    return tuple(
        replace(p, key=(p.key, chosen := tuple(sorted(f.items()))), program=_changed(g, chosen))
        if f
        else p
        for p, g, f in zip(parts, programs, found, strict=True)
    )


def _made_and_read(parts: Sequence[Lowered], regions: Sequence[Region]) -> Iterator[_Uses]:
    """The uses of each tensor that nothing but these programs reads, and one writes, first."""
    here = {p.region for p in parts}
    inside = {n for r in regions if r.number in here for n in r.nodes}
    nodes = {n.name: n for n in inside}
    for tensor, uses in _uses_of(parts).items():
        if uses.known and len(uses.writes) == 1 and tensor in nodes:
            first = uses.writes[0][0]
            if _is_inner(nodes[tensor], inside) and all(k > first for k, _ in uses.reads):
                yield uses


def _uses_of(parts: Sequence[Lowered]) -> Mapping[str, _Uses]:
    found: dict[str, _Uses] = defaultdict(_Uses)
    for number, lowered in enumerate(parts):
        part = lowered.part()
        read, made = part.others()
        for tensor in (*(part.reads if read else ()), *(part.makes if made else ()),
                       *lowered.ordered):  # fmt: skip
            found[tensor].known = False
        for b in part.program.buffers:
            if b.memory is not Memory.HBM or b.name not in part.tensors:
                continue
            uses = found[part.tensors[b.name]]
            (uses.reads if b.role in _READ else uses.writes).append((number, b.name))
            uses.known &= b.role in (*_READ, Role.OUTPUT)
    return found


def _is_inner(node: Node, inside: AbstractSet[Node]) -> bool:
    """Whether a node makes one tensor, or only one that is read, and nothing else reads it."""
    if not isinstance(node.meta.get("val"), Tensor) and any(
        user.users and user.args[1:] != (0,) for user in node.users
    ):
        return False
    return all(user in inside for user in users_of(node))


def _needed(places: Sequence[tuple[Program, str]]) -> int:
    """Bytes of each partition; 0 where a program does more with the tensor than to copy it."""
    found = [_moves(program, buffer) for program, buffer in places]
    return found[0].bytes_per_partition if found[0] and all(found) else 0


@lru_cache(maxsize=16384)
def _moves(program: Program, buffer: str) -> _Moves | None:
    """None where other instructions than plain transfers touch the buffer."""
    layout: list[tuple[object, ...]] = []
    nbytes, trips = 0.0, program.loops()
    for i in program.instructions():
        own = [a for a in (*i.reads, *i.writes) if _is_of(a, buffer)]
        if not own:
            continue
        if i.engine is not Engine.DMA or i.opcode not in _COPIES or len(own) > 1:
            return None
        (a,) = own
        moving = sorted((trips[loop], step) for loop, step in a.offset.terms)
        layout.append((i.opcode, _has_tile(i), a.offset.const, tuple(moving), a.pattern))
        nbytes += prod(trip for trip, _ in moving) * a.nbytes / a.partitions
    return _Moves(tuple(layout), ceil(nbytes)) if layout else None


def _is_of(a: Access, buffer: str) -> bool:
    return a.buffer.memory is Memory.HBM and a.buffer.name == buffer


def _has_tile(i: Instruction) -> bool:
    """Whether a DMA moves between HBM and a tile on chip, not from tensor to tensor."""
    return any(a.buffer.memory is not Memory.HBM for a in (*i.reads, *i.writes))


@lru_cache(maxsize=4096)
def _bytes_on_chip(program: Program) -> int:
    return sum(b.bytes_per_partition for b in program.buffers if b.memory is Memory.SBUF)


@lru_cache(maxsize=4096)
def _changed(program: Program, chosen: tuple[tuple[str, Residence], ...]) -> Program:
    """The program; of some buffers it says where their tensors are."""
    return replace(program, body=tuple(_node(n, dict(chosen)) for n in program.body))


def _node(node: ProgramNode, chosen: Mapping[str, Residence]) -> ProgramNode:
    if isinstance(node, Loop):
        return replace(node, body=tuple(_node(n, chosen) for n in node.body))
    if not isinstance(node, Instruction) or node.engine is not Engine.DMA:
        return node
    tile = _has_tile(node)

    def changed(a: Access) -> Access:
        if a.buffer.memory is not Memory.HBM or a.buffer.name not in chosen:
            return a
        return replace(a, residence=chosen[a.buffer.name] if tile else Residence.MOVED)

    reads, writes = tuple(map(changed, node.reads)), tuple(map(changed, node.writes))
    return replace(node, reads=reads, writes=writes)
