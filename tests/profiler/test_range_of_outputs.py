"""Every output of a time carries its range."""

import gzip
import json
from typing import Any

import pytest
import torch

import torch_trn_emu
from torch_trn_emu import trn
from torch_trn_emu.cli.record import record_of
from torch_trn_emu.cli.report import report
from torch_trn_emu.cli.summary import chip_report
from torch_trn_emu.profiler.export import as_json
from torch_trn_emu.ranges import said

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


@pytest.fixture
def sentence(prof: Any) -> str:
    return said(prof.recording.range, prof.recording.chip)


def joined(text: str) -> str:
    """Without the breaks of lines."""
    return " ".join(text.split())


def test_the_summary_of_a_profile(prof: Any, sentence: str) -> None:
    text = joined(prof.summary())
    assert sentence in text
    row = prof.op_report()[0]
    assert row.range_text in text
    assert row.regime


def test_the_page_and_the_notebook(prof: Any, sentence: str, tmp_path: Any) -> None:
    prof.export_html(tmp_path / "r.html")
    assert sentence in (tmp_path / "r.html").read_text()
    assert sentence in prof._repr_html_()


def test_json_and_the_report_of_a_run(prof: Any, sentence: str) -> None:
    read = json.loads(json.dumps(as_json(prof.recording)))
    assert read["range"]["text"] == sentence
    assert read["range"]["low"] < read["range"]["high"]
    assert all(row["range_low"] < row["range_high"] for row in read["ops"])
    record = record_of(["train.py"], prof, [], "well")
    assert sentence in report(record, 5).lines


def test_traces(prof: Any, sentence: str, tmp_path: Any) -> None:
    prof.export_chrome_trace(tmp_path / "t.json.gz")
    with gzip.open(tmp_path / "t.json.gz", "rt") as file:
        assert json.load(file)["otherData"]["range"] == sentence


def test_parquet(prof: Any, sentence: str, tmp_path: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    prof.export_parquet(tmp_path / "tables")
    for path in (tmp_path / "tables").iterdir():
        assert parquet.read_schema(path).metadata[b"range"].decode() == sentence


def test_estimates() -> None:
    x = torch.empty(512, 512, device="meta")
    found = torch_trn_emu.estimate(torch.mm, x, x)
    for text in (str(found), found._repr_html_()):
        assert str(found.range) in text
        assert found.basis in text
    low, high = found.range.of_time(found.time_us)
    assert 0 < low < high


def test_events_and_what_a_script_leaves() -> None:
    assert trn.Event.range.rows > 0
    assert str(trn.Event.range) in joined(chip_report())
