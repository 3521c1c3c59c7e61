"""What a command prints: tables for a terminal (rich), plain text in a pipe, JSON if asked."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..parity.tables import html_page, html_table, is_numeric, text_table

__all__ = ["Report", "Table", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`data` is what --json prints; the rest says the same to people."""

    data: Any
    lines: Sequence[str] = ()
    tables: Sequence[Table] = field(default_factory=tuple)

    @property
    def text(self) -> str:
        parts = ["\n".join(self.lines)] if self.lines else []
        parts += [f"{t.title}\n{text_table(t.head, t.rows)}" for t in self.tables if t.rows]
        return "\n\n".join(parts)

    def html(self, title: str) -> str:
        tables = (html_table(t.head, t.rows, t.title) for t in self.tables if t.rows)
        return html_page(title, *(f"<p>{line}</p>" for line in self.lines), *tables)


def show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.data, indent=1, allow_nan=False))
    elif sys.stdout.isatty():
        _show_rich(report)
    else:
        print(report.text)


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
