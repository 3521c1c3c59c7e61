"""`all_reduce` of sparse COO tensors, as gathers of their indices and values.

torch has kernels of this operator for sparse tensors of the CPU, where gloo gathers, and of CUDA.
The values of an index are added in rank order, in float32 for 16-bit formats, and rounded once.
Checked on torch 2.13.0.
"""

import zlib
from typing import Any

import torch

from ..torch_private import compiled_c10d

__all__ = ["install_sparse_reduction"]


def install_sparse_reduction() -> torch.library.Library:
    """The kernel of c10d's operator. It lasts as long as what is returned."""
    from torch.distributed.distributed_c10d import ProcessGroup, ReduceOp, Work

    kinds: Any = ReduceOp.RedOpType

    def all_reduce(
        tensors: list[torch.Tensor], group: Any, reduce: Any, indices: Any, *rest: Any
    ) -> Any:
        del indices, rest  # those of NCCL's own sparse operator; whether to wait, and how long
        operation = kinds(reduce.op())
        if operation not in (kinds.SUM, kinds.AVG):
            raise NotImplementedError(
                f"all_reduce: sparse tensors are reduced by SUM and AVG, not by {operation.name}. "
                "Convert with to_dense()"
            )
        members = ProcessGroup.unbox(group)
        for tensor in tensors:
            reduced = _sum(tensor, members)
            if operation == kinds.AVG:
                reduced = reduced / members.size()
            tensor.copy_(reduced.to(tensor.dtype))
        done: torch.futures.Future[Any] = torch.futures.Future()
        done.set_result(list(tensors))
        return tensors, Work.boxed(compiled_c10d._create_work_from_future(done))

    library = torch.library.Library("c10d", "IMPL")
    library.impl("allreduce_", all_reduce, "SparsePrivateUse1")
    return library


def _sum(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over a group, coalesced; in float32 for 16-bit formats."""
    mine = tensor.coalesce()
    counts = _agree(mine, group)
    backend = group._get_backend(tensor.device)
    indices = [mine.indices().new_empty(mine.sparse_dim(), count) for count in counts]
    values = [mine.values().new_empty(count, *mine.values().shape[1:]) for count in counts]
    for outputs, one in ((indices, mine.indices()), (values, mine.values())):
        backend.allgather([outputs], [one.contiguous()]).wait()
    added = torch.cat(values)
    if added.dtype in (torch.float16, torch.bfloat16):
        added = added.float()
    places = torch.cat(indices, 1)
    together = torch.sparse_coo_tensor(places, added, tensor.shape, check_invariants=False)
    return together.coalesce()


def _agree(mine: torch.Tensor, group: Any) -> list[int]:
    """How many indices each rank has. Raises RuntimeError on all ranks if their tensors differ."""
    kind = f"{mine.dtype} {list(mine.shape)}, {mine.sparse_dim()} of them sparse"
    about = torch.tensor([mine._nnz(), zlib.crc32(kind.encode())], device=mine.device)
    told = [torch.empty_like(about) for _ in range(group.size())]
    group._get_backend(mine.device).allgather([told], [about]).wait()
    rows = [row.tolist() for row in told]
    if len({hashed for _, hashed in rows}) > 1:
        raise RuntimeError(
            f"all_reduce: ranks gave sparse tensors that differ in dtype or sizes; rank "
            f"{group.rank()} gave {kind}"
        )
    return [count for count, _ in rows]
