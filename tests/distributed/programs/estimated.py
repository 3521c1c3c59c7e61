"""Each call of torch.distributed, run by all ranks and then estimated by each of them alone."""

import os
import sys
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack

import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torch_trn_emu
from torch_trn_emu.calls import Target
from torch_trn_emu.cli.estimate import ShapesOnly
from torch_trn_emu.estimation import Recorder
from torch_trn_emu.settings import settings
from torch_trn_emu.torch_private.process_groups import with_one_rank

ROOT, NEXT, BEFORE = 0, (RANK + 1) % WORLD, (RANK - 1) % WORLD


def of(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device=DEVICE)


def parts() -> list[torch.Tensor]:
    return [of(64, 64) for _ in range(WORLD)]


def at_root():
    return parts() if RANK == ROOT else None


def exchange(*ops: dist.P2POp) -> None:
    for work in dist.batch_isend_irecv(list(ops)):
        work.wait()


def in_subgroup() -> None:
    dist.all_reduce(of(64, 64), group=dist.new_group([RANK], use_local_synchronization=True))


def beside_work() -> None:
    x, y = of(1 << 20), of(512, 512)
    work = dist.all_reduce(x, async_op=True)
    for _ in range(8):
        y = y @ y
    work.wait()
    x.add_(1)


CALLS = {
    "all_reduce": lambda: dist.all_reduce(of(64, 64)),
    "all_reduce_async": lambda: dist.all_reduce(of(64, 64), async_op=True).wait(),
    "all_reduce_avg": lambda: dist.all_reduce(of(64, 64), dist.ReduceOp.AVG),
    "all_reduce_coalesced": lambda: dist.all_reduce_coalesced([of(64, 64), of(8)]),
    "beside_work": beside_work,
    "in_subgroup": in_subgroup,
    "broadcast": lambda: dist.broadcast(of(64, 64), ROOT),
    "reduce": lambda: dist.reduce(of(64, 64), ROOT),
    "all_gather": lambda: dist.all_gather(parts(), of(64, 64)),
    "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(of(64 * WORLD, 64), of(64, 64)),
    "gather": lambda: dist.gather(of(64, 64), at_root(), ROOT),
    "scatter": lambda: dist.scatter(of(64, 64), at_root(), ROOT),
    "reduce_scatter": lambda: dist.reduce_scatter(of(64, 64), parts()),
    "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(of(64, 64), of(64 * WORLD, 64)),
    "all_to_all_single": lambda: dist.all_to_all_single(of(64 * WORLD, 64), of(64 * WORLD, 64)),
    "all_to_all": lambda: dist.all_to_all(parts(), parts()),
    "barrier": lambda: dist.barrier(device_ids=[RANK]),
    "objects": lambda: dist.all_gather_object([None] * WORLD, {"rank": RANK}),
    "send_recv": lambda: dist.send(of(64), 1) if RANK == 0 else dist.recv(of(64), 0),
    "batch_isend_irecv": lambda: exchange(
        dist.P2POp(dist.isend, of(64), NEXT), dist.P2POp(dist.irecv, of(64), BEFORE)
    ),
}


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).to(DEVICE)


def steps(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(of(32, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def shard() -> None:
    model = layers()
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    steps(model)


def with_hook_of_torchs_cpp(kind: dist.BuiltinCommHookType) -> None:
    model = DistributedDataParallel(layers())
    model._register_builtin_comm_hook(kind)
    steps(model)


CALLS |= {
    "ddp_hook_in_cpp": lambda: with_hook_of_torchs_cpp(dist.BuiltinCommHookType.ALLREDUCE),
    "ddp_fp16_hook_in_cpp": lambda: with_hook_of_torchs_cpp(dist.BuiltinCommHookType.FP16_COMPRESS),
    "ddp": lambda: steps(DistributedDataParallel(layers())),
    "ddp_views": lambda: steps(DistributedDataParallel(layers(), gradient_as_bucket_view=True)),
    "fsdp": shard,
}
KEYS = ("cc_op_count", "cc_op_active_time", "cc_exposed_time")


def counted(call) -> tuple[Counter, dict[str, float]]:
    dist.barrier(device_ids=[RANK])
    torch.trn.reset_counters()
    call()
    calls = Counter()
    for row in torch_trn_emu.op_report():
        calls[row.op.replace("_.", ".")] += row.calls
    found = torch.trn.counters()
    return calls, {key: found[key] for key in KEYS}


def estimated(call) -> tuple[Counter, dict[str, float]]:
    chosen = settings()
    recorder = Recorder(Target(chosen.chip, chosen.lnc), only="trn")
    with recorder, ShapesOnly(recorder):
        call()
    calls = Counter()
    for price, count in recorder.priced.values():
        calls[price.op.replace("_.", ".")] += count
    found = recorder.result(chosen.chip, chosen.lnc, "eager").counters
    return calls, {key: found[key] for key in KEYS}


def compare(got, expected) -> None:
    assert got[0] == expected[0], f"calls {got[0] - expected[0]}, {expected[0] - got[0]}"
    for key in KEYS[:2]:
        assert abs(got[1][key] - expected[1][key]) <= 1e-4 * expected[1][key], (got[1], expected[1])
    # When ranks arrive is known to a run alone.
    key = KEYS[2]
    assert abs(got[1][key] - expected[1][key]) <= 1e-3 * expected[1][KEYS[1]], (got[1], expected[1])


def main() -> None:
    warnings.simplefilter("ignore")
    torch.accelerator.set_device_index(RANK)
    chosen = {name: CALLS[name] for name in sys.argv[1:] or CALLS}
    dist.init_process_group()
    expected = {name: counted(call) for name, call in chosen.items()}
    dist.destroy_process_group()
    with ExitStack() as stack:
        with_one_rank(stack, RANK, int(os.environ["WORLD_SIZE"]))
        dist.init_process_group()
        for name, call in chosen.items():
            try:
                compare(estimated(call), expected[name])
                print("ok", name, flush=True)
            except Exception:
                print("failed", name, traceback.format_exc().replace("\n", " | "), flush=True)
        dist.destroy_process_group()


main()
