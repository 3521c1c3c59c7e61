"""A Program as an array of integers, with all costs as picoseconds: what the scheduler reads.

The layout, one int64 each (csrc/timing/program.cpp reads it in this order):

  header        encoding, queues, loops, buffers, instructions, nodes,
                semaphore, dma_issue, dma_start, dma_completion, table_load, dma_engines,
                warm_up
  a buffer      parts, slots, ordered, memory (0 HBM, 1 SBUF, 2 PSUM), bytes per partition
  an instruction  queue, busy, latency, table, ports, engines, engine_busy, hbm_busy, accesses,
                then per access: write, buffer, part, age, terms, then per term: loop, coefficient
  a node        kind (0 loop, 1 instruction, 2 fresh, 3 take), index, trip, length of the body in
                nodes; of a take the buffer, one that it takes, 0

Instructions that differ only in where in their buffers they read and write cost the same and wait
for the same: they are one, which stands at several nodes.
"""

from array import array
from dataclasses import dataclass

from ..chip import Chip
from ..engines import clock_hz, cycles, table_of, transfer
from ..engines.vector import performance_mode
from ..isa import Access, Buffer, Engine, Fresh, Instruction, Loop, Memory, Node, Program, Take

__all__ = ["Encoded", "encode"]

ENCODING = 4
_ENGINES = (Engine.TENSOR, Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD, Engine.SYNC)
_MEMORIES = {Memory.HBM: 0, Memory.SBUF: 1, Memory.PSUM: 2}
_TABLES: dict[str, int] = {"": 0}  # one numbering: the programs of a graph share what is loaded
_VECTOR_GPSIMD_SBUF, _VECTOR_SCALAR_PSUM = 1, 2  # bits of the ports


@dataclass(frozen=True, slots=True)
class Encoded:
    """The array, and what its indices stand for: of instructions that are alike, the first."""

    words: "array[int]"
    instructions: tuple[Instruction, ...]
    queues: tuple[str, ...]


def picoseconds(seconds: float) -> int:
    """Whole picoseconds, the tick of the scheduler."""
    return round(seconds * 1e12)


def encode(program: Program, chip: Chip) -> Encoded:
    """`program` with the costs it has on `chip`."""
    return _Encoder(program, chip).encode()


class _Encoder:
    def __init__(self, program: Program, chip: Chip) -> None:
        self.program, self.chip = program, chip
        self.buffers = {id(b): k for k, b in enumerate(program.buffers)}
        self.loops = {loop: k for k, loop in enumerate(program.loops())}
        self.queues = {engine.value: k for k, engine in enumerate(_ENGINES)}
        self.instructions: list[Instruction] = []
        self.numbers: dict[tuple[object, ...], int] = {}
        self.rows: list[int] = []
        self.nodes: list[int] = []

    def encode(self) -> Encoded:
        self._body(self.program.body)
        dma, launch = self.chip.dma, self.chip.launch
        header = [
            ENCODING,
            len(self.queues),
            len(self.loops),
            len(self.buffers),
            len(self.instructions),
            len(self.nodes) // 4,
            picoseconds(launch.semaphore_latency_s),
            picoseconds(dma.issue_interval_s),
            picoseconds(dma.start_latency_s),
            picoseconds(dma.completion_latency_s),
            picoseconds(launch.activation_table_load_s),
            dma.engines,
            picoseconds(self.chip.tensor_engine.warm_up_s),
        ]
        buffers = [word for b in self.program.buffers for word in _buffer(b)]
        words = array("q", header + buffers + self.rows + self.nodes)
        return Encoded(words, tuple(self.instructions), tuple(self.queues))

    def _body(self, body: tuple[Node, ...]) -> None:
        for node in body:
            if isinstance(node, Loop):
                at = len(self.nodes)
                self.nodes += [0, self.loops[node.id], node.trip, 0]
                self._body(node.body)
                self.nodes[at + 3] = (len(self.nodes) - at) // 4 - 1
            elif isinstance(node, Fresh):
                self.nodes += [2, self.buffers[id(node.buffer)], 0, 0]
            elif isinstance(node, Take):
                for taken in node.of:
                    self.nodes += [3, self.buffers[id(node.buffer)], self.buffers[id(taken)], 0]
            else:
                self.nodes += [1, self._number(node), 0, 0]

    def _number(self, i: Instruction) -> int:
        """That of the first one like it."""
        accesses = [(id(a.buffer), a.pattern, a.part.const, a.part.terms, a.age, a.residence)
                    for tensors in (i.reads, i.writes) for a in tensors]  # fmt: skip
        attributes = tuple(i.attributes.items())
        kind = (i.opcode, i.engine, i.queue, i.cores, attributes, *accesses)
        known = self.numbers.get(kind)
        if known is None:
            known = self.numbers[kind] = len(self.instructions)
            self._instruction(i)
        return known

    def _instruction(self, i: Instruction) -> None:
        self.instructions.append(i)
        name = f"dma {i.queue}" if i.engine is Engine.DMA else i.engine.value
        queue = self.queues.setdefault(name, len(self.queues))
        busy = latency = table = ports = engines = engine_busy = hbm_busy = 0
        if i.engine is Engine.DMA:
            demand = transfer(i, self.chip, i.cores or self.program.cores)
            engines = demand.engines
            engine_busy, hbm_busy = picoseconds(demand.engine_s), picoseconds(demand.hbm_s)
        else:
            clock = clock_hz(i.engine, self.chip)
            busy = picoseconds(cycles(i, self.chip) / clock)
            latency = picoseconds(_latency_cycles(i.engine, self.chip) / clock)
            ports = self._ports(i)
            if i.engine is Engine.SCALAR:
                table = _TABLES.setdefault(table_of(i), len(_TABLES))
        accesses = [(0, a) for a in i.reads] + [(1, a) for a in i.writes]
        self.rows += [queue, busy, latency, table, ports, engines, engine_busy, hbm_busy]
        self.rows.append(len(accesses))
        for write, access in accesses:
            self._access(write, access)

    def _access(self, write: int, a: Access) -> None:
        self.rows += [write, self.buffers[id(a.buffer)], a.part.const, a.age]
        self.rows.append(len(a.part.terms))
        for loop, coefficient in a.part.terms:
            self.rows += [self.loops[loop], coefficient]

    def _ports(self, i: Instruction) -> int:
        """Ports the instruction holds while it runs. [guide] in chips.py

        NC-v2: Vector and GpSimd take turns in SBUF, Vector and Scalar in PSUM. Later: the Vector
        engine in a 2x or 4x mode shares a bus with GpSimd.
        """
        memories = {a.buffer.memory for a in (*i.reads, *i.writes)}
        ports = 0
        always = self.chip.vector_gpsimd_share_sbuf_port
        vector = i.engine is Engine.VECTOR and (always or performance_mode(i, self.chip) > 1)
        if Memory.SBUF in memories and (vector or i.engine is Engine.GPSIMD):
            ports |= _VECTOR_GPSIMD_SBUF
        if self.chip.vector_scalar_share_psum_port and Memory.PSUM in memories:
            ports |= _VECTOR_SCALAR_PSUM * (i.engine in (Engine.VECTOR, Engine.SCALAR))
        return ports


def _buffer(b: Buffer) -> tuple[int, ...]:
    on_chip = b.memory is not Memory.HBM
    nbytes = b.bytes_per_partition if on_chip else 0
    return b.parts, b.slots, int(on_chip or b.ordered), _MEMORIES[b.memory], nbytes


def _latency_cycles(engine: Engine, chip: Chip) -> float:
    return {
        Engine.TENSOR: chip.tensor_engine.pipeline_latency_cycles,
        Engine.VECTOR: chip.vector_engine.pipeline_latency_cycles,
        Engine.SCALAR: chip.scalar_engine.pipeline_latency_cycles,
        Engine.GPSIMD: chip.gpsimd_engine.pipeline_latency_cycles,
    }.get(engine, 0.0)
