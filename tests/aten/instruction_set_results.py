"""Prints a hash of every result that may not depend on the instruction set, as JSON. For
test_instruction_sets.py, which runs it once under each.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import torch_trn_emu
from torch_trn_emu.formats import POLICIES

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 70, 100), (3, 33, 65), (4, 64, 257), (12, 70, 300), (16, 100, 96), (100, 130, 600))


def products() -> Iterator[tuple[str, Tensor]]:
    """Each layout of either operand, each format, under each policy."""
    for policy, (m, n, k), dtype in itertools.product(POLICIES, SHAPES, FORMATS):
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        for across in itertools.product((False, True), repeat=2):
            x, y = (
                (t.t().contiguous().t() if flip else t).to("trn")
                for t, flip in zip((a, b), across, strict=True)
            )
            with torch_trn_emu.precision(policy):
                yield f"{policy} {m} x {n} x {k} {dtype} {across}", x @ y


def gradients() -> Iterator[tuple[str, Tensor]]:
    x = torch.randn(40, 70).to("trn").requires_grad_()
    linear = nn.Linear(70, 33).to("trn")
    for policy in POLICIES:
        with torch_trn_emu.precision(policy):
            inputs = [x, *linear.parameters()]
            for i, grad in enumerate(torch.autograd.grad(linear(x).square().sum(), inputs)):
                yield f"gradient {i} {policy}", grad


def quantised() -> Iterator[tuple[str, Tensor]]:
    for dtype, element, dim in itertools.product(
        FORMATS, ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"), (0, -1)
    ):
        x = torch.randn(96, 160).to(dtype).to("trn")
        for i, part in enumerate(torch.ops.trn.quantize_mx(x, element=element, dim=dim)):
            yield f"quantize_mx {dtype} {element} {dim} {i}", part


def cells() -> Iterator[tuple[str, Tensor]]:
    for kind, dtype in itertools.product(
        (nn.LSTM, nn.GRU, nn.RNN), (torch.float32, torch.bfloat16)
    ):
        module = kind(20, 24, num_layers=2, bidirectional=True).to(dtype).to("trn")
        for policy in ("bf16", "mxfp8"):
            with torch_trn_emu.precision(policy):
                out, _ = module(torch.randn(4, 3, 20).to(dtype).to("trn"))
                yield f"{kind.__name__} {dtype} {policy}", out
                grads = torch.autograd.grad(out.square().sum(), [*module.parameters()])
                for i, grad in enumerate(grads):
                    yield f"gradient {i} of {kind.__name__} {dtype} {policy}", grad


def everything() -> dict[str, str]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return {
        name: hashlib.sha256(
            t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, t in itertools.chain(products(), gradients(), quantised(), cells())
    }


if __name__ == "__main__":
    print(json.dumps(everything()))
