"""Checks a Program against a chip: capacity, tiles, banks, partitions, dtypes. Add a rule as a row.

A rule takes one instruction and the chip and yields complaints; `validate` raises the first.

Sources
  [isa]    Neuron SDK 2.32, nki/api/nki/isa
  [guide]  Neuron SDK, nki/guides/architecture
"""

from collections.abc import Callable, Iterator, Mapping

from ..chip import Chip
from ..errors import ChipLimit, EmulatorBug
from .opcodes import OPCODES
from .program import Access, Engine, Instruction, Memory, Program, itemsize

__all__ = ["fits", "validate"]

Complaints = Iterator[str]
_FLOAT32_LIKE = {"float32", "tfloat32"}
_QUADRANT = 32


def validate(program: Program, chip: Chip) -> None:
    """Raise ChipLimit if `program` asks for more than `chip` has, EmulatorBug if malformed."""
    trips = program.loops()
    for text in _capacity(program, chip):
        raise ChipLimit(text)
    for instruction in program.instructions():
        _well_formed(instruction)
        for access in (*instruction.reads, *instruction.writes):
            _in_bounds(instruction, access, trips)
        for rule in _RULES:
            for text in rule(instruction, chip):
                raise ChipLimit(f"{instruction.opcode}: {text}")


def fits(program: Program, chip: Chip) -> bool:
    """Whether a partition of SBUF and one of PSUM hold the buffers of `program`."""
    return all(
        _used(program, memory) <= spec.usable_bytes_per_partition
        for memory, spec in ((Memory.SBUF, chip.sbuf), (Memory.PSUM, chip.psum))
    )


def _used(program: Program, memory: Memory) -> int:
    """Bytes of a partition."""
    buffers = [b for b in program.buffers if b.memory is memory]
    ends = [b.address + b.bytes_per_partition for b in buffers if b.address >= 0]
    return max(ends, default=0) + sum(b.bytes_per_partition for b in buffers if b.address < 0)


def _capacity(program: Program, chip: Chip) -> Complaints:
    for memory, spec in ((Memory.SBUF, chip.sbuf), (Memory.PSUM, chip.psum)):
        buffers = [b for b in program.buffers if b.memory is memory]
        used = _used(program, memory)
        if used > spec.usable_bytes_per_partition:
            largest = max(buffers, key=lambda b: b.bytes_per_partition)
            yield (
                f"{program.name}: {used} bytes of {memory.value} per partition exceed "
                f"{spec.usable_bytes_per_partition} ({chip.name}, chips.py). "
                f"Make {largest.name} smaller ({largest.bytes_per_partition} bytes)."
            )
        for b in buffers:
            if b.shape[0] > spec.partitions:
                yield (
                    f"{b.name}: {b.shape[0]} partitions exceed {spec.partitions} "
                    f"({chip.name}, chips.py). Split the tile along its partition dimension."
                )
    hbm = sum(
        b.parts * b.elements * itemsize(b.dtype) for b in program.buffers if b.memory is Memory.HBM
    )
    available = chip.hbm.capacity_bytes // chip.physical_cores * max(chip.lnc_choices)
    if hbm > available:
        yield (
            f"{program.name}: tensors of {hbm:.0f} bytes exceed the {available} bytes of HBM of "
            f"a logical core ({chip.name}, chips.py). Split the tensors over more cores."
        )


def _well_formed(i: Instruction) -> None:
    row = OPCODES[i.opcode]
    read = row.required_reads <= len(i.reads) <= len(row.reads)
    if not read or not row.writes <= len(i.writes) <= row.most_writes:
        raise EmulatorBug(f"{i.opcode}: {len(i.reads)} operands read, {len(i.writes)} written")
    unknown = set(i.attributes) - set(row.attributes)
    if unknown:
        raise EmulatorBug(f"{i.opcode}: no attribute {', '.join(sorted(unknown))}")


def _in_bounds(i: Instruction, a: Access, trips: Mapping[int, int]) -> None:
    low, high = a.offset.bounds(trips)
    reach = [stride * (count - 1) for stride, count in a.pattern]
    first, last = low + sum(r for r in reach if r < 0), high + sum(r for r in reach if r > 0)
    if first < 0 or last >= a.buffer.elements:
        raise ChipLimit(
            f"{i.opcode}: elements {first} to {last} of {a.buffer.name} are outside its "
            f"{a.buffer.elements} ({list(a.buffer.shape)}). Check the tile's start and size."
        )
    if not 0 <= a.age < a.buffer.slots:
        raise EmulatorBug(f"{i.opcode}: age {a.age} of {a.buffer.name}, {a.buffer.slots} slots")
    part_low, part_high = a.part.bounds(trips)
    if part_low < 0 or part_high >= a.buffer.parts:
        raise ChipLimit(
            f"{i.opcode}: part {part_high} of {a.buffer.name} is outside its {a.buffer.parts}. "
            "Give the buffer more parts."
        )


def _runs_there(i: Instruction, chip: Chip) -> Complaints:
    row = OPCODES[i.opcode]
    if i.engine not in row.engines:
        names = ", ".join(e.value for e in row.engines)
        yield f"the {i.engine.value} engine cannot run it [isa]. Use {names}."
    scales = chip.scalar_engine.runs_tensor_scalar
    if i.engine is Engine.SCALAR and i.opcode == "tensor_scalar" and not scales:
        yield f"on the Scalar engine from NC-v4, {chip.name} is NC-v{chip.nc_version} [guide]."
    if chip.nc_version < row.since:
        yield (
            f"exists from NC-v{row.since}, {chip.name} is NC-v{chip.nc_version} [isa]. "
            "Choose a later chip, or another instruction."
        )


def _dtypes(i: Instruction, chip: Chip) -> Complaints:
    if i.engine is Engine.DMA:  # moves bytes of any kind
        return
    for a in (*i.reads, *i.writes):
        if a.buffer.dtype not in chip.native_dtypes:
            yield (
                f"{a.buffer.dtype} ({a.buffer.name}) is not native to {chip.name} (chips.py). "
                "Convert it first."
            )


def _on_chip_tiles(i: Instruction, chip: Chip) -> Complaints:
    for a in (*i.reads, *i.writes):
        if a.buffer.memory is Memory.HBM:
            if i.engine is not Engine.DMA:
                yield f"{a.buffer.name} is in HBM: only DMA reaches it [guide]. Load it first."
            continue
        if a.partitions > chip.sbuf.partitions:
            yield (
                f"{a.partitions} partitions of {a.buffer.name} exceed {chip.sbuf.partitions} "
                f"({chip.name}, chips.py). Split the tile."
            )
        if len(a.pattern) > 5:
            yield f"access pattern of {a.buffer.name} has more than 4 free dimensions [guide]."
        if i.engine is not Engine.DMA:  # which writes bytes anywhere
            yield from _start_partition(a)


def _start_partition(a: Access) -> Complaints:
    """Tiles of >64 partitions start at 0, of 33..64 at 0 or 64, of <=32 at a quadrant. [guide]"""
    row = a.buffer.row_elements
    start, step = a.offset.const // row, 1
    quadrants = 4 if a.partitions > 64 else 2 if a.partitions > _QUADRANT else 1
    moving = [c // row for _, c in a.offset.terms if c % row == 0]
    step = quadrants * _QUADRANT
    if start % step or any(c % step for c in moving):
        yield (
            f"{a.partitions} partitions of {a.buffer.name} start at {start}, not at a multiple of "
            f"{step} [guide]. Move the tile."
        )


def _matmul(i: Instruction, chip: Chip) -> Complaints:
    if not i.opcode.startswith("nc_matmul"):
        return
    te, (stationary, moving), dst = chip.tensor_engine, i.reads[:2], i.writes[0]
    for name, a in (("stationary", stationary), ("moving", moving)):
        if a.buffer.memory is not Memory.SBUF:
            yield f"{name} is in {a.buffer.memory.value}, not in SBUF [isa]. Copy it there."
    if dst.buffer.memory is not Memory.PSUM:
        yield f"writes to PSUM only [isa], not {dst.buffer.memory.value}."
    pack = 4 if i.opcode == "nc_matmul_mx" else 2 if i.attributes.get("perf_mode") else 1
    if stationary.free // pack > te.stationary_free_limit:
        yield (
            f"stationary free size {stationary.free // pack} exceeds {te.stationary_free_limit}, "
            f"the columns of the array ({chip.name}, chips.py). Split it along its free dimension."
        )
    limit = te.moving_free_limit.get(dst.buffer.dtype)
    if limit is None:
        dtypes = ", ".join(te.moving_free_limit)
        yield f"{chip.name} accumulates in {dtypes}, not {dst.buffer.dtype} (chips.py)."
    elif moving.free // pack > limit:
        yield (
            f"moving free size {moving.free // pack} exceeds {limit}: PSUM takes {limit} "
            f"{dst.buffer.dtype} per partition at once ({chip.name}, chips.py). "
            "Split the moving tensor along its free dimension."
        )
    bank = chip.psum.bank_bytes_per_partition
    start = dst.offset.const % dst.buffer.row_elements * itemsize(dst.buffer.dtype)
    if chip.nc_version < 4 and start % bank + dst.free * itemsize(dst.buffer.dtype) > bank:
        yield (
            f"{dst.buffer.name} from byte {start:.0f} on crosses a PSUM bank of {bank} bytes "
            f"({chip.name}, chips.py). Start the tile at a bank."
        )
    yield from _matmul_dtypes(i, chip)


def _matmul_dtypes(i: Instruction, chip: Chip) -> Complaints:
    a, b = (x.buffer.dtype for x in i.reads[:2])
    if (a in _FLOAT32_LIKE) != (b in _FLOAT32_LIKE):
        yield f"{a} with {b}: if one operand is float32 both must be [isa]. Convert one."
    if {a, b} == {"float8_e4m3", "float8_e4m3fn"}:
        yield "float8_e4m3 and float8_e4m3fn cannot mix [isa]. Convert one."
    if i.opcode == "nc_matmul":
        for dtype in (a, b):
            if dtype not in chip.tensor_engine.macs_per_pe_cycle:
                rates = ", ".join(chip.tensor_engine.macs_per_pe_cycle)
                yield f"no datapath for {dtype} on {chip.name} (chips.py). It has {rates}."


def _transpose(i: Instruction, chip: Chip) -> Complaints:
    if i.opcode != "nc_transpose":
        return
    limit = _QUADRANT if i.engine is Engine.VECTOR else chip.tensor_engine.rows
    source = i.reads[0]
    if max(source.partitions, source.free) > limit:
        yield (
            f"[{source.partitions}P, {source.free}F] exceeds {limit} x {limit} on the "
            f"{i.engine.value} engine [isa]. Transpose in blocks."
        )
    if i.engine is Engine.TENSOR and i.writes[0].buffer.memory is not Memory.PSUM:
        yield "on the Tensor engine it writes to PSUM only [isa]."


def _psum_inputs(i: Instruction, chip: Chip) -> Complaints:
    if i.opcode == "tensor_tensor" and all(a.buffer.memory is Memory.PSUM for a in i.reads):
        yield "both inputs are in PSUM [isa]. Copy one to SBUF."


def _free_limits(i: Instruction, chip: Chip) -> Complaints:
    limit = {"bn_stats": 512, "max8": 16384, "activation_reduce": 16384}.get(i.opcode)
    if limit and i.reads[0].free > limit:
        yield f"free size {i.reads[0].free} exceeds {limit} [isa]. Split the free dimension."
    if i.opcode == "quantize_mx" and (i.reads[0].partitions % 32 or i.reads[0].free % 4):
        yield (
            f"[{i.reads[0].partitions}P, {i.reads[0].free}F]: partitions must be a multiple of 32 "
            "and the free size of 4 [isa]. Pad with zeros."
        )


def _topk(i: Instruction, chip: Chip) -> Complaints:
    if i.opcode != "topk":
        return
    data, k, n = i.reads[0], int(str(i.attributes["k"])), 16 * i.reads[0].free
    if data.buffer.dtype != "bfloat16":
        yield f"reads {data.buffer.dtype}; it takes bfloat16 only [isa]."
    if data.partitions % 16 or k % 16 or not 1 <= k <= n < 65536 or k >= 32768:
        yield (
            f"[{data.partitions}P, {data.free}F], k={k}: groups of 16 partitions of fewer than "
            "65536 elements, k below 32768 and no more than those; here k fills its 16 partitions."
        )


_RULES: tuple[Callable[[Instruction, Chip], Complaints], ...] = (
    _runs_there,
    _dtypes,
    _on_chip_tiles,
    _matmul,
    _transpose,
    _psum_inputs,
    _free_limits,
    _topk,
)
