"""`_scaled_mm` and `_scaled_mm_v2`: products of 8-bit and 4-bit operands with scales.

The recipe says how scales lie. Blocks of 32 with E8M0 scales are the chip's MXFP8 and MXFP4: exact
products of the codes, float32 sums, one rounding, as `nc_matmul_mx`. A recipe is a row of RECIPES.
Checked on torch 2.13.0.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType

from ..errors import Unsupported
from ..torch_private import host_scaled_mm
from .products import store

__all__ = [
    "blocks_of",
    "mx_product",
    "scaled_mm",
    "scaled_mm_out",
    "scaled_mm_v2",
    "scaled_mm_v2_out",
    "unswizzle",
]

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOAT4 = torch.float4_e2m1fn_x2
E8M0 = torch.float8_e8m0fnu
MX_BLOCK, WIDE_BLOCK = 32, 128

Kinds = tuple[ScalingType, ...]
_Swizzles = tuple[bool, bool]  # whether the scales of each operand are swizzled
_Recipe = Callable[[Tensor, Tensor, Tensor, Tensor, _Swizzles], Tensor]
_TENSOR, _ROW = ScalingType.TensorWise, ScalingType.RowWise
_MX, _NV = ScalingType.BlockWise1x32, ScalingType.BlockWise1x16
_WIDE, _SQUARE = ScalingType.BlockWise1x128, ScalingType.BlockWise128x128


# --- layouts of scales ----------------------------------------------------------------------------


def padded(rows: int, columns: int) -> int:
    """Elements of a swizzled matrix of scales: tiles of 128 rows and 4 columns."""
    return ceil(rows / 128) * 128 * ceil(columns / 4) * 4


def unswizzle(scales: Tensor, rows: int, columns: int) -> Tensor:
    """SWIZZLE_32_4_4 undone: [rows, columns] of a tensor of any shape. uint8 in, uint8 out.

    In each tile of 128 x 4, row r lies at r % 32, after the scales of row r - 32.
    """
    tiles = scales.reshape(-1, 32, 4, 4).transpose(1, 2)  # [tiles, 4 x 32 rows, 4 columns]
    down, across = ceil(rows / 128), ceil(columns / 4)
    plain = tiles.reshape(down, across, 128, 4).transpose(1, 2).reshape(down * 128, across * 4)
    return plain[:rows, :columns]


def blocks_of(name: str, scales: Tensor, rows: int, k: int, swizzled: bool) -> Tensor:
    """MX scales of an operand as [rows, ceil(k / 32)], from the layout in which they were given."""
    if scales.dtype != E8M0:
        raise ValueError(f"{name}: scales of blocks of 32 are float8_e8m0fnu, got {scales.dtype}")
    columns = ceil(k / MX_BLOCK)
    codes = scales.view(torch.uint8)
    if swizzled:
        if codes.numel() != padded(rows, columns):
            raise ValueError(
                f"{name}: SWIZZLE_32_4_4 of scales [{rows}, {columns}] has "
                f"{padded(rows, columns)} elements, got {codes.numel()}"
            )
        return unswizzle(codes.contiguous(), rows, columns).contiguous().view(E8M0)
    if codes.dim() == 2 and codes.shape == (columns, rows) and rows != columns:
        codes = codes.t()
    if codes.numel() != rows * columns or (codes.dim() == 2 and codes.shape[0] != rows):
        raise ValueError(
            f"{name}: scales without a swizzle have shape [{rows}, {columns}], one for 32 elements "
            f"along K; got {tuple(scales.shape)}"
        )
    return codes.reshape(rows, columns).contiguous().view(E8M0)


# --- products -------------------------------------------------------------------------------------


def elements_along_k(a: Tensor, dim: int = -1) -> int:
    return a.shape[dim] * (2 if a.dtype == FLOAT4 else 1)


def finish(product: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A float32 product with its bias, rounded once; formats of 8 bits saturate."""
    if bias is not None:
        product = product + bias.float()
    if dtype in FLOAT8:
        largest = torch.finfo(dtype).max
        product = product.clamp(-largest, largest)
    return product.to(dtype)


def mx_product(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> Tensor:
    """[m, n] in float32 of codes a [m, k] and b [k, n], scales [m, k / 32] and [n, k / 32]."""
    made: Tensor = torch.ops.trn.mx_matmul(a, a_scales, b, b_scales.t(), out_dtype=torch.float32)
    return made


def _mx(a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, swizzles: _Swizzles) -> Tensor:
    k = elements_along_k(a)
    if any(t.dtype not in (*FLOAT8, FLOAT4) for t in (a, b)):
        raise ValueError(f"MX operands are float8 or float4_e2m1fn_x2, got {a.dtype}, {b.dtype}")
    if k != elements_along_k(b, 0):
        raise ValueError(f"MX operands have {k} and {elements_along_k(b, 0)} elements along K")
    first = blocks_of("scale_a", a_scales, a.shape[0], k, swizzles[0])
    second = blocks_of("scale_b", b_scales, b.shape[1], k, swizzles[1])
    return mx_product(a, first, b, second)


def _wide(name: str, scales: Tensor, free: int, k: int, square: bool) -> Tensor:
    """Scales of blocks of 128 along K as [blocks of K, free]; `square`: of 128 along both."""
    if scales.dtype != torch.float32:
        raise ValueError(f"{name}: scales of blocks of 128 are float32, got {scales.dtype}")
    along, across = ceil(k / WIDE_BLOCK), ceil(free / WIDE_BLOCK) if square else free
    if square:  # [blocks of K, padded to 4, blocks of the other dimension]
        fits = scales.dim() == 2 and scales.shape[0] in (along, ceil(along / 4) * 4)
        if not fits or scales.shape[1] != across:
            raise ValueError(
                f"{name}: scales of blocks of 128 x 128 have shape [{along} or "
                f"{ceil(along / 4) * 4}, {across}], got {tuple(scales.shape)}"
            )
        return scales[:along].repeat_interleave(WIDE_BLOCK, dim=1)[:, :free]
    if scales.shape != (across, along):
        raise ValueError(
            f"{name}: scales of blocks of 1 x 128 have shape [{across}, {along}], got "
            f"{tuple(scales.shape)}"
        )
    return scales.t()


def _of_wide_blocks(
    a: Tensor, b: Tensor, a_scales: Tensor, b_scales: Tensor, squares: tuple[bool, bool]
) -> Tensor:
    """A product for each 128 of K, times the scales of its rows and columns, summed in float32."""
    (m, k), n = a.shape, b.shape[1]
    first = _wide("scale_a", a_scales, m, k, squares[0])
    second = _wide("scale_b", b_scales, n, k, squares[1])
    total = torch.zeros(m, n)
    for block in range(ceil(k / WIDE_BLOCK)):
        part = slice(block * WIDE_BLOCK, (block + 1) * WIDE_BLOCK)
        product = a[:, part].float() @ b[part].float()
        total += product * first[block][:, None] * second[block]
    return total


def _squares(first: bool, second: bool) -> _Recipe:
    return lambda a, b, x, y, _: _of_wide_blocks(a, b, x, y, (first, second))


# The CPU has kernels for these two.
_HOST = (((_TENSOR,), (_TENSOR,)), ((_ROW,), (_ROW,)))
RECIPES: Mapping[tuple[Kinds, Kinds], _Recipe] = MappingProxyType(
    {
        ((_MX,), (_MX,)): _mx,
        ((_WIDE,), (_WIDE,)): _squares(False, False),
        ((_WIDE,), (_SQUARE,)): _squares(False, True),
        ((_SQUARE,), (_WIDE,)): _squares(True, False),
    }
)


# --- the operators --------------------------------------------------------------------------------


def check_recipes(kinds: tuple[Kinds, Kinds]) -> None:
    """Raises for recipes that no product has."""
    if _NV in kinds[0] + kinds[1]:
        raise Unsupported(
            "NVFP4 (BlockWise1x16) is NVIDIA's: Trainium multiplies blocks of 32 with E8M0 scales. "
            "Use ScalingType.BlockWise1x32 with float4_e2m1fn_x2 or float8_e4m3fn operands."
        )
    if kinds not in RECIPES and kinds not in _HOST:
        known = "; ".join(f"{a[0].name} x {b[0].name}" for a, b in (*_HOST, *RECIPES))
        given = " x ".join(str([kind.name for kind in each]) for each in kinds)
        raise ValueError(f"Invalid scaling configuration: {given} is none of {known}.")


def recipes_of(a: Sequence[int], b: Sequence[int]) -> tuple[Kinds, Kinds]:
    return tuple(map(_scaling, a)), tuple(map(_scaling, b))


def _scaling(number: int) -> ScalingType:
    if number not in {int(kind.value) for kind in ScalingType.__members__.values()}:
        raise ValueError(
            f"Invalid scaling configuration: {number} is no torch.nn.functional.ScalingType."
        )
    return ScalingType(number)


def swizzles_of(a: Sequence[int], b: Sequence[int]) -> _Swizzles:
    first, second = (
        any(SwizzleType(s) == SwizzleType.SWIZZLE_32_4_4 for s in given) for given in (a, b)
    )
    return first, second


def _check_formats(a: Tensor, b: Tensor) -> None:
    known = (*FLOAT8, FLOAT4)
    if a.dtype not in known or b.dtype not in known:
        raise ValueError(f"scaled_mm takes float8 or float4 operands, got {a.dtype} and {b.dtype}")


def _check_operands(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2:
        raise ValueError(f"scaled_mm takes matrices, got {a.dim()}D and {b.dim()}D")
    _check_formats(a, b)
    if FLOAT4 not in (a.dtype, b.dtype) and a.shape[1] != b.shape[0]:
        raise ValueError(f"scaled_mm: {tuple(a.shape)} and {tuple(b.shape)} do not multiply")


def scaled_mm_v2(
    self: Tensor,
    mat2: Tensor,
    scale_a: Sequence[Tensor],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Tensor],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """What `torch.nn.functional.scaled_mm` calls. Sums are float32, whatever `use_fast_accum`."""
    _check_operands(self, mat2)
    if contraction_dim and tuple(d % 2 for d in contraction_dim) != (1, 0):
        raise ValueError(f"scaled_mm contracts dimensions [1, 0], got {list(contraction_dim)}")
    kinds = recipes_of(recipe_a, recipe_b)
    check_recipes(kinds)
    if kinds in _HOST:
        first: Any = (scale_a, recipe_a, swizzle_a)
        second: Any = (scale_b, recipe_b, swizzle_b)
        made: Tensor = torch.ops.aten._scaled_mm_v2(self, mat2, *first, *second, bias, out_dtype)
        return made
    swizzles = swizzles_of(swizzle_a, swizzle_b)
    product = RECIPES[kinds](self, mat2, scale_a[0], scale_b[0], swizzles)
    return finish(product, bias, out_dtype or self.dtype)


def scaled_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """The operator before recipes had names: they follow from the scales' dtypes and shapes.

    E8M0 scales of shape [rows, k / 32] lie as they are; of any other shape they are swizzled.
    """
    if scale_a.dtype == scale_b.dtype == torch.float32:
        _check_formats(self, mat2)
        multiply = self.dim() == mat2.dim() == 2 and self.shape[1] == mat2.shape[0]
        wide = _of_float_scales(self, mat2, scale_a, scale_b) if multiply else None
        if wide is None:  # one for all, or rows: the CPU's kernel, which knows the rest as well
            rest = (bias, scale_result, out_dtype, use_fast_accum)
            made: Tensor = host_scaled_mm(self, mat2, scale_a, scale_b, *rest)
            return made
        product = wide
    elif scale_a.dtype == scale_b.dtype == E8M0:
        _check_operands(self, mat2)
        blocks = ceil(elements_along_k(self) / MX_BLOCK)
        plain = (self.shape[0], blocks), (mat2.shape[1], blocks)
        product = _mx(self, mat2, scale_a, scale_b, (scale_a.shape != plain[0],
                                                     scale_b.shape != plain[1]))  # fmt: skip
    else:
        if scale_a.dtype == scale_b.dtype == torch.float8_e4m3fn:
            check_recipes(((_NV,), (_NV,)))
        raise ValueError(f"scales are of dtypes {scale_a.dtype} and {scale_b.dtype}")
    if scale_result is not None:
        raise ValueError("scale_result goes with float32 scales of a tensor")
    return finish(product, bias, out_dtype or self.dtype)


def _of_float_scales(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    """The product of blocks of 128, by the shapes of their scales; None for other recipes."""
    (m, k), n = a.shape, b.shape[1]
    along = ceil(k / WIDE_BLOCK)
    if x.dim() != 2 or y.dim() != 2 or (x.shape[0] == m and x.shape[1] == 1 and y.shape == (1, n)):
        return None
    if x.shape == (m, along) and y.shape == (along, n):
        return _of_wide_blocks(a, b, x, y.t(), (False, False))
    if x.shape == (m, along) and y.shape == (along, ceil(n / WIDE_BLOCK)):
        return _of_wide_blocks(a, b, x, y, (False, True))
    if x.shape == (ceil(m / WIDE_BLOCK), along) and y.shape == (along, n):
        return _of_wide_blocks(a, b, x.t(), y.t(), (True, False))
    return None


def scaled_mm_out(
    self: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
    *,
    out: Tensor,
) -> Tensor:
    made = scaled_mm(self, mat2, scale_a, scale_b, bias, scale_result, out_dtype, use_fast_accum)
    return store(made, out)


def scaled_mm_v2_out(
    self: Tensor,
    mat2: Tensor,
    scale_a: Sequence[Tensor],
    recipe_a: Sequence[int],
    swizzle_a: Sequence[int],
    scale_b: Sequence[Tensor],
    recipe_b: Sequence[int],
    swizzle_b: Sequence[int],
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    contraction_dim: Sequence[int] = (),
    use_fast_accum: bool = False,
    *,
    out: Tensor,
) -> Tensor:
    first, second = (scale_a, recipe_a, swizzle_a), (scale_b, recipe_b, swizzle_b)
    return store(scaled_mm_v2(self, mat2, *first, *second, bias, out_dtype, contraction_dim), out)
