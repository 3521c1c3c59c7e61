"""Products follow the precision policy: operands by the oracle, float32 sums, one rounding."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_trn_emu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1, 1), (4, 64, 8), (33, 70, 17), (5, 0, 3), (0, 32, 4), (128, 257, 96))  # m, k, n

policies = pytest.mark.parametrize("policy", oracle.POLICIES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return (x * torch.exp2(torch.randint(-3, 4, shape))).to(dtype)


@policies
@dtypes
@shapes
def test_mm_rounds_both_operands(policy, dtype, shape):
    m, k, n = shape
    a, b = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
    with torch_trn_emu.precision(policy):
        got = torch.mm(a.trn(), b.trn())
    assert got.dtype is dtype
    oracle.assert_product(got, *oracle.POLICIES[policy][0].apply(a, b))


@policies
def test_linear_and_its_gradients_follow_the_policy(policy):
    linear, weight_gradient, _ = oracle.POLICIES[policy]
    x, w, bias, g = draw(12, 70), draw(40, 70, seed=1), draw(40, seed=2), draw(12, 40, seed=3)
    leaves = [t.trn().requires_grad_() for t in (x, w, bias)]
    with torch_trn_emu.precision(policy):
        out = F.linear(*leaves)
        out.backward(g.trn())
    oracle.assert_product(out.detach(), *linear.apply(x, w.t()), bias.double())
    oracle.assert_product(leaves[0].grad, *linear.apply(g, w))
    oracle.assert_product(leaves[1].grad, *weight_gradient.apply(g.t(), x))


@policies
@dtypes
def test_batched_products_follow_the_attention_column(policy, dtype):
    a, b, c = draw(3, 9, 65, dtype=dtype), draw(3, 65, 7, dtype=dtype), draw(9, 7, dtype=dtype)
    rounded = oracle.POLICIES[policy][2].apply(a, b)
    with torch_trn_emu.precision(policy):
        oracle.assert_product(torch.bmm(a.trn(), b.trn()), *rounded)
        oracle.assert_product(torch.einsum("bij,bjk->bik", a.trn(), b.trn()), *rounded)
        added = torch.baddbmm(c.trn(), a.trn(), b.trn(), beta=0.5, alpha=2.0)
        oracle.assert_product(added, 2.0 * rounded[0], rounded[1], 0.5 * c.double())


@policies
def test_addbmm_accumulates_over_the_batch(policy):
    a, b, c = draw(3, 9, 64), draw(3, 64, 7, seed=1), draw(9, 7, seed=2)
    x, y = oracle.POLICIES[policy][2].apply(a, b)
    with torch_trn_emu.precision(policy):
        got = torch.addbmm(c.trn(), a.trn(), b.trn())
    oracle.assert_product(got, torch.cat(list(x), 1), torch.cat(list(y), 0), c.double())


@policies
def test_vectors_follow_the_policy(policy):
    a, v, c = draw(9, 70), draw(70, seed=1), draw(9, seed=2)
    x, y = oracle.POLICIES[policy][0].apply(a, v[:, None])
    with torch_trn_emu.precision(policy):
        oracle.assert_product(torch.mv(a.trn(), v.trn())[:, None], x, y)
        oracle.assert_product(
            torch.addmv(c.trn(), a.trn(), v.trn())[:, None], x, y, c.double()[:, None]
        )
        row, column = oracle.POLICIES[policy][0].apply(v[None], v[:, None])
        oracle.assert_product(torch.dot(v.trn(), v.trn()).reshape(1, 1), row, column)


@policies
def test_addmm_scales_and_broadcasts(policy):
    a, b = draw(6, 40), draw(40, 5, seed=1)
    x, y = oracle.POLICIES[policy][0].apply(a, b)
    for self in (draw(5, seed=2), draw(6, 1, seed=3), draw(6, 5, seed=4), torch.tensor(1.5)):
        with torch_trn_emu.precision(policy):
            got = torch.addmm(self.trn(), a.trn(), b.trn(), beta=-2, alpha=0.25)
        oracle.assert_product(got, 0.25 * x, y, -2.0 * self.double().expand(6, 5))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strided_operands_give_what_contiguous_ones_give(layout):
    a = {
        "transposed": draw(70, 24).t(),
        "sliced": draw(24, 140)[:, ::2],
        "expanded": draw(1, 70).expand(24, 70),
    }[layout]
    b = draw(70, 16, seed=1)
    assert torch.equal(torch.mm(a.trn(), b.trn()), torch.mm(a.contiguous().trn(), b.trn()))


@policies
@pytest.mark.parametrize("alpha", [float("-inf"), float("nan"), 2.0])
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("addmm", ((5, 0), (0, 10))),
        ("_addmm_activation", ((5, 0), (0, 10))),
        ("addmv", ((10, 0), (0,))),
        ("baddbmm", ((2, 5, 0), (2, 0, 10))),
        ("addbmm", ((2, 5, 0), (2, 0, 10))),
    ],
)
def test_a_sum_of_no_products_is_zero_whatever_the_scale(policy, alpha, name, shapes):
    """As the host has it: alpha times nothing is no NaN."""
    a, b = (torch.zeros(shape).trn() for shape in shapes)
    with torch_trn_emu.precision(policy):
        got = getattr(torch, name)(torch.ones(10).trn(), a, b, beta=0.5, alpha=alpha)
    assert got.eq(0.5).all()
    assert got.numel()


def test_in_place_and_out_forms_equal_the_functional_one():
    a, b, c = draw(6, 40).trn(), draw(40, 5, seed=1).trn(), draw(6, 5, seed=2).trn()
    wanted, out, grown = (
        torch.addmm(c, a, b),
        torch.empty(6, 5, device="trn"),
        torch.empty(0, device="trn"),
    )
    assert torch.equal(c.clone().addmm_(a, b), wanted)
    assert torch.equal(torch.addmm(c, a, b, out=out), wanted)
    assert torch.equal(out, wanted)
    assert torch.equal(torch.mm(a, b, out=grown), torch.mm(a, b))
    assert grown.shape == (6, 5)


@policies
def test_attention_products_are_rounded(policy):
    q, k, v = (draw(2, 2, 16, 32, seed=s) * 0.3 for s in range(3))
    rounded = oracle.POLICIES[policy][2]
    scores = torch.matmul(*rounded.apply(q, k.mT)) / 32**0.5
    exact = torch.softmax(scores, -1) @ rounded.apply(q, v)[1]
    with torch_trn_emu.precision(policy):
        got = F.scaled_dot_product_attention(q.trn(), k.trn(), v.trn()).cpu().double()
    # Probabilities are rounded as an operand too: half a unit in their last place, weighted by v.
    last_bit = {"as given": 1e-6, "bf16": 2.0**-8, "mxfp8": 2.0**-3}[rounded.first]
    assert float((got - exact).abs().max()) <= last_bit * float(v.abs().max())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("policy", ["bf16", "mxfp8", "mxfp4"])
def test_convolution_rounds_operands_to_bf16(policy, transposed):
    x, w = draw(2, 4, 9, 9), draw(4, 4, 3, 3, seed=1)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    leaves = [x.trn().requires_grad_(), w.trn().requires_grad_()]
    exact = [oracle.to_bf16(t).requires_grad_() for t in (x, w)]
    wanted = convolve(*exact)
    g = draw(*wanted.shape, seed=2)
    wanted.backward(oracle.to_bf16(g))
    with torch_trn_emu.precision(policy):
        got = convolve(*leaves)
        got.backward(g.trn())
    for a, b in zip(
        (got, leaves[0].grad, leaves[1].grad), (wanted, exact[0].grad, exact[1].grad), strict=True
    ):
        scale = float(b.detach().abs().max())
        assert (
            float((a.detach().cpu().double() - b.detach()).abs().max())
            <= 162 * 2.0**-24 * 4 * scale
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64], ids=str)
def test_other_formats_are_computed_as_on_the_host(dtype):
    a, b = draw(4, 33).to(dtype), draw(33, 5, seed=1).to(dtype)
    assert torch.equal(torch.mm(a.trn(), b.trn()).cpu(), torch.mm(a, b))


@pytest.mark.parametrize("k", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("policy", ["bf16", "mxfp8", "mxfp4"])
def test_lines_that_follow_each_other_have_the_bits_of_lines_apart(policy, k):
    """Which are rounded several at a time where they are short."""
    a, b = draw(70, k).trn(), draw(67, k, seed=1).trn()
    apart = [torch.cat([t, t[:, :1]], 1)[:, :k] for t in (a, b)]
    with torch_trn_emu.precision(policy):
        assert torch.equal((a @ b.t()).cpu(), (apart[0] @ apart[1].t()).cpu())


def test_wrong_shapes_raise_what_the_host_raises():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.mm(torch.ones(2, 3, device="trn"), torch.ones(4, 5, device="trn"))
    with pytest.raises(RuntimeError, match="same device"):
        torch.mm(torch.ones(2, 3, device="trn"), torch.ones(3, 5))
