"""A Program as text, for people: buffers first, then the instructions as nested loops."""

from collections.abc import Iterator

from .opcodes import OPCODES
from .program import Access, Fresh, Instruction, Loop, Node, Program, Take

__all__ = ["dump"]


def dump(program: Program) -> str:
    """The program's text, one line per buffer and instruction."""
    return "\n".join(_lines(program))


def _lines(program: Program) -> Iterator[str]:
    yield f"program {program.name} on {program.cores} core(s)"
    for b in program.buffers:
        copies = f" parts={b.parts} slots={b.slots}" if b.parts * b.slots > 1 else ""
        yield f"  {b.memory.value} {b.name}: {b.dtype}{list(b.shape)} {b.role.value}{copies}"
    yield from _body(program.body, "  ")


def _body(body: tuple[Node, ...], indent: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, Loop):
            yield f"{indent}for i{node.id} in 0..{node.trip}:"
            yield from _body(node.body, indent + "  ")
        elif isinstance(node, Fresh):
            yield f"{indent}fresh {node.buffer.name}"
        elif isinstance(node, Take):
            yield f"{indent}{node.buffer.name} takes {', '.join(b.name for b in node.of)}"
        else:
            yield indent + _instruction(node)


def _instruction(i: Instruction) -> str:
    names = (name.rstrip("?") for name in OPCODES[i.opcode].reads)
    reads = [f"{name}={_access(a)}" for name, a in zip(names, i.reads, strict=False)]
    attributes = [f"{key}={value}" for key, value in i.attributes.items()]
    waits = [f"wait({w.semaphore}>={w.value})" for w in i.waits]
    signals = [f"signal({s})" for s in i.signals]
    queue = [f"queue={i.queue!r}"] if i.queue else []
    writes = ", ".join(_access(a) for a in i.writes)
    arguments = ", ".join(reads + attributes + queue + waits + signals)
    return f"{i.engine.value:<6} {writes} = {i.opcode}({arguments})"


def _access(a: Access) -> str:
    part = f"#{a.part}" if a.buffer.parts > 1 else ""
    part += f"~{a.age}" if a.age else ""
    free = ",".join(f"{count}" if s == 1 else f"{count}:{s}" for s, count in a.pattern[1:])
    return f"{a.buffer.name}{part}+{a.offset}[{a.partitions}P, {free or 1}F]"
