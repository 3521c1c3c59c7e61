"""What a chip description holds. Values are in `chips.py`; add a field when a model reads it.

Floats are figures (`provenance.py`) and end in their unit. Integers are geometry, taken from the
vendor's architecture guides unless the line in `chips.py` says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ChipLimit
from .provenance import inferred

__all__ = [
    "Chip",
    "Dma",
    "ElementwiseEngine",
    "Hbm",
    "Launch",
    "OnChipMemory",
    "TensorEngine",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEngine:
    """The systolic array of one core."""

    clock_hz: float
    rows: int = 128
    cols: int = 128
    # Multiply-adds per processing element and cycle, by operand format; no key, no datapath.
    macs_per_pe_cycle: Mapping[str, float]
    min_interval_cycles: float  # of one matmul instruction, however narrow
    pipeline_latency_cycles: float  # last moving column in to result in PSUM
    stationary_columns_per_cycle: float  # how fast LoadStationary runs
    # Share of LoadStationary that the vendor compiler's code does not hide behind a multiply.
    exposed_stationary_load: float
    moving_free_limit: Mapping[str, int]  # by destination dtype, elements
    stationary_free_limit: int = 128
    # Busy for so long at half duty before it runs at full duty; idle for so long, and it starts
    # again. 0: it does not throttle.
    warm_up_s: float = inferred(0.0, "no guide of the generation names one")
    transposes_at_once: float = inferred(1.0, "in the background from NC-v4 alone [guide]")
    # Passes of the array for a transpose of float32: 4 as in a product, fewer in transpose mode.
    float32_transpose_passes: float = inferred(4.0, "the passes of a product")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseEngine:
    """The Vector, Scalar or GpSimd engine of one core: 128 lanes, one per partition."""

    clock_hz: float
    min_interval_cycles: float  # of one instruction, however short
    pipeline_latency_cycles: float  # last element in to result visible to a semaphore
    # Elements per lane and cycle in the fastest mode, for formats that have one (1 for the others).
    fast_elements_per_lane_cycle: Mapping[str, int]
    # Elements of `exponential` per lane and cycle, for formats as narrow as that; 0: it has none.
    exponential_per_lane_cycle: float = inferred(0.0, "Vector engine from NC-v4 alone [guide]")
    # 32-bit numbers of `rng`.
    random_per_lane_cycle: float = inferred(1.0, "as other instructions")
    runs_tensor_scalar: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChipMemory:
    """SBUF or PSUM of one core. A tile lies across partitions, each row in one partition."""

    partitions: int
    bytes_per_partition: int
    usable_bytes_per_partition: int
    banks: int = 1

    @property
    def capacity_bytes(self) -> int:
        return self.partitions * self.bytes_per_partition

    @property
    def bank_bytes_per_partition(self) -> int:
        return self.bytes_per_partition // self.banks


@dataclass(frozen=True, slots=True, kw_only=True)
class Hbm:
    """Device memory of the whole chip. The cores of one stack share its bandwidth."""

    capacity_bytes: int
    stacks: int
    bandwidth_bytes_per_s: float
    read_efficiency: float  # share of the bandwidth that a stream of reads gets
    write_efficiency: float  # the same for writes, bus turnaround included


@dataclass(frozen=True, slots=True, kw_only=True)
class Dma:
    """The DMA engines of one core."""

    engines: int = 16
    queues_per_engine: int = 16
    engine_bytes_per_s: float  # practical rate of one engine
    descriptor_min_s: float  # the least time one contiguous run takes on its engine
    completion_write_s: float  # what one transfer costs each of its engines beside the data
    issue_interval_s: float  # between two transfers of one queue
    start_latency_s: float  # trigger to first byte
    completion_latency_s: float  # last byte to a visible semaphore


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What it costs to start work, on the host and on the core."""

    eager_dispatch_s: float  # host time of one eager op
    graph_launch_s: float  # host time of one compiled graph
    kernel_overhead_s: (
        float  # core time of one program before its first and after its last instruction
    )
    semaphore_latency_s: float  # one engine's result to another engine's start
    activation_table_load_s: float  # Scalar engine, when the function's table changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One chip generation. `nc_version` is the NeuronCore version."""

    name: str
    nc_version: int
    physical_cores: int
    lnc_choices: tuple[int, ...]  # physical cores per logical core
    default_lnc: int
    tensor_engine: TensorEngine
    vector_engine: ElementwiseEngine
    scalar_engine: ElementwiseEngine
    gpsimd_engine: ElementwiseEngine
    sync_clock_hz: float
    base_clock_hz: float  # the clock of `neuroncore_cycle_count`
    sbuf: OnChipMemory
    psum: OnChipMemory
    hbm: Hbm
    dma: Dma
    launch: Launch
    native_dtypes: frozenset[str]  # what an engine reads and writes without conversion in software
    default_matmul_precision: str
    vector_gpsimd_share_sbuf_port: bool  # not both at once
    vector_scalar_share_psum_port: bool
    marketing_peak_flops: Mapping[str, float]  # labels only; timing uses `peak_flops`
    default_system: str  # a name of `systems.py`
    # One rank's share of the chip's memory and DMA, for ranks on one chip.
    rank_bytes_per_s: float
    basis: str = ""  # what its times rest on, where nobody has measured the chip itself
    # Elements of a partition that lie further apart than this halve the access rate; 0: none do.
    wide_stride_bytes: int = 0

    def check_lnc(self, lnc: int | None) -> int:
        """`lnc`, or the default for None. Raises ChipLimit for a grouping the chip lacks."""
        lnc = self.default_lnc if lnc is None else lnc
        if lnc not in self.lnc_choices:
            choices = " or ".join(map(str, self.lnc_choices))
            raise ChipLimit(
                f"LNC={lnc}: {self.name} groups {choices} physical core(s) into a logical core "
                f"({self.name}, chips.py). Set NEURON_LOGICAL_NC_CONFIG to {choices}."
            )
        return lnc

    def logical_cores(self, lnc: int | None = None) -> int:
        """How many devices the chip shows."""
        return self.physical_cores // self.check_lnc(lnc)

    def hbm_bytes_per_logical_core(self, lnc: int | None = None) -> int:
        """HBM a program on one logical core can use: an equal share of the chip's."""
        return self.hbm.capacity_bytes // self.physical_cores * self.check_lnc(lnc)

    def hbm_bytes_per_s_per_core(self) -> float:
        """HBM bandwidth of one physical core when all cores are busy."""
        return self.hbm.bandwidth_bytes_per_s / self.physical_cores

    def peak_flops(self, operand: str) -> float:
        """Clock-derived peak of one physical core: 2 x rows x cols x clock x rate of the format."""
        te = self.tensor_engine
        if operand not in te.macs_per_pe_cycle:
            raise ChipLimit(
                f"matmul of {operand}: the Tensor engine of {self.name} has no datapath for it "
                f"({self.name}, chips.py). It has {', '.join(te.macs_per_pe_cycle)}."
            )
        return 2.0 * te.rows * te.cols * te.clock_hz * te.macs_per_pe_cycle[operand]
