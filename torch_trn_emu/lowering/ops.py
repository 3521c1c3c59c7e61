"""OPS: one row per aten operator, for all its overloads: what it becomes on the engines.

A row names the engine that does the work, the lowering, how sure we are of its price, and what it
leaves out. To add an operator, add a row (elementwise ones: a line in `elementwise.py`). What has
no row is priced by a class (`classes.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType

from ..isa import itemsize
from .attention import attention, attention_backward
from .call import Call, Target
from .convolutions import convolution, convolution_backward
from .copies import (
    copied,
    copy,
    gather,
    nll,
    nll_backward,
    rearranged,
    scatter,
)
from .elementwise import (
    BINARY,
    SIMPLIFIED,
    STEPS,
    TERNARY,
    UNARY,
    constant,
    drop,
    elementwise,
    lower_elementwise,
    random_bits,
    select,
)
from .lists import foreach, foreach_reduction
from .norms import batch_norm, batch_norm_backward, group_norm, group_norm_backward
from .op import HostTransfer, Lowered, Lowering, Op, dense, flat
from .optimizers import fused, unscale
from .pointwise import pointwise, tensor_scalar
from .pools import adaptive_pool, adaptive_pool_backward, average_pool, max_pool
from .products import (
    Product,
    compute_format,
    format_of,
    lower_addbmm,
    lower_matmul,
    multiplied,
    product_of,
)
from .rearrangements import (
    concatenate,
    exact,
    flipped,
    padding,
    pixel_shuffle,
    repeated,
    rolled,
    scatter_slice,
    select_backward,
    sliced_backward,
    upsample_nearest,
)
from .reductions import (
    along_rows,
    average,
    extreme,
    largest,
    moments,
    nonzeros,
    over_normalized,
    p_norm,
    reduction,
    scan,
    simple,
    sort,
    truth,
)

__all__ = [
    "OPS",
    "HostTransfer",
    "Lowered",
    "Op",
    "Product",
    "compute_format",
    "copied",
    "dense",
    "flat",
    "multiplied",
    "product_of",
]


# --- attention ---


def _attention(call: Call, target: Target) -> Lowered:
    q, k = call.tensors[:2]
    heads, queries, dim = prod(q.shape[:-2]), *q.shape[-2:]
    if not q.numel or not k.numel:
        return ()
    program = attention(
        heads,
        queries,
        k.shape[-2],
        dim,
        chip=target.chip,
        dtype=q.dtype,
        compute=format_of(call, target, q.dtype, "attention").replace("mxfp8", "bfloat16"),
        causal=_causal(call),
        cores=target.cores if heads >= target.cores else 1,
    )
    return (program,)


def _attention_backward(call: Call, target: Target) -> Lowered:
    q, k = call.tensors[1:3]
    heads, queries, dim = prod(q.shape[:-2]), *q.shape[-2:]
    if not q.numel or not k.numel:
        return ()
    program = attention_backward(
        heads,
        queries,
        k.shape[-2],
        dim,
        chip=target.chip,
        dtype=q.dtype,
        compute=format_of(call, target, q.dtype, "attention").replace("mxfp8", "bfloat16"),
        causal=_causal(call),
        cores=target.cores if heads >= target.cores else 1,
    )
    return (program,)


def _causal(call: Call) -> bool:
    return any(a is True for a in call.arguments[:9])


# --- optimizers, lists, random -------------------------------------------------------------------


def _dropout(call: Call, target: Target) -> Lowered:
    """Random bits, the choice, the scale; the mask is stored too."""
    x, p, trains = call.argument(0), float(call.argument(1, 0.5)), call.argument(2, True)
    if not x.numel:
        return ()
    if not trains:
        return copied(x, call.out, target)
    steps = [
        random_bits(),
        tensor_scalar(-1, op0="multiply", imm0=2.0**-32),
        drop(0, -1, p),
        tensor_scalar(-1, op0="multiply", imm0=1 / (1 - p) if p < 1 else 0.0),
        replace(tensor_scalar(-3, op0="greater_equal", imm0=p), dtype="bool"),
    ]
    steps[:2] = [replace(s, dtype="float32") for s in steps[:2]]
    program = pointwise(
        "dropout",
        x.numel,
        [x.dtype],
        x.dtype,
        steps,
        chip=target.chip,
        cores=target.cores,
        outputs=(-2, -1),
    )
    return (program,)


def _item(call: Call, target: Target) -> Lowered:
    return HostTransfer(itemsize(call.tensors[0].dtype), True)


def _nothing(call: Call, target: Target) -> Lowered:
    return ()


def _masked_fill(call: Call, target: Target) -> Lowered:
    tensors = [t for t in call.tensors if t.shape or not t.on_host][:2]
    steps = [constant(0.0), select(1, -1, 0)]
    return (elementwise("masked_fill", steps, tensors, call.out, target),)


# --- the table -----------------------------------------------------------------------------------


_CONV = "the precision policy's operands; memory as if contiguous; one channel a group: Vector"
_PLACES = "with places: along rows; otherwise by its class"
_EVEN = "windows of several sizes are priced by their class"
_NCHW = "memory as if contiguous, [N, C, ...]"
_LISTS = "tensors as one run of elements; of a list of scalars the first is for all"


def _table() -> list[Op]:
    rows: list[Op] = []

    def add(
        names: str, engine: str, lower: Lowering, status: str = "inferred", note: str = ""
    ) -> None:
        rows.extend(
            Op(name=n, engine=engine, lower=lower, status=status, note=note) for n in names.split()
        )

    made, bits = "modelled", "rounded once to the result's dtype"
    for recipes in (UNARY, BINARY, TERNARY):
        for name in recipes:
            if name not in ("pow_scalar", "clamp_tensor", "masked_fill"):
                status = "inferred" if name in SIMPLIFIED else made
                add(name, "vector", lower_elementwise, status, bits)
    add(
        " ".join(STEPS),
        "vector",
        lower_elementwise,
        "inferred",
        "made on the core, not these values",
    )

    # fmt: off
    def put(
        names: str, engine: str, lower: Lowering, status: str = "inferred", note: str = ""
    ) -> None:
        kept = set(names.split())
        rows[:] = [r for r in rows if r.name not in kept]
        add(names, engine, lower, status, note)

    put("masked_fill", "vector", _masked_fill, made)
    put("_scaled_mm", "tensor", lower_matmul, "inferred", "the scales are not loaded")
    put("mm bmm mv dot vdot linear", "tensor", lower_matmul, made,
        "the precision policy's operands")
    put("addmm baddbmm addmv _addmm_activation", "tensor", lower_matmul, made,
        "the precision policy's operands")
    put("addbmm", "tensor", lower_addbmm, made, "the batch's products are stored, then summed")
    put("sum", "vector", reduction(simple("add")), made)
    put("mean", "vector", reduction(average), made)
    put("amax", "vector", reduction(simple("max")), made)
    put("amin", "vector", reduction(simple("min")), made)
    put("max", "vector", extreme("max", 1.0), made, _PLACES)
    put("min", "vector", extreme("min", -1.0), made, _PLACES)
    put("argmax", "vector", largest(1.0), made, _PLACES)
    put("argmin", "vector", largest(-1.0), made, _PLACES)
    put("aminmax median kthvalue mode", "vector", reduction(simple("max")), "inferred",
        "as the maximum")
    put("prod", "vector", reduction(simple("multiply")), made)
    put("all", "vector", reduction(truth("min")), made)
    put("any", "vector", reduction(truth("max")), made)
    put("equal", "vector", reduction(truth("min")), "inferred", "as a reduction of the first")
    put("count_nonzero", "vector", reduction(nonzeros), made)
    put("nansum", "vector", reduction(simple("add")), "inferred", "as the sum")
    put("var std var_mean std_mean", "vector", moments, made,
        "of all of more than 65536 elements: by its class")
    put("norm linalg_vector_norm frobenius_norm", "vector", reduction(p_norm), made)
    put("logsumexp", "scalar", along_rows("logsumexp", 0, 1), made)
    put("_softmax softmax _safe_softmax", "scalar", along_rows("softmax", 0, 1), made)
    put("_log_softmax log_softmax", "scalar", along_rows("log_softmax", 0, 1), made)
    put("_softmax_backward_data", "vector", along_rows("softmax_backward", 0, 2), made)
    put("_log_softmax_backward_data", "vector", along_rows("log_softmax_backward", 0, 2), made)
    put("native_layer_norm layer_norm", "vector", over_normalized("layer_norm", 0), made)
    put("native_layer_norm_backward", "vector", over_normalized("layer_norm_backward", 0), made)
    put("rms_norm _fused_rms_norm", "vector", over_normalized("rms_norm", 0), made)
    put("_fused_rms_norm_backward", "vector", over_normalized("rms_norm_backward", 0), made)
    put("native_batch_norm _native_batch_norm_legit _batch_norm_with_update batch_norm "
        "_native_batch_norm_legit_no_training _batch_norm_no_update", "vector", batch_norm, made,
        _NCHW)
    put("native_batch_norm_backward batch_norm_backward", "vector", batch_norm_backward, made,
        _NCHW)
    put("native_group_norm", "vector", group_norm, made, _NCHW)
    put("native_group_norm_backward", "vector", group_norm_backward, made, _NCHW)
    put("cumsum", "vector", scan("add"), made)
    put("logcumsumexp", "vector", scan("add"), "inferred", "as cumsum")
    put("cummax cummin cumprod", "vector", scan("max"), "inferred", "as a scan of maxima")
    put("topk sort argsort msort _unique2 unique_dim unique_consecutive randperm", "gpsimd", sort,
        "inferred", "parts longer than 8192 are not merged")
    put("copy clone contiguous _to_copy _copy_from _copy_from_and_resize lift_fresh_copy "
        "_pin_memory", "dma", copy, made)
    put("cat stack _cat", "dma", concatenate, made)
    put("_chunk_cat", "dma", rearranged)
    put("constant_pad_nd", "dma", exact(padding("constant"), constant_at=2), made)
    put("reflection_pad1d reflection_pad2d", "dma", exact(padding("reflect")), made)
    put("replication_pad1d replication_pad2d", "dma", exact(padding("edge")), made)
    put("flip", "dma", exact(flipped), made)
    put("roll", "dma", exact(rolled), made, "of a flattened tensor: by its class")
    put("repeat", "dma", exact(repeated), made)
    put("slice_backward", "dma", exact(sliced_backward), made)
    put("select_backward", "dma", select_backward, made)
    put("slice_scatter select_scatter", "dma", scatter_slice, made)
    put("pixel_shuffle pixel_unshuffle", "dma", pixel_shuffle, made)
    put("upsample_nearest1d upsample_nearest2d", "dma", upsample_nearest, made,
        "by factors that are not whole: by its class")
    put("diagonal_backward unfold_backward as_strided_scatter tril triu repeat_interleave "
        "upsample_bilinear2d upsample_nearest2d_backward upsample_bilinear2d_backward im2col "
        "col2im", "dma", rearranged, "inferred", "as a copy in runs of the last dimension")
    put("embedding", "dma", gather, made)
    put("index_select index _unsafe_index gather take masked_select nonzero "
        "take_along_dim", "dma", gather)
    put("embedding_dense_backward", "dma", scatter(0, copies=False), made)
    put("index_add index_copy", "dma", scatter(2, copies=True))
    put("scatter scatter_add scatter_reduce index_put _index_put_impl _unsafe_index_put put "
        "masked_scatter index_fill", "dma", scatter(9, copies=True))
    put("nll_loss_forward nll_loss nll_loss2d_forward", "dma", nll)
    put("nll_loss_backward nll_loss2d_backward", "dma", nll_backward)
    put("convolution convolution_overrideable _convolution conv3d conv2d conv1d", "tensor",
        convolution, made, _CONV)
    put("convolution_backward convolution_backward_overrideable", "tensor", convolution_backward,
        made, _CONV)
    put("max_pool2d_with_indices max_pool2d max_pool1d max_pool3d_with_indices "
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward", "vector", max_pool,
        made)
    put("avg_pool2d avg_pool1d avg_pool3d avg_pool2d_backward avg_pool3d_backward", "vector",
        average_pool, made)
    put("_adaptive_avg_pool2d adaptive_avg_pool2d", "vector", adaptive_pool("add"), made)
    put("_adaptive_avg_pool2d_backward", "vector", adaptive_pool_backward("add"), made)
    put("_adaptive_avg_pool3d", "vector", adaptive_pool("add"), made, _EVEN)
    put("adaptive_max_pool2d", "vector", adaptive_pool("max"), made, _EVEN)
    put("adaptive_max_pool2d_backward", "vector", adaptive_pool_backward("max"), made, _EVEN)
    put("_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_fused_attention_overrideable", "tensor", _attention, made,
        "the average run of keys where causal tiles share a loop; masks are not loaded")
    put("_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_flash_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward", "tensor",
        _attention_backward, made, "as the forward pass")
    put("native_dropout dropout", "vector", _dropout, made, "the random bits are ours")
    put("_fused_adamw _fused_adam _fused_sgd _fused_adagrad", "vector", fused, made,
        "tensors as one run of elements; one step count for all")
    for name in ("add sub mul div neg sqrt rsqrt exp abs reciprocal zero copy lerp addcdiv addcmul "
                 "maximum minimum clamp_min clamp_max pow sigmoid tanh log sign").split():
        alike = next(r for r in rows if r.name == name)
        put(f"_foreach_{name}", "vector", foreach, alike.status, _LISTS)
    put("_foreach_norm _foreach_max", "vector", foreach_reduction, made, _LISTS)
    put("_amp_foreach_non_finite_check_and_unscale", "vector", unscale, made,
        "tensors as one run of elements")
    put("_local_scalar_dense item", "dma", _item, made, "the host waits for the value")
    put("empty empty_strided empty_like new_empty new_empty_strided resize set view as_strided "
        "_reshape_alias detach alias expand t transpose permute select slice squeeze unsqueeze "
        "unbind split split_with_sizes reshape _unsafe_view view_as lift lift_fresh diagonal "
        "empty_permuted unfold chunk flatten is_set_to _resize_output narrow "
        "swapaxes movedim _has_compatible_shallow_copy_type is_same_size view_as_real "
        "view_as_complex sym_size sym_numel sym_stride record_stream requires_grad "
        "_fused_sdp_choice data is_pinned", "none", _nothing, "free")
    # fmt: on
    return rows


OPS: Mapping[str, Op] = MappingProxyType({row.name: row for row in _table()})
