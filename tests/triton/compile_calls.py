"""Calls that together launch every kernel in the forms that matter on a GPU, by module."""

from collections.abc import Callable
from typing import Any

import torch

from torch_trn_emu.triton import activations, attention, matmul, norms, quantize, rounding

ONES = torch.ones(256, 512)
HALF = ONES.bfloat16()
HEADS = torch.ones(2, 4, 256, 64).bfloat16()
LONG, LONGER = torch.ones(8, 4096).bfloat16(), torch.ones(8, 8192).bfloat16()
WIDE = torch.ones(2, 4, 256, 128).bfloat16()
SUMS = torch.ones(2, 4, 256)
CODES = torch.ops.trn.quantize_mx(HALF)


CALLS: dict[str, list[Callable[[], Any]]] = {
    "quantize": [
        lambda: quantize.quantize_mx(HALF, dim=0),
        lambda: quantize.quantize_mx(ONES, element="float4_e2m1fn", rounding="stochastic"),
        lambda: quantize.dequantize_mx(*CODES),
    ],
    "rounding": [lambda: rounding.stochastic_round(ONES, torch.bfloat16, 1, 2)],
    "activations": [
        lambda: activations.gelu_mx(ONES, "tanh", "float4_e2m1fn"),
        lambda: activations.silu_operand(HALF, HALF),
    ],
    "norms": [
        lambda: norms.layer_norm_mx(HALF, HALF[0], HALF[0]),
        lambda: norms.layer_norm_operand(LONG, LONG[0], LONG[0], keep=False),
        lambda: norms.rms_norm_operand(LONGER),
    ],
    "matmul": [
        lambda: matmul.product(HALF, HALF.t(), "mxfp8", "mxfp8", torch.bfloat16),
        lambda: matmul.product(ONES, ONES.t(), "mxfp8", "mxfp4", torch.float32),
        lambda: matmul.mx_matmul(*CODES, *(t.t() for t in CODES)),
        lambda: matmul.product(HALF[:128], HALF.t(), "as_given", "as_given", torch.bfloat16),
    ],
    "attention": [
        lambda: attention.attention(HEADS, HEADS, HEADS, True, None, None),
        lambda: attention.attention(WIDE, WIDE, WIDE, True, None, None),
        *(
            lambda x=x: attention.attention_backward(x, x, x, x, x, SUMS, True, None, None)
            for x in (HEADS, WIDE)
        ),
    ],
}
