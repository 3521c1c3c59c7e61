"""The report on a run of several ranks: one launch of a script for all of it."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from launch import PROGRAMS

from torch_trn_emu.cli.rank_report import rank_report
from torch_trn_emu.cli.ranks import read_ranks
from torch_trn_emu.cli.record import read_record

EMU = [sys.executable, "-m", "torch_trn_emu"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile")
    (out / "rank7").mkdir()  # of an earlier run
    command = [*EMU, "run", "--profile", str(out), *TORCHRUN, str(PROGRAMS / "train.py")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "communication, a rank on average" in ended.stderr, ended.stderr[-3000:]
    return out


def test_each_rank_records_itself(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "rank0", "rank1", "report.html", "trace.json.gz",
    ]  # fmt: skip
    records = read_ranks(folder)
    assert [(r["rank"], r["world"], r["ended"]) for r in records] == [
        (0, 2, "well"),
        (1, 2, "well"),
    ]
    assert read_record(folder)["rank"] == 0  # what diff and coverage compare


def test_both_ranks_have_the_same_collectives(folder):
    def calls(record):
        return sorted((r["operation"], r["bytes"], r["calls"], round(r["duration_s"], 9))
                      for r in record["collectives"])  # fmt: skip

    first, second = read_ranks(folder)
    assert calls(first) == calls(second)
    assert "all_reduce" in {row["operation"] for row in first["collectives"]}
    for record in (first, second):
        for row in record["collectives"]:
            assert 0 <= row["exposed_s"] <= row["duration_s"] + 1e-12, row
            assert row["late_s"] >= 0


def test_the_report_names_ranks_collectives_and_what_is_exposed(folder):
    found = rank_report(read_ranks(folder), 5)
    assert [table.title for table in found.tables][:2] == [
        "Ranks", "Collectives, most exposed first",
    ]  # fmt: skip
    assert [row[0] for row in found.tables[0].rows] == ["0", "1"]
    text = found.text
    assert "2 ranks, all finished" in text
    assert "exposed" in text
    assert "trn3-gen2, its collectives extrapolated" in text
    assert "<html" in (folder / "report.html").read_text()


def test_the_joint_trace_has_a_process_for_each_rank(folder):
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    named = {e["args"]["name"].split(",")[0] for e in events if e["name"] == "process_name"}
    assert named == {"rank 0", "rank 1"}
    spans = {}
    for e in events:
        if e["ph"] == "X" and e["name"] == "all_reduce":
            spans.setdefault(e["pid"] // 1000, []).append((e["ts"], e["dur"]))
    assert spans[0] == spans[1] != []  # one clock: the same beginning and end


def test_a_rank_without_a_record_is_named(folder):
    records = [json.loads(json.dumps(r)) for r in read_ranks(folder)]
    assert "no record of rank 1" in rank_report(records[:1], 5).text
    records[1]["ended"] = "with an error"
    assert "rank 1 ended with an error" in rank_report(records, 5).text


def test_a_launch_without_ranks_writes_one_record(tmp_path):
    script = tmp_path / "one.py"
    script.write_text("import torch\ntorch.ones(4, device='trn').sum().item()\n")
    out = Path(tmp_path / "out")
    command = [*EMU, "run", "--profile", str(out), str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert (out / "run.json").exists()
    assert not list(out.glob("rank*"))
