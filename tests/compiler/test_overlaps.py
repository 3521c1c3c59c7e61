"""Compiled code that writes where elements share memory, against eager: Inductor's own is wrong."""

import pytest
import torch
from comparing import TORCHS_OWN
from torch.func import grad, vmap

from torch_trn_emu.compiler.writes_in_place import _overlaps

pytestmark = [*TORCHS_OWN, pytest.mark.filterwarnings("ignore:.*_prims_common.check")]

INDEX = torch.tensor([0, 2, 2])
PLACES = torch.tensor([[0, 1, 1, 3]] * 5)


def shared():
    """[5, 4], whose rows are one in memory."""
    return torch.zeros(1, 4, device="trn").expand(5, 4)


def writes(y, index, places):
    """Each operator that copies its first argument and writes into the copy."""
    z = shared()
    return (
        z.index_add(1, index, y[:, :3]),
        z.index_put((index,), y[:3]),
        z.index_put((index,), y[:3], accumulate=True),
        z.index_copy(0, index[:2], y[:2]),
        z.index_fill(0, index, 2.0),
        z.scatter(1, places, y),
        z.scatter_add(1, places, y),
        z.scatter_reduce(1, places, y, "amax"),
        z.masked_scatter(y > 0, y),
        z.slice_scatter(y[:2], 0, 1, 3),
        z.select_scatter(y[0], 0, 2),
        z.diagonal_scatter(y[0]),
    )


def per_sample(index):
    """Gradients of samples, whose zeros `vmap` shares."""

    def joined(sample):
        parts = torch.cat([sample[:2] * 2, sample[2:]])
        return parts.index_select(-1, index).square().sum()

    def stacked(sample):
        return torch.stack(sample.unbind(-1), -1).index_select(-1, index).square().sum()

    def gathered(sample):
        return (sample * 2)[index].pow(3).sum()

    return tuple(vmap(grad(f)) for f in (joined, stacked, gathered))


def test_writes_and_per_sample_gradients_are_those_of_eager():
    torch.manual_seed(0)
    y, index, places = torch.randn(5, 4).to("trn"), INDEX.to("trn"), PLACES.to("trn")

    def everything(y, index, places):
        return (*writes(y, index, places), *(f(y) for f in per_sample(index)))

    compiled = torch.compile(everything, backend="trn", options={"strict": True})
    for got, expected in zip(compiled(y, index, places), everything(y, index, places), strict=True):
        torch.testing.assert_close(got, expected)


def mutations(x):
    """Writes in place, and reads of the same memory by other names."""
    a = x.clone()
    view = a.t()
    view.mul_(2)
    b = x.clone()
    b[0] = b[1]
    b[1] = b[0] + 1
    c = x.clone()
    c.copy_(c.flip(0))
    d = x.clone()
    left, right = d.chunk(2, 1)
    left.add_(right)
    right.sub_(left)
    e = x.clone()
    rows = e.unfold(0, 2, 1)
    e.add_(1)
    f = x.clone()
    for i in range(4):
        f[i + 1] = f[i] * 2 + f[i + 1]
    g = torch.empty_like(x)
    torch.add(x, x, out=g)
    torch.mul(g, x, out=g)
    h = x.clone()
    h.mul_(h.sum(0, keepdim=True))
    return a, view, b, c, d, e, rows, f, g, h


def test_reads_after_writes_are_those_of_eager():
    x = torch.randn(5, 4).to("trn")
    compiled = torch.compile(mutations, backend="trn", options={"strict": True})
    for got, expected in zip(compiled(x), mutations(x), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(4, 5), False),
        (torch.zeros(4, 5).t(), False),
        (torch.zeros(4, 6)[:, ::2], False),
        (torch.zeros(1, 5).expand(1, 5), False),
        (torch.zeros(1, 5).expand(4, 5), True),
        (torch.zeros(6).unfold(0, 2, 1), True),
        (torch.zeros(()), False),
    ],
)
def test_overlap_is_seen_from_sizes_and_strides(x, expected):
    assert _overlaps(x) is expected
