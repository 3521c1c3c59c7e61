"""The Chrome trace: lanes, arrows, sums, and what it says when it merges."""

import gzip
import json
from collections import Counter
from itertools import pairwise

import pytest
import torch

import torch_trn_emu
from torch_trn_emu.profiler.trace import DETAIL, events


@pytest.fixture(scope="module")
def found(prof) -> list[dict]:
    return events(prof.recording)


def lanes_of(found: list[dict]) -> dict[int, str]:
    return {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}


def test_lanes_have_names(found) -> None:
    names = list(lanes_of(found).values())
    assert names[:3] == ["host dispatch", "module", "launches"]
    assert {"tensor", "vector", "scalar"} < set(names)
    assert any(name.startswith("dma ") for name in names)
    used = {e["tid"] for e in found if e["ph"] == "X"}
    assert used <= set(lanes_of(found))


def test_slices_of_a_lane_do_not_overlap(found) -> None:
    for lane in lanes_of(found):
        slices = [
            (e["ts"], e["ts"] + e["dur"]) for e in found if e.get("tid") == lane and e["ph"] == "X"
        ]
        slices.sort()
        for (_, end), (start, _) in pairwise(slices):
            assert start >= end - 2e-6  # microseconds, rounded to picoseconds


def test_launches_are_those_of_the_recording(found, prof) -> None:
    launches = prof.recording.launches
    names = lanes_of(found)
    device = [e for e in found if e["ph"] == "X" and names[e["tid"]] == "launches"]
    assert [e["name"] for e in device] == [x.op for x in launches]
    assert sum(e["dur"] for e in device) == pytest.approx(prof.counters()["core_busy_time"] * 1e6)
    assert all(
        "Model" in e["args"].get("module", "Model") or "step" in e["args"]["module"] for e in device
    )


def test_instructions_lie_inside_their_launch(found, prof) -> None:
    launches = {e["id"]: e for e in found if e["ph"] == "t"}
    ends = {k: x.end_ns / 1e3 for k, x in enumerate(prof.recording.launches)}
    arrows = [e for e in found if e["ph"] == "f"]
    assert arrows
    for e in arrows:
        assert launches[e["id"]]["ts"] <= e["ts"] <= ends[e["id"]]
    starts = Counter(e["ph"] for e in found if e["ph"] in "stf")
    assert starts["s"] == starts["t"] == len(prof.recording.launches)


def test_engine_lanes_add_up_to_the_counters(found, prof) -> None:
    names = lanes_of(found)
    counters = prof.counters()
    for engine in ("tensor", "vector", "scalar"):
        mine = [e for e in found if e["ph"] == "X" and names[e["tid"]] == engine]
        executed = sum(e["args"]["executions"] for e in mine)
        # Of all cores that run a program; a float32 matmul counts as two instructions.
        assert 0 < executed <= counters[f"{engine}_engine_instruction_count"]
        busy_us = sum(e["args"].get("busy_ns", e["dur"] * 1e3) for e in mine) / 1e3
        assert busy_us == pytest.approx(counters[f"{engine}_engine_active_time"] * 1e6, rel=1e-3)


def test_memory_counts_by_category(found, prof) -> None:
    tracks = [e for e in found if e["ph"] == "C"]
    assert max(sum(e["args"].values()) for e in tracks) == sum(prof.memory()[0].values())


def test_a_bound_leaves_out_and_says_so(prof) -> None:
    def engine_slices(all_events: list[dict]) -> list[dict]:
        return [e for e in all_events if e["ph"] == "X" and "executions" in e.get("args", {})]

    whole = engine_slices(events(prof.recording))
    launches = len(prof.recording.launches)
    bound = 8 * launches
    few = events(prof.recording, max_events=bound)
    slices = engine_slices(few)
    assert len(few) <= bound + 60  # names of lanes
    assert len(slices) < len(whole)
    label = next(e["args"]["labels"] for e in few if e["name"] == "process_labels")
    assert f"of {launches}" in label
    some = events(prof.recording, max_events=120, skip_launches=5)
    assert [e["id"] for e in some if e["ph"] == "s"] == list(range(5, 15))
    label = next(e["args"]["labels"] for e in some if e["name"] == "process_labels")
    assert f"launches 5 to 15 of {launches}" in label
    assert len(some) <= 120 + 60


def test_engines_of_later_launches_are_left_out_last() -> None:
    x = torch.ones(512, 512, device="trn")
    with torch_trn_emu.profile() as prof:
        for _ in range(20):
            x @ x
    found = events(prof.recording, max_events=240)
    assert sum(e["ph"] == "s" for e in found) == 20
    detailed = sum(e["ph"] == "f" for e in found)
    assert 0 < detailed < 20
    assert f"only launches 0 to {detailed} show their engines" in found[1]["args"]["labels"]


def test_files(prof, tmp_path) -> None:
    prof.export_chrome_trace(tmp_path / "t.json")
    prof.export_chrome_trace(str(tmp_path / "t.json.gz"))
    plain = json.loads((tmp_path / "t.json").read_text())
    assert plain == json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))
    assert plain["otherData"]["chip"] == "trn3"
    assert len(plain["traceEvents"]) == len(events(prof.recording))


def test_each_core_is_a_process() -> None:
    if torch.trn.device_count() < 2:
        pytest.skip("one logical core only")
    a, b = (torch.ones(8, 8, device=f"trn:{k}") for k in range(2))
    with torch_trn_emu.profile() as prof:
        a + a
        b + b
        b * b
    found = events(prof.recording)
    named = {e["pid"]: e["args"]["name"] for e in found if e["name"] == "process_name"}
    assert named == {0: "trn:0 (trn3)", 1: "trn:1 (trn3)"}
    assert Counter(e["pid"] for e in found if e["ph"] == "s") == {0: 1, 1: 2}


def test_long_programs_are_merged() -> None:
    x = torch.ones(2048, 2048, device="trn")
    with torch_trn_emu.profile() as prof:
        x @ x
    whole, few = events(prof.recording), events(prof.recording, max_events=100)
    slices = [e for e in whole if "executions" in e.get("args", {})]
    per_lane = Counter(e["tid"] for e in slices)
    assert max(per_lane.values()) <= 2 * DETAIL
    tensor = [e for e in slices if "matmul" in e["name"]]
    assert sum(e["args"]["executions"] for e in tensor) > len(tensor)
    assert any(e["args"].get("merged") for e in slices)
    assert "are merged to at most 128 spans" in whole[1]["args"]["labels"]
    fewer = [e for e in few if "executions" in e.get("args", {})]
    assert len(fewer) <= 100
    assert sum(e["args"]["executions"] for e in fewer) == sum(
        e["args"]["executions"] for e in slices
    )
