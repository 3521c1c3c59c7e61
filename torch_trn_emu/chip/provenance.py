"""Figures that remember where they come from: floats with a status and a source.

Arithmetic on a figure gives a plain float: a derived value is nobody's statement.

    clock = documented(2.4e9, "guide")
    clock.status, clock.source      # Status.DOCUMENTED, "guide"
    type(clock * 2)                 # float
"""

from enum import Enum

__all__ = [
    "Figure",
    "Status",
    "calibrated",
    "chosen",
    "documented",
    "inferred",
    "measured",
    "projected",
]


class Status(str, Enum):
    """How a figure is known, from best to least."""

    DOCUMENTED = "documented"  # the vendor prints it
    MEASURED = "measured"  # someone published a measurement of it on the chip
    INFERRED = "inferred"  # arithmetic on documented or measured figures
    CALIBRATED = "calibrated"  # set so that the named measurements come out right
    CHOSEN = "chosen"  # nothing public says; a plausible value of ours
    PROJECTED = "projected"  # of a chip that does not exist yet: announced, or as the one before

    def __str__(self) -> str:
        return self.value


class Figure(float):
    """A float with `status`, `source` and, for a fitted one, the calibration `rows` used."""

    __slots__ = ("rows", "source", "status")

    status: Status
    source: str
    rows: tuple[str, ...]

    def __new__(
        cls, value: float, status: Status, source: str, rows: tuple[str, ...] = ()
    ) -> "Figure":
        figure = super().__new__(cls, value)
        figure.status, figure.source, figure.rows = status, source, rows
        return figure

    def __getnewargs__(self) -> tuple[float, Status, str, tuple[str, ...]]:  # type: ignore[override]
        return float(self), self.status, self.source, self.rows

    def describe(self) -> str:
        """The figure with its provenance, for error texts and generated tables."""
        rows = f" on {', '.join(self.rows)}" if self.rows else ""
        return f"{float(self):g} ({self.status}{rows}: {self.source})"


def documented(value: float, source: str) -> Figure:
    """The vendor prints it."""
    return Figure(value, Status.DOCUMENTED, source)


def measured(value: float, source: str) -> Figure:
    """Measured on silicon and published."""
    return Figure(value, Status.MEASURED, source)


def inferred(value: float, source: str) -> Figure:
    """Arithmetic on documented or measured figures; `source` says which."""
    return Figure(value, Status.INFERRED, source)


def calibrated(value: float, source: str, *rows: str) -> Figure:
    """Fitted to the calibration rows named; `source` says which mechanism it stands for."""
    return Figure(value, Status.CALIBRATED, source, rows)


def chosen(value: float, source: str) -> Figure:
    """Not public: ours. `source` says why this value."""
    return Figure(value, Status.CHOSEN, source)


def projected(value: float, source: str) -> Figure:
    """Of a chip that is announced only: an announced figure, or one of the chip before it."""
    return Figure(value, Status.PROJECTED, source)
