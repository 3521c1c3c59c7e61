"""Rows of cells as text for a terminal and as a page that needs nothing else."""

import math
from collections.abc import Sequence
from html import escape

__all__ = ["html_page", "html_table", "is_numeric", "number", "text_table"]

Rows = Sequence[Sequence[str]]


def number(value: float, form: str = ".3g") -> str:
    return format(value, form) if math.isfinite(value) else ("-" if value != -math.inf else "-inf")


def text_table(head: Sequence[str], rows: Rows) -> str:
    """Columns of numbers to the right; without a line for a head that is empty."""
    cells = [*([list(head)] if any(head) else []), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    right = [is_numeric(rows, i) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def is_numeric(rows: Rows, column: int) -> bool:
    """Whether every cell that says something begins as a number does."""
    cells = [row[column] for row in rows if row[column] not in ("", "-", "exact")]
    return bool(cells) and all(cell.lstrip("+-")[:1].isdigit() for cell in cells)


def html_table(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(c)}</{tag}>" for c in cells) + "</tr>"

    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<table>{title}<thead>{row(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:75em}"
    "table{border-collapse:collapse;margin:1.5em 0}caption{text-align:left;font-weight:600}"
    "td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}pre{background:#f6f6f6;padding:1em}"
)


def html_page(title: str, *parts: str) -> str:
    """A page of its own: no script, no link."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "</body></html>\n"
    )
