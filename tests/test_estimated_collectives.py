"""Collectives of an estimate: their time, beside the core's, eager and in graphs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from torch_trn_emu import estimate
from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip, get_system
from torch_trn_emu.cli.estimate import ShapesOnly
from torch_trn_emu.collectives import duration
from torch_trn_emu.errors import Unimplemented
from torch_trn_emu.estimation import Estimate, Recorder
from torch_trn_emu.settings import settings

RANKS = 4


@pytest.fixture
def world() -> Iterator[Any]:
    dist.init_process_group("cpu:fake,trn:fake", rank=0, world_size=RANKS, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


def of(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def priced(function: Any, *inputs: torch.Tensor, mode: str = "compile") -> Estimate:
    with torch.no_grad():
        return estimate(function, *inputs, chip="trn2", mode=mode)


def us(op: str, nbytes: int, caller: str = "graph") -> float:
    chip = get_chip("trn2")
    ranks = tuple(range(RANKS))
    found = duration(op, nbytes, ranks, get_system("", "trn2"), chip.logical_cores(2), caller)
    return found.seconds * 1e6


CALLS = {
    "all_reduce": lambda x, group: collectives.all_reduce(x, "sum", group),
    "all_gather": lambda x, group: collectives.all_gather_tensor(x, 0, group),
    "reduce_scatter": lambda x, group: collectives.reduce_scatter_tensor(x, "sum", 0, group),
    "all_to_all": lambda x, group: collectives.all_to_all_single(x, None, None, group),
}


@pytest.mark.parametrize("op", CALLS)
def test_a_graph_waits_for_what_it_reads(op: str, world: Any) -> None:
    x, w = of(1024, 4096), of(4096, 4096)
    found = priced(lambda x, w: CALLS[op](x @ w, world) @ w, x, w)
    nbytes = 1024 * 4096 * 2 * (RANKS if op == "all_gather" else 1)
    counted = {k: v for k, v in found.counters.items() if k.startswith("cc_")}
    assert counted["cc_op_count"] == 1
    assert counted["cc_op_active_time"] * 1e6 == pytest.approx(us(op, nbytes))
    assert counted["cc_exposed_time"] == pytest.approx(counted["cc_op_active_time"])
    launch = get_chip("trn2").launch.graph_launch_s * 1e6
    assert found.time_us == pytest.approx(launch + found.device_us + us(op, nbytes))


def test_what_does_not_read_it_runs_beside_it(world: Any) -> None:
    def step(x: torch.Tensor, w: torch.Tensor) -> Any:
        return CALLS["all_reduce"](x @ w, world) + (w @ w)[:1024]

    found = priced(step, of(1024, 4096), of(4096, 4096))
    exposed = found.counters["cc_exposed_time"]
    assert exposed < 0.1 * found.counters["cc_op_active_time"]


def test_the_host_starts_one_at_a_time(world: Any) -> None:
    x, w = of(1024, 4096), of(4096, 4096)
    found = priced(lambda x, w: CALLS["all_reduce"](x @ w, world) @ w, x, w, mode="eager")
    active_us = us("all_reduce", 1024 * 4096 * 2, "eager")
    assert found.counters["cc_op_active_time"] * 1e6 == pytest.approx(active_us)
    assert found.counters["cc_exposed_time"] * 1e6 == pytest.approx(active_us, rel=0.3)
    assert found.time_us > found.device_us + 0.7 * active_us


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # names of before 2.13
@pytest.mark.parametrize("op", CALLS)
def test_a_script_counts_them_as_a_function_does(op: str, world: Any) -> None:
    def step(x: torch.Tensor, w: torch.Tensor) -> Any:
        return CALLS[op](x @ w, world) @ w

    chosen = settings()
    recorder = Recorder(Target(chosen.chip, chosen.lnc), only="trn")
    x, w = (torch.empty(shape, dtype=torch.bfloat16, device="trn") for shape in ((8, 64), (64, 64)))
    with torch.no_grad(), recorder, ShapesOnly(recorder):
        step(x, w)
        found = recorder.result(chosen.chip, chosen.lnc, "eager")
    with torch.no_grad():
        expected = estimate(step, of(8, 64), of(64, 64), mode="eager")
    for name in ("cc_op_count", "cc_op_active_time", "cc_exposed_time"):
        assert found.counters[name] == pytest.approx(expected.counters[name])
    assert found.counters["cc_exposed_time"] > 0
    assert found.time_us > found.device_us + 0.7 * found.counters["cc_op_active_time"] * 1e6


def test_data_parallel_is_built_on_meta(world: Any) -> None:
    """By the backward pass it has compared its parameters, sent those of rank 0, and averaged."""

    def linears() -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(512, 512, device="meta") for _ in range(2)))

    def step(x: torch.Tensor, **options: Any) -> None:
        model = DistributedDataParallel(linears(), **options)
        model(x).sum().backward()

    x = torch.empty(64, 512, device="meta")
    averages, whole = (
        estimate(step, x, chip="trn2", init_sync=sync).counters for sync in (False, True)
    )
    gradients = 2 * 512 * 513 * 4
    assert averages["cc_op_count"] == 1
    assert averages["cc_op_active_time"] * 1e6 == pytest.approx(
        us("all_reduce", gradients, "eager")
    )
    # Counts and sizes of parameters, and the parameters themselves.
    assert whole["cc_op_count"] == 1 + 3
    added = (whole["cc_op_active_time"] - averages["cc_op_active_time"]) * 1e6
    least = us("broadcast", gradients, "eager") + us("all_gather", RANKS * 8, "eager")
    assert least < added < least + 2 * us("broadcast", 4096, "eager")


GATHERS = {
    "all_gather": lambda out, x: dist.all_gather(out, x),
    "all_gather_tensor": lambda out, x: dist.group.WORLD._allgather_base(out[0], x).wait(),
    "gather": lambda out, x: dist.gather(x, out),
    "all_to_all_single": lambda out, x: dist.all_to_all_single(out[0], x),
}


@pytest.mark.parametrize("name", GATHERS)
def test_gathered_sizes_are_those_of_this_rank(name: str, world: Any) -> None:
    read: list[int] = []

    def step(mine: torch.Tensor) -> None:
        ranks = 1 if name == "all_to_all_single" else RANKS
        count = 1 if name.endswith(("tensor", "single")) else RANKS
        out = [torch.empty(ranks * len(mine) // count, **whole) for _ in range(count)]
        GATHERS[name](out, mine)
        read.extend(value for tensor in out for value in tensor.tolist())

    whole: Any = {"dtype": torch.int64, "device": "meta"}
    estimate(lambda: step(torch.arange(4, **whole)))
    assert read == [0, 1, 2, 3] * (1 if name == "all_to_all_single" else RANKS)
    with pytest.raises(Unimplemented, match="reads a value of a tensor"):
        estimate(step, torch.empty(4, **whole))
