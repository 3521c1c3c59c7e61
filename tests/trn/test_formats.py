"""Formats that the host lacks: computed wider and cast once, launched and priced as one operator."""

import pytest
import torch
from torch.nn import functional as F

from torch_trn_emu import op_report

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def test_histc_counts_integers():
    x = torch.tensor([0, 1, 1, 3, 7], device="trn")
    counts = torch.histc(x, bins=4, min=0, max=7)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [3, 1, 0, 1]


def test_a_result_is_cast_once():
    x = torch.randn(2, 3, 6, 6, 6, dtype=torch.bfloat16)
    expected = F.avg_pool3d(x.float(), 2).bfloat16()
    assert torch.equal(F.avg_pool3d(x.to("trn"), 2).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_resizing_is_cast_once(mode, dtype):
    def resized(x, out):
        x = x.clone().requires_grad_()
        y = F.interpolate(x, size=(5, 9), mode=mode, antialias=True)
        return y, *torch.autograd.grad(y, x, out)

    x, out = torch.randn(2, 3, 8, 6).to(dtype), torch.randn(2, 3, 5, 9).to(dtype)
    expected = resized(x.float(), out.float())
    for got, wide in zip(resized(x.trn(), out.trn()), expected, strict=True):
        assert torch.equal(got.cpu(), wide.to(dtype))


def test_out_and_in_place_keep_their_tensor():
    x = torch.randn(4, dtype=torch.complex64).to(torch.complex32)
    expected = x.to(torch.complex64).exp().to(torch.complex32)
    strided = torch.zeros(4, 2, dtype=torch.complex32, device="trn")[:, 0]
    assert torch.exp(x.to("trn"), out=strided) is strided
    moved = x.to("trn")
    assert moved.exp_() is moved
    for made in (strided, moved):
        assert torch.equal(torch.view_as_real(made.cpu()), torch.view_as_real(expected))


def test_operands_that_promote_to_another_format_are_left_alone():
    narrow = torch.ones(2, dtype=torch.complex32, device="trn")
    wide = torch.ones(2, dtype=torch.complex64, device="trn")
    assert (narrow / wide).dtype == torch.complex64
    assert (narrow / 2j).dtype == torch.complex32
    assert torch.ones(2, dtype=torch.float16, device="trn").pow(2j).dtype == torch.complex32


def test_a_dtype_asked_for_holds():
    x = torch.ones(3, dtype=torch.complex32, device="trn")
    assert x.sum(dtype=torch.complex64).dtype == torch.complex64
    assert x.prod(0, dtype=torch.complex32).dtype == torch.complex32
    assert torch.ones(3, device="trn").sum(dtype=torch.complex32).dtype == torch.complex32


def test_it_is_one_launch():
    x = torch.ones(1, 1, 4, 4, 4, dtype=torch.float16, device="trn")
    F.avg_pool3d(x, 2)
    before = torch.trn.memory_allocated()
    torch.trn.reset_counters()
    y = F.avg_pool3d(x, 2)
    assert [(row.op, row.calls) for row in op_report()] == [("aten::avg_pool3d", 1)]
    assert torch.trn.memory_allocated() - before <= 512 + y.nbytes


WRONG = {
    "lu_unpack": lambda: torch.lu_unpack(
        torch.eye(3, device="trn"), torch.empty(0, dtype=torch.int32, device="trn")
    ),
    "lu_unpack: LU_pivots has shape": lambda: torch.lu_unpack(
        torch.ones(0, 7, 5, device="trn"), torch.ones(3, 5, dtype=torch.int32, device="trn")
    ),
    "argument #2 'value'": lambda: torch.ops.aten._flash_attention_forward(
        *(torch.ones(1, 4, 2, 8, device="trn"),) * 2, None, None, None, 4, 4, 0.0, False, False
    ),
    "running_mean has to be given": lambda: torch.native_batch_norm(
        torch.ones(1, 2, 3, device="trn"), None, None, None, None, False, 0.5, 1e-5
    ),
    "running_mean has to be given, and": lambda: torch.ops.aten._native_batch_norm_legit.no_stats(
        torch.ones(1, 2, 3, device="trn"), None, None, False, 0.5, 1e-5
    ),
    "embedding_bag": lambda: F.embedding_bag(
        torch.tensor([0, 1], device="trn"),
        torch.ones(4, 3, device="trn"),
        torch.empty(0, dtype=torch.int64, device="trn"),
        mode="max",
    ),
    "pdist": lambda: (
        torch.pdist(torch.ones(0, 3, device="trn", requires_grad=True)).sum().backward()
    ),
    "grid_sampler_2d": lambda: torch.grid_sampler_2d(
        torch.ones(1, 1, 3, 3, device="trn"), torch.ones(1, 2, 2, 2, device="trn"), 0, 3, True
    ),
    "segment_reduce: lengths": lambda: torch.segment_reduce(
        torch.ones(4, device="trn"), "sum", lengths=torch.tensor([3, 2], device="trn"), unsafe=True
    ),
    "segment_reduce: offsets": lambda: torch.segment_reduce(
        torch.ones(4, device="trn"), "sum", offsets=torch.tensor([0, 9], device="trn"), unsafe=True
    ),
    "the same type as weight": lambda: F.embedding_bag(
        torch.tensor([0, 1], device="trn"),
        torch.ones(4, 3, device="trn"),
        torch.tensor([0], device="trn"),
        mode="sum",
        per_sample_weights=torch.ones(2, device="trn", dtype=torch.float64),
    ),
    "quantile": lambda: torch.quantile(
        torch.ones(4, device="trn"), torch.tensor([0.5, 1.5], device="trn")
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_the_kernel_does_not_check_raise(name):
    with pytest.raises(RuntimeError, match=name):
        WRONG[name]()


def test_what_raises_names_trn():
    x = torch.ones(3, 3, device="trn", dtype=torch.float16)
    with pytest.raises(NotImplementedError, match=r"not implemented for 'Half' on trn") as caught:
        torch.cholesky_inverse(x)
    assert "cpu" not in str(caught.value).lower()


def test_tensor_split_takes_indices_on_trn():
    parts = torch.tensor_split(torch.arange(6, device="trn"), torch.tensor([1, 3], device="trn"))
    assert [part.tolist() for part in parts] == [[0], [1, 2], [3, 4, 5]]
