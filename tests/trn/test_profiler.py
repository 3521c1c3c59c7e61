"""Measuring: torch.profiler and torch.utils.benchmark over trn operators."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils import benchmark


def test_operators_appear_in_a_profile(tmp_path):
    model = nn.Linear(16, 16).to("trn")
    x = torch.randn(8, 16, device="trn")
    with (
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run,
        record_function("step"),
    ):
        model(x).relu().sum().backward()
    names = {event.key for event in run.key_averages()}
    assert {"step", "aten::relu", "aten::sum", "aten::linear"} <= names
    assert "aten::relu" in run.key_averages().table(sort_by="cpu_time_total", row_limit=50)
    run.export_chrome_trace(str(tmp_path / "trace.json"))
    assert (tmp_path / "trace.json").stat().st_size > 1000


def test_tables_are_sorted_by_columns_of_the_device(tmp_path):
    activities = [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]
    x = torch.randn(64, 64, device="trn")
    with profile(activities=activities, profile_memory=True, with_stack=True) as run:
        (x @ x).neg()
    rows = run.key_averages()
    for column in ("trn_time_total", "self_trn_time_total", "trn_memory_usage", "cpu_time_total"):
        assert "aten::neg" in rows.table(sort_by=column)
    assert rows.table(sort_by="trn_time_total") == rows.table(sort_by="device_time_total")
    run.events().export_stacks(str(tmp_path / "stacks.txt"), "self_trn_time_total")


def test_memory_of_the_device_is_profiled():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        kept = torch.ones(1 << 20, device="trn")
    events = [event for event in run.events() if event.name == "[memory]"]
    sizes = {event.device_memory_usage or event.cpu_memory_usage for event in events}
    moved = {event.device_memory_usage for event in run.key_averages()}
    assert kept.nbytes in sizes | moved


def test_a_schedule_steps_through_phases():
    seen = []
    with profile(
        activities=[ProfilerActivity.CPU],
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=2),
        on_trace_ready=lambda run: seen.append(run.step_num),
    ) as run:
        for _ in range(4):
            torch.ones(4, device="trn").exp()
            run.step()
    assert seen == [4]


def test_timers_measure_trn_code():
    timer = benchmark.Timer("x + 1", globals={"x": torch.ones(16, device="trn")})
    assert timer.timeit(20).median > 0
    assert timer.blocked_autorange(min_run_time=0.01).median > 0


def test_memory_that_is_allocated_and_freed_adds_up_to_zero():
    """Blocks are larger than small tensors: both sides count the block."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]
    linear, x = nn.Linear(5, 7).to("trn"), torch.ones(3, 5, device="trn")
    linear(x).sum().backward()
    with profile(activities=activities, profile_memory=True) as run:
        for size in (1, 3, 100, 4097):
            small = torch.empty(size, device="trn")
            del small
        linear(x).relu().sum().backward()
        linear.zero_grad(set_to_none=False)
    assert sum(event.self_device_memory_usage for event in run.key_averages()) == 0


def test_the_older_profiler_has_device_time(capfd):
    x = torch.randn(32, 32, device="trn")
    for kineto in (False, True):
        with torch.autograd.profiler.profile(use_device="trn", use_kineto=kineto) as run:
            x @ x
        times = {row.key: row.device_time_total for row in run.key_averages()}
        assert times["aten::mm"] > 0
    torch.trn.reset_counters()
    with torch.autograd.profiler.profile(use_device="trn") as run:
        x.exp()
        torch.trn.reset_counters()
    assert all(row.device_time_total >= 0 for row in run.key_averages())
    assert "Exception in RecordFunction callback" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:`export_memory_timeline` is deprecated")
def test_timelines_are_written(tmp_path):
    activities = [ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]
    x = torch.randn(32, 32, device="trn", requires_grad=True)
    with profile(
        activities=activities, profile_memory=True, record_shapes=True, with_stack=True
    ) as run:
        (x @ x).sum().backward()
    for name in ("memory.json", "memory.raw.json.gz"):
        run.export_memory_timeline(str(tmp_path / name), device="trn:0")
        assert (tmp_path / name).stat().st_size > 0
    run.export_stacks(str(tmp_path / "stacks"), "self_privateuse1_time_total")
    table = run.key_averages(group_by_input_shape=True).table(sort_by="device_time_total")
    assert "Self TRN" in table
