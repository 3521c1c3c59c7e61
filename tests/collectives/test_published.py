"""The published sweeps of collectives are reproduced."""

import csv
from pathlib import Path

import pytest

from torch_trn_emu.collectives import predicted_s

DATA = Path(__file__).parents[2] / "benchmarks/data/measured_collectives.csv"
ROWS = list(csv.DictReader(x for x in DATA.read_text().splitlines() if not x.startswith("#")))
TIMED = [row for row in ROWS if row["time_us"] and row["size_bytes"]]
CHANGES_ALGORITHM = {"trn1_allreduce_r64_n2", "trn2_allreduce_r16"}


def error(row: dict[str, str]) -> float:
    predicted = predicted_s(row["series"], row["op"], int(row["ranks"]), float(row["size_bytes"]))
    return abs(predicted * 1e6 / float(row["time_us"]) - 1)


@pytest.mark.parametrize("series", sorted({row["series"] for row in TIMED}))
def test_a_sweep_is_reproduced(series):
    errors = [error(row) for row in TIMED if row["series"] == series]
    assert sum(errors) / len(errors) < (0.20 if series in CHANGES_ALGORITHM else 0.10), errors


def test_rows_that_nothing_was_fitted_on():
    """Every second row of the sweeps of one algorithm with four or more."""
    held_out = []
    for series in {row["series"] for row in TIMED} - CHANGES_ALGORITHM:
        rows = [row for row in TIMED if row["series"] == series]
        held_out += rows[1::2] if len(rows) >= 4 else []
    errors = [error(row) for row in held_out]
    assert len(errors) >= 6
    assert sum(errors) / len(errors) < 0.05, errors


def test_an_unknown_series_is_refused():
    with pytest.raises(ValueError, match="no condition"):
        predicted_s("trn9", "all_reduce", 2, 1024)
