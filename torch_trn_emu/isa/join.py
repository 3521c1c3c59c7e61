"""Programs one after another as one: its queues run on, so that loads of the next begin early.

HBM tensors that several programs name alike become one buffer, which orders their reads and writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import EmulatorBug
from .affine import Affine
from .program import Access, Buffer, Fresh, Instruction, Loop, Memory, Node, Program, Role

__all__ = ["join"]


def join(name: str, programs: Sequence[Program], tensors: Sequence[Mapping[str, str]]) -> Program:
    """One program; `tensors` says for each part which tensor an HBM buffer of it is.

    On-chip buffers stay apart: together they must fit. All parts run on equally many cores.
    """
    if len({p.cores for p in programs}) != 1:
        raise EmulatorBug(f"{name}: its parts run on different numbers of cores")
    joiner = _Joiner(_shared(programs, tensors))
    bodies = [
        joiner.part(k, program, names)
        for k, (program, names) in enumerate(zip(programs, tensors, strict=True))
    ]
    return Program(
        name=name,
        buffers=(*joiner.shared.values(), *joiner.own),
        body=tuple(node for body in bodies for node in body),
        cores=programs[0].cores,
        model_flops=sum(p.model_flops for p in programs),
        synchronization=programs[0].synchronization,
    )


def _shared(programs: Sequence[Program], tensors: Sequence[Mapping[str, str]]) -> dict[str, Buffer]:
    """A buffer for each tensor, as large as any part has it."""
    found: dict[str, Buffer] = {}
    for program, names in zip(programs, tensors, strict=True):
        for b in program.buffers:
            if b.memory is not Memory.HBM or b.name not in names:
                continue
            name = names[b.name]
            known = found.setdefault(name, replace(b, name=name))
            found[name] = replace(
                known,
                role=known.role if known.role is b.role else Role.SCRATCH,  # made and read inside
                parts=max(known.parts, b.parts),
                shape=known.shape if known.elements >= b.elements else b.shape,
            )
    return found


class _Joiner:
    def __init__(self, shared: dict[str, Buffer]) -> None:
        self.shared = shared
        self.own: list[Buffer] = []
        self.loops = 0

    def part(self, number: int, program: Program, names: Mapping[str, str]) -> list[Node]:
        self.prefix, self.first_loop = f"{number}.", self.loops
        self.loops += max(program.loops(), default=-1) + 1
        self.map = {id(b): self._buffer(b, names) for b in program.buffers}
        return [self._node(node) for node in program.body]

    def _buffer(self, b: Buffer, names: Mapping[str, str]) -> Buffer:
        if b.memory is Memory.HBM and b.name in names:
            return self.shared[names[b.name]]
        self.own.append(replace(b, name=self.prefix + b.name))
        return self.own[-1]

    def _node(self, node: Node) -> Node:
        if isinstance(node, Loop):
            body = tuple(self._node(n) for n in node.body)
            return Loop(id=node.id + self.first_loop, trip=node.trip, body=body)
        if isinstance(node, Fresh):
            return Fresh(self.map[id(node.buffer)])
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
        )

    def _access(self, a: Access) -> Access:
        return Access(
            buffer=self.map[id(a.buffer)],
            offset=self._at(a.offset),
            pattern=a.pattern,
            part=self._at(a.part),
            age=a.age,
        )

    def _at(self, value: Affine) -> Affine:
        if not value.terms:
            return value
        return Affine(value.const, tuple((loop + self.first_loop, c) for loop, c in value.terms))
