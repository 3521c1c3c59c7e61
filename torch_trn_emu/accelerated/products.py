"""Products with `out_dtype`: `mm`, `bmm`, `addmm` and `baddbmm`.

Operands take the precision policy's formats; sums are float32 and rounded once, to the dtype.
"""

import torch
from torch import Tensor

from .. import _C

__all__ = [
    "ATTENTION",
    "LINEAR",
    "addmm",
    "addmm_out",
    "baddbmm",
    "baddbmm_out",
    "bmm",
    "bmm_out",
    "mm",
    "mm_out",
    "multiply",
    "store",
]

LINEAR, ATTENTION = range(2)  # csrc/aten/policy.h, MatmulClass
_ROUNDED = (torch.float32, torch.bfloat16, torch.float16)


def multiply(
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype,
    kind: int,
    addend: Tensor | None = None,
    beta: float = 1,
    alpha: float = 1,
    weight: int = 1,
) -> Tensor:
    """Add alpha a b and beta addend: operands in the policy's formats, float32 sums, one rounding.

    a [m, k] or [batch, m, k], b alike; both of one dtype of 16 or 32 bits.
    weight  the operand that is the weight: 0, 1, or -1 where neither is
    """
    first, second = _C.operand_formats(_C.current_policy(), kind, weight)
    names = _C.operand_format_names()
    if names[first] == names[second] == "as_given" and dtype == a.dtype:  # the host's own kernels
        return _as_given(a, b, addend, beta, alpha)
    made: Tensor = torch.ops.trn.product(
        a, b, names[first], names[second], dtype, addend, beta=beta, alpha=alpha
    )
    return made


def _as_given(a: Tensor, b: Tensor, addend: Tensor | None, beta: float, alpha: float) -> Tensor:
    if addend is None:
        return a @ b
    add = torch.addmm if a.dim() == 2 else torch.baddbmm
    return add(addend.to(a.dtype), a, b, beta=beta, alpha=alpha)


def store(value: Tensor, out: Tensor) -> Tensor:
    """Write a result to an `out` argument, as torch does."""
    if out.dtype != value.dtype:
        raise RuntimeError(
            f"Expected out tensor to have dtype {value.dtype}, but got {out.dtype} instead"
        )
    if out.shape != value.shape:
        out.resize_(value.shape)
    return out.copy_(value)


def _check(name: str, a: Tensor, b: Tensor, dtype: torch.dtype, rank: int) -> None:
    if a.dim() != rank or b.dim() != rank:
        raise RuntimeError(f"{name} expected {rank}D tensors, but got {a.dim()}D and {b.dim()}D")
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(f"{name}: shapes {tuple(a.shape)} and {tuple(b.shape)} do not multiply")
    if a.dtype != b.dtype:
        raise RuntimeError(f"expected m1 and m2 to have the same dtype: {a.dtype} != {b.dtype}")
    same = dtype == a.dtype and dtype in _ROUNDED
    wider = dtype == torch.float32 and a.dtype in _ROUNDED
    if not same and not wider:
        raise RuntimeError(
            f"{name}: out_dtype must be the dtype of the inputs, or float32 for inputs of float16 "
            f"or bfloat16; got {dtype} for {a.dtype}"
        )


def _added(
    name: str,
    addend: Tensor,
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype,
    beta: float,
    alpha: float,
    rank: int,
) -> Tensor:
    _check(name, a, b, dtype, rank)
    if addend.dtype not in (dtype, a.dtype):
        raise RuntimeError(
            f"{name}: self has dtype {addend.dtype}, neither that of the inputs, {a.dtype}, nor "
            f"out_dtype, {dtype}"
        )
    kind = LINEAR if rank == 2 else ATTENTION
    shape = (*a.shape[:-1], b.shape[-1])
    return multiply(a, b, dtype, kind, addend.expand(shape), beta, alpha)


def mm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Tensor:
    _check("mm", self, mat2, out_dtype, 2)
    return multiply(self, mat2, out_dtype, LINEAR)


def bmm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Tensor:
    _check("bmm", self, mat2, out_dtype, 3)
    return multiply(self, mat2, out_dtype, ATTENTION)


def addmm(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    return _added("addmm", self, mat1, mat2, out_dtype, beta, alpha, 2)


def baddbmm(
    self: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    return _added("baddbmm", self, batch1, batch2, out_dtype, beta, alpha, 3)


def mm_out(self: Tensor, mat2: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return store(mm(self, mat2, out_dtype), out)


def bmm_out(self: Tensor, mat2: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
    return store(bmm(self, mat2, out_dtype), out)


def addmm_out(
    self: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor,
) -> Tensor:
    return store(addmm(self, mat1, mat2, out_dtype, beta=beta, alpha=alpha), out)


def baddbmm_out(
    self: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    out_dtype: torch.dtype,
    *,
    beta: float = 1,
    alpha: float = 1,
    out: Tensor,
) -> Tensor:
    return store(baddbmm(self, batch1, batch2, out_dtype, beta=beta, alpha=alpha), out)
