"""A recording as one self-contained page: nothing is loaded from elsewhere.

The template is pages/profile.html; here is what it shows. To add a section, add a value and its
place in the template.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from ..counters import unit_of
from ..pages import HtmlTable, render
from ..pricing import Price, report_rows
from ..ranges import said
from . import charts
from .flame import flame
from .graph_regions import REGION_HEAD, region_rows
from .hooks import CATEGORIES
from .modules import module_rows, source_rows
from .recording import Recording
from .steps import settled_s, steps
from .summary import COLLECTIVE_HEAD, collective_cells, engine_rows, gib, seconds
from .timeline import canonical, packed, shapes, timeline
from .values import drawn
from .verdict import judge

__all__ = ["notebook", "page"]


def page(recording: Recording, about: Mapping[str, Any]) -> str:
    """The page as text; `about` says of the run its "title", "facts" and "values"."""
    r = recording
    found = steps(r)
    head = f"{r.chip.name}: {seconds(r.elapsed_ns * 1e-9)} simulated, {len(r.launches):,} launches"
    if found:
        head += f", {seconds(settled_s(found))} a step"
    title = f"{about['title']} on {head}" if about.get("title") else head
    facts = dict(about.get("facts", {})) | _facts(r)
    if not r.launches:
        return render("profile.html", title=title, facts=facts, verdict=None)
    return render(
        "profile.html",
        title=title,
        facts=facts,
        curves=drawn(about.get("values", ())),
        **_verdict(r),
        **_timeline(r),
        **_tables(r),
        **_charts(r),
    )


def notebook(recording: Recording) -> str:
    """The short form that a notebook shows."""
    r = recording
    if not r.launches:
        return render("notebook.html", lines=["Nothing was launched."], tables=[])
    verdict = judge(r)
    lines = [f"{name}: {text}" for name, text in _facts(r).items()]
    lines += [verdict.sentence, *(change.text for change in verdict.changes)]
    made = _tables(r)
    tables = [made["engine_table"], made["operator_table"], made["module_table"]]
    short = [HtmlTable(t.title, t.head, t.rows, most=10) for t in tables]
    return render("notebook.html", lines=lines, tables=short)


def _facts(r: Recording) -> dict[str, str]:
    c = r.counters
    left_out = f"; {r.left_out:,} more are not recorded (max_launches)" if r.left_out else ""
    return {
        "chip": f"{r.chip.name}, {r.lnc} physical core(s) per logical core, "
        f"{len(r.devices)} logical core(s) in use",
        "simulated time": f"{seconds(r.elapsed_ns * 1e-9)} for {len(r.launches):,} launches"
        f"{left_out}; cores busy for {seconds(c['core_busy_time'])}",
        "utilization": f"mfu {c['mfu_estimated_percent']:.1f} %, hfu "
        f"{c['hfu_estimated_percent']:.1f} %, mbu {c['mbu_estimated_percent']:.1f} % "
        "while programs ran",
        "accuracy": f"{said(r.range, r.chip)}; see docs/accuracy.md",
    }


def _verdict(r: Recording) -> dict[str, Any]:
    verdict = judge(r)
    named = {name: charts.COLORS[name] for name, share in verdict.bounds.items() if share > 0}
    return {
        "verdict": verdict,
        "verdict_chart": Markup(charts.bounds(verdict)),
        "verdict_legend": Markup(charts.legend(named)),
    }


def _timeline(r: Recording) -> dict[str, Any]:
    data = timeline(r)
    boxes = flame(module_rows(r))
    return {
        "timeline": packed(data),
        "left_out": data["leftOut"],
        "devices": r.devices,
        "colors": charts.COLORS,
        "flame": boxes,
        "flame_depth": 1 + max((box.depth for box in boxes), default=0),
    }


def _charts(r: Recording) -> dict[str, Any]:
    used = {price.engine for _, _, price in r.groups}
    c = r.counters
    return {
        "utilization": [(f"trn:{d}", Markup(charts.utilization(r, d))) for d in r.devices],
        "roofline": Markup(charts.roofline(r)),
        "roofline_legend": Markup(
            charts.legend({name: color for name, color in charts.COLORS.items() if name in used})
        ),
        "memory": [
            (f"HBM of trn:{d}, {gib(use.capacity_bytes)}", Markup(charts.memory(r, d)), table)
            for (d, use), table in zip(r.memory.items(), _memory_tables(r), strict=True)
        ],
        "memory_legend": Markup(charts.legend({name: charts.COLORS[name] for name in CATEGORIES})),
        "sbuf": gib(c["sbuf_high_water_bytes"]),
        "psum": gib(c["psum_high_water_bytes"]),
    }


def _memory_tables(r: Recording) -> Iterable[HtmlTable]:
    for use in r.memory.values():
        whole = use.capacity_bytes
        rows = [(name, gib(n), f"{n / whole:.1%}") for name, n in use.peak.items()]
        rows.append(("together", gib(use.peak_bytes), f"{use.peak_bytes / whole:.1%}"))
        yield HtmlTable("", ("at the peak", "bytes", "of capacity"), rows)


def _tables(r: Recording) -> dict[str, HtmlTable]:
    modules = sorted(module_rows(r), key=lambda x: -x.own_s)
    return {
        "step_table": HtmlTable(
            "",
            ("step", "time", "launches"),
            [(str(i), seconds(s.seconds), f"{s.launches:,}") for i, s in enumerate(steps(r), 1)],
            most=200,
        ),
        "engine_table": HtmlTable(
            "",
            ("engine", "active", "of elapsed", "instructions"),
            [(n, seconds(s), f"{p:.1f} %", f"{k:,.0f}") for n, s, p, k in engine_rows(r)],
        ),
        "operator_table": HtmlTable(
            "",
            ("operator", "shapes", "calls", "each", "time", "range", "share", "engine", "price",
             "not native", "advice"),
            list(_operators(r)),
        ),
        "module_table": HtmlTable(
            "",
            ("module", "calls", "own", "total", "forward", "backward", "share"),
            [
                (x.module or "(outside modules)", f"{x.calls:,}",
                 *(seconds(t) for t in (x.own_s, x.total_s, x.forward_s, x.backward_s)),
                 f"{x.share:.1%}")
                for x in modules
            ],
        ),
        "region_table": HtmlTable(
            "",
            REGION_HEAD,
            [
                (x.graph, x.region, f"{x.launches:,}", seconds(x.device_s), f"{x.share:.1%}")
                for x in region_rows(r)
            ],
        ),
        "collective_table": HtmlTable("", COLLECTIVE_HEAD, collective_cells(r)),
        "source_table": HtmlTable(
            "",
            ("source line", "calls", "time", "share"),
            [
                (x.source, f"{x.calls:,}", seconds(x.device_s), f"{x.share:.1%}")
                for x in source_rows(r)
            ],
        ),
        "counter_table": HtmlTable(
            "",
            ("counter", "value", "unit"),
            [
                (name, f"{value:,.6g}", unit_of(name))
                for name, value in r.counters.items()
            ],
        ),
    }  # fmt: skip


def _operators(r: Recording) -> Iterable[tuple[str, ...]]:
    """A row for each operator and its shapes, longest first."""
    found: dict[tuple[str, str, int], tuple[int, Price]] = {}
    for x in r.launches:
        key = (x.op, x.signature, x.number)
        found[key] = found.get(key, (0, x.price))[0] + 1, x.price
    busy_s = sum(calls * price.seconds for calls, price in found.values()) or 1.0
    ranked = sorted(found.items(), key=lambda item: (-item[1][0] * item[1][1].seconds, item[0]))
    for (op, signature, _), (calls, price) in ranked:
        row = report_rows([(op, calls, price)])[0]
        yield (
            canonical(op), shapes(signature), f"{calls:,}", seconds(price.seconds),
            seconds(calls * price.seconds), row.range_text,
            f"{calls * price.seconds / busy_s:.1%}", row.engine, row.status,
            ", ".join(row.narrowed), row.advice,
        )  # fmt: skip
