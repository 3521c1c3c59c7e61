"""Steps of a row program shared out between the Vector and the Scalar engine.

Some steps can run on either; a choice is kept if it shortens what the busier engine does. An
exponential runs on the Vector engine where the chip has the instruction [guide].

Source: [guide] Neuron SDK, nki/guides/architecture/trainium3_arch (exponential, tensor_scalar on
the Scalar engine). Tiles are taken to be float32 in SBUF, and long.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations

from ...chip import Chip
from ...engines import clock_hz, cycles
from ...isa import OPCODES, Builder, Engine
from ..limits import P
from .fuse import bias_of
from .values import JOINED, Kind, RowStep, step

__all__ = ["GAIN", "busiest_s", "shared_out"]

LONG = 4096  # elements a partition, beside which fixed costs vanish (chosen)
GAIN = 0.01  # chosen: the share of the busier engine's time that a choice saves at least

_Move = tuple[int, int, float, float]  # step, choice, what it adds to Vector and to Scalar
Load = tuple[float, float]  # seconds that an element of a tile takes on Vector and on Scalar


def shared_out(steps: Sequence[RowStep], chip: Chip) -> list[RowStep]:
    """The steps, each where the busier of the two engines has the least to do."""
    steps = [_without_table(s) for s in steps]
    known = {s.name: s for s in steps}
    choices = [list(_choices(s, known, chip)) for s in steps]
    loads = [[_load_in(s, known, chip) for s in c] for c in choices]
    chosen = [c[k] for c, k in zip(choices, _balanced(loads), strict=True)]
    read = {name for s in chosen for name in s.reads}
    biases = {bias for s in steps if (bias := bias_of(s)) not in read}
    return [s for s in chosen if s.name not in biases]


def busiest_s(steps: Sequence[RowStep], chip: Chip) -> float:
    """Seconds that an element of a tile takes on the engine with the most to do."""
    known = {s.name: s for s in steps}
    loads = [_load_in(s, known, chip) for s in steps]
    return max(sum(load[engine] for load in loads) for engine in (0, 1))


def _without_table(s: RowStep) -> RowStep:
    """A reciprocal of one value a row on Vector: short, and Scalar keeps its tables."""
    plain = s.opcode == "activation" and s.attributes["op"] == "reciprocal" and len(s.reads) == 1
    if s.kind is not Kind.COLUMN or not plain or s.attributes.get("scale", 1.0) != 1.0:
        return s
    return step(s.name, "reciprocal", *s.reads, kind=Kind.COLUMN)


def _is_added_up(s: RowStep, known: Mapping[str, RowStep]) -> bool:
    """Whether a step is done by the instruction that makes what it reads."""
    made = known.get(s.reads[0])
    return made is not None and s.is_sum_of(made)


def _choices(s: RowStep, known: Mapping[str, RowStep], chip: Chip) -> Iterator[RowStep]:
    """The step, and others that do the same on the other engine."""
    yield s
    if s.kind is not Kind.FULL or s.dtype:
        return
    if s.opcode == "activation" and chip.vector_engine.exponential_per_lane_cycle:
        operands = _exponent(s, known)
        if operands:
            yield step(s.name, "exponential", *operands)
    elif s.opcode == JOINED:
        yield replace(s, engine=Engine.SCALAR)
    elif s.opcode == "tensor_scalar" and s.on_vector:
        if chip.scalar_engine.runs_tensor_scalar:
            yield step(s.name, s.opcode, *s.reads, engine=Engine.SCALAR, **s.attributes)
        elif set(s.attributes) == {"op0", "imm0"} and s.attributes["op0"] == "multiply":
            yield step(s.name, "activation", *s.reads, op="copy", scale=s.attributes["imm0"])


def _exponent(s: RowStep, known: Mapping[str, RowStep]) -> tuple[str, ...]:
    """What `exponential` reads to do an activation: exp(x), or exp(x - c) with c one a row."""
    if s.attributes["op"] != "exp" or s.attributes.get("scale", 1.0) != 1.0:
        return ()
    if len(s.reads) == 1:
        return s.reads
    bias = known.get(s.reads[1])
    return (s.reads[0], bias.reads[0]) if bias and bias.name == bias_of(s) else ()


def _load_in(s: RowStep, known: Mapping[str, RowStep], chip: Chip) -> Load:
    return (0.0, 0.0) if s.reads and _is_added_up(s, known) else _load(s, chip)


def _load(s: RowStep, chip: Chip) -> Load:
    opcode, attributes = s.opcode, dict(s.attributes)
    if opcode == "column_sum":
        opcode, attributes = "tensor_tensor", {"op": "add"}
    if opcode == JOINED:
        on_scalar = s.engine is Engine.SCALAR
        opcode, attributes = ("activation", {"op": "copy"}) if on_scalar else ("tensor_copy", {})
    if opcode not in OPCODES or not (s.reduces or s.kind is not Kind.COLUMN):
        return 0.0, 0.0
    b = Builder("one instruction")
    tile = b.sbuf("tile", LONG, "float32").rows(P, LONG)
    reads = [tile] * (len(s.reads) if s.opcode == opcode else len(OPCODES[opcode].reads))
    one = b.emit(opcode, tile, *reads, engine=s.engine, **attributes)
    seconds = cycles(one, chip) / clock_hz(one.engine, chip) / LONG
    return seconds * (one.engine is Engine.VECTOR), seconds * (one.engine is Engine.SCALAR)


def _balanced(loads: Sequence[Sequence[Load]]) -> list[int]:
    """Which choice of each, so that the greater sum is small: one or two changed at a time."""
    chosen = [0] * len(loads)
    vector, scalar = (sum(given[0][e] for given in loads) for e in (0, 1))
    while True:
        moves = [
            (k, c, v - loads[k][chosen[k]][0], s - loads[k][chosen[k]][1])
            for k, given in enumerate(loads)
            for c, (v, s) in enumerate(given)
            if c != chosen[k]
        ]
        best: tuple[_Move, ...] = ()
        least = max(vector, scalar) * (1 - GAIN)
        for some in chain(combinations(moves, 1), combinations(moves, 2)):
            after = max(vector + sum(m[2] for m in some), scalar + sum(m[3] for m in some))
            if after < least and len({m[0] for m in some}) == len(some):
                best, least = some, after
        if not best:
            return chosen
        for k, c, v, s in best:
            chosen[k], vector, scalar = c, vector + v, scalar + s
