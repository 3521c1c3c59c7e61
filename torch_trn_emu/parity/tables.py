"""Rows of cells as text for a terminal."""

import math
from collections.abc import Sequence

from ..pages import is_numeric

__all__ = ["number", "text_table"]

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
