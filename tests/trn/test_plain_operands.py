"""Operands that the host's kernels take for contiguous, in other layouts: the values are right."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


def expanded(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, 1).clone().expand(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("op", [torch.median, torch.nanmedian])
@pytest.mark.parametrize("axis", [0, 1])
def test_medians_of_expanded_tensors(op, dtype, axis):
    x = (torch.randn(4, 6) * 9).to(dtype).trn()
    given = expanded(x, axis)
    for dim in (0, 1):
        assert torch.equal(op(given, dim).values, op(given.contiguous(), dim).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_with_a_strided_weight_and_bias(dtype):
    x, w = torch.randn(2, 6, 5).to(dtype).trn(), torch.randn(6, 2).to(dtype).trn()
    for weight in (expanded(w[:, 0], 0), w[:, 1]):
        got = torch.native_group_norm(x, weight, weight, 2, 6, 5, 3, 1e-5)
        plain = weight.contiguous()
        for a, b in zip(
            got, torch.native_group_norm(x, plain, plain, 2, 6, 5, 3, 1e-5), strict=True
        ):
            assert torch.equal(a, b)


def strided(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        "every second": torch.full((*shape, 2), 7.0, device="trn")[..., 0],
        "transposed": torch.full(shape[::-1], 7.0, device="trn").permute(
            *reversed(range(len(shape)))
        ),
    }


@pytest.mark.parametrize("layout", ["every second", "transposed"])
def test_average_pooling_writes_where_it_is_told(layout):
    x = torch.randn(1, 2, 4, 4, 4, device="trn")
    expected = F.avg_pool3d(x, 2)
    out = strided(expected.shape)[layout]
    strides = out.stride()
    assert torch._C._nn.avg_pool3d(x, 2, out=out) is out
    assert torch.equal(out, expected)
    assert out.stride() == strides


def test_average_pooling_resizes_what_does_not_fit():
    x = torch.randn(1, 2, 4, 4, 4, device="trn")
    out = torch.empty(3, 2, device="trn").t()
    with pytest.warns(UserWarning, match="was resized"):
        torch._C._nn.avg_pool3d(x, 2, out=out)
    assert torch.equal(out, F.avg_pool3d(x, 2))


@pytest.mark.parametrize("layout", ["every second", "transposed"])
def test_batch_norm_writes_where_it_is_told(layout):
    x, w = torch.randn(3, 4, 5, device="trn"), torch.rand(4, device="trn")
    given = (x, w, w, None, None, True, 0.1, 1e-5)
    expected = torch.native_batch_norm(*given)
    outs = [strided(e.shape)[layout] for e in expected]
    torch.native_batch_norm(*given, out=tuple(outs))
    for got, wanted in zip(outs, expected, strict=True):
        torch.testing.assert_close(got, wanted)
