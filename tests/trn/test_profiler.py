"""Measuring: torch.profiler and torch.utils.benchmark over trn operators."""

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
