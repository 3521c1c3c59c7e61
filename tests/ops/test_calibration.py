"""The accuracy table stays within its limits, and the schedules in their measured order."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# torch 2.13 uses what it deprecates, and Dynamo warns of a mode's subclass
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*does not know how to trace:UserWarning"),
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks/accuracy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec.loader.exec_module(module)
    return module


def test_errors_are_bounded(accuracy: ModuleType) -> None:
    errors = {row.id: row.error for row in accuracy.rows()}
    assert len(errors) == 23
    assert sum(map(abs, errors.values())) / len(errors) <= 0.12
    assert max(map(abs, errors.values())) <= 0.30, errors


def test_held_out_measurements_are_predicted_too(accuracy: ModuleType) -> None:
    errors = [abs(r.error) for r in accuracy.rows(accuracy.HOLDOUT, accuracy.HOLDOUT_PRICES)]
    assert sum(errors) / len(errors) <= 0.12
    assert max(errors) <= 0.30


@pytest.fixture(scope="module")
def compiled_rows(accuracy: ModuleType) -> list[Any]:
    return accuracy.rows(accuracy.COMPILED, accuracy.COMPILED_PRICES)  # type: ignore[no-any-return]


def test_compiled_operators_are_predicted_to_an_eighth(accuracy: ModuleType) -> None:
    """The compiled figures of calibration rows, by the path of torch.compile."""
    table = accuracy.rows(accuracy.LAUNCHED, accuracy.LAUNCHED_PRICES)
    assert [row.id for row in table] == ["cal05", "cal15", "cal16", "cal18", "cal23"]
    errors = [abs(row.error) for row in table]
    assert sum(errors) / len(errors) <= 0.12


def test_compiled_graphs_are_predicted_to_a_sixth(compiled_rows: list[Any]) -> None:
    """Two thirds of them to 30 %; many of the measured kernels are wasteful."""
    errors = sorted(abs(row.error) for row in compiled_rows)
    assert sum(errors) / len(errors) <= 0.16
    assert errors[2 * len(errors) // 3] <= 0.31


def test_schedules_of_a_matmul_come_in_the_measured_order(accuracy: ModuleType) -> None:
    rows = {row.id: row for row in accuracy.rows()}
    hand, serial, compiler = (rows[f"cal0{k}"] for k in (3, 4, 5))
    assert hand.predicted < compiler.predicted < serial.predicted
    spread = serial.predicted / hand.predicted
    assert spread == pytest.approx(serial.measured / hand.measured, rel=0.15)


def test_every_measurement_has_a_price(accuracy: ModuleType) -> None:
    with accuracy.DATA.open() as file:
        ids = [line.split(",")[0] for line in file][1:]
    assert ids == list(accuracy.PRICES)
