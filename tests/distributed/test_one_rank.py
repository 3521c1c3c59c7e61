"""A group of one: what needs no other process."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import free_port
from torch import nn

import torch_trn_emu
from torch_trn_emu.settings import read


@pytest.fixture(scope="module", autouse=True)
def group():
    method = f"tcp://127.0.0.1:{free_port()}"
    dist.init_process_group("cpu:gloo,trn:trn", init_method=method, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(device):
    return nn.parallel.DistributedDataParallel(nn.Linear(2, 2).to(device))


CALLS = {
    "all_reduce": lambda x: dist.all_reduce(x),
    "broadcast": lambda x: dist.broadcast(x, 0),
    "all_gather": lambda x: dist.all_gather([x.clone()], x),
    "reduce_scatter": lambda x: dist.reduce_scatter(x.clone(), [x]),
    "all_to_all": lambda x: dist.all_to_all([x.clone()], [x]),
    "DistributedDataParallel": lambda x: wrapped(x.device),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_collective_of_one_changes_nothing(name):
    x = torch.ones(2, device="trn")
    CALLS[name](x)
    assert x.tolist() == [1, 1]


def test_host_tensors_communicate_beside():
    x = torch.ones(2)
    dist.all_reduce(x)
    assert x.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_fsdp_of_one_process():
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    x = torch.ones(1, 4, device="trn")
    sharded = nn.Linear(4, 4).to("trn")
    fully_shard(sharded)
    optimizer = torch.optim.AdamW(sharded.parameters())
    with torch_trn_emu.profile() as found:  # parameters and state are DTensors
        sharded(x).sum().backward()
        optimizer.step()
    assert sharded.weight.grad is not None
    assert {"parameters", "optimizer state"} <= set(found.memory()[0])
    wrapped = FullyShardedDataParallel(nn.Linear(4, 4).to("trn"), device_id=torch.device("trn", 0))
    assert wrapped(x).is_trn


def test_collectives_are_counted_and_timed():
    torch.trn.reset_counters()
    dist.all_reduce(torch.ones(1 << 20, device="trn"))
    counters = torch.trn.counters()
    assert counters["cc_op_count"] == 1
    assert 0 < counters["cc_exposed_time"] <= counters["cc_op_active_time"]
    (row,) = torch.trn.collectives()
    assert (row["operation"], row["bytes"], row["count"]) == ("all_reduce", 4 << 20, 1)
    assert row["active_ns"] == row["duration_ns"] == round(counters["cc_op_active_time"] * 1e9)


# By the names that NCCL gives them.
RECORDED = {
    "allreduce": lambda x: dist.all_reduce(x),
    "broadcast": lambda x: dist.broadcast(x, 0),
    "reduce": lambda x: dist.reduce(x, 0),
    "all_gather": lambda x: dist.all_gather([x.clone()], x),
    "_allgather_base": lambda x: dist.all_gather_single(x.clone(), x),
    "reduce_scatter": lambda x: dist.reduce_scatter(x.clone(), [x]),
    "_reduce_scatter_base": lambda x: dist.reduce_scatter_single(x.clone(), x),
    "gather": lambda x: dist.gather(x, [x.clone()], 0),
    "scatter": lambda x: dist.scatter(x, [x.clone()], 0),
    "all_to_all": lambda x: dist.all_to_all([x.clone()], [x]),
}


def test_profilers_of_torch_are_told_of_each_collective(tmp_path):
    from torch.profiler import ProfilerActivity, profile

    x = torch.ones(2, 3, dtype=torch.bfloat16, device="trn")
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        for call in RECORDED.values():
            call(x)
        dist.all_reduce(x, async_op=True).wait()
    prof.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    *found, waited = (e["args"] for e in events if e["name"] == "record_param_comms")
    assert [f["Collective name"] for f in found] == [*RECORDED, "allreduce"]
    assert [f["Is asynchronized op"] for f in found] == [0] * len(RECORDED) + [1]
    first = found[0]["Seq"]
    for number, one in enumerate(found, first):
        assert (one["Seq"], one["dtype"], one["Rank"]) == (number, "BFloat16", 0)
        assert (one["In msg nelems"], one["Out msg nelems"]) == (6, 6)
        assert (one["Group size"], one["Process Group Ranks"]) == (1, "[0]")
        assert one["Process Group Description"] == "default_pg"
    assert (waited["Collective name"], waited["Seq"]) == ("wait", found[-1]["Seq"])


STEPS = ("work", "side work", "start", "wait", "side wait", "join", "synchronize", "call")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=30))
def test_exposed_is_at_most_active_whatever_waits(steps):
    torch.trn.reset_counters()
    side, x = torch.trn.Stream(), torch.ones(64, 64, device="trn")
    works = []
    with torch_trn_emu.profile() as found:
        for step in steps:
            with torch.trn.stream(side) if "side" in step else nullcontext():
                if step.endswith("work"):
                    x = x @ x
                elif step == "start":
                    works.append(dist.all_reduce(torch.ones(1 << 16, device="trn"), async_op=True))
                elif step.endswith("wait") and works:
                    works.pop().wait()
                elif step == "join":
                    torch.trn.current_stream().wait_stream(side)
                elif step == "synchronize":
                    torch.trn.synchronize()
                elif step == "call":
                    dist.all_reduce(x)
        for work in works:
            work.wait()
    calls = found.recording.collectives
    assert len(calls) == steps.count("start") + steps.count("call")
    for c in calls:
        assert c.end_ns > c.start_ns >= max(c.arrivals_ns)
        assert 0 <= c.exposed_ns <= c.duration_ns
    counters = found.counters()
    assert counters["cc_op_count"] == len(calls)
    assert counters["cc_op_active_time"] == pytest.approx(sum(c.duration_ns for c in calls) / 1e9)
    assert counters["cc_exposed_time"] == pytest.approx(sum(c.exposed_ns for c in calls) / 1e9)


def test_a_time_estimate_runs_nothing():
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("trn"))
    assert backend.supports_time_estimate
    x = torch.ones(1 << 20, device="trn")
    backend._start_time_estimate()
    dist.all_reduce(x)
    assert backend._end_time_estimate() > 90  # microseconds, of the eager call alone


@pytest.mark.parametrize(
    ("chip", "cores"), [("trn1", 32), ("trn2", 64), ("trn3", 16)], ids=lambda x: str(x)
)
def test_a_rank_sees_the_cores_of_its_server(chip, cores):
    found = read({"TRN_EMU_CHIP": chip, "LOCAL_WORLD_SIZE": "8"})
    assert len(found.visible_cores) == cores
    assert len(read({"TRN_EMU_CHIP": chip}).visible_cores) == found.chip.logical_cores(found.lnc)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TRN_EMU_TRANSPORT", "choose from auto, shm, gloo"),
        ("TRN_EMU_COLLECTIVES", "choose from eager, graph"),
        ("TRN_EMU_SYSTEM", r"unknown system; choose from trn1\.32xlarge"),
    ],
)
def test_a_wrong_setting_names_the_choices(variable, text):
    with pytest.raises(ValueError, match=text):
        read({variable: "pigeon"})


def test_destroying_twice_and_forking_are_quiet():
    program = f"""
import os, torch, torch.distributed as dist
dist.init_process_group(init_method="tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
x = torch.ones(2, device="trn")
dist.all_reduce(x)
if os.fork() == 0:
    os._exit(0)
assert os.wait()[1] == 0
dist.all_reduce(x)
dist.destroy_process_group()
try:
    dist.destroy_process_group()
except AssertionError:
    pass  # torch's own, of every backend
print("quiet")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "quiet\n", "")
