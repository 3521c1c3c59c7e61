"""Where a graph's program issues collectives and waits for them."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.distributed import _functional_collectives as collectives

from torch_trn_emu.compiler.communication import stretches
from torch_trn_emu.compiler.host_groups import open_groups
from torch_trn_emu.compiler.regions import regions_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
X = (256, 256)


@pytest.fixture(scope="module", autouse=True)
def group():
    store = dist.HashStore()
    dist.init_process_group("trn", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


def summed(x: Tensor) -> Tensor:
    return collectives.all_reduce(x, "sum", dist.group.WORLD)


def apart(x: Tensor, w: Tensor) -> Tensor:
    """A product that does not read the collective, and a sum of both."""
    return summed(x) + (w @ w) @ w


def chained(x: Tensor, w: Tensor) -> Tensor:
    """A product that reads it."""
    return summed(x) @ w @ w


def two(x: Tensor, w: Tensor) -> Tensor:
    first, second = summed(x), summed(w @ w)
    return (first @ w) + second


def graph_of(function, *inputs):
    found = []

    def keep(gm, _):
        found.append(gm)
        return gm.forward

    backend = aot_autograd(fw_compiler=keep)
    with torch.no_grad():
        torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    return found[0].graph


@pytest.mark.parametrize(
    ("function", "operators", "steps"),
    [
        (apart, [0, 2, 1], [(None,), (0,), ()]),
        (chained, [0, 2], [(None, 0), ()]),
        (two, [0, 1, 1, 1], [(None,), (None, 0), (1,), ()]),
    ],
)
def test_the_program_goes_on_beside_a_collective(function, operators, steps):
    torch._dynamo.reset()
    graph = graph_of(function, torch.ones(X, device="trn"), torch.ones(X, device="trn"))
    found = stretches(regions_of(graph, "fp32"))
    assert [s.then for s in found] == steps
    assert [sum(len(r.calls) for r in s.regions) for s in found] == operators


def exposed(function, *inputs) -> tuple[float, float, int]:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="trn", fullgraph=True)
    compiled(*inputs)
    torch.accelerator.synchronize()
    torch.trn.reset_counters()
    compiled(*inputs)
    torch.accelerator.synchronize()
    found = torch.trn.counters()
    return found["cc_exposed_time"], found["cc_op_active_time"], found["cc_op_count"]


def test_work_of_the_graph_hides_its_collectives():
    x, w = torch.ones(1024, 1024, device="trn"), torch.ones(1024, 1024, device="trn")
    hidden, active, count = exposed(apart, x, w)
    assert count == 1
    assert active > 0
    assert hidden == 0
    seen, active, count = exposed(chained, x, w)
    assert count == 1
    assert seen == pytest.approx(active, rel=0.01)


def test_a_graph_counts_its_collectives_as_often_as_it_runs():
    x, w = torch.ones(8, 8, device="trn"), torch.eye(8, device="trn")
    assert exposed(two, x, w)[2] == 2
    sized = torch.compile(two, backend="trn", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for n in (8, 16):
            x, w = torch.ones(n, n, device="trn"), torch.eye(n, device="trn")
            torch.trn.reset_counters()
            assert torch.equal(sized(x, w), x + w)
            assert torch.trn.counters()["cc_op_count"] == 2


def test_a_new_group_of_the_same_name_is_taken():
    torch._dynamo.reset()
    x, w = torch.ones(8, 8, device="trn"), torch.eye(8, device="trn")
    part = dist.new_group([0])

    def f(x):
        return collectives.all_reduce(x, "sum", part) @ w

    compiled = torch.compile(f, backend="trn", fullgraph=True)
    assert torch.equal(compiled(x), x)
    names = [part.group_name]
    open_groups(names)
    dist.destroy_process_group(part)
    with pytest.raises((RuntimeError, LookupError, ValueError)):
        open_groups(names)
