"""Training in parallel on trn against the same on the CPU over gloo: the losses are bit-equal."""

import sys
import tempfile
from collections import OrderedDict
from datetime import timedelta

import random_dtensors
import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD, run_checks, same
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

STEPS = 3


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = OrderedDict(
        first=nn.Linear(16, 32), act=nn.GELU(), norm=nn.LayerNorm(32), second=nn.Linear(32, 16)
    )
    return nn.Sequential(layers)


def batches(rank: int = RANK) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(77 + rank)
    return [
        (torch.randn(8, 16, generator=generator), torch.randn(8, 16, generator=generator))
        for _ in range(STEPS)
    ]


def train(model: nn.Module, device: str, data, optimizer=None, clip=False) -> torch.Tensor:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
    losses = []
    for x, y in data:
        loss = F.mse_loss(model(x.to(device)), y.to(device))
        loss.backward()
        if clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            losses.append(getattr(norm, "full_tensor", lambda n=norm: n)().detach().cpu())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().cpu())
    return torch.stack(losses)


def on_both(run) -> None:
    """`run` gives losses; on trn they are those of the CPU."""
    same(run("trn"), run("cpu"))


def check_ddp():
    def run(device, **options):
        hook = options.pop("hook", None)
        ids = [RANK] if device == "trn" else None
        model = DistributedDataParallel(net().to(device), device_ids=ids, **options)
        if hook:
            model.register_comm_hook(None, hook)
        return train(model, device, batches())

    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
        allreduce_hook,
        fp16_compress_hook,
    )

    on_both(run)
    for options in (
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"hook": allreduce_hook},
        {"hook": fp16_compress_hook},
    ):
        on_both(lambda device, options=options: run(device, **options))


def check_ddp_power_sgd():
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    def run(device):
        ids = [RANK] if device == "trn" else None
        model = DistributedDataParallel(net().to(device), device_ids=ids)
        state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.5)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return train(model, device, batches())

    assert torch.allclose(run("trn"), run("cpu"), rtol=1e-4)


def check_zero_redundancy_optimizer():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def run(device):
        ids = [RANK] if device == "trn" else None
        model = DistributedDataParallel(net().to(device), device_ids=ids)
        zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
        return train(model, device, batches(), zero)

    on_both(run)


def check_fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(net().to("trn"), device_id=DEVICE, use_orig_params=True)
    plain = DistributedDataParallel(net())
    losses = train(wrapped, "trn", batches())
    assert torch.allclose(losses, train(plain, "cpu", batches()), rtol=1e-5)


def sharded(device, **options):
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (WORLD,))
    model = net().to(device)
    for part in (model.first, model.second):
        fully_shard(part, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def check_fsdp2():
    on_both(lambda device: train(sharded(device), device, batches(), clip=True))


def check_fsdp2_of_compiled_blocks():
    from torch.distributed.fsdp import fully_shard

    def run(device, compiled):
        model = net().to(device)
        for part in (model.first, model.second):
            if compiled:
                part.compile(backend="trn")
            fully_shard(part, mesh=init_device_mesh(device, (WORLD,)))
        return train(fully_shard(model, mesh=init_device_mesh(device, (WORLD,))), device, batches())

    assert torch.allclose(run("trn", True), run("cpu", False), rtol=1e-5)


def check_clipping_over_a_mesh_of_two_dimensions():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def run(device, shape):
        mesh = init_device_mesh(device, shape, mesh_dim_names=("dp", "tp"))
        model = net().to(device)
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        if shape[1] > 1:  # a norm between the two needs whole rows
            model = nn.Sequential(
                OrderedDict(first=model.first, act=model.act, second=model.second)
            )
            parallelize_module(model, mesh["tp"], plan)
        fully_shard(model, mesh=mesh["dp"])
        data = batches(0) if shape[1] > 1 else batches()
        return train(model, device, data, clip=True)

    for shape in ((WORLD, 1), (1, WORLD)):
        on_both(lambda device, shape=shape: run(device, shape))


def check_fsdp2_mixed_precision():
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def run(device):
        data = [(x.bfloat16(), y.bfloat16()) for x, y in batches()]
        return train(sharded(device, mp_policy=policy), device, data)

    found, expected = run("trn"), run("cpu")
    assert torch.allclose(found, expected, rtol=2e-2), (found, expected)


def check_fsdp2_offload_and_meta():
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    losses = train(sharded("trn", offload_policy=CPUOffloadPolicy()), "trn", batches())
    assert torch.allclose(losses, train(sharded("cpu"), "cpu", batches()), rtol=1e-5)
    with torch.device("meta"):
        model = net()
    fully_shard(model, mesh=init_device_mesh("trn", (WORLD,)))
    model.to_empty(device="trn")
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert torch.isfinite(train(model, "trn", batches())).all()


def check_tensor_and_sequence_parallel():
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    def run(device):
        mesh = init_device_mesh(device, (WORLD,))
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(first=nn.Linear(16, 32), act=nn.GELU(), second=nn.Linear(32, 16))
        ).to(device)
        return train(parallelize_module(model, mesh, plan), device, batches(0))

    def run_sequence(device):
        mesh = init_device_mesh(device, (WORLD,))
        torch.manual_seed(0)
        model = nn.Sequential(
            OrderedDict(norm=nn.LayerNorm(16), first=nn.Linear(16, 32), second=nn.Linear(32, 16))
        ).to(device)
        plan = {
            "norm": SequenceParallel(sequence_dim=0),
            "first": ColwiseParallel(input_layouts=Shard(0)),
            "second": RowwiseParallel(output_layouts=Replicate()),
        }
        data = [(x.chunk(WORLD)[RANK], y) for x, y in batches(0)]
        return train(parallelize_module(model, mesh, plan), device, data)

    on_both(run)
    on_both(run_sequence)


def check_dtensor():
    from torch.distributed import tensor as dt

    def run(device):
        mesh = init_device_mesh(device, (WORLD,))
        x = dt.distribute_tensor(torch.arange(48.0).reshape(6, 8), mesh, [dt.Shard(0)])
        y = (x @ x.T).redistribute(mesh, [dt.Shard(1)]) + 1
        return torch.cat([y.full_tensor().flatten().cpu(), x.sum().full_tensor().reshape(1).cpu()])

    on_both(run)


def check_attention_by_heads():
    from torch.distributed import tensor as dt

    def run(device):
        torch.manual_seed(1)
        inputs = [torch.randn(2, 4, 8, 16) for _ in range(3)]
        if device == "cpu":
            leaves = [x.requires_grad_() for x in inputs]
            out = F.scaled_dot_product_attention(*leaves, is_causal=True)
            out.sum().backward()
            return torch.cat([out.flatten(), leaves[0].grad.flatten()]).detach()
        mesh = init_device_mesh("trn", (WORLD,))
        leaves = [
            dt.distribute_tensor(x.to("trn"), mesh, [dt.Shard(1)]).requires_grad_() for x in inputs
        ]
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        out.sum().backward()
        parts = [out.full_tensor().flatten(), leaves[0].grad.full_tensor().flatten()]
        return torch.cat(parts).detach().cpu()

    assert torch.allclose(run("trn"), run("cpu"), atol=1e-5)


def check_ring_attention():
    from torch.distributed.tensor.experimental import context_parallel

    torch.manual_seed(1)
    inputs = [torch.randn(2, 4, 16, 16) for _ in range(3)]
    whole = [x.clone().requires_grad_() for x in inputs]
    expected = F.scaled_dot_product_attention(*whole, is_causal=True)
    expected.sum().backward()
    mesh = init_device_mesh("trn", (WORLD,))
    shards = [x.to("trn") for x in inputs]
    with context_parallel(mesh, buffers=shards, buffer_seq_dims=[2] * 3):
        leaves = [x.detach().clone().requires_grad_() for x in shards]
        out = F.scaled_dot_product_attention(*leaves, is_causal=True)
        out.sum().backward()
        local = torch.cat([out.detach().flatten(), leaves[0].grad.flatten()]).cpu()
    total = torch.stack([local.sum(), local.abs().sum()]).to(DEVICE)
    dist.all_reduce(total)
    flat = torch.cat([expected.detach().flatten(), whole[0].grad.flatten()])
    assert torch.allclose(total.cpu(), torch.stack([flat.sum(), flat.abs().sum()]), rtol=1e-4)


def check_pipeline():
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    def run(device, schedule):
        model = net()
        mine = nn.Sequential(*list(model)[RANK * 2 : RANK * 2 + 2]).to(device)
        group = dist.new_group(list(range(WORLD)))
        place = DEVICE if device == "trn" else torch.device("cpu")
        stage = PipelineStage(mine, RANK, WORLD, place, group=group)
        optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-2)
        pipeline = schedule(stage, 4, loss_fn=F.mse_loss)
        found = []
        for x, y in batches(0):
            losses: list[torch.Tensor] = []
            if RANK == 0:
                pipeline.step(x.to(device))
            else:
                pipeline.step(target=y.to(device), losses=losses)
            optimizer.step()
            optimizer.zero_grad()
            found += [loss.detach().cpu() for loss in losses]
        found += [p.detach().cpu().sum() for p in mine.parameters()]
        return torch.stack(found)

    if WORLD == 2:
        for schedule in (ScheduleGPipe, Schedule1F1B):
            on_both(lambda device, schedule=schedule: run(device, schedule))


def check_uneven_pipeline_stages():
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    def run(device):
        torch.manual_seed(0)  # one layer, then three; what passes between has a third width
        layers = [nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8), nn.Linear(8, 16)]
        mine = nn.Sequential(*(layers[:1] if RANK == 0 else layers[1:])).to(device)
        place = DEVICE if device == "trn" else torch.device("cpu")
        stage = PipelineStage(mine, RANK, WORLD, place, group=dist.new_group(list(range(WORLD))))
        pipeline = Schedule1F1B(stage, 4, loss_fn=F.mse_loss)
        losses: list[torch.Tensor] = []
        x, y = batches(0)[0]
        if RANK == 0:
            pipeline.step(x.to(device))
        else:
            pipeline.step(target=y.to(device), losses=losses)
        grads = [p.grad.cpu().sum() for p in mine.parameters()]
        return torch.stack([loss.detach().cpu() for loss in losses] + grads)

    if WORLD == 2:
        on_both(run)


def check_interleaved_pipeline():
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import (
        ScheduleInterleaved1F1B,
        ScheduleInterleavedZeroBubble,
    )

    def run(device, schedule):
        group = dist.new_group(list(range(WORLD)))
        place = DEVICE if device == "trn" else torch.device("cpu")
        parts = [list(net())[number] for number in (RANK, RANK + WORLD)]  # two stages a rank
        stages = [
            PipelineStage(part.to(device), RANK + i * WORLD, 2 * WORLD, place, group=group)
            for i, part in enumerate(parts)
        ]
        pipeline = schedule(stages, 4, loss_fn=F.mse_loss)
        losses: list[torch.Tensor] = []
        x, y = batches(0)[0]
        inputs = (x.to(device),) if RANK == 0 else ()
        last = {"target": y.to(device), "losses": losses} if RANK == WORLD - 1 else {}
        pipeline.step(*inputs, **last)
        grads = [p.grad.cpu().sum() for part in parts for p in part.parameters()]
        return torch.stack([loss.detach().cpu() for loss in losses] + grads + [torch.zeros(())])

    if WORLD == 2:
        for schedule in (ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble):
            on_both(lambda device, schedule=schedule: run(device, schedule))


def check_expert_parallel():
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    def run(device):
        group = dist.group.WORLD
        torch.manual_seed(3)
        router, expert = nn.Linear(16, WORLD), [nn.Linear(16, 16) for _ in range(WORLD)][RANK]
        router, expert = router.to(device), expert.to(device)
        found = []
        for x, _ in batches():
            x = x.to(device)
            scores = router(x)
            order = scores.argmax(-1).argsort(stable=True)
            counts = scores.argmax(-1).bincount(minlength=WORLD)
            theirs = torch.empty_like(counts)
            dist.all_to_all_single(theirs, counts)
            sent, received = counts.tolist(), theirs.tolist()
            routed = all_to_all_single_autograd(x[order], received, sent, group)
            back = all_to_all_single_autograd(expert(routed), sent, received, group)
            loss = (back * scores.softmax(-1).amax(-1)[order, None]).square().mean()
            loss.backward()
            found += [loss.detach().cpu(), router.weight.grad.cpu().sum()]
        return torch.stack(found)

    on_both(run)


def check_functions_with_gradients():
    from torch.distributed import nn as functions

    def part(x):
        return torch.empty_like(x[: len(x) // WORLD])

    def pieces(x):
        return [p.contiguous() for p in x.chunk(WORLD)]

    calls = (
        lambda x: functions.broadcast(x, 1),
        lambda x: functions.all_reduce(x),
        lambda x: functions.all_reduce(x, op=dist.ReduceOp.MAX),
        lambda x: functions.reduce(x, 0) * (RANK == 0),  # undefined on other ranks
        lambda x: torch.stack(functions.all_gather(x)),
        lambda x: torch.stack(functions.gather(x, 0)),
        lambda x: functions.scatter([x * (r + 1) for r in range(WORLD)], 0),
        lambda x: functions.reduce_scatter(part(x), pieces(x)),
        lambda x: torch.stack(functions.all_to_all([part(x) for _ in range(WORLD)], pieces(x))),
        lambda x: functions.all_to_all_single(torch.empty_like(x), x),
    )

    def run(device):
        found = []
        for call in calls:
            x = torch.linspace(-1, 2, 32).reshape(8, 4).to(device) * (RANK + 1)
            made = call(x.requires_grad_())
            made.square().sum().backward()
            found += [made.detach().cpu().reshape(-1), x.grad.cpu().reshape(-1)]
        return torch.cat(found)

    on_both(run)


def check_checkpoint():
    from torch.distributed import checkpoint

    folder = [tempfile.mkdtemp() if RANK == 0 else None]
    dist.broadcast_object_list(folder, src=0, device=torch.device("cpu"))
    model = sharded("trn")
    train(model, "trn", batches())
    checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder[0] + "/a")
    checkpoint.async_save({"model": model.state_dict()}, checkpoint_id=folder[0] + "/b").result()
    for name in ("a", "b"):
        other = sharded("trn")
        state = {"model": other.state_dict()}
        checkpoint.load(state, checkpoint_id=f"{folder[0]}/{name}")
        other.load_state_dict(state["model"])
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            same(theirs.to_local(), mine.to_local().cpu())


def check_resuming_from_an_asynchronous_checkpoint():
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    folder = [tempfile.mkdtemp() if RANK == 0 else None]
    dist.broadcast_object_list(folder, src=0, device=torch.device("cpu"))

    def state_of(model, optimizer):
        return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))

    def made():
        model = sharded("trn")
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = made()
    train(model, "trn", batches(), optimizer)
    saving = checkpoint.async_save(state_of(model, optimizer), checkpoint_id=folder[0])
    expected = train(model, "trn", batches(RANK + 5), optimizer)  # while it is written
    saving.result()
    model, optimizer = made()
    state = state_of(model, optimizer)
    checkpoint.load(state, checkpoint_id=folder[0])
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    same(train(model, "trn", batches(RANK + 5), optimizer), expected)


def check_sync_batch_norm():
    def run(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 16))
        if device == "cpu":  # all of the batch in one process
            data = [
                tuple(torch.cat(parts) for parts in zip(*by_rank, strict=True))
                for by_rank in zip(*(batches(r) for r in range(WORLD)), strict=True)
            ]
            return train(model, "cpu", data)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model).to("trn")
        model = DistributedDataParallel(model, device_ids=[RANK])
        losses = train(model, "trn", batches()).to(DEVICE)
        dist.all_reduce(losses, op=dist.ReduceOp.AVG)
        return losses.cpu()

    assert torch.allclose(run("trn"), run("cpu"), rtol=1e-4)


def check_compiled_collectives():
    from torch.distributed import _functional_collectives as fc

    group = dist.group.WORLD

    def f(x):
        y = fc.all_reduce(x * 2, "sum", group) + 1
        z = fc.all_gather_tensor(y, 0, group)
        return fc.reduce_scatter_tensor(z.relu(), "sum", 0, group)

    x = torch.randn(8, 4, device=DEVICE)
    expected = f(x).cpu()
    found = torch.compile(f, backend="trn", fullgraph=True)(x)
    assert torch.allclose(found.cpu(), expected, rtol=1e-5)


def check_compiled_tensor_parallelism():
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("trn", (WORLD,))

    def gradients(strict):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).to("trn")
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        run = torch.compile(model, backend="trn", options={"strict": True}) if strict else model
        run(torch.ones(4, 16, device=DEVICE)).square().sum().backward()
        return [p.grad.full_tensor().cpu() for p in model.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def check_meshes_after_device_id():
    mesh = init_device_mesh("trn", (WORLD, 1), mesh_dim_names=("dp", "tp"))
    x = torch.full((2,), float(RANK), device=DEVICE)
    dist.all_reduce(x, group=mesh["dp"].get_group())
    assert x.tolist() == [sum(range(WORLD))] * 2
    part = dist.split_group(split_ranks=[[0, 1]])
    dist.all_reduce(x, group=part)
    assert x.tolist() == [2 * sum(range(WORLD))] * 2


if __name__ == "__main__":
    checks = {**globals(), **vars(random_dtensors)}
    if "bound" in sys.argv:
        sys.argv.remove("bound")
        run_checks(checks, device_id=DEVICE, timeout=timedelta(seconds=120))
    else:
        checks.pop("check_meshes_after_device_id")
        run_checks(checks, "cpu:gloo,trn:trn", timeout=timedelta(seconds=120))
