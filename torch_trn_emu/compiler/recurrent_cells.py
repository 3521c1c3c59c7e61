"""Fused cells of an LSTM or a GRU, spelled out: the host has no kernels for them.

Torch chooses them for accelerators. The order of operations is that of the device's kernels
(`csrc/aten/rnn.cpp`): 16-bit formats in float32, rounded once when a result leaves the cell.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

__all__ = ["CELLS"]

aten = torch.ops.aten
Cell = Callable[..., tuple[Tensor | None, ...]]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _once(cell: Cell) -> Cell:
    """A cell of wide operands, whose results have the format of the last of its tensors."""

    def rounded(*arguments: Any) -> tuple[Tensor | None, ...]:
        *_, dtype = (a.dtype for a in arguments if isinstance(a, Tensor))
        results = cell(*(_wide(a) if isinstance(a, Tensor) else a for a in arguments))
        return tuple(None if x is None else x.to(dtype) for x in results)

    return rounded


def _gates(products: Tensor, bias: Tensor | None) -> Tensor:
    return products if bias is None else products + bias


def _of_bias(gradient: Tensor, has_bias: bool) -> Tensor | None:
    return gradient.sum(0) if has_bias else None


@_once
def _lstm(
    of_input: Tensor,
    of_hidden: Tensor,
    cx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    gates = _gates(of_hidden, hidden_bias) + _gates(of_input, input_bias)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


@_once
def _lstm_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor | None, ...]:
    if grad_hy is None and grad_cy is None:
        return None, None, None
    i, f, g, o = workspace.chunk(4, 1)
    t = cy.tanh()
    of_o = torch.zeros_like(o)
    if grad_hy is not None:
        through = aten.tanh_backward(grad_hy * o, t)
        grad_cy = through if grad_cy is None else grad_cy + through
        of_o = aten.sigmoid_backward(grad_hy * t, o)
    assert grad_cy is not None
    gates = torch.cat(
        [
            aten.sigmoid_backward(grad_cy * g, i),
            aten.sigmoid_backward(grad_cy * cx, f),
            aten.tanh_backward(grad_cy * i, g),
            of_o,
        ],
        1,
    )
    return gates, grad_cy * f, _of_bias(gates, has_bias)


@_once
def _gru(
    of_input: Tensor,
    of_hidden: Tensor,
    hx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    given = _gates(of_input, input_bias).chunk(3, 1)
    hidden = _gates(of_hidden, hidden_bias).chunk(3, 1)
    r, z = (hidden[0] + given[0]).sigmoid(), (hidden[1] + given[1]).sigmoid()
    n = (given[2] + hidden[2] * r).tanh()
    return (hx - n) * z + n, torch.cat([r, z, n, hx, hidden[2]], 1)


@_once
def _gru_backward(grad_hy: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    r, z, n, h, of_n = workspace.chunk(5, 1)
    through = grad_hy * z
    dn = aten.tanh_backward(grad_hy - through, n)
    dz = aten.sigmoid_backward(grad_hy * (h - n), z)
    dr = aten.sigmoid_backward(dn * of_n, r)
    given, hidden = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return given, hidden, through, _of_bias(given, has_bias), _of_bias(hidden, has_bias)


CELLS: Mapping[Any, Cell] = MappingProxyType(
    {
        aten._thnn_fused_lstm_cell.default: _lstm,
        aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_backward,
        aten._thnn_fused_gru_cell.default: _gru,
        aten._thnn_fused_gru_cell_backward.default: _gru_backward,
    }
)
