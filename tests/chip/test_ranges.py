"""Ranges follow from measurements that nothing was fitted on, and hold four of five of them."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.chip.calibration import FEWEST, RANGES, REGIMES
from torch_trn_emu.ranges import range_of, regime_of, said

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = ("trn3_gemm", "models", "llm_decode", "calibration", "holdout", "launched", "compiled")
RENEW = "run `make accuracy`, and copy the ranges that it prints to chip/calibration.py"


@pytest.fixture(scope="module")
def measurements() -> ModuleType:
    path = BENCHMARKS / "measurements.py"
    spec = importlib.util.spec_from_file_location("measurements", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measurements"] = module
    sys.path.insert(0, str(BENCHMARKS))
    spec.loader.exec_module(module)
    return module


def stored() -> list[dict[str, Any]]:
    return json.loads((BENCHMARKS / "accuracy.json").read_text())["rows"]  # type: ignore[no-any-return]


def test_the_package_has_the_ranges_of_the_file(measurements: ModuleType) -> None:
    found = measurements.ranges(stored())
    held = [(r.regime, r.low, r.high, r.rows, r.trn3, r.of) for r in RANGES.values()]
    assert held == found, RENEW
    assert set(RANGES) == set(REGIMES)


def test_four_of_five_rows_that_nothing_was_fitted_on_lie_within_their_range(
    measurements: ModuleType,
) -> None:
    rows = [r for r in stored() if r.get("regime") and "error" in r and r["use"] == "not fitted"]
    rows = [r for r in rows if r["id"] not in measurements.NOT_MODELLED]
    within: dict[str, list[bool]] = {}
    for row in rows:
        found, ratio = RANGES[row["regime"]], 1 / (1 + row["error"])
        within.setdefault(row["regime"], []).append(found.low <= ratio <= found.high)
    together = [held for each in within.values() for held in each]
    assert sum(together) >= 0.8 * len(together)
    for regime, each in within.items():
        assert len(each) < FEWEST or sum(each) >= 0.75 * len(each), regime


def test_no_measurement_is_left_out(measurements: ModuleType) -> None:
    """Each has a prediction, or says why not."""
    rows = {row["id"]: row for row in stored()}
    for file in FILES:
        for line in measurements.read(file):
            name = line["id"] + "c" * (file == "launched")
            assert ("error" in rows[name]) != bool(rows[name].get("unpredicted")), name
            assert rows[name]["use"] == line["use"] != "", name
    collectives = [row for row in rows.values() if row["kind"] == "collectives"]
    assert len(collectives) == len(measurements.read("collectives"))


def test_far_predictions_say_why() -> None:
    unexplained = [
        row["id"] for row in stored()
        if abs(row.get("error", 0)) > 0.25 and not row.get("reason") and not row["note"]
    ]  # fmt: skip
    assert not unexplained


def test_rows_that_constants_name_are_fitted(measurements: ModuleType) -> None:
    for file in FILES:
        for line in measurements.read(file):
            if measurements.accuracy.fitted_on(line["id"]):
                assert line["use"] == "fitted", line["id"]


def test_products_of_trn3_are_predicted_to_three_percent(measurements: ModuleType) -> None:
    errors = [abs(row["error"]) for row in measurements.rows("products on Trn3")]
    assert len(errors) == 36
    assert sum(errors) / len(errors) <= 0.03
    assert max(errors) <= 0.08


def test_stored_predictions_are_those_of_today(measurements: ModuleType) -> None:
    """Operators, which take seconds; models, which take minutes, are left to `make accuracy`."""
    known = {row["id"]: row for row in stored()}
    for row in measurements.rows("operators"):
        assert row["predicted"] == pytest.approx(known[row["id"]]["predicted"], rel=0.05), RENEW


def test_a_regime_is_read_from_counters() -> None:
    product = {"tensor_engine_active_time": 8e-4, "dma_active_time": 2e-4, "total_time": 1e-3}
    stream = {"vector_engine_active_time": 2e-4, "dma_active_time": 8e-4, "total_time": 1e-3}
    norm = {"vector_engine_active_time": 8e-4, "dma_active_time": 2e-4, "total_time": 1e-3}
    assert regime_of(product, launches=1, whole=False) == "large product"
    assert regime_of(stream, launches=1, whole=False) == "stream"
    assert regime_of(norm, launches=1, whole=False) == "reduction"
    assert regime_of(stream | {"total_time": 2e-5}, launches=1, whole=False) == "small"
    assert regime_of(product, launches=1, whole=True) == "whole graph"
    few = stream | {"model_flops": 1e6, "hbm_read_bytes": 1e6}
    assert regime_of(few, launches=1, whole=True) == "decode"


def test_what_is_said_of_trn3_names_what_it_rests_on() -> None:
    for regime in REGIMES:
        found = range_of(regime)
        text = said(found, get_chip("trn3"))
        assert ("measured on Trn3" in text) == (found.trn3 >= FEWEST), regime
        assert ("extrapolated from trn2" in text) == (found.trn3 < FEWEST), regime
        assert f"{found.low:.2f} to {found.high:.2f} times" in text
        assert "extrapolated" not in said(found, get_chip("trn2"))


def test_files_say_what_their_rows_served_for() -> None:
    for path in sorted((BENCHMARKS / "data").glob("measured_*.csv")):
        lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
        for row in csv.DictReader(lines):
            assert row["use"] in ("fitted", "shaped", "not fitted"), (path.name, row)
            assert row["source"], (path.name, row)
