"""Random numbers of DTensors: shards draw their own, replicas the same; run by parallel.py."""

import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F


def check_random_dtensors():
    from torch.distributed import tensor as dt

    mesh = init_device_mesh("trn", (WORLD,))
    torch.manual_seed(5)
    whole = dt.randn(64, 4, device_mesh=mesh, placements=[dt.Shard(0)]).full_tensor().cpu()
    pieces = whole.chunk(WORLD)
    assert not torch.equal(pieces[0], pieces[1]), "shards draw their own numbers"
    alike = dt.randn(64, device_mesh=mesh, placements=[dt.Replicate()]).to_local().cpu()
    other = [torch.empty_like(alike) for _ in range(WORLD)]
    dist.all_gather(other, alike)
    assert all(torch.equal(alike, o) for o in other), "replicas draw the same"
    again = torch.randn(3, device=DEVICE)
    gathered = [torch.empty_like(again) for _ in range(WORLD)]
    dist.all_gather(gathered, again)
    assert torch.equal(gathered[0], gathered[1]), "the ranks' own state has advanced alike"
    x = dt.distribute_tensor(torch.ones(64, 64), mesh, [dt.Shard(0)])
    kept = F.dropout(x, 0.5).full_tensor().cpu()
    assert 0.4 < (kept == 0).float().mean() < 0.6


def check_the_first_random_dtensor_synchronizes_seeds():
    from torch.distributed import tensor as dt
    from torch.distributed.tensor import _random

    mesh, before = init_device_mesh("trn", (WORLD,)), _random._rng_tracker
    _random._rng_tracker = None  # as before the first one
    torch.manual_seed(RANK)
    x = dt.distribute_tensor(torch.zeros(8), mesh, [dt.Replicate()])
    assert _random._rng_tracker is None
    mine = x.uniform_().to_local()
    theirs = [torch.empty_like(mine) for _ in range(WORLD)]
    dist.all_gather(theirs, mine)
    assert all(torch.equal(mine, t) for t in theirs)
    assert torch.trn.initial_seed() == 0
    _random._rng_tracker = before or _random._rng_tracker


def check_generators_of_random_dtensors():
    from torch.distributed import tensor as dt

    mesh = init_device_mesh("trn", (WORLD,))
    for placement in (dt.Shard(0), dt.Replicate()):
        x = dt.distribute_tensor(torch.zeros(64), mesh, [placement])
        state, generator = torch.trn.get_rng_state(), torch.Generator("trn")
        first, again, other = (
            x.uniform_(generator=generator.manual_seed(seed)).full_tensor().cpu()
            for seed in (3, 3, 4)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert placement.is_replicate() or not torch.equal(*first.chunk(2)[:2])
        assert torch.equal(state, torch.trn.get_rng_state()), "the default one has not advanced"
        assert not torch.equal(x.uniform_(generator=generator).full_tensor().cpu(), other)
    message = ""
    try:
        x.uniform_(generator=torch.Generator())
    except RuntimeError as error:
        message = str(error)
    assert "Expected a generator of trn, but found one of cpu" in message


def check_compiled_random_dtensors():
    from torch.distributed import tensor as dt

    def draw(x):
        made = [x * 0 for _ in range(3)]
        made = [made[0].normal_(1, 2), made[1].uniform_(), made[2].bernoulli_(0.25)]
        made += [torch.rand_like(x), torch.randn_like(x), torch.bernoulli(x), F.dropout(x, 0.25)]
        return *made, torch.randint_like(x, 10), torch.randint_like(x, 3, 9)

    mesh = init_device_mesh("trn", (WORLD,))
    inputs = [
        dt.distribute_tensor(torch.full((64, 8), 0.5), mesh, [p])
        for p in (dt.Shard(0), dt.Replicate())
    ]
    compiled = torch.compile(draw, backend="trn", fullgraph=True, options={"strict": True})
    found = []
    for run in (draw, compiled, compiled):
        torch._dynamo.reset()
        dist.barrier()  # the last code comes from torch's caches, to which every rank has written
        torch.manual_seed(7)
        drawn = [[t.to_local().cpu() for t in run(x)] for x in inputs * 2]
        found.append((drawn, torch.trn.get_rng_state()))
    for drawn, state in found[1:]:
        for eager, compiled_ones in zip(found[0][0], drawn, strict=True):
            assert all(map(torch.equal, eager, compiled_ones))
        assert torch.equal(found[0][1], state)
    a, b = ([t.full_tensor().cpu() for t in compiled(inputs[0])] for _ in range(2))
    assert not any(torch.equal(*t.chunk(2)[:2]) for t in a), "shards draw their own numbers"
    assert not any(map(torch.equal, a, b))


def check_random_dtensors_of_a_graph_for_all_ranks():
    from torch._dynamo.backends.common import aot_autograd
    from torch.distributed import config
    from torch.distributed import tensor as dt

    graphs = []

    def keeping(graph, _):
        graphs.append(graph.code)
        return graph

    mesh = init_device_mesh("trn", (WORLD,))
    x = dt.distribute_tensor(torch.full((8, 4), 0.5), mesh, [dt.Shard(0)])
    for backend in (aot_autograd(fw_compiler=keeping), "trn"):
        torch._dynamo.reset()
        with config.patch(compile_on_one_rank=True):
            compiled = torch.compile(torch.rand_like, backend=backend, fullgraph=True)
            torch.manual_seed(7)
            found = compiled(x).to_local().cpu()
        torch.manual_seed(7)
        assert torch.equal(found, torch.rand_like(x).to_local().cpu()), backend
    (own,) = graphs
    assert "run_dtensor_rng_op_rand_like" in own, own
    of_ranks = [None] * WORLD
    dist.all_gather_object(of_ranks, own)
    assert of_ranks == [own] * WORLD
