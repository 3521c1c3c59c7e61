"""Attention, forward and backward, against a float64 oracle and the definitions of attention.h."""

import numpy as np
import pytest
import torch
from numerics_library import DTYPES, Numerics

# [batch, heads, kv_heads, q_length, kv_length, head_dim, v_dim]
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 5, 5, 8, 8),
    (1, 4, 2, 33, 50, 20, 24),
    (1, 2, 1, 130, 130, 64, 64),
    (1, 2, 2, 40, 7, 16, 16),
    (1, 1, 1, 3, 700, 32, 32),
]


def oracle(q, k, v, *, scale=None, causal=False, mask=None, grad=None):
    """Output, logsumexp and, given grad, the three gradients, all in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat(group, 1), v.repeat(group, 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = scale * q @ keys.swapaxes(2, 3)
    if mask is not None:
        s = s + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask.astype(np.float64))
    if causal:
        s = np.where(np.tri(*s.shape[2:], dtype=bool), s, -np.inf)
    top = s.max(-1, keepdims=True)
    top[np.isinf(top)] = 0
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    logsumexp = np.where(total == 0, 0, top + np.log(np.where(total == 0, 1, total)))
    p = p / np.where(total == 0, 1, total)
    y = p @ values
    if grad is None:
        return y, logsumexp[..., 0]
    g = grad.astype(np.float64)
    ds = p * (g @ values.swapaxes(2, 3) - (g * y).sum(-1, keepdims=True))
    fold = lambda x: x.reshape(x.shape[0], k.shape[1], group, *x.shape[2:]).sum(2)  # noqa: E731
    gq = scale * ds @ keys
    gk = scale * fold(ds.swapaxes(2, 3) @ q)
    gv = fold(p.swapaxes(2, 3) @ g)
    return y, logsumexp[..., 0], (gq, gk, gv)


def inputs(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> list[np.ndarray]:
    b, h, g, t, s, d, e = shape
    rng = np.random.default_rng(seed)
    sizes = [(b, h, t, d), (b, g, s, d), (b, g, s, e), (b, h, t, e)]
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def near(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    got = got.astype(np.float64)
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    assert np.abs(got - wanted).max(initial=0) <= tolerance * scale


def check(numerics: Numerics, shape, dtype, round_bf16: bool, **options) -> None:
    q, k, v, grad = inputs(shape, dtype)
    y, logsumexp, gradients = oracle(q, k, v, grad=grad, **options)
    options |= {"round_bf16": round_bf16}
    got, got_logsumexp = numerics.attention_forward(q, k, v, **options)
    got_gradients = numerics.attention_backward(grad, q, k, v, got, got_logsumexp, **options)
    # 2^-8 a rounded operand, and a few of them in a row.
    tolerance = 3e-2 if round_bf16 or dtype != np.float32 else 1e-5
    near(got, y, tolerance)
    near(got_logsumexp, logsumexp, tolerance)
    for mine, wanted in zip(got_gradients, gradients, strict=True):
        near(mine, wanted, tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("round_bf16", [False, True], ids=["float32", "bfloat16"])
def test_agrees_with_the_oracle(
    each_isa: Numerics, shape: tuple[int, ...], round_bf16: bool
) -> None:
    rng = np.random.default_rng(1)
    b, h, _, t, s, _, _ = shape
    for dtype in DTYPES:
        check(each_isa, shape, dtype, round_bf16)
        check(each_isa, shape, dtype, round_bf16, causal=True, scale=0.3)
    added = rng.standard_normal((b, 1, t, s)).astype(np.float32)
    seen = rng.random((1, h, 1, s)) < 0.7
    check(each_isa, shape, DTYPES[0], round_bf16, mask=added)
    check(each_isa, shape, DTYPES[0], round_bf16, mask=added.astype(DTYPES[1]), causal=True)
    check(each_isa, shape, DTYPES[0], round_bf16, mask=seen)


def test_rounded_operands_are_the_definition(each_isa: Numerics) -> None:
    """With one key in sight, out is that value rounded to bfloat16: p = 1 is exact."""
    q, k, v, _ = inputs((1, 1, 1, 4, 4, 16, 16), DTYPES[0])
    one = np.eye(4, dtype=bool)
    y, _ = each_isa.attention_forward(q, k, v, mask=one)
    assert np.array_equal(y, v.astype(DTYPES[1]).astype(np.float32))
    y, _ = each_isa.attention_forward(q, k, v, mask=one, round_bf16=False)
    assert np.array_equal(y, v)


def test_masked_rows_are_those_of_torch(each_isa: Numerics) -> None:
    q, k, v, grad = inputs((1, 2, 2, 6, 6, 8, 8), DTYPES[0])
    mask = np.random.default_rng(2).standard_normal((1, 1, 6, 6)).astype(np.float32)
    mask[..., 2, :] = -np.inf
    mask[..., 1] = -np.inf
    y, logsumexp = each_isa.attention_forward(q, k, v, mask=mask, round_bf16=False)
    got = each_isa.attention_backward(grad, q, k, v, y, logsumexp, mask=mask, round_bf16=False)
    tq, tk, tv, tgrad = (torch.from_numpy(x) for x in (q, k, v, grad))
    aten = torch.ops.aten
    ty, tl = aten._scaled_dot_product_flash_attention_for_cpu(
        tq, tk, tv, attn_mask=torch.from_numpy(mask)
    )
    wanted = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        tgrad, tq, tk, tv, ty, tl, 0.0, False, attn_mask=torch.from_numpy(mask)
    )
    assert (y[:, :, 2] == 0).all()
    assert (logsumexp[:, :, 2] == 0).all()
    near(y, ty.numpy(), 1e-5)
    near(logsumexp, tl.numpy(), 1e-5)
    for mine, theirs in zip(got, wanted, strict=True):
        near(mine, theirs.numpy(), 1e-5)


def test_large_scores_do_not_overflow(each_isa: Numerics) -> None:
    q, k, v, _ = inputs((1, 1, 1, 20, 60, 8, 8), DTYPES[0])
    y, logsumexp = each_isa.attention_forward(q * 50, k * 50, v, scale=1.0, round_bf16=False)
    wanted, wanted_logsumexp = oracle(q * 50, k * 50, v, scale=1.0)
    assert np.isfinite(y).all()
    assert np.abs(logsumexp - wanted_logsumexp).max() <= 1e-5 * np.abs(wanted_logsumexp).max()
    near(y, wanted, 1e-2)  # scores near 10^4 have an error near 10^-3 themselves


def test_nan_reaches_the_rows_that_read_it(each_isa: Numerics) -> None:
    q, k, v, _ = inputs((1, 1, 1, 8, 8, 8, 8), DTYPES[0])
    k[0, 0, 5, 0] = np.nan
    y, _ = each_isa.attention_forward(q, k, v, causal=True)
    assert np.isfinite(y[0, 0, :5]).all()
    assert np.isnan(y[0, 0, 5:]).all()


def test_strides_do_not_matter(each_isa: Numerics) -> None:
    shape = (2, 4, 2, 30, 40, 16, 16)
    for dtype in DTYPES:
        q, k, v, grad = inputs(shape, dtype)
        y, logsumexp = each_isa.attention_forward(q, k, v)
        wanted = each_isa.attention_backward(grad, q, k, v, y, logsumexp)
        # [B, T, H, D], as linear layers leave them; and a head dimension that is not contiguous.
        for axes in ((0, 2, 1, 3), (0, 3, 1, 2)):
            moved = [
                np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))
                for x in (q, k, v, grad)
            ]
            y2, logsumexp2 = each_isa.attention_forward(*moved[:3])
            got = each_isa.attention_backward(moved[3], *moved[:3], y2, logsumexp2)
            assert y2.tobytes() == y.tobytes()
            assert all(a.tobytes() == b.tobytes() for a, b in zip(got, wanted, strict=True))


def test_threads_do_not_matter(numerics: Numerics) -> None:
    for shape in ((1, 1, 1, 400, 400, 32, 32), (3, 4, 2, 50, 60, 16, 16)):
        q, k, v, grad = inputs(shape, DTYPES[0])
        results = []
        for threads in (1, 2, 3):
            numerics.threads(threads)
            y, logsumexp = numerics.attention_forward(q, k, v, causal=True)
            grads = numerics.attention_backward(grad, q, k, v, y, logsumexp, causal=True)
            results.append(b"".join(x.tobytes() for x in (y, logsumexp, *grads)))
        assert len(set(results)) == 1


@pytest.mark.parametrize(
    "shape", [(0, 2, 2, 4, 4, 8, 8), (1, 2, 2, 0, 4, 8, 8), (1, 2, 2, 4, 0, 8, 8)]
)
def test_empty(each_isa: Numerics, shape: tuple[int, ...]) -> None:
    q, k, v, grad = inputs(shape, DTYPES[0])
    y, logsumexp = each_isa.attention_forward(q, k, v)
    assert not y.any()
    assert not logsumexp.any()
    for g in each_isa.attention_backward(grad, q, k, v, y, logsumexp):
        assert not g.any()
