"""A recording as text for a terminal: time, engines, memory, verdict, top operators and modules."""

from collections.abc import Iterable, Sequence
from io import StringIO
from itertools import chain

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from ..pricing import report_rows
from ..ranges import said
from .communication import collective_rows
from .graph_regions import REGION_HEAD, region_rows
from .modules import module_rows, source_rows
from .recording import Recording
from .verdict import judge

__all__ = ["COLLECTIVE_HEAD", "collective_cells", "engine_rows", "gib", "seconds", "text"]

_ENGINES = ("tensor", "vector", "scalar", "gpsimd", "sync")


def seconds(value: float) -> str:
    """A time with the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value * 1e9:,.0f} ns"


def gib(nbytes: float) -> str:
    """Bytes with the unit that suits them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:,.2f} {unit}"
    return f"{nbytes:,.0f} B"


def engine_rows(recording: Recording) -> list[tuple[str, float, float, float]]:
    """(engine, active seconds, percent of the elapsed time, instructions or transfers)."""
    c = recording.counters
    elapsed_s = recording.elapsed_ns * 1e-9
    found = [(f"{e} engine", c[f"{e}_engine_active_time"], c[f"{e}_engine_instruction_count"])
             for e in _ENGINES]  # fmt: skip
    found.append(("DMA", c["dma_active_time"], c["dma_transfer_count"]))
    return [(n, s, 100 * s / elapsed_s if elapsed_s else 0.0, count) for n, s, count in found]


def text(recording: Recording, rows: int, width: int) -> str:
    """The summary; tables have `rows` rows at most and lines `width` characters."""
    out = StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None)
    for part in chain(_whole(recording), _tables(recording, rows)):
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _whole(r: Recording) -> Iterable[RenderableType]:
    """Of all launches: the time, the verdict, engines and memory."""
    c = r.counters
    yield (
        f"{r.chip.name}, {r.lnc} physical core(s) per logical core, "
        f"{len(r.devices)} in use: {seconds(r.elapsed_ns * 1e-9)} simulated for "
        f"{len(r.launches):,} launches"
    )
    yield said(r.range, r.chip)
    if r.left_out:
        yield f"plus {r.left_out:,} more that were not recorded (max_launches)"
    yield (
        f"the cores were busy for {seconds(c['core_busy_time'])} and waited "
        f"{seconds(c['core_idle_time'])} for the host's dispatches"
    )
    yield (
        f"mfu {c['mfu_estimated_percent']:.1f} %, hfu {c['hfu_estimated_percent']:.1f} %, "
        f"mbu {c['mbu_estimated_percent']:.1f} % while programs ran"
    )
    verdict = judge(r)
    yield "\n" + verdict.sentence
    changes = Table.grid(padding=(0, 1))
    for number, change in enumerate(verdict.changes, 1):
        changes.add_row(f"  {number}.", change.text)
    yield changes
    yield _table(
        ("engine", "active", "of elapsed", "instructions"),
        [(n, seconds(s), f"{p:.1f} %", f"{k:,.0f}") for n, s, p, k in engine_rows(r)],
    )
    yield _table(("peak HBM", "bytes", "of capacity"), _memory(r))
    yield (
        f"peak per core: SBUF {gib(c['sbuf_high_water_bytes'])}, "
        f"PSUM {gib(c['psum_high_water_bytes'])}"
    )


def _tables(r: Recording, rows: int) -> Iterable[RenderableType]:
    """By operator, module, collective and source line, `rows` of each at most."""
    yield _table(
        ("operator", "calls", "time", "range", "share", "engine", "status", "not native"),
        [
            (x.op, f"{x.calls:,}", seconds(x.device_s), x.range_text, f"{x.share:.1%}", x.engine,
             x.status, ", ".join(x.narrowed))
            for x in report_rows(r.groups)[:rows]
        ],
    )  # fmt: skip
    modules = sorted(module_rows(r), key=lambda x: -x.own_s)[:rows]
    yield _table(
        ("module or optimizer", "calls", "own", "total", "forward", "backward"),
        [
            (x.module or "(outside modules)", f"{x.calls:,}",
             *(seconds(t) for t in (x.own_s, x.total_s, x.forward_s, x.backward_s)))
            for x in modules
        ],
    )  # fmt: skip
    if regions := sorted(region_rows(r), key=lambda x: -x.device_s)[:rows]:
        yield _table(
            REGION_HEAD,
            [
                (x.graph, x.region, f"{x.launches:,}", seconds(x.device_s), f"{x.share:.1%}")
                for x in regions
            ],
        )
    if r.collectives:
        yield _table(
            ("collective", "ranks", "algorithm", "bytes", "calls", "time", "range", "exposed",
             "late"),
            [
                (x.operation, f"{x.ranks}", x.algorithm, gib(x.bytes), f"{x.calls:,}",
                 seconds(x.duration_s), f"{x.range_low:.2f} to {x.range_high:.2f}",
                 *(seconds(t) for t in (x.exposed_s, x.late_s)))
                for x in collective_rows(r)[:rows]
            ],
        )  # fmt: skip
    if sources := source_rows(r)[:rows]:
        yield _table(
            ("source line", "calls", "time", "share"),
            [(x.source, f"{x.calls:,}", seconds(x.device_s), f"{x.share:.1%}") for x in sources],
        )


COLLECTIVE_HEAD = (
    "collective", "group", "ranks", "algorithm", "links", "elements", "bytes", "calls", "time",
    "range", "exposed", "late", "algorithm GB/s", "bus GB/s",
)  # fmt: skip


def collective_cells(r: Recording) -> list[tuple[str, ...]]:
    """The vendor's CcOp table, the most exposed first."""
    return [
        (
            x.operation,
            x.group,
            str(x.ranks),
            x.algorithm,
            x.level,
            f"{x.dtype}[{x.elements:,}]",
            gib(x.bytes),
            f"{x.calls:,}",
            seconds(x.duration_s),
            f"{x.range_low:.2f} to {x.range_high:.2f}",
            *(seconds(s) for s in (x.exposed_s, x.late_s)),
            f"{x.algorithm_bandwidth / 1e9:.1f}",
            f"{x.bus_bandwidth / 1e9:.1f}",
        )
        for x in collective_rows(r)
    ]


def _memory(r: Recording) -> list[tuple[str, ...]]:
    out: list[tuple[str, ...]] = []
    for device, use in r.memory.items():
        whole = use.capacity_bytes
        out += [
            (f"trn:{device} {name}", gib(n), f"{n / whole:.1%}")
            for name, n in use.peak.items()
            if n
        ]
        out.append((f"trn:{device}", gib(use.peak_bytes), f"{use.peak_bytes / whole:.1%}"))
    return out


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(head):
        table.add_column(name, justify="left" if k == 0 or name in _WORDS else "right",
                         overflow="fold")  # fmt: skip
    for row in rows:
        table.add_row(*row)
    return table


_WORDS = ("engine", "status", "not native", "algorithm")
