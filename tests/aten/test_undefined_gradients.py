"""A backward pass that gets no gradient for a result passes none on, as on the CPU.

PyTorch's formulas for several inputs call the backward operator without a gradient. Cases: a
function of float64 inputs on the device, and the shapes of those inputs.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_trn_emu

CASES: dict[str, tuple[Callable[..., Tensor], list[list[int]]]] = {
    "attention": (F.scaled_dot_product_attention, [[2, 2, 3, 4]] * 3),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [[2, 2, 3, 4]] * 3,
    ),
    "attention with a mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m.detach()),
        [[2, 2, 3, 4]] * 3 + [[3, 3]],
    ),
    "linear": (F.linear, [[3, 4], [2, 4], [2]]),
    "bilinear": (F.bilinear, [[3, 4], [3, 2], [5, 4, 2], [5]]),
    "addmm": (torch.addmm, [[2], [3, 4], [4, 2]]),
    "baddbmm": (torch.baddbmm, [[2, 3, 5], [2, 3, 4], [2, 4, 5]]),
    "conv1d": (F.conv1d, [[2, 3, 8], [4, 3, 3], [4]]),
    "conv2d": (F.conv2d, [[2, 3, 6, 6], [4, 3, 3, 3], [4]]),
    "conv3d": (F.conv3d, [[1, 2, 4, 4, 4], [2, 2, 2, 2, 2], [2]]),
    "conv_transpose2d": (F.conv_transpose2d, [[2, 3, 4, 4], [3, 2, 3, 3], [2]]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, [4], w, b), [[3, 4], [4], [4]]),
    "rms_norm": (lambda x, w: F.rms_norm(x, [4], w), [[3, 4], [4]]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [[3, 4, 5], [4], [4]]),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [[3, 4, 5], [4], [4]],
    ),
    "prelu": (F.prelu, [[3, 4, 5], [4]]),
    "cdist": (torch.cdist, [[3, 4], [5, 4]]),
    "grid_sample": (
        lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False),
        [[1, 2, 4, 4], [1, 3, 3, 2]],
    ),
    "embedding_bag": (
        lambda w, s: F.embedding_bag(
            torch.tensor([[0, 1], [2, 0]], device=w.device), w, per_sample_weights=s, mode="sum"
        ),
        [[3, 4], [2, 2]],
    ),
}


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


def gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[bool]:
    """Of each input, whether it got no gradient or zeros."""
    out = NoGradient.apply(function(*inputs))
    found = torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    return [each is None or not each.any().item() for each in found]


@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8_all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_passes_no_gradient_on(name: str, dtype: torch.dtype, policy: str) -> None:
    function, shapes = CASES[name]
    inputs = [torch.rand(s, device="trn", dtype=dtype, requires_grad=True) for s in shapes]
    with torch_trn_emu.precision(policy):
        assert all(gradients(function, inputs))


@pytest.mark.parametrize("policy", ["fp32", "mxfp8"])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.GRUCell])
def test_recurrent_layers_pass_no_gradient_on(kind: type[nn.Module], policy: str) -> None:
    layer = kind(4, 4).to("trn")
    x = torch.rand([2, 4], device="trn", requires_grad=True)
    inputs = [x, *layer.parameters()]

    def run(*_: Tensor) -> Tensor:
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out

    with torch_trn_emu.precision(policy):
        assert all(gradients(run, inputs))


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_transformer_layers_pass_no_gradient_on(kind: type[nn.Module]) -> None:
    layer = kind(4, 2, 8).to("trn").train()
    x = torch.rand([3, 2, 4], device="trn", requires_grad=True)
    more = [x] if kind is nn.TransformerDecoderLayer else []
    inputs = [x, *layer.parameters()]
    assert all(gradients(lambda *_: layer(x, *more), inputs))
