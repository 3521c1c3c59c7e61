"""How far predicted times are from published measurements: the summary of benchmarks/accuracy.py.

A test holds these figures to the table that the benchmark computes. All rows are of trn1 and trn2;
trn3 has no public measurement.
"""

from dataclasses import dataclass

__all__ = ["CALIBRATION", "COMPILED", "HELD_OUT", "Accuracy", "error_bar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Absolute errors of the predicted times, as shares of the measured ones."""

    rows: int
    mean_error: float
    worst_error: float


CALIBRATION = Accuracy(rows=23, mean_error=0.046, worst_error=0.146)
# No constant of chips.py was fitted on these.
HELD_OUT = Accuracy(rows=7, mean_error=0.073, worst_error=0.285)
# Graphs of the vendor's compiler, priced as torch.compile(backend="trn") cuts and fuses them.
COMPILED = Accuracy(rows=13, mean_error=0.209, worst_error=0.466)


def error_bar(mode: str = "eager") -> float:
    """What to expect of a prediction: the largest mean error of the tables it rests on."""
    bar = max(CALIBRATION.mean_error, HELD_OUT.mean_error)
    return max(bar, COMPILED.mean_error) if mode == "compile" else bar
