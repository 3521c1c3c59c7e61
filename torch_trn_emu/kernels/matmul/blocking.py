"""How a matmul is cut: blocks that fit in SBUF, what stays and what streams by, what is shared.

The same product reaches between 16 and 91 % of the array's peak on silicon by its schedule alone,
so a schedule is a value. To add one, add a `Schedule`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import ceil

from ...chip import Chip
from ...errors import ChipLimit
from ...formats import MX_FORMATS
from ...isa import itemsize
from ..limits import BANK, P, evenly
from .operand import Operand
from .packing import K_GROUP, LONG_GROUP, Packing, parts_of_row

__all__ = [
    "COMPILER",
    "HAND",
    "Chunks",
    "Cut",
    "Plan",
    "Schedule",
    "dma_turns",
    "packing_of",
    "plan_blocks",
    "plan_few",
    "plan_of",
    "repeats_preparation",
    "share_of_core",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a matmul is arranged on the core."""

    load: str = "background"  # LoadStationary: hidden behind the multiply before, or "exposed"
    operand_slots: int = 2
    psum_slots: int = 4
    result_slots: int = 4
    block_bytes: int = 16 * 1024  # of an operand per partition: what is loaded before work starts
    # A longer contraction passes in chunks: from here on they take less time than blocks of all of
    # it, which shrink. Chosen by pricing 1024 x K x 1024 for every format, layout and chip.
    long_contraction: int = 12_288


# Of blocks whose sums stay in SBUF while chunks of a contraction pass (chosen).
CHUNKED_SIDES = ((1024, 1024), (1024, 512), (512, 1024), (512, 512), (P, P))
LEAST_CHUNKED = 2048  # of a contraction that may pass in chunks for other reasons (chosen)
# Rows up to which the other factor is what the array holds, elements of that from which it is worth
# the turning of results, and bytes of it per partition that are on chip (chosen).
FEW_ROWS, LEAST_HELD, HELD_BYTES = 32, 1 << 20, 64 * 1024
LESS = 0.88  # of the time of the usual blocks, for others to be taken (chosen)

HAND = Schedule()  # what the best published hand-written kernels reach
COMPILER = Schedule(load="exposed")  # the vendor compiler at -O2


def packing_of(compute: str, chip: Chip) -> Packing:
    """How `compute` lies on the array of `chip`: 2 of K a row for fast float8, 4 for MX."""
    rate = chip.tensor_engine.macs_per_pe_cycle.get(compute)
    if rate is None:
        chip.peak_flops(compute)  # raises with the list of what there is
    if compute in MX_FORMATS:
        return Packing(dtype=MX_FORMATS[compute].element.name, per_row=4)
    return Packing(dtype=compute, per_row=2 if rate == 2 else 1)


def dma_turns(dtype: str, packing: Packing, chip: Chip) -> bool:
    """Whether the operand that streams by is transposed by DMA: 16 bits, from NC-v3. [dma]

    Not for MX, whose neighbours along K would be descriptors of 2 bytes.
    """
    return (
        chip.nc_version >= 3 and not packing.mx and dtype == packing.dtype and itemsize(dtype) == 2
    )


def share_of_core(batch: int, m: int, n: int, cores: int) -> tuple[int, int, int]:
    """One core's part of the problem: of the batch, else of the rows, else of the columns."""
    if batch >= cores:
        return ceil(batch / cores), m, n
    if m >= cores * P or m >= n:
        return batch, ceil(m / cores), n
    return batch, m, ceil(n / cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is to be cut.

    majors            whether lhs and rhs have the contraction before the free dimension
    dtypes            of lhs and rhs in HBM
    bytes_per_column  of a block of n that results and what is added to them take
    """

    m: int
    k: int
    n: int
    packing: Packing
    majors: tuple[bool, bool]
    dtypes: tuple[str, str]
    bytes_per_column: float
    chip: Chip
    schedule: Schedule

    def seconds(self, plan: "Plan") -> float:
        """The longer of multiplying and of bringing the factors as often as `plan` does.

        With one slot of what streams by, the two overlap but in part (a quarter more: chosen).

        What must be transposed or quantized costs more to bring, twice at most: after that it is
        kept prepared.
        """
        te, dma = self.chip.tensor_engine, self.chip.dma
        rate = min(dma.engine_bytes_per_s * dma.engines, self.chip.hbm_bytes_per_s_per_core())
        moved = 0.0
        factors = zip((self.m, self.n), plan.loads(self), self.majors, self.dtypes, strict=True)
        for free, loads, major, dtype in factors:
            prepared = (self.packing.mx + 2 * (not major)) * (loads if loads <= 2 else 1)
            moved += free * self.k * (loads + prepared) * itemsize(dtype)
        native = te.macs_per_pe_cycle.get(self.packing.dtype, 1)
        per_cycle = te.rows * te.cols * (self.packing.per_row if self.packing.mx else native)
        both = self.m * self.k * self.n / per_cycle / te.clock_hz, moved / rate
        overlaps = plan.lhs_slots > 1 if plan.loads(self)[0] > 1 else plan.rhs_slots > 1
        return max(both) if overlaps else max(both) + min(both) / 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    block_m: int
    block_n: int
    lhs_slots: int
    rhs_slots: int
    m_outside: bool  # the block of lhs stays while rhs streams by
    chunk: int = 0  # of the contraction, loaded at a time; 0: all of it
    group: int = K_GROUP  # tiles of K per transfer, at most
    turned: bool = False  # the array holds columns of rhs, and gives columns of the result

    @property
    def width(self) -> int:
        """Columns of a tile of the result."""
        return P if self.turned else self.block_n

    def packing(self, cut: Cut) -> Packing:
        return replace(cut.packing, most=self.group)

    def loads(self, cut: Cut) -> tuple[int, int]:
        """How often lhs and rhs are brought."""
        of_lhs, of_rhs = ceil(cut.n / self.block_n), ceil(cut.m / self.block_m)
        if self.chunk:
            return of_lhs, of_rhs
        return (1, of_rhs) if self.m_outside else (of_lhs, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """A contraction cut so that every load but the last is alike.

    `count` chunks of `size`, then `groups` (a multiple of the groups of tiles) and `tail` (less
    than one). The last step, which leaves PSUM for the result, is what does not repeat.
    """

    size: int
    count: int
    groups: int
    tail: int

    @staticmethod
    def of(k: int, size: int, packing: Packing) -> "Chunks":
        count, rest = divmod(k, size)
        tail = rest % (K_GROUP * packing.tile_k)
        return Chunks(size=size, count=count, groups=rest - tail, tail=tail)


def plan_of(cut: Cut, *, whole: bool = False) -> Plan:
    """The usual plan, unless its loads take much longer than those of another.

    whole  all of the contraction is loaded at once
    """
    if whole:
        return plan_blocks(cut)
    if cut.k > cut.schedule.long_contraction and (chunks := plan_chunks(cut)):
        return chunks
    usual = plan_blocks(cut)
    chunks = plan_chunks(cut) if cut.k > LEAST_CHUNKED else None
    return chunks if chunks and cut.seconds(chunks) < LESS * cut.seconds(usual) else usual


def plan_few(cut: Cut) -> Plan | None:
    """For few rows: the array holds rhs, 128 columns at a time, and the rows stream through it.

    It takes 64 cycles and what is exposed of a load, where the columns of rhs would take 128; four
    times as many in float32. None for other products.
    """
    m, k, n, packing = cut.m, cut.k, cut.n, cut.packing
    rate = cut.chip.tensor_engine.macs_per_pe_cycle.get(packing.dtype, 1)
    most = FEW_ROWS if rate >= 1 else 2 * FEW_ROWS  # the array passes several times for a row
    if m > 2 * FEW_ROWS or n < P or k * n < LEAST_HELD or packing.per_row > 1:
        return None
    longer = _engines_limit(cut)
    for width in (BANK, 2 * P) if m <= most else ():
        group = (LONG_GROUP if longer else K_GROUP) * BANK // width
        long, block = replace(packing, most=group), min(width, _round_up(n, 64))
        each = Operand.sbuf_bytes(k, block, long, True, 1)
        slots = min(4 if longer else 2, HELD_BYTES // each)
        used = Operand.sbuf_bytes(k, 64, long, cut.majors[0], 1) + int(P * cut.bytes_per_column)
        used += 2 * P * 4  # columns of results, before they are turned
        used += Operand.sbuf_bytes(k, block, long, cut.majors[1], max(2, slots))
        least = 1 if width == 2 * P else 2
        if slots >= least and used <= cut.chip.sbuf.usable_bytes_per_partition:
            return Plan(block_m=64, block_n=block, lhs_slots=1, rhs_slots=max(2, slots),
                        m_outside=True, group=group, turned=True)  # fmt: skip
    in_parts = m <= most or k > cut.schedule.long_contraction
    return _few_in_parts(cut, longer=longer) if in_parts else None


def _few_in_parts(cut: Cut, *, longer: bool) -> Plan | None:
    """For few rows and a contraction of which SBUF does not hold columns: some parts at a time.

    One transfer brings a part; where engines turn the columns, as many as a row of theirs covers.
    """
    group = LONG_GROUP if longer else K_GROUP
    long, rows = replace(cut.packing, most=group), _round_up(cut.m, 16)
    block = _round_up(evenly(cut.n, BANK, 64), 64)
    free = cut.chip.sbuf.usable_bytes_per_partition - int(P * cut.bytes_per_column)
    free -= Operand.sbuf_bytes(cut.k, rows, long, cut.majors[0], 1)
    turned = cut.majors[1] or dma_turns(cut.dtypes[1], long, cut.chip)
    for parts in (1,) if turned else (parts_of_row(cut.k, long, group), 2, 1):
        chunk = parts * group * P
        each = Operand.sbuf_bytes(chunk, block, long, True, 1)
        natural = Operand.sbuf_bytes(chunk, block, long, cut.majors[1], 1) - each
        slots = min(HELD_BYTES, free - natural - each // parts) // each
        if slots >= 2 and 2 * chunk <= cut.k:
            return Plan(block_m=rows, block_n=block, lhs_slots=1, rhs_slots=slots, m_outside=True,
                        chunk=chunk, group=group, turned=True)  # fmt: skip
    return None


def _engines_limit(cut: Cut) -> bool:
    """Whether DMA engines take longer than HBM for rhs in transfers of the usual size."""
    dma, hbm = cut.chip.dma, cut.chip.hbm
    share = K_GROUP * P * BANK * itemsize(cut.dtypes[1]) / dma.engines  # of an engine
    engine_s = share / dma.engine_bytes_per_s + dma.completion_write_s
    hbm_s = share * dma.engines / cut.chip.hbm_bytes_per_s_per_core() / hbm.read_efficiency
    return engine_s > hbm_s


def plan_blocks(cut: Cut) -> Plan:
    """The largest blocks that SBUF holds, and the order that moves fewer bytes.

    Wider blocks are taken where those would be loaded again for few rows or columns.
    """
    usual = next(_fitting(cut, _choices(cut)), None)
    if usual is None:
        raise ChipLimit(
            f"matmul {cut.m}x{cut.k}x{cut.n}: a contraction of {cut.k} does not fit in "
            f"{cut.chip.sbuf.usable_bytes_per_partition} bytes of SBUF per partition "
            f"({cut.chip.name}, chips.py). Split it and add the parts."
        )
    if max(usual.loads(cut)) == 1:
        return usual
    wide = min(_fitting(cut, _wide_choices(cut)), key=cut.seconds, default=usual)
    return wide if cut.seconds(wide) < LESS * cut.seconds(usual) else usual


def _fitting(cut: Cut, choices: Iterable[tuple[int, int, int, int]]) -> Iterator[Plan]:
    """The plans of choices that SBUF holds."""
    m, k, n, packing, (lhs_major, rhs_major) = cut.m, cut.k, cut.n, cut.packing, cut.majors
    budget = cut.chip.sbuf.usable_bytes_per_partition
    whole_m, whole_n = _round_up(m, 64), _round_up(n, 64)
    for block_m, block_n, stays, streams in choices:
        block_m, block_n = min(block_m, whole_m), min(block_n, whole_n)
        # What must be transposed costs more to bring again.
        lhs_loads = m * k * (1 if lhs_major else 3)
        rhs_loads = n * k * (1 if rhs_major else 3)
        m_outside = lhs_loads + rhs_loads * ceil(m / block_m) <= rhs_loads + lhs_loads * ceil(
            n / block_n
        )
        lhs_slots, rhs_slots = (stays, streams) if m_outside else (streams, stays)
        used = (
            Operand.sbuf_bytes(k, block_m, packing, lhs_major, lhs_slots)
            + Operand.sbuf_bytes(k, block_n, packing, rhs_major, rhs_slots)
            + int(block_n * cut.bytes_per_column)
        )
        if used <= budget:
            yield Plan(block_m=block_m, block_n=block_n, lhs_slots=lhs_slots, rhs_slots=rhs_slots,
                       m_outside=m_outside)  # fmt: skip


def plan_chunks(cut: Cut) -> Plan | None:
    """Blocks whose partial sums stay in SBUF while chunks of a long contraction pass; or None.

    A block of the result up to 1024 x 1024, whichever of those that SBUF holds has the factors
    loaded the least, and chunks of up to 16 KiB a partition and operand: longer ones gain nothing.
    """
    packing, slots = cut.packing, cut.schedule.operand_slots
    budget, unit = cut.chip.sbuf.usable_bytes_per_partition, K_GROUP * packing.tile_k
    fitting = []
    for sides in CHUNKED_SIDES:
        blocks = [
            _round_up(evenly(n, side, 64), 64)
            for n, side in zip((cut.m, cut.n), sides, strict=True)
        ]
        for size in (4096, 2048, unit):
            size = max(unit, size // unit * unit)
            used = int(blocks[1] * (4 * ceil(blocks[0] / P) + cut.bytes_per_column))
            for block, major in zip(blocks, cut.majors, strict=True):
                used += Operand.sbuf_bytes(size, block, packing, major, slots)
                used += Operand.tail_bytes(block, packing)
            if used <= budget:
                fitting.append(Plan(block_m=blocks[0], block_n=blocks[1], lhs_slots=slots,
                                    rhs_slots=slots, m_outside=True, chunk=size))  # fmt: skip
                break
    return min(fitting, key=cut.seconds, default=None)


def repeats_preparation(plan: Plan, m: int, n: int) -> bool:
    """Whether the operand that streams by comes often enough to keep it prepared in HBM."""
    return ceil(m / plan.block_m) > 2 if plan.m_outside else ceil(n / plan.block_n) > 2


def _wide_choices(cut: Cut) -> Iterator[tuple[int, int, int, int]]:
    """Blocks of up to 1,024 rows or columns, of equal size; what stays has one slot."""
    slots = cut.schedule.operand_slots
    for side in (2 * BANK, 6 * P):
        for other in (BANK, 2 * P):
            yield evenly(cut.m, side, 64), other, 1, slots
            yield other, evenly(cut.n, side, 64), 1, slots


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _choices(cut: Cut) -> Iterator[tuple[int, int, int, int]]:
    """Blocks of lhs and rhs, and slots of what stays and what streams by; best first.

    A larger block of lhs has rhs loaded less often, but work starts later: it is tried where that
    takes 2 % of the time at most.
    """
    chip, schedule, packing = cut.chip, cut.schedule, cut.packing
    slots = schedule.operand_slots
    column_bytes = ceil(cut.k / packing.tile_k) * packing.per_row * itemsize(packing.dtype)
    banks = int(schedule.block_bytes / column_bytes) // BANK
    usual = BANK * max(1, min(4, banks))
    rate = chip.tensor_engine.rows * chip.tensor_engine.cols * chip.tensor_engine.clock_hz
    compute_s = cut.m * cut.k * cut.n / rate / packing.per_row
    for block in (4 * BANK, 2 * BANK):
        load_s = 2 * (block + usual) * cut.k / chip.dma.engine_bytes_per_s / chip.dma.engines
        if block > usual and load_s < 0.02 * compute_s:
            yield block, usual, slots, slots
            yield block, usual, 1, slots
    yield usual, usual, slots, slots
    yield BANK, BANK, slots, slots
    yield BANK, BANK, 1, slots
    yield 2 * P, BANK, slots, slots
    yield 2 * P, BANK, slots, 1
    yield P, BANK, slots, 1
    yield P, BANK, 1, 1
    for width in (256, 128, 64):
        yield P, width, 1, 1
