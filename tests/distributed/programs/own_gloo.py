"""torch's own gloo group, made by a script for GPUs: each collective on tensors of cuda."""

from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

__all__ = ["check_own_gloo"]


def calls(group: Any, rank: int, ranks: int) -> dict[str, tuple[Any, Any, Any]]:
    """The work of each collective, the tensors that it writes, and what they hold then."""

    def made(value: float = rank + 1.0, count: int = 2) -> torch.Tensor:
        return torch.full((count,), value, device="cuda")

    def of_all(count: int = ranks) -> list[torch.Tensor]:
        return [made(0.0) for _ in range(count)]

    def root(options: Any) -> Any:
        options.rootRank = 0
        return options

    total, numbers = ranks * (ranks + 1) / 2, [r + 1.0 for r in range(ranks)]
    mine = 1 if rank == 0 else 0  # of what the root alone gets
    x, one, got, sums, out, turned = made(), made(), made(), made(), of_all(), of_all()
    gathered, long, flat = of_all(mine * ranks), made(0.0, 2 * ranks), made(0.0, 2 * ranks)
    parts, columns = (
        [made(10.0 * rank + r) for r in range(ranks)],
        [10.0 * r + rank for r in range(ranks)],
    )
    with torch.sparse.check_sparse_tensor_invariants(True):
        sparse = torch.sparse_coo_tensor([[rank]], [1.0], (ranks,)).cuda()
    return {
        "allreduce": (group.allreduce([x]), [x], [total]),
        "broadcast": (group.broadcast([one], root(dist.BroadcastOptions())), [one], [1.0]),
        "allgather": (group.allgather([out], [made()]), out, numbers),
        "_allgather_base": (group._allgather_base(long, made()), long.chunk(ranks), numbers),
        "gather": (
            group.gather([gathered][:mine], [made()], root(dist.GatherOptions())),
            gathered, numbers[: len(gathered)],
        ),
        "scatter": (
            group.scatter([got], [of_all()][:mine], root(dist.ScatterOptions())), [got], [0.0],
        ),
        "reduce": (
            group.reduce([sums], root(dist.ReduceOptions())), [sums][:mine], [total][:mine],
        ),
        "alltoall": (group.alltoall(turned, parts), turned, columns),
        "alltoall_base": (
            group.alltoall_base(flat, torch.cat(parts), [], []), flat.chunk(ranks), columns,
        ),
        "sparse": (group.allreduce([sparse]), [sparse], [1.0]),
    }  # fmt: skip


def check_own_gloo(store: dist.Store, rank: int, ranks: int) -> None:
    group = dist.ProcessGroupGloo(dist.PrefixStore("own", store), rank, ranks)
    for name, (work, tensors, values) in calls(group, rank, ranks).items():
        future = work.get_future()
        future.wait()
        for tensor, value in zip(tensors, values, strict=True):
            assert set(tensor.to_dense().tolist()) == {value}, (name, tensor, value)
        for result in tree_leaves(future.value()):
            assert result.device.type == "cuda", (name, result.device)
        assert work.wait(), name
