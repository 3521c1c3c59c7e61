"""How far predicted times are from published measurements: the summary of benchmarks/accuracy.py.

A test holds these figures to the table that the benchmark computes. All rows are of trn1 and trn2;
trn3 has no public measurement.
"""

from dataclasses import dataclass

__all__ = ["CALIBRATION", "COMPILED", "HELD_OUT", "LAUNCHED", "Accuracy", "error_bar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Absolute errors of the predicted times, as shares of the measured ones."""

    rows: int
    mean_error: float
    worst_error: float


CALIBRATION = Accuracy(rows=23, mean_error=0.045, worst_error=0.146)
# No constant of chips.py was fitted on these.
HELD_OUT = Accuracy(rows=20, mean_error=0.095, worst_error=0.198)
# The compiled figures of calibration rows, and graphs of the vendor's compiler, both priced as
# torch.compile(backend="trn") cuts and fuses them.
LAUNCHED = Accuracy(rows=5, mean_error=0.075, worst_error=0.139)
COMPILED = Accuracy(rows=13, mean_error=0.154, worst_error=0.461)


def error_bar(mode: str = "eager") -> float:
    """What to expect of a prediction: the largest mean error of the tables it rests on."""
    bar = max(CALIBRATION.mean_error, HELD_OUT.mean_error)
    return max(bar, LAUNCHED.mean_error, COMPILED.mean_error) if mode == "compile" else bar
