"""Flash attention with operands rounded to bfloat16, forward and backward.

The contract is that of csrc/numerics/attention.h: operands of every product (queries, keys, values,
probabilities and their gradients) rounded to bfloat16, float32 sums and softmax, results rounded
once. Scores never reach memory. The forward pass rounds a probability
relative to the largest score seen so far, not to that of the whole row: half a unit of bfloat16
either way.
"""

import math

import torch
import triton
import triton.language as tl

from .bits import bf16_bits, float_bits, store_rounded, tile_and_batch
from .launch import INTERPRETED, cdiv, launch, power_of_two, raw

__all__ = ["attention", "attention_backward"]


@triton.jit
def operand(value, INTERPRETED: tl.constexpr):
    """float32 as an operand of dot: rounded to bfloat16."""
    rounded = bf16_bits(value.to(tl.uint32, bitcast=True))
    if INTERPRETED:  # its dot reads bfloat16 as integers: multiply the same values in float32
        return (rounded.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return rounded.to(tl.bfloat16, bitcast=True)


@triton.jit
def load_operand(pointers, inside, INTERPRETED: tl.constexpr):
    """Loads what is stored as an operand: rounded to bfloat16."""
    loaded = tl.load(pointers, mask=inside, other=0)
    if loaded.dtype == tl.int16 and not INTERPRETED:
        return loaded.to(tl.bfloat16, bitcast=True)
    else:
        return operand(float_bits(loaded).to(tl.float32, bitcast=True), INTERPRETED)


@triton.jit
def load_mask(mask, rows, cols, row_stride, col_stride, inside):
    """What the mask adds to a tile of scores."""
    at = mask + rows[:, None].to(tl.int64) * row_stride + cols[None, :].to(tl.int64) * col_stride
    loaded = tl.load(at, mask=inside, other=0)
    if loaded.dtype == tl.int8:  # boolean
        return tl.where(loaded != 0, 0.0, float("-inf"))
    else:
        return float_bits(loaded).to(tl.float32, bitcast=True)


@triton.jit
def scores_of(
    q, k, rows, cols, mask, mask_row, mask_col, q_length, kv_length, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """scale q k^T + mask, [rows, cols]; -inf where a row does not see a column."""
    scores = tl.dot(q, tl.trans(k)) * scale
    inside = (rows[:, None] < q_length) & (cols[None, :] < kv_length)
    if MASKED:
        scores += load_mask(mask, rows, cols, mask_row, mask_col, inside)
    if CAUSAL:
        inside = inside & (cols[None, :] <= rows[:, None])
    return tl.where(inside, scores, float("-inf"))


@triton.jit
def place_of(heads, length, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Batch, head, first row, rows and columns of this program, and which elements there are."""
    tile, at = tile_and_batch(tl.cdiv(length, ROWS))
    first = tile * ROWS
    rows = first + tl.arange(0, ROWS)
    wide = tl.arange(0, WIDTH)
    inside = (rows[:, None] < length) & (wide[None, :] < width)
    return at // heads, at % heads, first, rows, wide, inside


@triton.jit
def tile_at(start, batch, head, rows, wide, batch_stride, head_stride, row_stride, col_stride):
    """Addresses of a tile, [rows, wide], of one head."""
    at = start + batch * batch_stride + head * head_stride
    return at + rows[:, None].to(tl.int64) * row_stride + wide[None, :] * col_stride


@triton.jit
def visible_columns(first, kv_length, ROWS: tl.constexpr, CAUSAL: tl.constexpr):
    """How many columns the rows of this program see."""
    if CAUSAL:
        return tl.minimum(kv_length, first + ROWS)
    else:
        return kv_length


@triton.jit
def forward_kernel(
    q, k, v, mask, out, logsumexp,
    heads, group, q_length, kv_length, width,
    q_batch, q_head, q_row, q_col,
    k_batch, k_head, k_row, k_col,
    v_batch, v_head, v_row, v_col,
    mask_batch, mask_head, mask_row, mask_col,
    out_batch, out_head, out_row, out_col,
    scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """out and logsumexp of ROWS queries of one head."""
    batch, head, first_row, rows, wide, in_q = place_of(heads, q_length, width, ROWS, WIDTH)
    q_at = tile_at(q, batch, head, rows, wide, q_batch, q_head, q_row, q_col)
    queries = load_operand(q_at, in_q, INTERPRETED)
    k_at = k + batch * k_batch + head // group * k_head + wide[None, :] * k_col
    v_at = v + batch * v_batch + head // group * v_head + wide[None, :] * v_col
    mask_at = mask + batch * mask_batch + head * mask_head
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, visible_columns(first_row, kv_length, ROWS, CAUSAL), COLS):
        cols = first + tl.arange(0, COLS)
        in_k = (cols[:, None] < kv_length) & (wide[None, :] < width)
        keys = load_operand(k_at + cols[:, None].to(tl.int64) * k_row, in_k, INTERPRETED)
        scores = scores_of(
            queries, keys, rows, cols, mask_at, mask_row, mask_col, q_length, kv_length, scale,
            CAUSAL, MASKED,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a row that is masked out so far
        p = tl.exp(scores - shift[:, None])
        fade = tl.exp(top - shift)
        total = total * fade + tl.sum(p, 1)
        values = load_operand(v_at + cols[:, None].to(tl.int64) * v_row, in_k, INTERPRETED)
        weights = operand(p, INTERPRETED)
        sums = tl.dot(weights, values, sums * fade[:, None])
        top = higher
    seen = total != 0.0
    out_at = tile_at(out, batch, head, rows, wide, out_batch, out_head, out_row, out_col)
    result = sums * tl.where(seen, 1.0 / total, 0.0)[:, None]
    store_rounded(out_at, result.to(tl.uint32, bitcast=True), in_q)
    sum_log = tl.where(seen, tl.where(top == float("-inf"), 0.0, top) + tl.log(total), 0.0)
    at = logsumexp + (batch * heads + head) * q_length + rows
    tl.store(at, sum_log, mask=rows < q_length)


@triton.jit
def dot_rows_kernel(
    a, b, y, heads, length, width,
    a_batch, a_head, a_row, a_col,
    b_batch, b_head, b_row, b_col,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y[batch, head, row] = sum of a * b over a row, in float32."""
    batch, head, _, rows, wide, inside = place_of(heads, length, width, ROWS, WIDTH)
    a_at = tile_at(a, batch, head, rows, wide, a_batch, a_head, a_row, a_col)
    b_at = tile_at(b, batch, head, rows, wide, b_batch, b_head, b_row, b_col)
    x = float_bits(tl.load(a_at, mask=inside, other=0)).to(tl.float32, bitcast=True)
    z = float_bits(tl.load(b_at, mask=inside, other=0)).to(tl.float32, bitcast=True)
    to = y + (batch * heads + head) * length + rows
    tl.store(to, tl.sum(x * z, 1), mask=rows < length)


@triton.jit
def gradients_of(
    queries, keys, values, grads, sum_log, inner, rows, cols,
    mask, mask_row, mask_col, q_length, kv_length, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """p and ds, [rows, cols], from the row sums of the forward pass."""
    scores = scores_of(
        queries, keys, rows, cols, mask, mask_row, mask_col, q_length, kv_length, scale,
        CAUSAL, MASKED,
    )  # fmt: skip
    p = tl.exp(scores - sum_log[:, None])
    dp = tl.dot(grads, tl.trans(values))
    ds = tl.where(p == 0.0, 0.0, p * (dp - inner[:, None]))
    return p, ds


@triton.jit
def grad_q_kernel(
    grad_out, q, k, v, mask, logsumexp, inner, grad_q,
    heads, group, q_length, kv_length, width,
    g_batch, g_head, g_row, g_col,
    q_batch, q_head, q_row, q_col,
    k_batch, k_head, k_row, k_col,
    v_batch, v_head, v_row, v_col,
    mask_batch, mask_head, mask_row, mask_col,
    out_batch, out_head, out_row, out_col,
    scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of ROWS queries of one head."""
    batch, head, first_row, rows, wide, in_q = place_of(heads, q_length, width, ROWS, WIDTH)
    q_at = tile_at(q, batch, head, rows, wide, q_batch, q_head, q_row, q_col)
    g_at = tile_at(grad_out, batch, head, rows, wide, g_batch, g_head, g_row, g_col)
    queries = load_operand(q_at, in_q, INTERPRETED)
    grads = load_operand(g_at, in_q, INTERPRETED)
    row_at = (batch * heads + head) * q_length + rows
    sum_log = tl.load(logsumexp + row_at, mask=rows < q_length, other=0)
    products = tl.load(inner + row_at, mask=rows < q_length, other=0)
    k_at = k + batch * k_batch + head // group * k_head + wide[None, :] * k_col
    v_at = v + batch * v_batch + head // group * v_head + wide[None, :] * v_col
    mask_at = mask + batch * mask_batch + head * mask_head
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for first in range(0, visible_columns(first_row, kv_length, ROWS, CAUSAL), COLS):
        cols = first + tl.arange(0, COLS)
        in_k = (cols[:, None] < kv_length) & (wide[None, :] < width)
        keys = load_operand(k_at + cols[:, None].to(tl.int64) * k_row, in_k, INTERPRETED)
        values = load_operand(v_at + cols[:, None].to(tl.int64) * v_row, in_k, INTERPRETED)
        _, ds = gradients_of(
            queries, keys, values, grads, sum_log, products, rows, cols,
            mask_at, mask_row, mask_col, q_length, kv_length, scale, CAUSAL, MASKED,
        )  # fmt: skip
        sums = tl.dot(operand(ds, INTERPRETED), keys, sums)
    out_at = tile_at(grad_q, batch, head, rows, wide, out_batch, out_head, out_row, out_col)
    store_rounded(out_at, (sums * scale).to(tl.uint32, bitcast=True), in_q)


@triton.jit
def grad_kv_kernel(
    grad_out, q, k, v, mask, logsumexp, inner, grad_k, grad_v,
    heads, group, q_length, kv_length, width,
    g_batch, g_head, g_row, g_col,
    q_batch, q_head, q_row, q_col,
    k_batch, k_head, k_row, k_col,
    v_batch, v_head, v_row, v_col,
    mask_batch, mask_head, mask_row, mask_col,
    dk_batch, dk_head, dk_row, dk_col,
    dv_batch, dv_head, dv_row, dv_col,
    scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of COLS keys and values of one head, over all query heads that read them."""
    place = place_of(heads // group, kv_length, width, COLS, WIDTH)
    batch, kv_head, first_col, cols, wide, in_k = place
    k_at = tile_at(k, batch, kv_head, cols, wide, k_batch, k_head, k_row, k_col)
    v_at = tile_at(v, batch, kv_head, cols, wide, v_batch, v_head, v_row, v_col)
    keys = load_operand(k_at, in_k, INTERPRETED)
    values = load_operand(v_at, in_k, INTERPRETED)
    sums_k = tl.zeros([COLS, WIDTH], tl.float32)
    sums_v = tl.zeros([COLS, WIDTH], tl.float32)
    begin = 0
    if CAUSAL:
        begin = first_col // ROWS * ROWS
    for member in range(group):
        head = kv_head * group + member
        row_base = (batch * heads + head) * q_length
        mask_at = mask + batch * mask_batch + head * mask_head
        for first in range(begin, q_length, ROWS):
            rows = first + tl.arange(0, ROWS)
            in_q = (rows[:, None] < q_length) & (wide[None, :] < width)
            q_at = tile_at(q, batch, head, rows, wide, q_batch, q_head, q_row, q_col)
            g_at = tile_at(grad_out, batch, head, rows, wide, g_batch, g_head, g_row, g_col)
            queries = load_operand(q_at, in_q, INTERPRETED)
            grads = load_operand(g_at, in_q, INTERPRETED)
            sum_log = tl.load(logsumexp + row_base + rows, mask=rows < q_length, other=0)
            products = tl.load(inner + row_base + rows, mask=rows < q_length, other=0)
            p, ds = gradients_of(
                queries, keys, values, grads, sum_log, products, rows, cols,
                mask_at, mask_row, mask_col, q_length, kv_length, scale, CAUSAL, MASKED,
            )  # fmt: skip
            p_across = tl.trans(operand(p, INTERPRETED))
            ds_across = tl.trans(operand(ds, INTERPRETED))
            sums_v = tl.dot(p_across, grads, sums_v)
            sums_k = tl.dot(ds_across, queries, sums_k)
    dk_at = tile_at(grad_k, batch, kv_head, cols, wide, dk_batch, dk_head, dk_row, dk_col)
    dv_at = tile_at(grad_v, batch, kv_head, cols, wide, dv_batch, dv_head, dv_row, dv_col)
    store_rounded(dk_at, (sums_k * scale).to(tl.uint32, bitcast=True), in_k)
    store_rounded(dv_at, sums_v.to(tl.uint32, bitcast=True), in_k)


def _tile(width: int, backward: bool) -> dict[str, int]:
    """Rows, columns and warps: what fits Hopper's registers and shared memory. Chosen."""
    padded = max(16, power_of_two(width))
    if INTERPRETED:
        return {"ROWS": 64, "COLS": 64, "WIDTH": padded}
    side = 128 if padded <= 64 and not backward else 64
    stages = 2 if padded <= 128 else 1
    return {"ROWS": side, "COLS": 64, "WIDTH": padded, "num_warps": 8, "num_stages": stages}


def _mask(mask: torch.Tensor | None, like: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The mask broadcast to [batch, heads, q, kv], or anything where there is none."""
    if mask is None:
        return like
    expanded = mask.expand(shape)
    return expanded.view(torch.int8) if mask.dtype is torch.bool else raw(expanded)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    fits = (
        q.dim() == k.dim() == v.dim() == 4
        and k.shape == v.shape
        and q.shape[0] == k.shape[0]
        and q.shape[3] == k.shape[3]
        and k.shape[1] > 0
        and q.shape[1] % k.shape[1] == 0
    )
    if not fits:
        raise RuntimeError(
            f"attention: queries {list(q.shape)}, keys {list(k.shape)} and values "
            f"{list(v.shape)} do not fit; give [batch, heads, length, width], one width, and a "
            "number of query heads that the key heads divide"
        )


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_causal: bool,
    mask: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k^T + mask) v; the contract of `torch.ops.trn.attention`.

    query    [batch, heads, q_length, width]
    key, value   [batch, kv_heads, kv_length, width], in the query's dtype
    mask     broadcasts to [batch, heads, q_length, kv_length]; bool (False: masked out) or added
    returns  out like the query, and logsumexp [batch, heads, q_length] float32, 0 for a row that is
             masked out

    Raises RuntimeError for shapes that do not fit.
    """
    q, k, v = query, key, value
    _check(q, k, v)
    batch, heads, q_length, width = q.shape
    out = torch.empty_like(q)
    logsumexp = torch.empty((batch, heads, q_length), dtype=torch.float32, device=q.device)
    sides = _tile(width, False)
    masks = _mask(mask, raw(q), [batch, heads, q_length, k.shape[2]])
    launch(
        forward_kernel,
        (cdiv(q_length, sides["ROWS"]) * batch * heads,),
        raw(q), raw(k), raw(v), masks, raw(out), logsumexp,
        heads, heads // k.shape[1], q_length, k.shape[2], width,
        *q.stride(), *k.stride(), *v.stride(), *masks.stride(), *out.stride(),
        1 / math.sqrt(width) if scale is None else float(scale),
        CAUSAL=is_causal, MASKED=mask is not None,
        INTERPRETED=INTERPRETED, **sides,
    )  # fmt: skip
    return out, logsumexp


def attention_backward(
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    is_causal: bool,
    mask: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, from what `attention` took and gave."""
    q, k, v = query, key, value
    _check(q, k, v)
    batch, heads, q_length, width = q.shape
    kv_heads, kv_length = k.shape[1], k.shape[2]
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
    sides = _tile(width, True)
    inner = torch.empty_like(logsumexp)
    row_grid = (cdiv(q_length, sides["ROWS"]) * batch * heads,)
    launch(
        dot_rows_kernel,
        row_grid,
        raw(grad_out), raw(out), inner, heads, q_length, width,
        *grad_out.stride(), *out.stride(),
        ROWS=sides["ROWS"], WIDTH=sides["WIDTH"],
    )  # fmt: skip
    masks = _mask(mask, raw(q), [batch, heads, q_length, kv_length])
    inputs = (raw(grad_out), raw(q), raw(k), raw(v), masks, logsumexp.contiguous(), inner)
    sizes = (heads, heads // kv_heads, q_length, kv_length, width)
    strides = (*grad_out.stride(), *q.stride(), *k.stride(), *v.stride(), *masks.stride())
    factor = 1 / math.sqrt(width) if scale is None else float(scale)
    forms = {"CAUSAL": is_causal, "MASKED": mask is not None, "INTERPRETED": INTERPRETED, **sides}
    launch(
        grad_q_kernel,
        row_grid,
        *inputs, raw(grad_q), *sizes, *strides, *grad_q.stride(), factor, **forms,
    )  # fmt: skip
    launch(
        grad_kv_kernel,
        (cdiv(kv_length, sides["COLS"]) * batch * kv_heads,),
        *inputs, raw(grad_k), raw(grad_v), *sizes, *strides, *grad_k.stride(), *grad_v.stride(),
        factor, **forms,
    )  # fmt: skip
    return grad_q, grad_k, grad_v
