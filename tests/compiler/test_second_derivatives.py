"""Second derivatives in compiled functions, against eager: products have formulas of their own."""

import pytest
import torch
from comparing import TORCHS_OWN
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

import torch_trn_emu

pytestmark = [*TORCHS_OWN, pytest.mark.filterwarnings("ignore:.*_prims_common.check")]


WEIGHT = torch.arange(16.0).view(4, 4) - 8


def product(x: Tensor) -> Tensor:
    return ((x @ x.sin()).cos() @ x.t()).sum()


def batched(x: Tensor) -> Tensor:
    return torch.bmm(torch.stack((x, x.exp())), torch.stack((x.sin(), x))).square().sum()


def of_gradient(x: Tensor) -> Tensor:
    return grad(lambda y: grad(product)(y).sin().sum())(x)


DERIVATIVES = {
    "gradient of a gradient": of_gradient,
    "jacobian of a gradient": jacrev(lambda x: grad(product)(x)[0]),
    "of a batch of products": jacrev(lambda x: grad(batched)(x)[0]),
    "hessian": hessian(product),
    # gradients that are zero have no memory in eager mode
    "hessians of rectified products": vmap(hessian(lambda row: (row @ WEIGHT.trn()).relu())),
    "tangent of a gradient": lambda x: jvp(grad(product), (x,), (torch.ones_like(x),))[1],
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_second_derivatives_are_those_of_eager(name):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).trn()
    derivative = DERIVATIVES[name]
    with torch_trn_emu.precision("fp32"):
        expected = derivative(x)
        got = torch.compile(derivative, backend="trn")(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
