"""Products of operands that are rounded, quantised to MX or decoded while their tiles are loaded.

The contract is that of csrc/numerics/gemm.h: exact products, float32 sums, one rounding. An MX or
bfloat16 value is exact in bfloat16, so a tensor core multiplies what the chip would multiply.
An operand that many programs would quantise again is rounded once before, into bfloat16; a large
product of two such operands is the library's, cuBLAS, told to sum in float32 throughout.
"""

import contextlib
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from .bits import (
    float_bits,
    group_index,
    store_rounded,
    tile_and_batch,
)
from .formats import GROUPINGS, element_of, named
from .launch import INTERPRETED, cdiv, launch, power_of_two, raw
from .operands import Operand, load_operand, operand_of, quantize_values
from .quantize import Spec, check_codes, check_source

__all__ = ["mx_matmul", "mx_mm", "product", "round_operand"]

# An operand is rounded beforehand when more programs than this would read each of its tiles.
# Chosen: quantising costs a program about as much as multiplying by one tile of 128.
REREADS = 4

# Rows and columns from which on the library multiplies what was rounded before: it splits a long
# contraction, a weight's gradient say, over the whole GPU, which the kernel here does not. Chosen.
LARGE = 256


@triton.jit
def tile_of(m, n, BM: tl.constexpr, BN: tl.constexpr, BAND: tl.constexpr):
    """Batch, rows and columns of the result that this program computes.

    Programs that run together read BAND rows of tiles of a, which stay in the second-level cache.
    """
    down, across = tl.cdiv(m, BM), tl.cdiv(n, BN)
    tile, batch = tile_and_batch(down * across)
    band = tile // (BAND * across)
    in_band = tile % (BAND * across)
    tall = tl.minimum(down - band * BAND, BAND)
    rows = (band * BAND + in_band % tall) * BM + tl.arange(0, BM)
    return batch, rows, (in_band // tall) * BN + tl.arange(0, BN)


@triton.jit
def lanes_of(first, BK: tl.constexpr, WRAPPED: tl.constexpr):
    """Indices of the contraction; its order is free, so wrapped groups come whole."""
    at_k = first + tl.arange(0, BK)
    if WRAPPED:
        return group_index(at_k // 32, at_k % 32, True)
    else:
        return at_k


@triton.jit
def stored_at(at_k, KIND: tl.constexpr, BITS: tl.constexpr):
    """Where along the contraction elements are stored: 4-bit codes two in a byte."""
    if KIND == 3 and BITS == 4:
        return (at_k // 2).to(tl.int64)
    else:
        return at_k.to(tl.int64)


@triton.jit
def finish_tile(
    sums, c, addend, rows, cols, m, n, addend_row, addend_col, alpha, beta, ADDS: tl.constexpr,
):  # fmt: skip
    """Store alpha sums + beta addend at `rows` [BM, 1] and `cols` [1, BN] of c, rounded once."""
    sums = sums * alpha
    inside = (rows < m) & (cols < n)
    if ADDS:
        at = addend + rows.to(tl.int64) * addend_row + cols.to(tl.int64) * addend_col
        added = tl.load(at, mask=inside, other=0)
        sums = sums + beta * float_bits(added).to(tl.float32, bitcast=True)
    to = c + rows.to(tl.int64) * n + cols
    store_rounded(to, sums.to(tl.uint32, bitcast=True), inside)


@triton.jit
def gemm_kernel(
    a, a_scales, b, b_scales, c, addend,
    m, n, k,
    a_batch, a_row, a_col,
    as_batch, as_row, as_col,
    b_batch, b_row, b_col,
    bs_batch, bs_row, bs_col,
    c_batch,
    addend_batch, addend_row, addend_col,
    alpha, beta,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BAND: tl.constexpr,
    WRAPPED: tl.constexpr, ADDS: tl.constexpr, INTERPRETED: tl.constexpr,
    A_KIND: tl.constexpr, A_WIDE: tl.constexpr, A_M: tl.constexpr, A_MIN_FIELD: tl.constexpr,
    A_MAX_BITS: tl.constexpr, A_FACTOR: tl.constexpr, A_ROUND: tl.constexpr,
    A_SUBTRACT: tl.constexpr, A_BITS: tl.constexpr, A_BIAS: tl.constexpr,
    A_NAN: tl.constexpr, A_INF: tl.constexpr,
    B_KIND: tl.constexpr, B_WIDE: tl.constexpr, B_M: tl.constexpr, B_MIN_FIELD: tl.constexpr,
    B_MAX_BITS: tl.constexpr, B_FACTOR: tl.constexpr, B_ROUND: tl.constexpr,
    B_SUBTRACT: tl.constexpr, B_BITS: tl.constexpr, B_BIAS: tl.constexpr,
    B_NAN: tl.constexpr, B_INF: tl.constexpr,
):  # fmt: skip
    """c = alpha (a b) + beta addend, a tile [BM, BN] a program; c is contiguous."""
    batch, rows, cols = tile_of(m, n, BM, BN, BAND)
    a_rows = a + batch * a_batch + rows[:, None].to(tl.int64) * a_row
    b_cols = b + batch * b_batch + cols[None, :].to(tl.int64) * b_col
    as_rows = a_scales + batch * as_batch + rows[:, None].to(tl.int64) * as_row
    bs_cols = b_scales + batch * bs_batch + cols[None, :].to(tl.int64) * bs_col
    sums = tl.zeros([BM, BN], tl.float32)
    padded = k
    if WRAPPED:
        padded = tl.cdiv(k, 512) * 512
    for first in range(0, padded, BK):
        at_k = lanes_of(first, BK, WRAPPED)
        group = first // 32 + tl.arange(0, BK // 32)
        a_k, b_k = at_k[None, :], at_k[:, None]
        x = load_operand(
            a_rows + stored_at(a_k, A_KIND, A_BITS) * a_col,
            (rows[:, None] < m) & (a_k < k),
            as_rows + group[None, :].to(tl.int64) * as_col,
            (rows[:, None] < m) & (group[None, :] * 32 < padded),
            a_k, BM, BK, 1, INTERPRETED,
            A_KIND, A_WIDE, A_M, A_MIN_FIELD, A_MAX_BITS, A_FACTOR, A_ROUND, A_SUBTRACT,
            A_BITS, A_BIAS, A_NAN, A_INF,
        )  # fmt: skip
        y = load_operand(
            b_cols + stored_at(b_k, B_KIND, B_BITS) * b_row,
            (cols[None, :] < n) & (b_k < k),
            bs_cols + group[:, None].to(tl.int64) * bs_row,
            (cols[None, :] < n) & (group[:, None] * 32 < padded),
            b_k, BK, BN, 0, INTERPRETED,
            B_KIND, B_WIDE, B_M, B_MIN_FIELD, B_MAX_BITS, B_FACTOR, B_ROUND, B_SUBTRACT,
            B_BITS, B_BIAS, B_NAN, B_INF,
        )  # fmt: skip
        sums = tl.dot(x, y, sums, input_precision="ieee")
    finish_tile(
        sums, c + batch * c_batch, addend + batch * addend_batch, rows[:, None], cols[None, :],
        m, n, addend_row, addend_col, alpha, beta, ADDS,
    )  # fmt: skip


def _computes(a: Operand, b: Operand) -> bool:
    """Whether the product's program quantises or decodes what it loads."""
    return max(a.kind, b.kind) >= 2


def _tiles(m: int, n: int, k: int, quantises: bool) -> dict[str, int]:
    if INTERPRETED:
        return {"BM": min(128, power_of_two(m)), "BN": min(128, power_of_two(n))} | {
            "BK": min(512, max(32, power_of_two(k))),
            "BAND": 8,
        }
    # Chosen for Hopper, not measured: 128 x 256 of bfloat16 fills its registers, and quantising
    # needs registers of its own.
    large = not quantises and m >= 1024 and n >= 1024
    sides = {"BM": 128, "BN": 256 if large else 128, "BK": 64, "num_warps": 8}
    if m <= 64 or n <= 64:
        sides |= {"BM": 64, "BN": 64, "num_warps": 4}
    return sides | {"BAND": 8, "num_stages": 3}


def _before(operand: Operand, readers: int, k_dim: int) -> Operand:
    """The operand with its rounding done beforehand, where that is less work."""
    return operand if INTERPRETED or readers <= REREADS else operand.rounded(k_dim)


def product_shape(a: list[int], b: list[int], what: str) -> list[int]:
    """[m, n] or [batch, m, n]; raises RuntimeError for what cannot be multiplied."""
    fits = len(a) in (2, 3) and len(a) == len(b) and a[-1] == b[-2]
    if not fits or a[:-2] != b[:-2]:
        raise RuntimeError(
            f"{what}: shapes {a} and {b} cannot be multiplied; give "
            "[m, k] x [k, n], or both with the same batch in front"
        )
    return [*a[:-1], b[-1]]


def multiply(
    a: Operand,
    b: Operand,
    out_dtype: torch.dtype,
    addend: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    what: str = "gemm",
) -> torch.Tensor:
    """alpha a b + beta addend; a [m, k] or [batch, m, k], b likewise, addend broadcast to it."""
    shape = product_shape(a.shape(-1), b.shape(-2), what)
    m, n, k = shape[-2], shape[-1], a.shape(-1)[-1]
    if 0 in shape:
        return torch.empty(shape, dtype=out_dtype, device=a.x.device)
    sides = _tiles(m, n, k, _computes(a, b))
    a = _before(a, cdiv(n, sides["BN"]), -1)
    b = _before(b, cdiv(m, sides["BM"]), -2)
    if a.multiplied != b.multiplied:  # nothing narrower holds both
        a, b = (Operand(o.rounded(dim).x.float()) for o, dim in ((a, -1), (b, -2)))
    if not INTERPRETED and min(m, n) >= LARGE and blas_takes(a, b, out_dtype, addend):
        return blas_product(a.x, b.x, out_dtype, addend, alpha, beta)
    c = torch.empty(shape, dtype=out_dtype, device=a.x.device)
    _launch(c, a, b, (m, n, k), addend, alpha, beta)
    return c


def _launch(
    c: torch.Tensor,
    a: Operand,
    b: Operand,
    sizes: tuple[int, int, int],
    addend: torch.Tensor | None,
    alpha: float,
    beta: float,
) -> None:
    """`gemm_kernel` over the tiles of c, [m, n] or [batch, m, n]; `sizes` are m, n and k."""
    m, n, k = sizes
    sides = _tiles(m, n, k, _computes(a, b))
    added = c if addend is None else addend.expand(c.shape)
    (x, x_scales, x_strides, xs_strides), (y, y_scales, y_strides, ys_strides) = (
        o.arguments() for o in (a, b)
    )
    added3 = added[None] if added.dim() == 2 else added
    launch(
        gemm_kernel,
        (cdiv(m, sides["BM"]) * cdiv(n, sides["BN"]) * x.shape[0],),
        x, x_scales, y, y_scales, raw(c), raw(added), m, n, k,
        *x_strides, *xs_strides, *y_strides, *ys_strides, m * n, *added3.stride(),
        float(alpha), float(beta),
        **sides,
        WRAPPED=a.groups_wrapped or b.groups_wrapped,
        ADDS=addend is not None and beta != 0.0,
        INTERPRETED=INTERPRETED,
        **a.constants("A_"),
        **b.constants("B_"),
    )  # fmt: skip


def blas_takes(a: Operand, b: Operand, out_dtype: torch.dtype, addend: torch.Tensor | None) -> bool:
    """Whether `blas_product` has this product: bfloat16 matrices, rounded already."""
    plain = all(o.kind == 0 and o.x.dim() == 2 and o.x.dtype is torch.bfloat16 for o in (a, b))
    return plain and (
        out_dtype is torch.float32
        or (out_dtype is torch.bfloat16 and (addend is None or addend.dtype is torch.bfloat16))
    )


def blas_product(
    a: torch.Tensor,
    b: torch.Tensor,
    out_dtype: torch.dtype,
    addend: torch.Tensor | None,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """alpha a b + beta addend by torch's own product of bfloat16, sums in float32."""
    with _sums_in_float32():
        if out_dtype is torch.float32:
            c = torch.mm(a, b, out_dtype=torch.float32)
            c = c if alpha == 1 else c.mul_(alpha)
            return c if addend is None or beta == 0 else c.add_(addend, alpha=beta)
        if addend is None and alpha == 1:
            return torch.mm(a, b)
        nothing = a.new_zeros(()) if addend is None else addend
        return torch.addmm(nothing, a, b, beta=0 if addend is None else beta, alpha=alpha)


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Partial sums of a split contraction are not rounded to bfloat16 on their way."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_bf16_reduced_precision_reduction
    flags.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        flags.allow_bf16_reduced_precision_reduction = before


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_format: str,
    b_format: str,
    out_dtype: torch.dtype,
    addend: torch.Tensor | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    """alpha a b + beta addend, operands rounded as `FORMATS` say; contract of `trn::product`.

    a, b     [batch, m, k], [m, k] or [k] and [batch, k, n], [k, n] or [k]; float32, bfloat16 or
             float16
    addend   broadcasts to the result
    """
    row, column = a.dim() == 1, b.dim() == 1
    first = operand_of(a[None] if row else a, a_format)
    second = operand_of(b[:, None] if column else b, b_format)
    shape = product_shape(first.shape(-1), second.shape(-2), "trn::product")
    squeezed = shape[row : len(shape) - column]
    if addend is not None:
        addend = addend.resolve_neg().expand(squeezed)
        addend = addend[None] if row else addend
        addend = addend[..., None] if column else addend
    made = multiply(first, second, out_dtype, addend, alpha, beta, "trn::product")
    return made.view(squeezed)


def round_operand(x: torch.Tensor, format: str, dim: int) -> torch.Tensor:
    """x as an operand that contracts along `dim`, in bfloat16; contract of `trn::round_operand`."""
    operand = operand_of(x, format)
    return x.to(torch.bfloat16) if operand.mx is None else quantize_values(x, operand.mx, dim)


def mx_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_element: str = "float8_e4m3fn",
    b_element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
    grouping: str = "contiguous",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """a b with both quantised to MX along the contraction; contract of `torch.ops.trn.mx_mm`."""
    out_dtype = a.dtype if out_dtype is None else out_dtype
    check_source(a.dtype, "mx_mm")
    check_source(b.dtype, "mx_mm")
    check_source(out_dtype, "mx_mm, out_dtype")
    first = Operand(a.resolve_neg(), Spec.of(a_element, scale_rule, "nearest_even", grouping, 0))
    second = Operand(b.resolve_neg(), Spec.of(b_element, scale_rule, "nearest_even", grouping, 0))
    return multiply(first, second, out_dtype, what="mx_mm")


def mx_matmul(
    a_codes: torch.Tensor,
    a_scales: torch.Tensor,
    b_codes: torch.Tensor,
    b_scales: torch.Tensor,
    out_dtype: torch.dtype = torch.float32,
    grouping: str = "contiguous",
    a_element: str | None = None,
    b_element: str | None = None,
) -> torch.Tensor:
    """The product of two quantised operands; contract of `torch.ops.trn.mx_matmul`.

    Their values are multiplied in bfloat16: below 2^-126 they round to its subnormals.
    """
    wrapped = named(GROUPINGS, grouping, "grouping")
    element_of(a_codes, a_element)
    element_of(b_codes, b_element)
    for codes, scales, dim in ((a_codes, a_scales, -1), (b_codes, b_scales, -2)):
        check_codes(codes, scales, dim, wrapped)
    first = Operand(a_codes, scales=a_scales, wrapped=wrapped)
    return multiply(
        first, Operand(b_codes, scales=b_scales, wrapped=wrapped), out_dtype, what="mx_matmul"
    )
