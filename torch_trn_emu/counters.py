"""The hardware counters: the vendor's names, units and formulas, one row each. Add one as a row.

A `fold` counter is taken once from a scheduled Program and multiplied by its launches; a `clock`
counter is read from the simulated clocks of the cores that launched it; a `derive` counter is
computed from the others when read. Engines never write counters.

Bytes, flops and counts are those of all cores of the program; times are one core's, since the
cores of a program run alike. Percentages are 0 to 100.

Sources
  [profile]  Neuron SDK, tools/neuron-explorer (summary keys, profile schema 7.4.0)
  [isa]      Neuron SDK v2.26.1, nki.isa (float32 as two passes in the profile)
  ours       this project: not a key of the vendor's profiler
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import ceil, prod
from types import MappingProxyType

from .chip import Chip
from .engines import clock_hz, cycles
from .engines.dma import accessed_bytes
from .engines.tensor import passes_of, x4_of
from .isa import Engine, Instruction, Memory, Role, itemsize
from .timing import Retired, Run

__all__ = [
    "COUNTERS",
    "OURS",
    "Clock",
    "Counter",
    "Totals",
    "Unit",
    "clocked",
    "combine",
    "counters",
    "derive",
    "fold",
    "unit_of",
]

OURS = "ours"

Totals = Mapping[str, float]


class Unit(str, Enum):
    SECONDS = "s"
    CYCLES = "cycles"
    COUNT = "count"
    BYTES = "B"
    FLOPS = "flop"
    FLOPS_PER_BYTE = "flop/B"
    PERCENT = "%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What the simulated clocks of some cores counted, in simulated seconds."""

    launches: int
    dispatch_s: float
    busy_s: float
    idle_s: float
    collectives: int = 0
    collective_s: float = 0.0
    exposed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Counter:
    """One row: exactly one of `fold`, `derive` and `clock`.

    `how` combines launches: "sum" or "max". `source` is a tag of this file's sources.
    """

    name: str
    unit: Unit
    doc: str
    fold: Callable[[Run], float] | None = None
    derive: Callable[[Totals, Chip, int], float] | None = None
    clock: Callable[[Clock], float] | None = None
    how: str = "sum"
    source: str = "profile"

    @property
    def kind(self) -> str:
        """How a value comes about: "folded", "derived" or "clock"."""
        return "derived" if self.derive else "clock" if self.clock else "folded"


# --- what a fold adds up -------------------------------------------------------------------------

Selection = Callable[[Instruction], float]


def _sum(weight: Selection) -> Callable[[Run], float]:
    """Over all cores, `weight` of every instruction executed."""
    return lambda run: sum(
        r.count * weight(r.instruction) * (r.instruction.cores or run.program.cores)
        for r in run.retired
        if r.count
    )


def _time(pick: Callable[[Retired], float]) -> Callable[[Run], float]:
    """On one core, `pick` of every Retired."""
    return lambda run: sum(pick(r) for r in run.retired)


def _moved(side: str, memory: Memory, *, dma: bool | None = None) -> Selection:
    """Bytes an instruction reads from or writes to a memory."""

    def weight(i: Instruction) -> float:
        if dma is not None and (i.engine is Engine.DMA) != dma:
            return 0.0
        accesses = i.reads if side == "read" else i.writes
        return sum(accessed_bytes(i, a) for a in accesses if a.memory is memory)

    return weight


def _written(i: Instruction) -> float:
    return sum(accessed_bytes(i, a) for a in i.writes)


def _role(side: str, role: Role) -> Selection:
    """Bytes a DMA moves from or to HBM tensors of a role."""

    def weight(i: Instruction) -> float:
        if i.engine is not Engine.DMA:
            return 0.0
        accesses = i.reads[:1] if side == "read" else i.writes
        return sum(
            accessed_bytes(i, a)
            for a in accesses
            if a.buffer.role is role and a.memory is Memory.HBM
        )

    return weight


def _is_matmul(i: Instruction) -> bool:
    return i.opcode.startswith("nc_matmul")


def _is_array_transpose(i: Instruction) -> bool:
    return i.opcode == "nc_transpose" and i.engine is Engine.TENSOR


def _profile_passes(i: Instruction) -> int:
    """float32 shows as two instructions, FP32_LO_HI. [isa]"""
    return 2 if i.reads[0].buffer.dtype == "float32" else 1


def _profile_instructions(i: Instruction) -> int:
    return _profile_passes(i) if _is_matmul(i) else 1


def matmul_flops(i: Instruction) -> float:
    """2 x rows x columns x moving of a matmul, twice for float32; the same for a transpose."""
    if _is_matmul(i):
        stationary, moving = i.reads[:2]
        x4 = x4_of(i)
        rows = stationary.partitions * (x4 if stationary.free % x4 == 0 else 1)
        flops = 2.0 * rows * (stationary.free // x4) * (moving.free // x4)
    elif _is_array_transpose(i):
        data = i.reads[0]
        flops = 2.0 * data.partitions * data.free * data.partitions
    else:
        return 0.0
    return flops * _profile_passes(i)


# [profile] weights of adjusted flops; float32 has its two passes in hardware_flops already.
def adjustment(i: Instruction, chip: Chip) -> float:
    """Array time per hardware flop, bfloat16 being 1, as the profile weighs it."""
    dtype = i.reads[0].buffer.dtype
    if i.opcode == "nc_matmul_mx":
        return passes_of(i, chip) / x4_of(i)
    if dtype.startswith("float8"):
        return 1.0 if chip.nc_version == 2 else 0.5
    return {"float32": 4.0, "uint8": 0.5}.get(dtype, 1.0)


def _flops(run: Run, *, transposes: bool, weigh: str = "") -> float:
    def weight(i: Instruction) -> float:
        if transposes and not _is_array_transpose(i):
            return 0.0
        flops = matmul_flops(i)
        if not flops or not weigh:
            return flops
        factor = adjustment(i, run.chip)
        return flops * (min(1.0, factor) if weigh == "narrow" else factor)

    return _sum(weight)(run)


_STATIC = ("dma_copy", "dma_transpose")
_INDIRECT = ("dma_gather", "dma_scatter", "dma_scatter_add")


def _dma(
    opcodes: tuple[str, ...] = (*_STATIC, *_INDIRECT),
    *,
    nbytes: bool = False,
) -> Callable[[Run], float]:
    return _sum(lambda i: (_written(i) if nbytes else 1.0) if i.opcode in opcodes else 0.0)


def _sizes(*roles: Role) -> Callable[[Run], float]:
    """Bytes of the HBM tensors of the roles."""
    return lambda run: (
        run.programs
        * run.program.cores
        * sum(
            prod(b.shape) * itemsize(b.dtype)
            for b in run.program.buffers
            if b.memory is Memory.HBM and b.role in roles
        )
    )


def _high_water(memory: Memory) -> Callable[[Run], float]:
    """Bytes that a program reserves of one core's memory: its tiles in all partitions."""

    def most(run: Run) -> float:
        spec = run.chip.sbuf if memory is Memory.SBUF else run.chip.psum
        tiles = (b.bytes_per_partition for b in run.program.buffers if b.memory is memory)
        return float(sum(tiles) * spec.partitions)

    return most


def _evacuates(i: Instruction) -> bool:
    return any(a.buffer.memory is Memory.PSUM for a in i.reads) and any(
        a.buffer.memory is Memory.SBUF for a in i.writes
    )


# --- what is derived -----------------------------------------------------------------------------


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _share(name: str) -> Callable[[Totals, Chip, int], float]:
    """Percent of total_time."""
    return lambda t, chip, cores: 100.0 * _ratio(t[name], t["total_time"])


def _hbm_bytes(t: Totals) -> float:
    return t["hbm_read_bytes"] + t["hbm_write_bytes"]


def _stack_bytes_per_s(chip: Chip, cores: int) -> float:
    per_stack = chip.physical_cores // chip.hbm.stacks
    return chip.hbm.bandwidth_bytes_per_s / chip.hbm.stacks * ceil(cores / per_stack)


def _ridge(t: Totals, chip: Chip, cores: int) -> float:
    return cores * chip.peak_flops("bfloat16") / _stack_bytes_per_s(chip, cores)


def _intensity(t: Totals, chip: Chip, cores: int) -> float:
    return _ratio(t["hardware_flops"] - t["transpose_flops"], _hbm_bytes(t))


def _narrow(t: Totals) -> float:
    """Array time of a flop: 1 for bfloat16, less for formats that run faster."""
    return _ratio(t["array_flops"], t["hardware_flops"]) or 1.0


def _utilization(flops: Callable[[Totals], float]) -> Callable[[Totals, Chip, int], float]:
    return lambda t, chip, cores: (
        100.0 * _ratio(flops(t), cores * chip.peak_flops("bfloat16") * t["total_time"])
    )


_mfu = _utilization(lambda t: t["model_flops"] * _narrow(t))


def _mbu(t: Totals, chip: Chip, cores: int) -> float:
    return 100.0 * _ratio(_hbm_bytes(t), t["total_time"] * _stack_bytes_per_s(chip, cores))


def _engine_rows(engine: Engine) -> tuple[Counter, ...]:
    name = f"{engine.value}_engine"
    label = name.replace("_", " ")

    def mine(r: Retired) -> bool:
        return r.instruction.engine is engine

    return (
        Counter(f"{name}_instruction_time", Unit.SECONDS, f"Time of the {label}, including waits.",
                _time(lambda r: (r.busy_s + r.wait_s) * mine(r))),
        Counter(f"{name}_active_time", Unit.SECONDS, f"Active time of the {label}, without waits.",
                _time(lambda r: r.busy_s * mine(r))),
        Counter(f"{name}_active_time_percent", Unit.PERCENT, f"Share of total_time, {label}.",
                derive=_share(f"{name}_active_time")),
        Counter(f"{name}_instruction_count", Unit.COUNT, f"Instructions of the {label}.",
                _sum(lambda i: _profile_instructions(i) * (i.engine is engine))),
    )  # fmt: skip


def _throttled(run: Run) -> float:
    """Seconds that the Tensor engine took longer than at full duty."""
    clock = clock_hz(Engine.TENSOR, run.chip)
    full = sum(
        r.count * round(cycles(r.instruction, run.chip) / clock * 1e12) * 1e-12
        for r in run.retired
        if r.instruction.engine is Engine.TENSOR
    )
    return max(0.0, run.engine_busy_s(Engine.TENSOR) - full)


S, N, B, F, PC = Unit.SECONDS, Unit.COUNT, Unit.BYTES, Unit.FLOPS, Unit.PERCENT

_TABLE = (
    # time
    Counter("total_time", S, "From start to end of the program on the core.",
            lambda run: run.total_s),
    Counter("total_exec_time", S, "From the first to the last instruction.",
            lambda run: run.total_s - run.chip.launch.kernel_overhead_s),
    Counter("total_active_time", S, "Time during which at least one engine was active.",
            lambda run: max(run.engine_busy_s(e) for e in Engine)),
    Counter("total_active_time_percent", PC, "Share of total_time.",
            derive=_share("total_active_time")),
    Counter("neuroncore_cycle_count", Unit.CYCLES, "total_exec_time at the core's base clock.",
            lambda run: (run.total_s - run.chip.launch.kernel_overhead_s) * run.chip.base_clock_hz),
    # flops
    Counter("model_flops", F, "2 x the multiply-adds required by the program's operations.",
            lambda run: run.programs * run.program.model_flops),
    # The key's definition counts float32 twice; the profile behind cal01 shows it counted once.
    Counter("hardware_flops", F, "2 x rows x columns x moving per matmul; float32 counts twice.",
            partial(_flops, transposes=False)),
    Counter("transpose_flops", F, "The part of hardware_flops spent on transposes.",
            partial(_flops, transposes=True)),
    Counter("adjusted_hardware_flops", F, "hardware_flops weighted by the cost of the format.",
            partial(_flops, transposes=False, weigh="adjusted")),
    Counter("adjusted_transpose_flops", F, "transpose_flops weighted by the cost of the format.",
            partial(_flops, transposes=True, weigh="adjusted")),
    Counter("array_flops", F, "hardware_flops, narrow formats by what they take: keeps hfu of"
            " float8 and MX at 100 % or less.",
            partial(_flops, transposes=False, weigh="narrow"), source=OURS),
    Counter("mm_arithmetic_intensity", Unit.FLOPS_PER_BYTE,
            "Matmul flops per byte of HBM traffic.", derive=_intensity),
    Counter("peak_flops_bandwidth_ratio", Unit.FLOPS_PER_BYTE,
            "Intensity above which the array is the limit.", derive=_ridge),
    Counter("mfu_estimated_percent", PC, "model_flops relative to the array's peak.", derive=_mfu),
    Counter("mfu_hlo_estimated_percent", PC, "The same: here the operations are the model.",
            derive=_mfu),
    Counter("mfu_inst_estimated_percent", PC, "Matmul flops, no transposes, relative to the peak.",
            derive=_utilization(lambda t: (t["hardware_flops"] - t["transpose_flops"])
                                * _narrow(t))),
    Counter("hfu_estimated_percent", PC, "Matmul flops relative to the peak; float32: at most 50.",
            derive=_utilization(lambda t: t["array_flops"])),
    Counter("mfu_max_achievable_estimated_percent", PC, "Upper bound given by the roofline.",
            derive=lambda t, chip, cores: 100.0 * min(
                1.0, _intensity(t, chip, cores) / _ridge(t, chip, cores))),
    # HBM
    Counter("hbm_read_bytes", B, "DMA from HBM.",
            _sum(_moved("read", Memory.HBM))),
    Counter("hbm_write_bytes", B, "DMA to HBM.",
            _sum(_moved("write", Memory.HBM))),
    Counter("mbu_estimated_percent", PC, "HBM traffic relative to the bandwidth of the stack.",
            derive=_mbu),
    Counter("mbu_min_read_util_percent", PC, "Minimum of HBM reads relative to the bandwidth.",
            derive=lambda t, chip, cores: 100.0 * _ratio(
                t["inputs_and_weights_size_bytes"],
                t["total_time"] * _stack_bytes_per_s(chip, cores))),
    # on chip
    Counter("sbuf_read_bytes", B, "Read from SBUF, by engines and DMA.",
            _sum(_moved("read", Memory.SBUF))),
    Counter("sbuf_write_bytes", B, "Written to SBUF, by engines and DMA.",
            _sum(_moved("write", Memory.SBUF))),
    Counter("psum_read_bytes", B, "Read from PSUM.", _sum(_moved("read", Memory.PSUM))),
    Counter("psum_write_bytes", B, "Written to PSUM.", _sum(_moved("write", Memory.PSUM))),
    Counter("psum_read_sbuf_write_count", N, "Instructions that move PSUM to SBUF.",
            _sum(lambda i: float(_evacuates(i)))),
    Counter("psum_read_sbuf_write_bytes", B, "Bytes they write.",
            _sum(lambda i: _written(i) * _evacuates(i))),
    Counter("sbuf_high_water_bytes", B, "SBUF of one core reserved by a program.",
            _high_water(Memory.SBUF), how="max", source=OURS),
    Counter("psum_high_water_bytes", B, "PSUM of one core reserved by a program.",
            _high_water(Memory.PSUM), how="max", source=OURS),
    # queues
    Counter("spill_save_bytes", B, "SBUF spilled to HBM.", _sum(_role("write", Role.SPILL))),
    Counter("spill_reload_bytes", B, "Spills read back.", _sum(_role("read", Role.SPILL))),
    Counter("input_queue_bytes", B, "DMA of the inputs.", _sum(_role("read", Role.INPUT))),
    Counter("output_queue_bytes", B, "DMA of the outputs.", _sum(_role("write", Role.OUTPUT))),
    Counter("weight_queue_bytes", B, "DMA of the weights.", _sum(_role("read", Role.WEIGHT))),
    Counter("weight_size_bytes", B, "Size of the weights.", _sizes(Role.WEIGHT)),
    Counter("inputs_and_weights_size_bytes", B, "Size of inputs and weights.",
            _sizes(Role.INPUT, Role.WEIGHT)),
    # DMA
    Counter("dma_active_time", S, "The busiest DMA engine was moving data.",
            lambda run: run.engine_busy_s(Engine.DMA)),
    Counter("dma_active_time_percent", PC, "Share of total_time.",
            derive=_share("dma_active_time")),
    Counter("dma_active_cycles", Unit.CYCLES, "dma_active_time at the core's base clock.",
            lambda run: run.engine_busy_s(Engine.DMA) * run.chip.base_clock_hz),
    Counter("dma_packet_time", S, "Sum over the DMA engines; can exceed total_time.",
            lambda run: sum(run.dma_engine_busy_s)),
    Counter("dma_transfer_count", N, "DMA instructions.", _dma()),
    Counter("dma_transfer_time", S, "Sum over the transfers, from trigger to last byte.",
            _time(lambda r: r.span_s * (r.instruction.engine is Engine.DMA))),
    Counter("dma_transfer_total_bytes", B, "Bytes moved by DMA.", _dma(nbytes=True)),
    Counter("dma_transfer_average_bytes", B, "Bytes per transfer; aim for at least 32 KiB.",
            derive=lambda t, chip, cores: _ratio(
                t["dma_transfer_total_bytes"], t["dma_transfer_count"])),
    Counter("dma_queue_count", N, "DMA queues in use.",
            lambda run: len({r.instruction.queue for r in run.retired
                             if r.instruction.engine is Engine.DMA}), how="max"),
    Counter("static_dma_transfer_count", N, "Transfers with descriptors written at compile time.",
            _dma(_STATIC)),
    Counter("static_dma_transfer_total_bytes", B, "Their bytes.", _dma(_STATIC, nbytes=True)),
    Counter("software_dynamic_dma_transfer_count", N, "Transfers with data-dependent addresses.",
            _dma(_INDIRECT)),
    Counter("software_dynamic_dma_transfer_total_bytes", B, "Their bytes.",
            _dma(_INDIRECT, nbytes=True)),
    # engines
    *(row for engine in (Engine.TENSOR, Engine.VECTOR, Engine.SCALAR, Engine.GPSIMD, Engine.SYNC)
      for row in _engine_rows(engine)),
    Counter("tensor_engine_throttled_time", S, "Time that the Tensor engine lost at half rate.",
            _throttled, source=OURS),
    Counter("throttle_avg_util_limit", PC, "Average rate of the Tensor engine while active.",
            derive=lambda t, chip, cores: 100.0 * (1.0 - _ratio(
                t["tensor_engine_throttled_time"], t["tensor_engine_active_time"]))),
    Counter("matmul_instruction_count", N, "Matmul instructions; float32 counts as two.",
            _sum(lambda i: float(_is_matmul(i) and _profile_passes(i)))),
    Counter("activate_instruction_count", N, "Activation instructions.",
            _sum(lambda i: float(i.opcode in ("activation", "activation_reduce")))),
    Counter("activate_instruction_time", S, "Time in activation instructions and table loads.",
            _time(lambda r: r.busy_s * r.instruction.opcode.startswith("activation"))),
    Counter("activation_table_load_count", N, "Activation tables loaded.",
            lambda run: float(run.table_loads * run.program.cores), source=OURS),
    Counter("event_count", N, "Instructions retired.", _sum(lambda i: 1.0)),
    # the simulated clock
    Counter("launch_count", N, "Launches; free operators are not counted.",
            clock=lambda c: c.launches, source=OURS),
    Counter("host_dispatch_time", S, "Time the host spent dispatching launches.",
            clock=lambda c: c.dispatch_s, source=OURS),
    Counter("core_busy_time", S, "Time during which programs ran on the core.",
            clock=lambda c: c.busy_s, source=OURS),
    Counter("core_idle_time", S, "Time during which the core waited for the host.",
            clock=lambda c: c.idle_s, source=OURS),
    # collectives
    Counter("cc_op_count", N, "Collectives and messages of the rank.",
            clock=lambda c: c.collectives),
    Counter("cc_op_active_time", S, "Their time, from the last rank's arrival to the end.",
            clock=lambda c: c.collective_s),
    Counter("cc_exposed_time", S, "The part of it during which work waited and the core was idle.",
            clock=lambda c: c.exposed_s, source=OURS),
)  # fmt: skip

COUNTERS = MappingProxyType({row.name: row for row in _TABLE})


def unit_of(name: str) -> str:
    """The unit of a counter as text, for example "B"; "" for one of another version's record."""
    return COUNTERS[name].unit.value if name in COUNTERS else ""


def clocked(clock: Clock) -> dict[str, float]:
    """The counters that are read from a clock."""
    return {row.name: float(row.clock(clock)) for row in _TABLE if row.clock is not None}


def fold(run: Run) -> dict[str, float]:
    """The folded counters of one launch of a Program."""
    return {row.name: float(row.fold(run)) for row in _TABLE if row.fold is not None}


def combine(parts: Iterable[tuple[Totals, int]]) -> dict[str, float]:
    """The folded counters of several programs, each with its launches, one after the other."""
    out = {row.name: 0.0 for row in _TABLE if row.fold is not None}
    for totals, launches in parts:
        for name in out:
            if COUNTERS[name].how == "max":
                out[name] = max(out[name], totals[name])
            else:
                out[name] += launches * totals[name]
    return out


def derive(totals: Totals, chip: Chip, cores: int) -> dict[str, float]:
    """In table order the counters given, folded and clocked, and what follows from them.

    A program alone has no clock: without `clocked` among the totals, those rows are left out.
    """
    return {
        row.name: totals[row.name] if row.derive is None else row.derive(totals, chip, cores)
        for row in _TABLE
        if row.clock is None or row.name in totals
    }


def counters(run: Run) -> dict[str, float]:
    """All counters of one launch of a Program, without those of a clock."""
    return derive(fold(run), run.chip, run.program.cores)
