"""The record of PyTorch's test files of torch.distributed says what its rows say."""

import json
from pathlib import Path

import pytest
import suites
import torch
from suite_files import CHANGED, REASONS

TORCH = Path(torch.__file__).parent
PATH = "test_device_mesh.py"
OLD = "DeviceMeshTest.test_assert_invalid_mesh_tensor"


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="lines of torch 2.13")
@pytest.mark.parametrize("row", CHANGED, ids=lambda row: row.line)
def test_a_line_of_torch_keeps_the_test_from_passing(row):
    assert row.line in (TORCH / row.where).read_text()


def test_rows_that_change_come_first():
    assert REASONS[: len(CHANGED)] == CHANGED


@pytest.fixture
def files():
    other = {
        OLD: ["failed", "AssertionError: ValueError not raised", "skipped"],
        "A.test_a": ["failed", "more than 3 s", "skipped"],
        "A.test_b": ["failed", "unknown", "passed"],
    }
    row = {"way": "cuda", "used": 1, "left": 0, "other": other}
    trn = {"passed": 8, "failed": 3, "skipped": 0}
    return {PATH: row | {"trn": trn, "gloo_alone": 5}}


def test_the_summary_leaves_out_what_torch_has_changed(files):
    text = suites.summary(files)
    assert "8 of 10 tests in 1 files pass (80.0%)" in text
    assert "Of the 2 others, 1 pass with gloo on the CPU; gloo skips the other 1" in text
    assert "1 more do not count" in text
    assert "Of the tests that gloo passes, 4 of 5 pass on trn (80.0%), in 1 files" in text
    assert suites.table(files) == [(f"`{PATH}`", "cuda", "8", "10", "1", "")]


def test_tests_are_listed_by_what_gloo_does_of_them(files):
    listed = suites.others(files)
    assert listed["passed"] == {"No reason yet.": [f"`{PATH}` `A.test_b` failed: unknown"]}
    assert list(listed["skipped"].values()) == [[f"`{PATH}` `A.test_a` failed: more than 3 s"]]
    (reason,) = listed[""]
    assert "`torch/distributed/device_mesh.py`" in reason
    assert listed[""][reason] == [f"`{PATH}` `{OLD}` failed"]
    text = suites.text_of(files)
    assert [text.index(kind) for kind in suites.KINDS.values()] == sorted(
        text.index(kind) for kind in suites.KINDS.values()
    )


def test_what_is_printed_of_several_files_is_told_apart():
    lines = ["file [0]\n", "all []\n", "end 1\n", "file [1]\n", "all []\n"]
    assert list(suites._by_file(iter(lines))) == [["all []\n", "end 1\n"], ["all []\n"]]


def test_the_rest_of_a_file_is_added_to_its_record(files, monkeypatch, tmp_path):
    files[PATH] |= {"left": 3, "gloo": {"passed": 1, "failed": 0, "skipped": 2}}
    monkeypatch.setattr(suites, "RESULTS", tmp_path / "kept.json")
    suites.RESULTS.write_text(json.dumps({"files": files}))
    asked = []

    def run(source, file, way, limits, chosen):
        asked.append((way, chosen))
        if way == "gloo":
            return suites.Ran({"ACPU.test_d_cpu": suites.Outcome("passed", "")}, 0, [])
        ran = {"ACUDA.test_c_cuda": suites.Outcome("passed", "")}
        return suites.Ran(ran | {"ACUDA.test_d_cuda": suites.Outcome("failed", "why")}, 2, [])

    monkeypatch.setattr(suites, "run", run)
    row = suites.rest(tmp_path, suites.File(PATH), 9, 9)
    assert asked == [("cuda", ["after", 11]), ("gloo", ["only", "ACPU.test_d_cpu"])]
    assert row["trn"] == {"passed": 9, "failed": 4, "skipped": 0}
    assert row["gloo"] == {"passed": 2, "failed": 0, "skipped": 2}
    assert (row["left"], row["used"]) == (1, 3)
    assert row["other"]["ACUDA.test_d_cuda"] == ["failed", "why", "passed"]
    assert OLD in row["other"]
