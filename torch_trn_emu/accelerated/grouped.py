"""Grouped products: one matrix for each expert. `_grouped_mm`, `_scaled_grouped_mm` and its `_v2`.

`offs` ends each group: of the rows of a, of the columns of b, or of the contraction of both.
Products of experts are linear layers: operands take the precision policy's formats. What lies
behind the last group is zero. Checked on torch 2.13.0.
"""

from collections.abc import Iterator, Sequence
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import ScalingType

from .. import _C
from ..torch_private import host_grouped_mm
from .products import LINEAR, multiply
from .scaled import (
    E8M0,
    FLOAT4,
    MX_BLOCK,
    blocks_of,
    check_recipes,
    elements_along_k,
    finish,
    mx_product,
    padded,
    recipes_of,
    swizzles_of,
)

__all__ = ["grouped_mm", "scaled_grouped_mm", "scaled_grouped_mm_v2"]

# One group: its number, and which rows, columns and elements of K are its own.
Group = tuple[int, slice, slice, slice]
_ALL = slice(None)


def _groups(a: Tensor, b: Tensor, offs: Tensor | None) -> Iterator[Group]:
    """The groups of a product; Tensors of 3 dimensions have one matrix for each."""
    if a.dim() == 3 and b.dim() == 3:
        for g in range(a.shape[0]):
            yield g, _ALL, _ALL, _ALL
        return
    start = 0
    for g, end in enumerate(_ends(a, b, offs)):
        part = slice(start, end)
        start = end
        if b.dim() == 3:
            yield g, part, _ALL, _ALL
        elif a.dim() == 3:
            yield g, _ALL, part, _ALL
        else:
            yield g, _ALL, _ALL, part


def _ends(a: Tensor, b: Tensor, offs: Tensor | None) -> list[int]:
    if offs is None:
        raise RuntimeError(
            f"offs is needed to group the operands of {a.dim()}D x {b.dim()}D products"
        )
    if offs.dim() != 1 or offs.dtype != torch.int32:
        raise RuntimeError(f"offs is a vector of int32, got {offs.dim()}D of {offs.dtype}")
    limit = a.shape[0] if b.dim() == 3 else b.shape[-1] if a.dim() == 3 else a.shape[-1]
    if a.dim() == b.dim() == 2 and a.dtype == FLOAT4:
        limit *= 2
    ends = [int(end) for end in offs.tolist()]
    if any(e < s for s, e in zip([0, *ends], ends, strict=False)) or (ends and ends[-1] > limit):
        raise RuntimeError(f"offs must rise from 0 to at most {limit}, got {ends}")
    return ends


def _check(a: Tensor, b: Tensor, offs: Tensor | None) -> None:
    if a.dim() not in (2, 3) or b.dim() not in (2, 3):
        raise RuntimeError(f"operands are 2D or 3D, got {a.dim()}D and {b.dim()}D")
    if FLOAT4 not in (a.dtype, b.dtype) and a.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"contraction dimension of mat_a and mat_b must match, got {a.shape[-1]} and "
            f"{b.shape[-2]}"
        )
    if a.dim() == b.dim() == 3 and (offs is not None or a.shape[0] != b.shape[0]):
        raise RuntimeError("3D x 3D products have equal batches and no offs")
    experts = a.shape[0] if a.dim() == 3 else b.shape[0] if b.dim() == 3 else None
    if offs is not None and experts is not None and offs.numel() != experts:
        raise RuntimeError(f"offs has {offs.numel()} groups for {experts} matrices")


def _empty_result(a: Tensor, b: Tensor, offs: Tensor | None, dtype: torch.dtype) -> Tensor:
    m, n = a.shape[-2], b.shape[-1]
    if a.dim() == b.dim() == 3:
        return torch.zeros(a.shape[0], m, n, dtype=dtype)
    if a.dim() == b.dim() == 2:
        assert offs is not None
        return torch.zeros(offs.numel(), m, n, dtype=dtype)
    return torch.zeros(m, n, dtype=dtype)


def _pieces(a: Tensor, b: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """The operands of one group, [m, k] and [k, n]; `k` counts bytes of packed float4."""
    g, rows, columns, k = group
    if a.dtype == FLOAT4 and k != _ALL:
        k = slice(k.start // 2, k.stop // 2)
    first = (a[g] if a.dim() == 3 else a)[rows, k]
    second = (b[g] if b.dim() == 3 else b)[k, columns]
    return first, second


def _into(out: Tensor, group: Group) -> Tensor:
    g, rows, columns, _ = group
    return out[g] if out.dim() == 3 else out[rows, columns]


def grouped_mm(
    self: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _check(self, mat2, offs)
    if bias is not None:
        raise RuntimeError("grouped_mm: a bias is not supported, as in torch 2.13")
    if self.dtype != mat2.dtype:
        raise RuntimeError(f"grouped_mm: operands of {self.dtype} and {mat2.dtype}")
    dtype = out_dtype or self.dtype
    # Matrices of experts are weights; two matrices cut into groups make the gradient of one.
    weight = -1 if self.dim() == mat2.dim() == 2 else 1 if mat2.dim() == 3 else 0
    formats = _C.operand_formats(_C.current_policy(), LINEAR, weight)
    if not any(formats) and dtype == self.dtype:  # as given: the host's kernel
        made: Tensor = host_grouped_mm(self, mat2, offs=offs, out_dtype=out_dtype)
        return made if offs is None else _without_rest(made, self, mat2, offs)
    out = _empty_result(self, mat2, offs, dtype)
    for group in _groups(self, mat2, offs):
        first, second = _pieces(self, mat2, group)
        if out.numel():
            product = multiply(first, second, dtype, LINEAR, weight=weight)
            _into(out, group).copy_(product)
    return out


def _without_rest(made: Tensor, a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
    """The host leaves what lies behind the last group as it finds it."""
    ends = _ends(a, b, offs)
    last = ends[-1] if ends else 0
    if b.dim() == 3:
        made[last:] = 0
    elif a.dim() == 3:
        made[:, last:] = 0
    return made


# --- with scales ----------------------------------------------------------------------------------


class _MxScales:
    """MX scales of one operand, group by group: [rows of the group, blocks of 32 along K]."""

    def __init__(self, name: str, scales: Tensor, swizzled: bool) -> None:
        if scales.dtype != E8M0:
            raise ValueError(f"{name}: scales of blocks of 32 are float8_e8m0fnu")
        self.name, self.scales, self.swizzled, self.used = name, scales, swizzled, 0

    def of(self, operand: Tensor, group: Group, part: slice, rows: int, k: int) -> Tensor:
        """`part` is which of the rows are the group's; `rows` and `k` its size."""
        g = group[0]
        if operand.dim() == 3:
            return blocks_of(self.name, self.scales[g], rows, k, self.swizzled)
        columns = ceil(k / MX_BLOCK)
        if not self.swizzled:
            along = group[3]
            if along != _ALL and along.start % MX_BLOCK:
                raise ValueError(f"{self.name}: groups along K begin at multiples of {MX_BLOCK}")
            of_k = _ALL if along == _ALL else slice(along.start // 32, along.start // 32 + columns)
            return blocks_of(self.name, self.scales[part, of_k], rows, k, False)
        # one swizzled matrix after the other, each padded to 128 rows and 4 columns
        size = padded(rows, columns)
        flat = self.scales.contiguous().view(torch.uint8).reshape(-1)
        own = flat[self.used : self.used + size]
        self.used += size
        return blocks_of(self.name, own.view(E8M0), rows, k, True)


def _mx_groups(
    a: Tensor,
    b: Tensor,
    scales: tuple[_MxScales, _MxScales],
    offs: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = _empty_result(a, b, offs, dtype)
    for group in _groups(a, b, offs):
        first, second = _pieces(a, b, group)
        m, n, k = first.shape[0], second.shape[1], elements_along_k(first)
        x = scales[0].of(a, group, group[1], m, k)
        y = scales[1].of(b, group, group[2], n, k)
        if m and n and k:
            _into(out, group).copy_(finish(mx_product(first, x, second, y), bias, dtype))
    return out


def _row_scale(scales: Tensor, operand: Tensor, group: Group, part: slice, many: int) -> Tensor:
    """The scale of each row (or column) of a group's operand."""
    g, k = group[0], group[3]
    if operand.dim() == 3:
        return scales.reshape(operand.shape[0], -1)[g]
    if k != _ALL:  # both 2D: the scales of one group after those of the other
        return scales.reshape(-1, many)[g]
    return scales.reshape(-1)[part]


def _row_groups(
    a: Tensor,
    b: Tensor,
    scales: tuple[Tensor, Tensor],
    offs: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    for name, given in zip(("scale_a", "scale_b"), scales, strict=True):
        if given.dtype != torch.float32:
            raise ValueError(f"{name}: scales of rows are float32, got {given.dtype}")
    out = _empty_result(a, b, offs, dtype)
    for group in _groups(a, b, offs):
        first, second = _pieces(a, b, group)
        m, n = first.shape[0], second.shape[1]
        x = _row_scale(scales[0], a, group, group[1], m)
        y = _row_scale(scales[1], b, group, group[2], n)
        product = (first.float() @ second.float()) * x.reshape(-1, 1) * y.reshape(1, -1)
        _into(out, group).copy_(finish(product, bias, dtype))
    return out


def scaled_grouped_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """float32 scales of rows, or swizzled E8M0 scales of blocks of 32: by their dtype."""
    _check(self, mat2, offs)
    if scale_result is not None:
        raise RuntimeError("scale_result is not supported, as in torch 2.13")
    dtype = out_dtype or torch.bfloat16
    if scale_a.dtype == scale_b.dtype == E8M0:
        scales = _MxScales("scale_a", scale_a, True), _MxScales("scale_b", scale_b, True)
        return _mx_groups(self, mat2, scales, offs, bias, dtype)
    return _row_groups(self, mat2, (scale_a, scale_b), offs, bias, dtype)


def scaled_grouped_mm_v2(
    self: Tensor,
    mat2: Tensor,
    scale_a: Sequence[Tensor],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Tensor],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """What `torch.nn.functional.scaled_grouped_mm` calls."""
    _check(self, mat2, offs)
    kinds = recipes_of(recipe_a, recipe_b)
    check_recipes(kinds)
    dtype = out_dtype or torch.bfloat16
    if kinds == ((ScalingType.BlockWise1x32,), (ScalingType.BlockWise1x32,)):
        swizzles = swizzles_of(swizzle_a, swizzle_b)
        scales = (
            _MxScales("scale_a", scale_a[0], swizzles[0]),
            _MxScales("scale_b", scale_b[0], swizzles[1]),
        )
        return _mx_groups(self, mat2, scales, offs, bias, dtype)
    if kinds == ((ScalingType.RowWise,), (ScalingType.RowWise,)):
        return _row_groups(self, mat2, (scale_a[0], scale_b[0]), offs, bias, dtype)
    raise ValueError(
        "Invalid scaling configuration: grouped products take RowWise x RowWise and "
        "BlockWise1x32 x BlockWise1x32."
    )
