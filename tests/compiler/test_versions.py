"""Compiled code that returns copies of an input between writes to it: Inductor's own is wrong."""

import pytest
import torch
from comparing import TORCHS_OWN

import torch_trn_emu

pytestmark = [*TORCHS_OWN, pytest.mark.filterwarnings("ignore:.*_prims_common.check")]


def by_rows(x, y):
    x[1] = y[0]
    before = x.clone()
    x[0] = x[1] * 2
    return before, x


def by_views(x, y):
    row = x[1]
    row.copy_(y[0])
    before, part = x.clone(), x[:2].clone()
    row.mul_(3)
    x[:, 1:3].add_(1)
    between = x.contiguous().clone()
    x.diagonal().zero_()
    return before, part, between, row.clone(), x


def by_index(x, y):
    x[torch.tensor([0, 2], device=x.device)] = y[:2]
    before = x.clone()
    x[torch.tensor([1], device=x.device)] = 7.0
    x[y > 0] = 0.0
    return x.sum(), before


def by_list(x, y):
    rows = list(x.unbind())
    torch._foreach_add_(rows, 1.0)
    before = torch.stack(rows)
    rows[0].copy_(y[0])
    middle = x.clone()
    torch._foreach_mul_(rows, 2.0)
    return before, middle, x


def by_cache(x, y):
    """Keys of a sequence so far, as a decoder keeps them."""
    seen = []
    for at in range(3):
        x[at] = y[at]
        seen.append(x.clone())
    return seen, x[:3].sum(0)


def with_a_gradient(x, y):
    """What the backward pass needs of the buffer is what it was in the forward pass."""
    w = y.detach().clone().requires_grad_()
    return torch.autograd.grad(_loss(x, w), w)[0]


def _loss(x, w):
    with torch.no_grad():
        x[0] = 2.0
    out = (x.clone() * w).sum()
    with torch.no_grad():
        x[1] = 5.0
        x[0] = 3.0
    return out


def by_neighbours(x, y):
    x[:, [0, 2]] = y[:, [1, 3]]
    x[1:3] += x[0:2].clone()
    return x * 1


FUNCTIONS = (by_neighbours, by_rows, by_views, by_index, by_list, by_cache)


def everything(tensors, y):
    return [function(x, y) for function, x in zip(FUNCTIONS, tensors, strict=True)]


@pytest.mark.parametrize("function", [everything, with_a_gradient])
def test_what_was_copied_between_writes_is_returned(function):
    torch.manual_seed(0)
    x, y = torch.randn(4, 4).trn(), torch.randn(4, 4).trn()

    def given():
        return ([x.clone() for _ in FUNCTIONS] if function is everything else x.clone()), y.clone()

    with torch_trn_emu.precision("fp32"):
        eager, compiled = given(), given()
        expected = function(*eager)
        got = torch.compile(function, backend="trn")(*compiled)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(compiled, eager)
