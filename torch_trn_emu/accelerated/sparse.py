"""Products with 2:4 sparse weights, what `torch.sparse.to_sparse_semi_structured` calls.

The array multiplies them as dense weights: of four neighbours along K two are kept, with their
places. CUTLASS's layout is torch's; cuSPARSELt's is opaque, and here the kept elements are followed
by 4 bits for each four. Checked on torch 2.13.0.
"""

import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from .products import LINEAR, multiply

__all__ = ["cslt_compress", "cslt_mm", "cutlass_addmm", "cutlass_mm"]

_FORMATS = (torch.float16, torch.bfloat16)
_FOUR, _KEPT, _FOURS_IN_A_WORD = 4, 2, 4
_SHIFTS = torch.arange(_FOURS_IN_A_WORD, dtype=torch.int32) * 4


def cslt_compress(input: Tensor) -> Tensor:
    """[m, k] -> [9 m k / 16] of the same dtype: kept elements, then their places."""
    if input.dtype not in _FORMATS:
        raise ValueError(f"2:4 sparse weights are float16 or bfloat16 on trn, got {input.dtype}")
    if input.dim() != 2 or input.shape[1] % (_FOUR * _FOURS_IN_A_WORD):
        raise ValueError(
            f"2:4 sparse weights are matrices with multiples of {_FOUR * _FOURS_IN_A_WORD} "
            f"columns, got {tuple(input.shape)}"
        )
    fours = input.reshape(-1, _FOUR)
    used = fours != 0
    if bool((used.sum(-1) > _KEPT).any()):
        raise ValueError("the weight is not 2:4 sparse: more than 2 of 4 neighbours are not zero")
    places = used.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :_KEPT]
    places = places.sort(-1).values
    kept = fours.gather(-1, places)
    codes = (places[:, 0] | places[:, 1] << 2).to(torch.int32).reshape(-1, _FOURS_IN_A_WORD)
    words = (codes << _SHIFTS).sum(-1)
    words = torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)
    return torch.cat((kept.reshape(-1), words.view(input.dtype)))


def _dense(compressed: Tensor, k: int) -> Tensor:
    """The weight [m, k] of `cslt_compress`."""
    count = compressed.numel() * 16 // 9
    if compressed.dtype not in _FORMATS or k == 0 or count % k or count * 9 != len(compressed) * 16:
        raise ValueError(
            f"compressed_A is not the weight of {k} columns: {tuple(compressed.shape)}"
        )
    kept = compressed[: count // 2].reshape(-1, _KEPT)
    words = compressed[count // 2 :].view(torch.int16).to(torch.int32)
    codes = (words[:, None] >> _SHIFTS & 15).reshape(-1)
    places = torch.stack((codes & 3, codes >> 2), -1).to(torch.int64)
    fours = torch.zeros(count // _FOUR, _FOUR, dtype=compressed.dtype).scatter(-1, places, kept)
    return fours.reshape(-1, k)


def _product(
    weight: Tensor,
    b: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    """Multiply weight [m, k] and b [k, n], with a bias for each row, into [n, m]."""
    if b.dim() != 2 or b.shape[0] != weight.shape[1]:
        raise ValueError(f"{tuple(weight.shape)} and {tuple(b.shape)} do not multiply")
    if b.dtype != weight.dtype:
        raise ValueError(f"operands have one dtype, got {weight.dtype} and {b.dtype}")
    lines = b.t().contiguous()  # the host's sums of float16 depend on how they lie
    return multiply(lines, weight.t(), dtype, LINEAR, bias, beta, alpha)


def cslt_mm(
    compressed_A: Tensor,
    dense_B: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
    split_k: int = 1,
    split_k_mode: int = -1,
) -> Tensor:
    """The product of a compressed weight and dense_B [k, n], whatever the algorithm asked for."""
    if alpha is not None:
        raise ValueError("alpha goes with weights of 8 bits, which trn does not compress")
    weight = _dense(compressed_A, dense_B.shape[0])
    made = _product(weight, dense_B, out_dtype or dense_B.dtype, bias)
    return (made if transpose_result else made.t()).contiguous()


def _of_cutlass(packed: Tensor, meta: Tensor) -> Tensor:
    shape = torch.Size((packed.shape[0], packed.shape[1] * 2))
    held = SparseSemiStructuredTensorCUTLASS(shape, packed, meta, None, None, None)
    weight: Tensor = held.to_dense()
    return weight


def cutlass_mm(
    mat1: Tensor, mat1_meta: Tensor, mat2: Tensor, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    made = _product(_of_cutlass(mat1, mat1_meta), mat2, out_dtype or mat2.dtype)
    return made.t().contiguous()


def cutlass_addmm(
    input: Tensor,
    mat1: Tensor,
    mat1_meta: Tensor,
    mat2: Tensor,
    *,
    alpha: float = 1,
    beta: float = 1,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Add alpha mat1 mat2 and beta input, which has a number for each row."""
    weight = _of_cutlass(mat1, mat1_meta)
    made = _product(weight, mat2, out_dtype or mat2.dtype, input, beta, alpha)
    return made.t().contiguous()
