"""What a command prints: tables for a terminal (rich), plain text in a pipe, JSON if asked."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..pages import HtmlTable, is_numeric, render
from ..parity.tables import text_table

__all__ = ["Report", "Table", "progress", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`data` is what --json prints; the rest says the same to people, `ending` last."""

    data: Any
    lines: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)
    ending: str = ""

    @property
    def text(self) -> str:
        parts = ["\n".join(self.lines)] if self.lines else []
        parts += [f"{t.title}\n{text_table(t.head, t.rows)}" for t in self.tables if t.rows]
        return "\n\n".join([*parts, *([self.ending] if self.ending else [])])

    def html(self, title: str, curves: Sequence[tuple[str, str]] = ()) -> str:
        """A page of its own; `curves` are drawn above the tables."""
        tables = [HtmlTable(t.title, t.head, t.rows) for t in self.tables if t.rows]
        lines = [*self.lines, *([self.ending] if self.ending else [])]
        return render("tables.html", title=title, lines=lines, tables=tables, curves=curves)

    def _repr_html_(self) -> str:
        tables = [HtmlTable(t.title, t.head, t.rows) for t in self.tables if t.rows]
        lines = [*self.lines, *([self.ending] if self.ending else [])]
        return render("notebook.html", lines=lines, tables=tables)


def show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_finite(report.data), indent=1, allow_nan=False))
    elif sys.stdout.isatty():
        _show_rich(report)
    else:
        print(report.text)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null stands for both."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal; the block calls what it gets after each piece."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _show_rich(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False)
    for line in report.lines:
        console.print(Text(line))
    for table in report.tables:
        if not table.rows:
            continue
        rich = RichTable(title=table.title, title_justify="left", box=None, header_style="bold")
        rich.show_header = any(table.head)
        for i, name in enumerate(table.head):
            rich.add_column(name, justify="right" if is_numeric(table.rows, i) else "left")
        for row in table.rows:
            rich.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(rich)
    if report.ending:
        console.print()
        console.print(Text(report.ending))
