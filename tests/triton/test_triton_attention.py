"""Flash attention: softmax(q k^T) v of operands rounded to bfloat16, and its gradients."""

import pytest
import torch
from oracles import DEVICE, DTYPES

from torch_trn_emu.triton.attention import attention, attention_backward

# batch, heads, key heads, queries, keys, width, causal, mask
CASES = (
    (2, 2, 2, 70, 70, 32, True, None),
    (1, 4, 2, 33, 100, 40, False, "added"),
    (1, 2, 1, 16, 80, 16, False, "boolean"),
    (1, 1, 1, 1, 1, 8, False, None),
    (1, 1, 1, 130, 20, 64, True, "added"),
)


def inputs(case, dtype):
    batch, heads, key_heads, m, n, width, _, kind = case
    generator = torch.Generator().manual_seed(m + n)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    q = draw(batch, m, heads, width).transpose(1, 2)
    k, v = draw(batch, key_heads, n, width), draw(batch, key_heads, n, width)
    mask = None
    if kind == "added":
        mask = draw(m, n)
    if kind == "boolean":
        mask = torch.rand(batch, 1, m, n, generator=generator) > 0.3
        mask[:, :, 3] = False  # a row that sees nothing
    return q, k, v, draw(batch, heads, m, width), mask


def exact(case, q, k, v, g, mask):
    """float64, operands rounded, probabilities not: out, logsumexp and the gradients."""
    causal, group = case[6], case[1] // case[2]
    leaves = [t.bfloat16().double().requires_grad_() for t in (q, k, v)]
    q, k, v = leaves[0], *(t.repeat_interleave(group, 1) for t in leaves[1:])
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        )
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
    seen = (scores > -torch.inf).any(-1)
    p = torch.where(seen[..., None], torch.softmax(scores, -1), 0.0)
    out = p @ v
    out.backward(g.bfloat16().double())
    total = torch.where(seen, torch.logsumexp(scores, -1), 0.0)
    return out.detach(), total.detach(), *(t.grad.nan_to_num() for t in leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(case, dtype):
    q, k, v, g, mask = inputs(case, dtype)
    on = [None if t is None else t.to(DEVICE) for t in (q, k, v, g, mask)]
    out, logsumexp = attention(*on[:3], case[6], on[4], None)
    grads = attention_backward(on[3], *on[:3], out, logsumexp, case[6], on[4], None)
    want = exact(case, q, k, v, g, None if mask is None else mask)
    last_bit = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for got, wanted in zip((out, *grads), (want[0], *want[2:]), strict=True):
        assert got.dtype is dtype
        # Probabilities, their gradients and the incoming gradient are rounded to bfloat16: half a
        # unit in the last place of each, and of the result, of sums of inputs of order one.
        bound = (3 * 2.0**-8 + last_bit) * max(float(wanted.abs().max()), 0.25)
        assert float((got.cpu().double() - wanted).abs().max()) <= bound
    torch.testing.assert_close(logsumexp.cpu().double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_close_to_the_kernels_of_the_cpu(case):
    q, k, v, g, mask = inputs(case, torch.bfloat16)
    want, want_sums = torch.ops.trn.attention(q, k, v, case[6], mask, None)
    on = [None if t is None else t.to(DEVICE) for t in (q, k, v, g, mask)]
    out, sums = attention(*on[:3], case[6], on[4], None)
    assert out.stride() == want.stride()
    torch.testing.assert_close(out.cpu(), want, rtol=2.0**-7, atol=2.0**-8)
    torch.testing.assert_close(sums.cpu(), want_sums, rtol=1e-6, atol=1e-6)
    theirs = torch.ops.trn.attention_backward(g, q, k, v, want, want_sums, case[6], mask, None)
    mine = attention_backward(on[3], *on[:3], out, sums, case[6], on[4], None)
    for got, wanted in zip(mine, theirs, strict=True):
        size = float(wanted.abs().max()) + 1e-6
        assert float((got.cpu().float() - wanted.float()).abs().max()) <= 2.0**-6 * size


def test_the_scale_is_the_one_given():
    q, k, v, _, _ = (None if t is None else t.to(DEVICE) for t in inputs(CASES[0], torch.float32))
    out, _ = attention(q, k, v, False, None, 0.0)
    torch.testing.assert_close(
        out[:, :, :1], v.bfloat16().float().mean(2, keepdim=True), rtol=2e-2, atol=2e-3
    )


def test_what_does_not_fit_is_refused():
    q = torch.ones(1, 3, 4, 8, device=DEVICE)
    with pytest.raises(RuntimeError, match="do not fit"):
        attention(q, q[:, :2], q[:, :2], False, None, None)
