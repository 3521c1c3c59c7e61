"""How far measurements lie from predictions: a range for each regime.

The rows are published measurements that no constant was fitted on and no schedule shaped on, each
predicted as a user reaches it (benchmarks/accuracy.json). A range holds the 10th to the 90th
percentile of measured / predicted; a publication counts as five rows at most, so that one long
table does not decide alone. A regime of fewer than five rows takes those that a schedule was shaped
on too, or the range of a wider one, and says so.
tests/chip/test_ranges.py holds this table to the file; `make accuracy` prints it anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .spec import Chip

__all__ = ["FEWEST", "MIXED", "RANGES", "REGIMES", "Range"]

FEWEST = 5  # rows that make a range of a regime's own (chosen)
MIXED = "whole graph"  # several operators together
# What a regime is, for docs/accuracy.md.
REGIMES: Mapping[str, str] = MappingProxyType(
    {
        "large product": "one operator, the Tensor engine is the busiest",
        "stream": "one operator, DMA is busier than any engine",
        "reduction": "one operator, Vector, Scalar or GpSimd is the busiest engine: reductions, "
        "norms, scans, elementwise operators of many instructions",
        "small": "one operator that takes 60 us at most",
        "decode": "a graph or several operators whose products do at most 64 flops a byte read, "
        "and DMA is busier than the Tensor engine",
        "whole graph": "any other compiled graph, or several operators",
        "small collective": "an exchange between ranks of less than 8 MiB",
        "large collective": "an exchange between ranks of 8 MiB or more",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Where four of five measurements of a regime lie.

    low, high  factors on the predicted time
    rows       how many measurements; none of them was fitted
    trn3       measurements of the regime on Trn3, whatever they served for
    of         whose rows they are: the regime's own, or a wider choice where it has too few
    """

    regime: str
    low: float
    high: float
    rows: int
    trn3: int
    of: str

    def __str__(self) -> str:
        return (
            f"four of five measurements lie within {self.low:.2f} to {self.high:.2f} times the "
            f"prediction ({self.regime}: {self.rows} measurements{self._whose()})"
        )

    def _whose(self) -> str:
        if self.of == self.regime:
            return " that nothing was fitted on"
        if self.of.startswith(self.regime):
            return ", including some that the schedule was shaped on"
        return f" of {self.of}, as there are too few of its own"

    def basis(self, chip: Chip) -> str:
        """What it is for a chip: measured there, or extrapolated."""
        if chip.name == "trn3" and self.trn3 >= FEWEST:
            return f"measured on Trn3: {self.trn3} of the {self.regime} measurements"
        return chip.basis or "measured on trn1 and trn2"

    def of_time(self, time: float) -> tuple[float, float]:
        """The ends for a predicted time."""
        return self.low * time, self.high * time


def _range(regime: str, low: float, high: float, rows: int, trn3: int = 0, of: str = "") -> Range:
    return Range(regime=regime, low=low, high=high, rows=rows, trn3=trn3, of=of or regime)


# begin: ranges
RANGES: Mapping[str, Range] = MappingProxyType(
    {
        found.regime: found
        for found in (
            _range("large product", 0.99, 1.6, 41, 36, "large product, shaped ones too"),
            _range("stream", 0.84, 1.6, 7, 0, "stream, shaped ones too"),
            _range("reduction", 0.93, 1.28, 5, 0, "reduction, shaped ones too"),
            _range("small", 0.86, 2.01, 8, 1, "operators"),
            _range("decode", 0.98, 2.39, 10, 6, "decode, shaped ones too"),
            _range("whole graph", 0.87, 1.66, 10, 1),
            _range("small collective", 6.29, 27.48, 21),
            _range("large collective", 1.13, 4.36, 5),
        )
    }
)
# end: ranges
