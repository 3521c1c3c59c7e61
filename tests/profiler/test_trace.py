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
        cores = prof.recording.lnc
        # A float32 matmul counts as two instructions.
        most = counters[f"{engine}_engine_instruction_count"] / cores
        assert 0 < executed <= most
        busy_us = sum(e["args"].get("busy_ns", e["dur"] * 1e3) for e in mine) / 1e3
        assert busy_us == pytest.approx(counters[f"{engine}_engine_active_time"] * 1e6, rel=1e-3)


def test_memory_counts_by_category(found, prof) -> None:
    tracks = [e for e in found if e["ph"] == "C"]
    assert max(sum(e["args"].values()) for e in tracks) == sum(prof.memory()[0].values())


def test_a_bound_merges_and_says_so(prof) -> None:
    def engine_slices(all_events: list[dict]) -> list[dict]:
        return [e for e in all_events if e["ph"] == "X" and "executions" in e.get("args", {})]

    whole = engine_slices(events(prof.recording))
    bound = len(whole) // 3
    few = events(prof.recording, max_events=bound)
    slices = engine_slices(few)
    assert len(slices) <= bound
    assert any(e["args"].get("merged") for e in slices)
    label = next(e["args"]["labels"] for e in few if e["name"] == "process_labels")
    assert "merged" in label
    if "only the first" not in label:
        executed = [sum(e["args"]["executions"] for e in es) for es in (whole, slices)]
        assert executed[0] == executed[1]
    tiny = events(prof.recording, max_events=10)
    assert len(engine_slices(tiny)) <= 10
    assert "only the first" in next(
        e["args"]["labels"] for e in tiny if e["name"] == "process_labels"
    )


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
    slices = [e for e in events(prof.recording) if "executions" in e.get("args", {})]
    per_lane = Counter(e["tid"] for e in slices)
    assert max(per_lane.values()) <= 2 * DETAIL
    tensor = [e for e in slices if "matmul" in e["name"]]
    assert sum(e["args"]["executions"] for e in tensor) > len(tensor)
