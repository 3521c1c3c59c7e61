"""A recording as one self-contained page: no script, no font, no picture from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape

from ..counters import COUNTERS
from ..pricing import report_rows
from . import charts
from .hooks import CATEGORIES
from .modules import module_rows, source_rows
from .recording import Recording
from .summary import engine_rows, gib, seconds
from .verdict import judge

__all__ = ["page"]

_STYLE = """
:root { --ink: #1b1f24; --dim: #6a737d; --paper: #ffffff; --line: #d8dee4; --box: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #8b949e; --paper: #0d1117; --line: #30363d; --box: #161b22; }
}
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 960px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.verdict { background: var(--box); border: 1px solid var(--line); border-radius: 6px;
           padding: .8em 1.2em; }
.verdict b { font-size: 1.1em; }
.dim, .key { color: var(--dim); }
.key { margin-right: 1em; } .key i { display: inline-block; width: .8em; height: .8em;
       margin-right: .4em; border-radius: 2px; }
svg { width: 100%; height: auto; display: block; margin: .5em 0; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .axis { stroke: var(--line); } svg .roof { stroke: var(--dim); stroke-dasharray: 4 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; } td:first-child, th:first-child { text-align: left; }
td.word, th.word { text-align: left; } td { white-space: nowrap; }
td.word { white-space: normal; } #operators td:last-child { min-width: 22em; }
code { font: 12px ui-monospace, monospace; }
"""


def page(recording: Recording, rows: int = 30) -> str:
    """The page as text; tables have `rows` rows at most and say what they leave out."""
    r = recording
    title = f"{r.chip.name}: {seconds(r.elapsed_ns * 1e-9)} simulated, {len(r.launches):,} launches"
    body = "".join(_sections(r, rows)) if r.launches else "<p>Nothing was launched.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _sections(r: Recording, rows: int) -> Iterable[str]:
    c = r.counters
    yield (
        f'<p class="dim">{len(r.devices)} logical core(s) of {r.lnc} physical one(s). All times '
        "are simulated, from a schedule of engine instructions; docs/timing.md says what they are "
        f"worth. mfu {c['mfu_estimated_percent']:.1f} %, hfu {c['hfu_estimated_percent']:.1f} %, "
        f"mbu {c['mbu_estimated_percent']:.1f} % of the time that programs ran.</p>"
    )
    if r.left_out:
        yield f"<p>{r.left_out:,} launches after them are not recorded (max_launches).</p>"
    yield _verdict(r)
    yield _section("engines", "Engines", _engines(r))
    yield _section(
        "roofline",
        "Roofline",
        '<p class="dim">Operators that multiply; the area is their time, the colour the engine '
        "that was busiest.</p>" + charts.roofline(r) + charts.legend(_colors(r)),
    )
    yield _section("memory", "Memory", _memory(r))
    yield _section("operators", "Operators", _operators(r, rows))
    yield _section("modules", "Modules and optimizers", _modules(r, rows))
    if sources := source_rows(r):
        cells = [(x.source, f"{x.calls:,}", seconds(x.device_s), f"{x.share:.1%}") for x in sources]
        table = _table(("source line", "calls", "time", "share"), cells, rows)
        yield _section("sources", "Source lines", table)
    yield _section("counters", "Counters", _counters(r))


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _colors(r: Recording) -> dict[str, str]:
    used = {price.engine for _, _, price in r.groups}
    return {name: color for name, color in charts.COLORS.items() if name in used}


def _verdict(r: Recording) -> str:
    verdict = judge(r)
    changes = "".join(f"<li>{escape(change.text)}</li>" for change in verdict.changes)
    named = {name: charts.COLORS[name] for name, share in verdict.bounds.items() if share > 0}
    return (
        f'<section id="verdict" class="verdict"><b>{escape(verdict.sentence)}</b>'
        f"{charts.bounds(verdict)}{charts.legend(named)}"
        f"<p>What would help most; the shares are upper bounds and overlap:</p><ol>{changes}</ol>"
        "</section>"
    )


def _engines(r: Recording) -> str:
    cells = [(n, seconds(s), f"{p:.1f} %", f"{k:,.0f}") for n, s, p, k in engine_rows(r)]
    table = _table(("engine", "active", "of elapsed", "instructions"), cells)
    drawn = [f"<p>trn:{d}</p>{charts.utilization(r, d)}" for d in r.devices]
    note = (
        '<p class="dim">Share of each slice of time that an engine was active; within one launch '
        "it is spread evenly.</p>"
    )
    return table + note + "".join(drawn)


def _memory(r: Recording) -> str:
    out = [charts.legend({name: charts.COLORS[name] for name in CATEGORIES})]
    for device, use in r.memory.items():
        out.append(f"<p>HBM of trn:{device}, {gib(use.capacity_bytes)}</p>")
        out.append(charts.memory(r, device))
        whole = use.capacity_bytes
        cells = [(name, gib(n), f"{n / whole:.1%}") for name, n in use.peak.items()]
        cells.append(("together", gib(use.peak_bytes), f"{use.peak_bytes / whole:.1%}"))
        out.append(_table(("at the peak", "bytes", "of capacity"), cells))
    c = r.counters
    out.append(
        f"<p>SBUF {gib(c['sbuf_high_water_bytes'])} and PSUM {gib(c['psum_high_water_bytes'])} of "
        "one core at the most.</p>"
    )
    return "".join(out)


def _operators(r: Recording, rows: int) -> str:
    head = ("operator", "calls", "time", "share", "engine", "status", "not native", "advice")
    cells = [
        (x.op, f"{x.calls:,}", seconds(x.device_s), f"{x.share:.1%}", x.engine, x.status,
         ", ".join(x.narrowed), x.advice.split("; ")[0])
        for x in report_rows(r.groups)
    ]  # fmt: skip
    return _table(head, cells, rows)


def _modules(r: Recording, rows: int) -> str:
    head = ("module", "calls", "own", "total", "forward", "backward", "share")
    found = sorted(module_rows(r), key=lambda x: -x.own_s)
    cells = [
        (x.module or "(outside modules)", f"{x.calls:,}",
         *(seconds(t) for t in (x.own_s, x.total_s, x.forward_s, x.backward_s)), f"{x.share:.1%}")
        for x in found
    ]  # fmt: skip
    return _table(head, cells, rows)


def _counters(r: Recording) -> str:
    cells = [
        (name, f"{value:,.6g}", COUNTERS[name].unit.value if name in COUNTERS else "")
        for name, value in r.counters.items()
    ]
    return (
        f"<details><summary>all {len(cells)}</summary>{_table(('', '', 'unit'), cells)}</details>"
    )


_WORDS = {"engine", "status", "not native", "advice", "unit"}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], most: int = 10_000) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=word' if name in _WORDS else ''}>{escape(cell)}</{tag}>"
            for name, cell in zip(head, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:most])
    left_out = len(rows) - most
    more = f'<p class="dim">and {left_out:,} more rows</p>' if left_out > 0 else ""
    table = f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>{more}'
