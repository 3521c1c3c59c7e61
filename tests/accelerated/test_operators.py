"""Operators of CUDA that the CPU lacks, on trn, against what they are made of."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_trn_emu

BF16 = torch.bfloat16


@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8", "mxfp4"])
def test_products_of_another_dtype_round_once(policy):
    """`out_dtype=float32` has the sums that the plain product rounds to bfloat16."""
    a, b = (torch.randn(3, 32, 32, dtype=BF16).to("trn") for _ in range(2))
    c = torch.randn(32, 32, dtype=BF16).to("trn")
    with torch_trn_emu.precision(policy):
        pairs = [
            (torch.mm(a[0], b[0], out_dtype=torch.float32), torch.mm(a[0], b[0])),
            (torch.bmm(a, b, out_dtype=torch.float32), torch.bmm(a, b)),
            (torch.addmm(c, a[0], b[0], out_dtype=torch.float32), torch.addmm(c, a[0], b[0])),
            (torch.baddbmm(c, a, b, out_dtype=torch.float32), torch.baddbmm(c, a, b)),
        ]
    for wide, narrow in pairs:
        assert wide.dtype == torch.float32
        exact = wide.to(BF16).float() - narrow.float()
        assert exact.abs().max() <= 2**-8 * wide.abs().max()
    out = torch.empty(0, device="trn")
    torch.bmm(a, b, out_dtype=torch.float32, out=out)
    assert out.shape == (3, 32, 32)


def test_products_of_another_dtype_refuse_what_cuda_refuses():
    a = torch.randn(4, 4, device="trn")
    with pytest.raises(RuntimeError, match="out_dtype"):
        torch.mm(a, a, out_dtype=BF16)
    with pytest.raises(RuntimeError, match="3D"):
        torch.bmm(a, a, out_dtype=torch.float32)


def test_int4_weights_have_cudas_bits_and_values():
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (16, 128))
    given = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    scales = torch.randn(4, 16, 2, dtype=BF16)
    spread = scales.float().repeat_interleave(32, 0).transpose(0, 1)
    weight = ((codes - 8) * spread[..., 0] + spread[..., 1]).to(BF16)
    x = torch.randn(5, 128, dtype=BF16)
    for tiles in (2, 4, 8):
        packed = torch._convert_weight_to_int4pack(given.to("trn"), tiles)
        assert packed.shape == (2, 128 // (tiles * 16), 32, tiles // 2)
        with torch_trn_emu.precision("bf16"):
            got = torch._weight_int4pack_mm(x.to("trn"), packed, 32, scales.to("trn")).cpu()
            assert torch.equal(got, (x.to("trn") @ weight.to("trn").t()).cpu())
    # Lane 0 of the first int32: row 0, elements 0, 8, 16, 24, then 1, 9, 17, 25 of K.
    first = int(packed[0, 0, 0, 0]) & 0xFFFFFFFF
    order = [0, 8, 16, 24, 1, 9, 17, 25]
    assert [first >> 4 * i & 15 for i in range(8)] == codes[0, order].tolist()


def test_batch_norm_in_pieces_is_batch_norm():
    """What SyncBatchNorm does with two processes, each with a part of the batch."""
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, dtype=torch.float32)
    g, w, b = torch.randn(6, 3, 4), torch.randn(3), torch.randn(3)
    norm = nn.BatchNorm1d(3)
    norm.weight.data, norm.bias.data = w.clone(), b.clone()
    given = x.clone().requires_grad_()
    expected = norm(given)
    expected.backward(g)
    parts, grads = [t.to("trn").split([4, 2]) for t in (x, g)]
    weight, bias = w.to("trn"), b.to("trn")
    running = torch.zeros(3, device="trn"), torch.ones(3, device="trn")
    found = [torch.batch_norm_stats(part, 1e-5) for part in parts]
    mean, invstd = (torch.stack(t) for t in zip(*found, strict=True))
    counts = torch.tensor([16.0, 8.0], device="trn")
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        parts[0], mean, invstd, *running, 0.1, 1e-5, counts
    )
    outs = [torch.batch_norm_elemt(p, weight, bias, mean, invstd, 1e-5) for p in parts]
    torch.testing.assert_close(torch.cat(outs).cpu(), expected.detach())
    torch.testing.assert_close(running[0].cpu(), norm.running_mean)
    torch.testing.assert_close(running[1].cpu(), norm.running_var)
    sums = [
        torch.batch_norm_backward_reduce(dy, p, mean, invstd, weight, True, True, True)
        for dy, p in zip(grads, parts, strict=True)
    ]
    sum_dy, sum_dy_xmu, grad_w, grad_b = (sum(t) for t in zip(*sums, strict=True))
    grad_x = [
        torch.batch_norm_backward_elemt(
            dy, p, mean, invstd, weight, sum_dy, sum_dy_xmu, counts.int()
        )
        for dy, p in zip(grads, parts, strict=True)
    ]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(torch.cat(grad_x).cpu(), given.grad, **close)
    torch.testing.assert_close(grad_w.cpu(), norm.weight.grad, **close)
    torch.testing.assert_close(grad_b.cpu(), norm.bias.grad, **close)


def test_fused_dropout_keeps_with_its_probability():
    x = torch.ones(10_000, device="trn")
    torch.manual_seed(0)
    out, mask = torch._fused_dropout(x, 0.75)
    torch.manual_seed(0)
    again, _ = torch._fused_dropout(x, 0.75)
    assert torch.equal(out, again)
    assert mask.dtype == torch.uint8
    assert abs(mask.float().mean().item() - 0.75) < 0.02
    assert torch.equal(out, mask * (1 / 0.75))
    assert torch.equal(torch._masked_scale(x, mask, 2.0), mask * 2.0)


def test_each_is_one_launch():
    x = torch.randn(4, 3, 5, device="trn")
    torch_trn_emu.reset_op_counts()
    torch.batch_norm_stats(x, 1e-5)
    torch.bmm(x, x.mT, out_dtype=torch.float32)
    counts = torch_trn_emu.op_counts()
    assert counts["aten::batch_norm_stats"] == counts["aten::bmm.dtype"] == 1
    assert not {"aten::sub.Tensor", "aten::mm", "aten::var_mean.correction"} & counts.keys()


def test_rms_norm_backward_by_its_name():
    x, w = torch.randn(4, 8, device="trn", requires_grad=True), torch.randn(8, device="trn")
    g = torch.randn(4, 8, device="trn")
    expected = torch.autograd.grad(torch.rms_norm(x, [8], w, 1e-6), x, g)[0]
    rstd = torch.rsqrt(x.detach().square().mean(1, keepdim=True) + 1e-6)
    got, _ = torch.ops.aten._fused_rms_norm_backward(g, x.detach(), [8], rstd, w, [True, True])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("shape", "inner"), [((3, 5, 64), 1), ((2, 3, 4, 6), 2), ((7, 300), 1)], ids=str
)
def test_rms_norm_is_one_launch_with_the_bits_of_the_cpu(shape, inner, weighted, dtype):
    normalized = shape[-inner:]
    x, w, g = torch.randn(shape).to(dtype), torch.randn(normalized).to(dtype), torch.randn(shape)
    found = []
    for device in ("cpu", "trn"):
        a = x.clone().to(device).requires_grad_()
        b = w.clone().to(device).requires_grad_() if weighted else None
        before = torch.trn.counters()["launch_count"]
        y = torch.nn.functional.rms_norm(a, normalized, b, 1e-5)
        forward = torch.trn.counters()["launch_count"] - before
        y.backward(g.to(device, dtype))
        made = [y.detach().cpu(), a.grad.cpu(), *([b.grad.cpu()] if weighted else [])]
        found.append(made)
    assert forward == 1
    assert y.grad_fn.name() == "FusedRmsNormBackward0"
    for expected, got in zip(*found, strict=True):
        assert torch.equal(expected, got)


def test_rms_norm_has_second_gradients():
    x = torch.randn(4, 8, dtype=torch.float64, device="trn", requires_grad=True)
    normalize = lambda t: torch.nn.functional.rms_norm(t, (8,))  # noqa: E731
    assert torch.autograd.gradgradcheck(normalize, (x,))


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
@pytest.mark.parametrize("layout", ["cusparselt", "cutlass"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8"])
def test_semi_structured_weights_multiply_as_dense_ones(layout, dtype, policy, monkeypatch):
    monkeypatch.setattr(
        torch.sparse.SparseSemiStructuredTensor, "_FORCE_CUTLASS", layout == "cutlass"
    )
    kept = torch.zeros(64, 32, 4).scatter(-1, torch.rand(64, 32, 4).topk(2).indices, 1.0)
    weight = (torch.randn(64, 128) * kept.view(64, 128)).to(dtype).to("trn")
    x, bias = torch.randn(37, 128, dtype=dtype).to("trn"), torch.randn(64, dtype=dtype).to("trn")
    with torch_trn_emu.precision("fp32"):
        sparse = torch.sparse.to_sparse_semi_structured(weight)
        assert torch.equal(sparse.to_dense(), weight)
    with torch_trn_emu.precision(policy):
        assert torch.equal(F.linear(x, sparse), F.linear(x, weight))
        assert torch.equal(F.linear(x, sparse, bias), F.linear(x, weight, bias))
        assert torch.equal(sparse @ x.t(), (x @ weight.t()).t())


def test_semi_structured_weights_keep_two_of_four():
    with pytest.raises(ValueError, match="more than 2 of 4"):
        torch._cslt_compress(torch.ones(32, 64, dtype=torch.float16, device="trn"))
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        torch._cslt_compress(torch.ones(32, 64, device="trn"))
