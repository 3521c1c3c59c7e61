"""Jagged nested tensors: products with weights have the values of dense tensors."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_trn_emu

OFFSETS = (0, 5, 12, 13, 40)


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(x, torch.tensor(OFFSETS, device="trn"))


LAYERS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "linear": (F.linear, lambda x, w, b: F.linear(jagged(x), w, b).values()),
    "linear of heads": (
        lambda x, w, b: F.linear(x.view(-1, 2, 32), w[:, :32], b),
        lambda x, w, b: F.linear(jagged(x.view(-1, 2, 32)), w[:, :32], b).values(),
    ),
    "matmul": (
        lambda x, w, b: x @ w.t() + b,
        lambda x, w, b: (jagged(x) @ w.t()).values() + b,
    ),
}


def gradients(layer: Callable[..., Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (OFFSETS[-1], 64), (48, 64), (48,)
    x, w, b = (torch.randn(shape, generator=generator).trn() for shape in shapes)
    x, w, b = x.requires_grad_(), torch.nn.Parameter(w), torch.nn.Parameter(b)
    made = layer(x, w, b)
    grad = torch.randn(made.shape, generator=generator).trn()
    return [made, *torch.autograd.grad(made, [x, w, b], grad)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8", "mxfp4"])
@pytest.mark.parametrize("name", LAYERS)
def test_products_have_the_values_of_dense_ones(name, policy):
    """The gradient of a weight is a product of two activations: mxfp4 took one for the weight."""
    dense, nested = LAYERS[name]
    with torch_trn_emu.precision(policy):
        for one, other in zip(gradients(dense), gradients(nested), strict=True):
            assert torch.equal(one, other)
