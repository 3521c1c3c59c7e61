"""Renders the templates beside it. Whatever a user's script names is escaped (autoescape)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["HtmlTable", "is_numeric", "render"]

Rows = Sequence[Sequence[str]]
_FOLDER = Path(__file__).parent


def is_numeric(rows: Rows, column: int) -> bool:
    """Whether every cell that says something begins as a number does."""
    cells = [row[column] for row in rows if row[column] not in ("", "-", "exact")]
    return bool(cells) and all(cell.lstrip("+-")[:1].isdigit() for cell in cells)


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A caption, a head and rows of text; `most` rows are shown at first."""

    title: str
    head: Sequence[str]
    rows: Rows
    most: int = 1_000

    @property
    def numeric(self) -> list[bool]:
        """By column: whether its cells are numbers, which stand to the right."""
        return [is_numeric(self.rows, i) for i in range(len(self.head))]


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["text_of"] = _text_of
    return made


def _text_of(name: str) -> Any:
    """A style sheet or a script of this folder, which is ours and goes in as it is."""
    from markupsafe import Markup

    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def render(template: str, **values: Any) -> str:
    """A template of this folder with its values."""
    return str(_environment().get_template(template).render(**values))
