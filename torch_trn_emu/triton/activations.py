"""Activations fused with MX quantisation. To add one, add a row to `ACTIVATIONS` and its branch."""

import torch
import triton
import triton.language as tl

from .launch import INTERPRETED, cdiv, launch, power_of_two, raw
from .produced import (
    Kept,
    Outputs,
    Produced,
    load_rows,
    matrix,
    mx_spec,
    operand_spec,
    round_as,
    store_produced,
)
from .quantize import Spec

__all__ = ["ACTIVATIONS", "gelu_mx", "gelu_operand", "silu_mx", "silu_operand"]

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "silu": 2}


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of float32 x."""
    if ACTIVATION == 0:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 1:  # 0.5 x (1 + tanh(inner)), which cancels for negative x
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1.0 + tl.exp(-2.0 * inner))
    else:
        return x / (1.0 + tl.exp(-x))


@triton.jit
def activation_kernel(
    x, gate, y, to, scales, m, k, width, x_row, gate_row,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, KEEP: tl.constexpr, CODES: tl.constexpr,
    BITS: tl.constexpr, NAN: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr, FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr,
):  # fmt: skip
    """y = activation(x), times gate where GATED, which rounds twice as two operators do."""
    across = tl.cdiv(k, COLS)
    rows = ((tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    first = tl.program_id(0) % across * COLS
    at_k = first + tl.arange(0, COLS)
    value = activate(load_rows(x, x_row, rows, at_k, m, k), ACTIVATION)
    if GATED:
        value = round_as(value, y).to(tl.float32, bitcast=True)
        value = value * load_rows(gate, gate_row, rows, at_k, m, k)
    store_produced(
        value, y, to, scales, rows, first, m, k, width, ROWS, COLS, KEEP, CODES,
        BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
    )  # fmt: skip


def _activation(
    x: torch.Tensor, gate: torch.Tensor | None, name: str, spec: Spec, codes: bool, keep: bool
) -> Outputs:
    what = f"{name.partition('_')[0]}_{'mx' if codes else 'operand'}"
    rows = matrix(x, what)
    if gate is not None and (gate.shape != x.shape or gate.dtype is not x.dtype):
        raise RuntimeError(f"{what}: the gate is {list(gate.shape)}, the input {list(x.shape)}")
    gates = rows if gate is None else matrix(gate, what)
    (m, k), outputs = rows.shape, Outputs.of(x, spec, codes, keep)
    cols = max(32, min(512, power_of_two(k)))
    depth = min((1 << 18 if INTERPRETED else 4096) // cols, power_of_two(m))
    launch(
        activation_kernel,
        (cdiv(m, depth) * cdiv(k, cols),),
        raw(rows), raw(gates), *outputs.arguments(rows), m, k, outputs.width,
        rows.stride(0), gates.stride(0),
        ACTIVATION=ACTIVATIONS[name],
        GATED=gate is not None,
        ROWS=depth,
        COLS=cols,
        **outputs.constants(spec),
    )  # fmt: skip
    return outputs


def _gelu(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def gelu_mx(
    x: torch.Tensor,
    approximate: str = "none",
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """gelu(x), and its codes and scales along the last axis."""
    spec = mx_spec(element, scale_rule)
    return _activation(x, None, _gelu(approximate), spec, True, True).produced()


def silu_mx(x: torch.Tensor, element: str = "float8_e4m3fn", scale_rule: str = "trn3") -> Produced:
    """silu(x), and its codes and scales along the last axis."""
    return _activation(x, None, "silu", mx_spec(element, scale_rule), True, True).produced()


def gelu_operand(
    x: torch.Tensor,
    gate: torch.Tensor | None = None,
    approximate: str = "none",
    format: str = "mxfp8",
    keep: bool = True,
) -> tuple[torch.Tensor, Kept]:
    """gelu(x) * gate rounded as an operand along its last axis, in bfloat16; and itself (keep)."""
    made = _activation(x, gate, _gelu(approximate), operand_spec(format), False, keep)
    return made.to, made.y


def silu_operand(
    x: torch.Tensor, gate: torch.Tensor | None = None, format: str = "mxfp8", keep: bool = True
) -> tuple[torch.Tensor, Kept]:
    """silu(x) * gate rounded as an operand along its last axis, in bfloat16; and itself (keep)."""
    made = _activation(x, gate, "silu", operand_spec(format), False, keep)
    return made.to, made.y
