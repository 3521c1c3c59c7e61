"""torch.profiler shows the device's kernels, with simulated durations."""

import json
from itertools import pairwise

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

import torch_trn_emu

ACTIVITIES = [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]


def test_the_device_is_a_supported_activity() -> None:
    assert ProfilerActivity.PrivateUse1 in supported_activities()


def work(x: torch.Tensor) -> float:
    return ((x @ x) + x).sum().item()


@pytest.fixture(scope="module")
def traced():
    x = torch.ones(300, 300, device="trn")
    work(x)
    torch_trn_emu.reset_op_counts()
    with profile(activities=ACTIVITIES) as prof:
        work(x)
        work(x)
    return prof, torch_trn_emu.launches()


def test_kernels_take_their_simulated_time(traced) -> None:
    prof, launches = traced
    averages = {row.key: row for row in prof.key_averages()}
    for row in launches:
        if not row.device_ns:
            continue
        name = row.op.removeprefix("aten::")
        kernel = averages[f"trn::{name}"]
        assert kernel.count == row.launches
        assert kernel.self_device_time_total == pytest.approx(row.launches * row.device_ns / 1e3)
    mm = averages["aten::mm"]
    assert mm.device_time_total == pytest.approx(averages["trn::mm"].device_time_total)
    assert averages["trnLaunch"].device_time_total == 0
    assert "Self TRN" in prof.key_averages().table()


def test_kernels_are_linked_to_their_operators_in_the_trace(traced, tmp_path) -> None:
    prof, _ = traced
    prof.export_chrome_trace(str(tmp_path / "k.json"))
    events = json.loads((tmp_path / "k.json").read_text())["traceEvents"]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    operators = {
        e["args"]["External id"]: e for e in events if e.get("cat") == "cpu_op" and "args" in e
    }
    for kernel in kernels:
        operator = operators[kernel["args"]["External id"]]
        assert kernel["name"].split("::")[1].split(".")[0] in operator["name"]
        assert kernel["ts"] >= operator["ts"]
        assert kernel["dur"] == pytest.approx(kernel["args"]["simulated device time (ns)"] / 1e3)
    arrows = [e for e in events if e.get("cat") == "ac2g"]
    assert (
        sum(e["ph"] == "s" for e in arrows) == sum(e["ph"] == "f" for e in arrows) == len(kernels)
    )
    rows = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert "trn:0 stream 0 (simulated)" in rows
    slices = sorted((e["ts"], e["dur"]) for e in kernels)
    for (start, duration), (following, _) in pairwise(slices):
        assert following >= start + duration - 0.01


def test_both_profilers_at_once() -> None:
    x = torch.ones(30, 30, device="trn")
    with profile(activities=ACTIVITIES) as theirs, torch_trn_emu.profile() as ours:
        work(x)
    kernels = [e for e in theirs.events() if e.name.startswith("trn::")]
    assert len(kernels) == ours.counters()["launch_count"]


def test_a_schedule_profiles_again() -> None:
    x = torch.ones(30, 30, device="trn")
    found = []
    with profile(
        activities=ACTIVITIES,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=2, repeat=2),
        on_trace_ready=lambda p: found.append(
            sum(e.count for e in p.key_averages() if e.key == "trn::mm")
        ),
        acc_events=True,
    ) as prof:
        for _ in range(8):
            work(x)
            prof.step()
    assert len(found) == 2
    assert found[0] == 2


def test_counters_do_not_change_under_torch_profiler() -> None:
    x = torch.ones(30, 30, device="trn")
    work(x)

    def counted() -> dict[str, float]:
        torch.trn.reset_counters()
        work(x)
        return torch.trn.counters()

    plain = counted()
    with profile(activities=ACTIVITIES):
        assert counted() == plain
