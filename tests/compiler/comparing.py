"""Leaves on trn, and what a function of them gives: for the tests of compiled code."""

import pytest
import torch

# torch 2.13 uses what it deprecates, and looks at .grad while it traces.
TORCHS_OWN = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def leaf(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).to("trn").requires_grad_(dtype.is_floating_point)


def results(function, arguments, backward=True):
    """What it returns and the gradients of the leaves, detached copies on the host."""
    for a in arguments:
        if isinstance(a, torch.Tensor):
            a.grad = None
    out = function(*arguments)
    outs = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    tracked = [t for t in outs if t.requires_grad]
    if backward and tracked:
        sum(t.float().square().sum() for t in tracked).backward()
    grads = [a.grad for a in arguments if isinstance(a, torch.Tensor) and a.grad is not None]
    assert all(g.device.type == "trn" for g in grads)
    return [(t.device.type, t.detach().cpu().clone()) for t in (*outs, *grads)]
