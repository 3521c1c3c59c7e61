"""Which function implements which operator, and why the others are refused.

`KERNELS` and `REFUSED` together hold every operator of torch 2.13.0 that has a kernel for CUDA and
neither one for the CPU nor one made of other operators; a test compares them with torch's own list.
`ONE_LAUNCH` are operators that the CPU makes of others and the device runs as one.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import library

from .. import _C
from ..errors import Unsupported
from ..torch_private import OpOverload

__all__ = ["ELSEWHERE", "KERNELS", "ONE_LAUNCH", "REFUSED", "register", "twin_of"]

# Operator of aten -> module of this package and function in it.
KERNELS: Mapping[str, str] = MappingProxyType(
    {
        "mm.dtype": "products.mm",
        "mm.dtype_out": "products.mm_out",
        "bmm.dtype": "products.bmm",
        "bmm.dtype_out": "products.bmm_out",
        "addmm.dtype": "products.addmm",
        "addmm.dtype_out": "products.addmm_out",
        "baddbmm.dtype": "products.baddbmm",
        "baddbmm.dtype_out": "products.baddbmm_out",
        "_scaled_mm": "scaled.scaled_mm",
        "_scaled_mm.out": "scaled.scaled_mm_out",
        "_scaled_mm_v2": "scaled.scaled_mm_v2",
        "_scaled_mm_v2.out": "scaled.scaled_mm_v2_out",
        "_grouped_mm": "grouped.grouped_mm",
        "_scaled_grouped_mm": "grouped.scaled_grouped_mm",
        "_scaled_grouped_mm_v2": "grouped.scaled_grouped_mm_v2",
        "_convert_weight_to_int4pack": "packed.convert_weight_to_int4pack",
        "_weight_int4pack_mm": "packed.weight_int4pack_mm",
        "_mixed_dtypes_linear": "packed.mixed_dtypes_linear",
        "_cslt_compress": "sparse.cslt_compress",
        "_cslt_sparse_mm": "sparse.cslt_mm",
        "_sparse_semi_structured_mm": "sparse.cutlass_mm",
        "_sparse_semi_structured_addmm": "sparse.cutlass_addmm",
        "batch_norm_stats": "batch_norm.stats",
        "batch_norm_elemt": "batch_norm.elemt",
        "batch_norm_elemt.out": "batch_norm.elemt_out",
        "batch_norm_gather_stats": "batch_norm.gather_stats",
        "batch_norm_gather_stats_with_counts": "batch_norm.gather_stats_with_counts",
        "batch_norm_backward_reduce": "batch_norm.backward_reduce",
        "batch_norm_backward_elemt": "batch_norm.backward_elemt",
        "_fused_dropout": "dropout.fused_dropout",
        "_masked_scale": "dropout.masked_scale",
        "_fused_rms_norm_backward": "rms_norm.backward",
        "_conv_depthwise2d": "convolution.depthwise",
        "_conv_depthwise2d.out": "convolution.depthwise_out",
        "conv_depthwise3d": "convolution.depthwise",
    }
)

_CUDNN = "it belongs to NVIDIA's cuDNN. Call {instead}, which runs on trn"
_MIOPEN = "it belongs to AMD's MIOpen. Call {instead}, which runs on trn"
_ATTENTION = (
    "it returns data for the backward of its own CUDA kernel. Call "
    "torch.nn.functional.scaled_dot_product_attention, which is one kernel on trn"
)
_SPARSE = (
    "it prunes and tiles 2:4 sparse weights for NVIDIA's sparse Tensor Cores. Prune the weight "
    "yourself and call torch.sparse.to_sparse_semi_structured"
)
_PHILOX = "it exposes CUDA's Philox keys. Use torch.Generator(device='trn')"
_TRITON = "it is a Triton kernel for GPUs. Call {instead}"


def _refusals() -> dict[str, str]:
    """Operator of aten -> why it is refused and what to do."""
    rows = (
        ("_use_cudnn_ctc_loss _use_cudnn_ctc_loss.Tensor _cudnn_ctc_loss _cudnn_ctc_loss.Tensor",
         _CUDNN, "torch.nn.functional.ctc_loss"),
        ("_cudnn_rnn_flatten_weight _cudnn_rnn _cudnn_rnn_backward _cudnn_init_dropout_state",
         _CUDNN, "torch.nn.LSTM, GRU or RNN"),
        ("cudnn_affine_grid_generator cudnn_affine_grid_generator_backward", _CUDNN,
         "torch.nn.functional.affine_grid"),
        ("cudnn_batch_norm cudnn_batch_norm.out cudnn_batch_norm_backward", _CUDNN,
         "torch.nn.functional.batch_norm"),
        ("cudnn_convolution cudnn_convolution.out cudnn_convolution_transpose "
         "cudnn_convolution_relu cudnn_convolution_add_relu", _CUDNN,
         "torch.nn.functional.conv2d"),
        ("cudnn_grid_sampler cudnn_grid_sampler_backward", _CUDNN,
         "torch.nn.functional.grid_sample"),
        ("miopen_batch_norm miopen_batch_norm_backward", _MIOPEN,
         "torch.nn.functional.batch_norm"),
        ("miopen_convolution miopen_convolution_transpose miopen_depthwise_convolution "
         "miopen_convolution_relu miopen_convolution_add_relu", _MIOPEN,
         "torch.nn.functional.conv2d"),
        ("miopen_rnn miopen_rnn_backward", _MIOPEN, "torch.nn.LSTM, GRU or RNN"),
        ("_use_miopen_ctc_loss _use_miopen_ctc_loss.Tensor miopen_ctc_loss "
         "miopen_ctc_loss.Tensor", _MIOPEN, "torch.nn.functional.ctc_loss"),
        ("_cslt_sparse_mm_search _sparse_semi_structured_tile "
         "_sparse_semi_structured_apply _sparse_semi_structured_apply_dense "
         "_sparse_semi_structured_linear _to_sparse_semi_structured", _SPARSE, ""),
        ("_philox_key_split _philox_key_fold_in _philox_normal_ _philox_uniform_", _PHILOX, ""),
        ("_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention.quantized "
         "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention "
         "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention "
         "_scaled_dot_product_cudnn_attention_backward "
         "_flash_attention_forward_no_dropout_inplace _flash_attention_forward.quantized "
         "_efficient_attention_backward "
         "_cudnn_attention_forward _cudnn_attention_backward _fill_mem_eff_dropout_mask_",
         _ATTENTION, ""),
        ("_triton_scaled_dot_attention", _TRITON,
         "torch.nn.functional.scaled_dot_product_attention"),
        ("_triton_multi_head_attention", _TRITON, "torch.nn.MultiheadAttention"),
    )  # fmt: skip
    return {name: why.format(instead=instead) for names, why, instead in rows
            for name in names.split()}  # fmt: skip


REFUSED: Mapping[str, str] = MappingProxyType(_refusals())

# Of torch's list, what has a kernel of its own in csrc/aten or a layout of its own here.
ELSEWHERE = frozenset(
    (
        "_flash_attention_forward",
        "_flash_attention_backward",
        "_efficient_attention_forward",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_lstm_cell_backward_impl",
        "_thnn_fused_gru_cell",
        "_thnn_fused_gru_cell_backward",
        "record_stream",
        "bmm.out",  # of sparse CSR: the host's kernel says what it takes
        "baddbmm.out",
        "_spsolve",
    )
)

# Operator of aten -> the kernel of its twin, and the shapes of its results on `meta`.
ONE_LAUNCH: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"_fused_rms_norm": ("rms_norm.forward", "rms_norm.shapes")}
)

_libraries: list[library.Library] = []


def _kernel(path: str) -> Callable[..., Any]:
    """The function at `path`, imported when it is first called."""
    module, _, name = path.partition(".")

    def run(*arguments: Any, **keywords: Any) -> Any:
        found = importlib.import_module(f"{__package__}.{module}")
        return getattr(found, name)(*arguments, **keywords)

    return run


def _refusing(name: str, why: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise Unsupported(f"aten::{name} has no kernel on trn: {why}.")

    return refuse


def register() -> None:
    """Define the twins and bind their kernels; called once, with the device."""
    if _libraries:
        return
    _C.register_accelerated([*KERNELS, *REFUSED, *ONE_LAUNCH])
    made = library.Library("trn", "IMPL")
    for name, (path, shapes) in ONE_LAUNCH.items():
        made.impl(name, _kernel(path), "CPU")
        made.impl(name, _kernel(shapes), "Meta")
    for name, path in KERNELS.items():
        made.impl(name, _kernel(path), "CPU")
    for name, why in REFUSED.items():
        made.impl(name, _refusing(name, why), "CompositeExplicitAutograd")
    _libraries.append(made)


def twin_of(op: OpOverload) -> OpOverload | None:
    """The operator that computes `op` on the host, or None for an operator without a twin."""
    overload = "" if op._overloadname == "default" else f".{op._overloadname}"
    if op.namespace != "aten" or op._opname + overload not in (*KERNELS, *ONE_LAUNCH):
        return None
    found: OpOverload = getattr(getattr(torch.ops.trn, op._opname), op._overloadname)
    return found
