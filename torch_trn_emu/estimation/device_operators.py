"""Gives `meta` tensors the operators that trn tensors take."""

from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..precision import current_precision
from ..torch_private import HigherOrderOperator, flex_operators, suggest_memory_format

__all__ = ["OperatorsOfTheDevice", "fused_attention"]

ATTENTION, DROPOUT = functional.scaled_dot_product_attention, functional.dropout
_SDPA = torch.ops.aten.scaled_dot_product_attention
UNFLATTEN = torch.Tensor.unflatten
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell")
RMS_NORM = (functional.rms_norm, torch.rms_norm)


class OperatorsOfTheDevice(TorchFunctionMode):
    """Gives `meta` tensors the fused attention, dropout, RMSNorm and recurrent cells of trn.

    `nn.MultiheadAttention` calls them inside of a function that a mode sees as a whole: there the
    names are replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.policy = current_precision()
        by_name = {ATTENTION: self.attention, DROPOUT: _fused_dropout}
        self.instead: dict[Any, Any] = by_name | dict.fromkeys(RMS_NORM, _fused_rms_norm)
        self.instead |= dict.fromkeys((_SDPA, _SDPA.default), self.attention)
        self.instead |= {getattr(torch, name): _recurrent(name) for name in RECURRENT}
        self.instead |= {getattr(torch, name): _cell(name) for name in CELLS}
        named: dict[str, Any] = {function.__name__: new for function, new in by_name.items()}
        self.names: Any = mock.patch.multiple(functional, **named)

    def __enter__(self) -> "OperatorsOfTheDevice":
        self.names.start()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.names.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.unflatten:  # Dynamo does not find methods in a table
            return _unflatten(*args, **(kwargs or {}))
        if isinstance(func, HigherOrderOperator) and func._name == "flex_attention":
            return _flex_attention(func, *args)
        return self.instead.get(func, func)(*args, **(kwargs or {}))

    def attention(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Dynamo cannot trace the question; it traces graphs of one policy.
        tracing = torch.compiler.is_dynamo_compiling()
        if (self.policy if tracing else current_precision()) == "mxfp8_all":
            return ATTENTION(*args, **kwargs)
        return fused_attention(*args, **kwargs)


def _fused_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """The conditions of at::native::dropout."""
    if input.device.type == "meta" and training and 0 < p < 1 and input.numel() and not inplace:
        return torch.native_dropout(input, p, True)[0]
    return DROPOUT(input, p, training, inplace)


def _recurrent(name: str) -> Any:
    """csrc/aten/recurrent_layers.cpp, which torch.ops.trn has for tensors of `meta`."""
    torchs, ours = getattr(torch, name), getattr(torch.ops.trn, name)

    def run(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        tracing = torch.compiler.is_dynamo_compiling()
        return (torchs if tracing or input.device.type != "meta" else ours)(input, *args, **kwargs)

    return run


def _cell(name: str) -> Any:
    """The fused cell that torch chooses for accelerators."""
    torchs, fused = getattr(torch, name), getattr(torch.ops.aten, f"_thnn_fused_{name}")

    def run(
        input: torch.Tensor,
        hx: Any,
        w_ih: torch.Tensor,
        w_hh: torch.Tensor,
        b_ih: torch.Tensor | None = None,
        b_hh: torch.Tensor | None = None,
    ) -> Any:
        if torch.compiler.is_dynamo_compiling() or input.device.type != "meta":
            return torchs(input, hx, w_ih, w_hh, b_ih, b_hh)
        hidden, *cell = map(_lowered, hx if name == "lstm_cell" else (hx,))
        products = functional.linear(input, w_ih), functional.linear(hidden, w_hh)
        *state, _ = fused(*products, *(cell or (hidden,)), b_ih, b_hh)
        return tuple(state) if cell else state[0]

    return run


def _lowered(x: torch.Tensor) -> torch.Tensor:
    """What autocast makes of an operand of products."""
    casts = torch.is_autocast_enabled("trn") and x.dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
    )
    return x.to(torch.get_autocast_dtype("trn")) if casts else x


def _unflatten(self: torch.Tensor, dim: Any, sizes: Any) -> torch.Tensor:
    """The method calls `super()`, where Dynamo would end a graph. Checked on torch 2.13.0."""
    if isinstance(dim, str) or not torch.compiler.is_dynamo_compiling():
        return UNFLATTEN(self, dim, sizes)  # type: ignore[no-any-return]
    dim %= self.dim()
    return self.view(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])


class _FusedRmsNorm(torch.autograd.Function):
    """One launch, and one for the gradients, as on the device."""

    @staticmethod
    def forward(ctx: Any, x: Any, shape: Any, weight: Any, eps: Any) -> torch.Tensor:
        out, rstd = torch.ops.trn._fused_rms_norm(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.shape = shape
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, weight, rstd = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        made = torch.ops.aten._fused_rms_norm_backward(g, x, ctx.shape, rstd, weight, mask)
        return made[0], None, made[1], None


def _fused_rms_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """The conditions of at::native::rms_norm; compiled it is what torch makes of it."""
    if torch.is_autocast_enabled("trn") and input.dtype.itemsize < torch.float32.itemsize:
        input, weight = input.float(), weight if weight is None else weight.float()
    by_columns = suggest_memory_format(input) != torch.contiguous_format
    apart = weight is not None and weight.dtype != input.dtype
    if input.device.type != "meta" or by_columns or apart or torch.compiler.is_dynamo_compiling():
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return _FusedRmsNorm.apply(input, list(normalized_shape), weight, eps)  # type: ignore[no-any-return]


def _flex_attention(operator: Any, *args: Any) -> Any:
    """Without the traces of the score function from which torch makes the code of gradients."""
    query, key, value, score, mask, scale, options, *buffers = args
    if query.device.type != "meta" or torch.compiler.is_dynamo_compiling():
        return operator(*args)
    query, key, value = map(_lowered, (query, key, value))
    of_score, of_mask = buffers or ((), ())
    apply = flex_operators().FlexAttentionAutogradOp.apply
    return apply(query, key, value, score, score, mask, scale, options, of_mask, *of_score)


def fused_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """What a trn tensor's attention dispatches to under a policy that does not quantize it."""
    fused = _fused_attention(*args, **kwargs)
    return ATTENTION(*args, **kwargs) if fused is None else fused


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """The conditions of csrc/aten/attention_operands.cpp."""
    if query.device.type != "meta" or dropout_p or not _fits_fused(query, key, value, enable_gqa):
        return None
    if attn_mask is not None and attn_mask.requires_grad:
        return None
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    out, _ = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return out  # type: ignore[no-any-return]


def _fits_fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: bool) -> bool:
    if not q.dim() == k.dim() == v.dim() == 4 or not (q.numel() and k.numel()):
        return False
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        return False
    return q.shape[1] == k.shape[1] or (enable_gqa and q.shape[1] % k.shape[1] == 0)
