"""The programs of a graph as one: engines and queues run on, so that a part's loads begin early.

HBM buffers that are the same tensor become one, which orders their reads and writes. A part's
buffers on chip take the memory of those before (`Take`). csrc/timing/graph.cpp schedules the same
parts without joining them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..chip import Chip
from .affine import Affine
from .arena import Arena
from .program import Access, Buffer, Fresh, Instruction, Loop, Memory, Node, Program, Role, Take

__all__ = ["Part", "join"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A program of a graph and its tensors, by name.

    tensors  which tensor an HBM buffer is
    reads    tensors that the other buffers it reads may be: they wait for all of them
    makes    tensors that the other buffers it writes may be
    """

    program: Program
    tensors: Mapping[str, str]
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()

    def others(self) -> tuple[list[Buffer], list[Buffer]]:
        """HBM buffers that are no certain tensor: those it reads, and those it writes."""
        hbm = [b for b in self.program.buffers
               if b.memory is Memory.HBM and b.name not in self.tensors]  # fmt: skip
        return (
            [b for b in hbm if b.role in (Role.INPUT, Role.WEIGHT)],
            [b for b in hbm if b.role is Role.OUTPUT],
        )


def join(name: str, parts: Sequence[Part], chip: Chip, ordered: frozenset[str]) -> Program:
    """One program; tensors in `ordered` are written in place."""
    joiner = _Joiner(parts, chip, ordered)
    body = tuple(node for k, part in enumerate(parts) for node in joiner.part(k, part))
    return Program(
        name=name,
        buffers=(*joiner.shared.values(), *joiner.own),
        body=body,
        cores=max(p.program.cores for p in parts),
        model_flops=sum(p.program.model_flops for p in parts),
        synchronization=parts[0].program.synchronization,
    )


def _shared(parts: Sequence[Part], ordered: frozenset[str]) -> dict[str, Buffer]:
    """A buffer for each tensor, as large as any part has it, where all cut it alike."""
    found: dict[str, Buffer] = {}
    uneven: set[str] = set()
    for part in parts:
        for b in part.program.buffers:
            if b.memory is not Memory.HBM or b.name not in part.tensors:
                continue
            name = part.tensors[b.name]
            known = found.setdefault(name, replace(b, name=name, ordered=name in ordered))
            if known.parts != b.parts:
                uneven.add(name)
            found[name] = replace(
                known,
                role=known.role if known.role is b.role else Role.SCRATCH,  # made and read inside
                shape=known.shape if known.elements >= b.elements else b.shape,
            )
    return {name: b for name, b in found.items() if name not in uneven}


class _Joiner:
    def __init__(self, parts: Sequence[Part], chip: Chip, ordered: frozenset[str]) -> None:
        self.shared = _shared(parts, ordered)
        self.arenas = {
            Memory.SBUF: Arena(chip.sbuf.usable_bytes_per_partition),
            Memory.PSUM: Arena(chip.psum.usable_bytes_per_partition),
        }
        self.own: list[Buffer] = []
        self.placed: dict[int, Buffer] = {}  # by the copy that the arena knows
        self.made: dict[str, list[Buffer]] = defaultdict(list)  # by tensors of several buffers
        self.loops = 0

    def part(self, number: int, part: Part) -> Iterator[Node]:
        program = part.program
        self.prefix, self.first_loop, self.cores = f"{number}.", self.loops, program.cores
        self.loops += max(program.loops(), default=-1) + 1
        self.map: dict[int, Buffer] = {}
        for b in program.buffers:
            if b.memory is Memory.HBM:
                name = part.tensors.get(b.name, "")
                self.map[id(b)] = self.shared.get(name) or self._mine(b)
        for memory in self.arenas:
            yield from self._on_chip(number, memory, program)
        yield from self._before(part)
        for node in program.body:
            yield self._node(node)
        yield from self._after(part)

    def _mine(self, b: Buffer, address: int = -1) -> Buffer:
        self.own.append(replace(b, name=self.prefix + b.name, address=address))
        return self.own[-1]

    def _on_chip(self, number: int, memory: Memory, program: Program) -> Iterator[Node]:
        given = [b for b in program.buffers if b.memory is memory]
        copies = [replace(b) for b in given]  # a program may be several parts
        originals = dict(zip(map(id, copies), given, strict=True))
        for placed in self.arenas[memory].place(number, copies):
            mine = self._mine(originals[id(placed.buffer)], placed.address)
            self.map[id(originals[id(placed.buffer)])] = mine
            self.placed[id(placed.buffer)] = mine
            if placed.of:
                yield Take(mine, tuple(self.placed[id(b)] for b in placed.of))

    def _before(self, part: Part) -> Iterator[Node]:
        """Buffers that are parts of a tensor, or one of several, wait for all that make them."""
        waits: list[tuple[Buffer, tuple[str, ...]]] = [
            (b, (part.tensors[b.name],))
            for b in part.program.buffers
            if b.name in part.tensors and part.tensors[b.name] not in self.shared
        ]
        waits += [(b, part.reads) for b in part.others()[0]]
        for b, names in waits:
            of = [x for n in names for x in (self.made[n] or self._known(n))]
            if of:
                yield Take(self.map[id(b)], tuple(of))

    def _known(self, name: str) -> list[Buffer]:
        return [self.shared[name]] if name in self.shared else []

    def _after(self, part: Part) -> Iterator[Node]:
        written = [self.map[id(b)] for b in part.others()[1]]
        for name in part.makes if written else ():
            if name in self.shared:
                yield Take(self.shared[name], tuple(written))
            else:
                self.made[name] += written
        for b in part.program.buffers:
            name = part.tensors.get(b.name, "")
            if name and name not in self.shared and b.role not in (Role.INPUT, Role.WEIGHT):
                self.made[name].append(self.map[id(b)])

    def _node(self, node: Node) -> Node:
        if isinstance(node, Loop):
            body = tuple(self._node(n) for n in node.body)
            return Loop(id=node.id + self.first_loop, trip=node.trip, body=body)
        if isinstance(node, Fresh):
            return Fresh(self.map[id(node.buffer)])
        if isinstance(node, Take):
            return Take(self.map[id(node.buffer)], tuple(self.map[id(b)] for b in node.of))
        return self._instruction(node)

    def _instruction(self, i: Instruction) -> Instruction:
        return replace(
            i,
            writes=tuple(map(self._access, i.writes)),
            reads=tuple(map(self._access, i.reads)),
            queue=self.prefix + i.queue if i.queue else "",
            waits=tuple(
                replace(w, semaphore=self.prefix + w.semaphore, value=self._at(w.value))
                for w in i.waits
            ),
            signals=tuple(self.prefix + s for s in i.signals),
            cores=i.cores or self.cores,
        )

    def _access(self, a: Access) -> Access:
        return Access(
            buffer=self.map[id(a.buffer)],
            offset=self._at(a.offset),
            pattern=a.pattern,
            part=self._at(a.part),
            age=a.age,
            residence=a.residence,
        )

    def _at(self, value: Affine) -> Affine:
        if not value.terms:
            return value
        return Affine(value.const, tuple((loop + self.first_loop, c) for loop, c in value.terms))
