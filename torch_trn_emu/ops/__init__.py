"""OPS: one row per aten operator, for all its overloads: what it becomes on the engines.

A row names the engine that does the work, the lowering, how sure we are of its price, and what it
leaves out. To add an operator, add a row (elementwise ones: a line in `elementwise.py`). What has
no row is priced by a class (`classes.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ..calls import Call, Target
from ..calls.labels import labelled
from ..isa import itemsize
from ..kernels.pointwise import pointwise
from .activations import ACTIVATIONS
from .arange import numbers
from .attention import ATTENTION, ATTENTION_BACKWARD
from .attributes import MADE_VALUES
from .batch_norm import batch_norm, batch_norm_backward, group_norm, group_norm_backward
from .concatenation import (
    concatenate,
    exact,
    flipped,
    padding,
    repeated,
    roll,
    scatter_slice,
    select_backward,
    sliced_backward,
)
from .convolution import convolution, convolution_backward
from .copies import copied, copy
from .elementwise import BINARY, CHOSEN, TERNARY, UNARY, lower_elementwise
from .factories import eye, repeated_places, triangle_indices
from .foreach import foreach, foreach_reduction
from .formulas import Made, Value, finished, in_float32
from .gates import glu, glu_backward, prelu_backward
from .im2col import fold, unfold
from .indexing import (
    along,
    at_elements,
    at_flat,
    at_tensors,
    counted,
    embedding_gradient,
    gathered,
    rows_of_weights,
    scattered,
    unmasked,
)
from .interpolation import resampling
from .kth import kth, median, nanmedian, randperm, top
from .loss_steps import GRADIENTS, LOSSES
from .losses import loss
from .masked_select import nonzero, select_masked, spread_masked
from .max_and_min import extreme, largest
from .nll_loss import nll, nll_backward
from .op import AnyLowering, HostTransfer, Lowered, Op, dense, flat, on_cores_with_work
from .optimizers import fused, unscale
from .pooling import adaptive_pool, average_pool, max_pool
from .products import Product, compute_format, lower_addbmm, lower_matmul, multiplied, product_of
from .random import DRAWS, uniform
from .reductions import (
    all_equal,
    along_rows,
    average,
    moments,
    nonzeros,
    one_after_the_other,
    over_normalized,
    p_norm,
    reduction,
    simple,
    truth,
    without_nan,
)
from .scaled_products import (
    grouped,
    lower_scaled_mm,
    of_codes,
    scaled_grouped,
    with_packed_weight,
    with_sparse_weight,
)
from .scans import extremes, logarithms, scan
from .searchsorted import multinomial, search
from .sorting import flat_sort, sort
from .strided_copies import (
    chunked,
    diagonal_backward,
    pixel_shuffle,
    strided,
    unfold_backward,
    upsample_nearest,
)
from .triangles import triangle
from .unique import distinct

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


# --- optimizers, lists, random -------------------------------------------------------------------


def _dropout(call: Call, target: Target) -> Lowered:
    """Random bits, the choice, the scale; the mask is stored too."""
    x, p, trains = call.argument(0), float(call.argument(1, 0.5)), call.argument(2, True)
    if not trains:
        return copied(x, call.out, target)
    made: Made = []
    bits = uniform(made)
    in_float32(made)
    kept = Value(made, 0).step("dropout", bits, threshold=p)
    scaled = kept * (1 / (1 - p) if p < 1 else 0.0)
    mask = bits.step("tensor_scalar", dtype="bool", op0="greater_equal", imm0=p)
    steps = finished(made, scaled, mask)
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
    names = zip(("out", "out1"), call.outputs, strict=False)
    return (labelled(program, {"in0": x, **dict(names)}),)


def _item(call: Call, target: Target) -> HostTransfer:
    return HostTransfer(itemsize(call.tensors[0].dtype), True)


def _nothing(call: Call, target: Target) -> Lowered:
    return ()


# --- the table -----------------------------------------------------------------------------------


_CONV = (
    "operands follow the precision policy; assumes contiguous memory; one channel per group "
    "runs on the Vector engine"
)
_EVEN = "windows of unequal size are priced by class"
_PARTS = "parts of the table or the source are priced by class"
_APART = "assumes contiguous memory; dimensions that are not adjacent are priced by class"
_MASKED = "assumes that every element is moved: the selection is data; runs on one core"
_AHEAD = "over a non-last dimension: priced as if that dimension were contiguous"
_UNMASKED = "priced without the mask"
_CODES = (
    "assumes MX codes stored as the array reads them; "
    "scales for blocks of 128 are priced as row scales"
)
_EQUAL = "assumes groups of equal size: the actual sizes are data"
_NCHW = "assumes contiguous memory, [N, C, ...]"
_LISTS = "priced as one contiguous tensor; the first of several scalars stands for all"


def _row(
    names: str,
    engine: str,
    lower: AnyLowering,
    status: str = "inferred",
    note: str = "",
) -> tuple[Op, ...]:
    """The rows of operators that are lowered alike."""
    return tuple(
        Op(name=n, engine=engine, lower=lower, status=status, note=note) for n in names.split()
    )


_LINES = ("arange", "linspace", "range")
MADE, BITS = "modelled", "rounded once to the result's dtype"

# fmt: off
_ROWS = (
    # --- elementwise
    *(_row(n, "vector", lower_elementwise, MADE, BITS)
      for recipes in (UNARY, BINARY, TERNARY, ACTIVATIONS) for n in recipes if n not in CHOSEN),
    _row(" ".join(MADE_VALUES), "vector", lower_elementwise, MADE,
         "the value of a host tensor is assumed to be 0"),
    _row(" ".join(DRAWS), "vector", lower_elementwise, MADE,
         "the random numbers come from the host's generator"),
    _row("floor_divide remainder fmod", "vector", lower_elementwise, MADE,
         "assumes quotients below 2^23"),
    _row(" ".join(_LINES), "vector", numbers, MADE),
    _row("glu", "vector", glu, MADE),
    _row("glu_backward", "vector", glu_backward, MADE),
    _row("_prelu_kernel_backward", "vector", prelu_backward, MADE),
    _row("eye", "gpsimd", eye, MADE),
    _row("tril_indices triu_indices", "dma", triangle_indices, MADE, "runs on one core"),
    _row("multinomial", "vector", multinomial, MADE,
         "the random numbers come from the host's generator"),
    _row(" ".join(LOSSES), "vector", loss, MADE, "weights that repeat are read in full for a sum"),
    _row(" ".join(GRADIENTS), "vector", lower_elementwise, MADE, BITS),
    _row("where masked_fill", "vector", lower_elementwise, MADE),
    # --- products
    _row("_scaled_mm", "tensor", lower_scaled_mm, MADE, _CODES),
    _row("_scaled_mm_v2", "tensor", lower_scaled_mm, "inferred", _CODES),
    _row("mx_matmul", "tensor", of_codes, "inferred",
         "assumes codes stored as the array reads them"),
    _row("_grouped_mm", "tensor", grouped, "inferred", _EQUAL),
    _row("_scaled_grouped_mm", "tensor", scaled_grouped(2, 4), "inferred", _EQUAL),
    _row("_scaled_grouped_mm_v2", "tensor", scaled_grouped(2, 8), "inferred", _EQUAL),
    _row("_weight_int4pack_mm _weight_int8pack_mm _mixed_dtypes_linear", "tensor",
         with_packed_weight, "inferred", "the weight is read as bfloat16"),
    *(_row(name, "tensor", with_sparse_weight(at), "inferred", "the weight is read dense")
      for name, at in (("_cslt_sparse_mm", 1), ("_sparse_semi_structured_mm", 2),
                       ("_sparse_semi_structured_addmm", 3))),
    _row("mm bmm mv dot vdot linear", "tensor", lower_matmul, MADE,
         "operands follow the precision policy"),
    _row("addmm baddbmm addmv _addmm_activation", "tensor", lower_matmul, MADE,
         "operands follow the precision policy"),
    _row("addbmm", "tensor", lower_addbmm, MADE, "the batch's products are stored, then summed"),
    # --- reductions
    _row("sum", "vector", reduction(simple("add")), MADE),
    _row("mean", "vector", reduction(average), MADE),
    _row("amax", "vector", reduction(simple("max")), MADE),
    _row("amin", "vector", reduction(simple("min")), MADE),
    _row("max", "vector", extreme("max", 1.0), MADE),
    _row("min", "vector", extreme("min", -1.0), MADE),
    _row("argmax", "vector", largest(1.0), MADE),
    _row("argmin", "vector", largest(-1.0), MADE),
    _row("aminmax", "vector", one_after_the_other(reduction(simple("min")),
                                                  reduction(simple("max"))), MADE),
    _row("mode", "vector", largest(1.0), "inferred", "priced as `max` with its index"),
    _row("prod", "vector", reduction(simple("multiply")), MADE),
    _row("all", "vector", reduction(truth("min")), MADE),
    _row("any", "vector", reduction(truth("max")), MADE),
    _row("equal", "vector", all_equal, MADE),
    _row("count_nonzero", "vector", reduction(nonzeros), MADE),
    _row("nansum", "vector", without_nan(reduction(simple("add"))), MADE),
    _row("var std var_mean std_mean", "vector", moments, MADE),
    _row("norm linalg_vector_norm frobenius_norm", "vector", reduction(p_norm), MADE),
    # --- softmax and norms
    _row("logsumexp", "scalar", along_rows("logsumexp", {"x": 0}, 1), MADE, _AHEAD),
    _row("_softmax softmax", "scalar", along_rows("softmax", {"x": 0}, 1), MADE, _AHEAD),
    _row("_safe_softmax", "scalar", along_rows("safe_softmax", {"x": 0}, 1), MADE, _AHEAD),
    _row("_log_softmax log_softmax", "scalar", along_rows("log_softmax", {"x": 0}, 1), MADE,
         _AHEAD),
    _row("_softmax_backward_data", "vector",
         along_rows("softmax_backward", {"g": 0, "y": 1}, 2), MADE, _AHEAD),
    _row("_log_softmax_backward_data", "vector",
         along_rows("log_softmax_backward", {"g": 0, "y": 1}, 2), MADE, _AHEAD),
    _row("native_layer_norm layer_norm", "vector",
         over_normalized("layer_norm", {"x": 0, "w": 2, "b": 3}), MADE),
    _row("native_layer_norm_backward", "vector",
         over_normalized("layer_norm_backward",
                         {"g": 0, "x": 1, "mean": 3, "rstd": 4, "w": 5}), MADE),
    _row("rms_norm _fused_rms_norm", "vector",
         over_normalized("rms_norm", {"x": 0, "w": 2}), MADE),
    _row("_fused_rms_norm_backward", "vector",
         over_normalized("rms_norm_backward", {"g": 0, "x": 1, "rstd": 3, "w": 4}), MADE),
    _row("native_batch_norm _native_batch_norm_legit _batch_norm_with_update batch_norm "
         "_native_batch_norm_legit_no_training _batch_norm_no_update", "vector", batch_norm, MADE,
         _NCHW),
    _row("native_batch_norm_backward batch_norm_backward", "vector", batch_norm_backward, MADE,
         _NCHW),
    _row("native_group_norm", "vector", group_norm, MADE, _NCHW),
    _row("native_group_norm_backward", "vector", group_norm_backward, MADE, _NCHW),
    # --- scans and sorts
    _row("cumsum", "vector", scan("add"), MADE),
    _row("logcumsumexp", "vector", logarithms(), MADE),
    _row("cumprod", "vector", scan("multiply"), MADE),
    _row("cummax", "vector", extremes("max"), MADE),
    _row("cummin", "vector", extremes("min"), MADE),
    _row("topk", "vector", top, MADE, "indices of equal elements may differ"),
    _row("sort argsort msort", "vector", sort, MADE, "the order of equal elements is not kept"),
    _row("kthvalue", "vector", kth, MADE, "indices of equal elements may differ"),
    _row("median", "vector", median, MADE, "the index of a NaN is that of the middle element"),
    _row("nanmedian", "vector", nanmedian, MADE, "indices of equal elements may differ"),
    _row("randperm", "vector", randperm, MADE, "the random numbers come from the host's generator"),
    _row("_unique2 unique_consecutive", "dma", distinct, MADE,
         "assumes that every element is moved; runs on one core; with `dim`: priced by class"),
    _row("unique_dim", "vector", flat_sort, "inferred", "priced as a sort of all elements"),
    # --- movement
    _row("copy clone contiguous _to_copy _copy_from _copy_from_and_resize lift_fresh_copy "
         "_pin_memory", "dma", copy, MADE),
    _row("cat stack _cat", "dma", concatenate, MADE),
    _row("_chunk_cat", "dma", chunked, MADE),
    _row("constant_pad_nd", "dma", exact(padding("constant"), constant_at=2), MADE),
    _row("reflection_pad1d reflection_pad2d", "dma", exact(padding("reflect")), MADE),
    _row("replication_pad1d replication_pad2d", "dma", exact(padding("edge")), MADE),
    _row("flip", "dma", exact(flipped), MADE),
    _row("roll", "dma", roll, MADE),
    _row("repeat", "dma", exact(repeated), MADE),
    _row("slice_backward", "dma", exact(sliced_backward), MADE),
    _row("select_backward", "dma", select_backward, MADE),
    _row("slice_scatter select_scatter", "dma", scatter_slice, MADE),
    _row("pixel_shuffle pixel_unshuffle", "dma", pixel_shuffle, MADE),
    _row("upsample_nearest1d upsample_nearest2d", "dma", upsample_nearest, MADE),
    _row("upsample_nearest2d_backward _upsample_nearest_exact2d upsample_nearest1d_backward "
         "_upsample_nearest_exact2d_backward", "tensor", resampling(1), MADE),
    _row("upsample_bilinear2d upsample_bilinear2d_backward _upsample_bilinear2d_aa "
         "_upsample_bilinear2d_aa_backward upsample_linear1d upsample_linear1d_backward", "tensor",
         resampling(1), MADE),
    _row("upsample_bicubic2d upsample_bicubic2d_backward _upsample_bicubic2d_aa "
         "_upsample_bicubic2d_aa_backward", "tensor", resampling(2), MADE),
    _row("tril", "dma", triangle(lower=True), MADE),
    _row("triu", "dma", triangle(lower=False), MADE),
    _row("diagonal_backward", "dma", diagonal_backward, MADE),
    _row("im2col", "vector", unfold, MADE),
    _row("col2im", "vector", fold, MADE),
    _row("as_strided_scatter", "dma", strided, MADE),
    _row("unfold_backward", "dma", unfold_backward, MADE,
         "overlapping windows are priced by class"),
    _row("repeat_interleave", "dma", repeated_places, MADE,
         "assumes that every element is moved: the counts are data; runs on one core"),
    # --- indexing
    _row("embedding", "dma", gathered(rows_of_weights), MADE),
    _row("index_select", "dma", gathered(along), MADE),
    _row("gather", "dma", gathered(at_elements), MADE, _PARTS),
    _row("index _unsafe_index", "dma", gathered(at_tensors), MADE, _APART),
    _row("take", "dma", gathered(at_flat), MADE),
    _row("embedding_dense_backward", "dma", embedding_gradient, MADE),
    _row("bincount", "dma", counted, MADE),
    _row("searchsorted bucketize", "vector", search, MADE,
         "for a number, or with a sorter: priced by class"),
    _row("index_add", "dma", scattered(along, 3, adds=True), MADE),
    _row("index_copy index_fill", "dma", scattered(along, 3, adds=False), MADE),
    _row("scatter_add", "dma", scattered(at_elements, 3, adds=True), MADE, _PARTS),
    _row("scatter scatter_reduce", "dma", scattered(at_elements, 3), MADE,
         "other reductions than sums, and " + _PARTS),
    _row("index_put _index_put_impl _unsafe_index_put", "dma", scattered(at_tensors, 2), MADE,
         _APART),
    _row("_unsafe_masked_index", "dma", unmasked("aten::index", gathered(at_tensors)),
         "inferred", _UNMASKED),
    _row("_unsafe_masked_index_put_accumulate", "dma",
         unmasked("aten::index_put_", scattered(at_tensors, 2), True), "inferred",
         _UNMASKED + ", and in place"),
    _row("put", "dma", scattered(at_flat, 2), MADE),
    _row("masked_select", "dma", select_masked, MADE, _MASKED),
    _row("nonzero", "dma", nonzero, MADE, _MASKED),
    _row("masked_scatter", "dma", spread_masked, MADE, _MASKED),
    _row("nll_loss_forward nll_loss nll_loss2d_forward nll_loss2d", "dma", nll, MADE),
    _row("nll_loss_backward nll_loss2d_backward", "dma", nll_backward, MADE),
    # --- windows
    _row("convolution convolution_overrideable _convolution conv3d conv2d conv1d", "tensor",
         convolution, MADE, _CONV),
    _row("convolution_backward convolution_backward_overrideable", "tensor", convolution_backward,
         MADE, _CONV),
    _row("max_pool2d_with_indices max_pool2d max_pool1d max_pool3d_with_indices",
         "vector", max_pool, MADE),
    _row("_low_memory_max_pool_with_offsets", "vector", max_pool, "inferred",
         "indices into the input are stored as offsets in the window"),
    _row("max_pool2d_with_indices_backward max_pool3d_with_indices_backward", "vector", max_pool,
         MADE),
    _row("avg_pool2d avg_pool1d avg_pool3d", "vector", average_pool, MADE),
    _row("avg_pool2d_backward avg_pool3d_backward", "vector", average_pool, MADE),
    _row("_adaptive_avg_pool2d adaptive_avg_pool2d", "vector", adaptive_pool("add"), MADE),
    _row("_adaptive_avg_pool2d_backward", "vector", adaptive_pool("add"), MADE),
    _row("_adaptive_avg_pool3d", "vector", adaptive_pool("add"), MADE, _EVEN),
    _row("adaptive_max_pool2d", "vector", adaptive_pool("max"), MADE, _EVEN),
    _row("adaptive_max_pool2d_backward", "vector", adaptive_pool("max"), MADE, _EVEN),
    # --- attention
    _row("_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
         "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
         "_scaled_dot_product_fused_attention_overrideable", "tensor", ATTENTION, MADE,
         "head_dim above 128 is priced as several heads"),
    _row("_scaled_dot_product_flash_attention_for_cpu_backward "
         "_scaled_dot_product_flash_attention_backward "
         "_scaled_dot_product_fused_attention_overrideable_backward", "tensor",
         ATTENTION_BACKWARD, MADE, "head_dim above 128 is priced as several heads"),
    # --- training
    _row("native_dropout dropout", "vector", _dropout, MADE, "the random bits are the emulator's"),
    _row("_fused_adamw _fused_adam _fused_sgd _fused_adagrad", "vector", fused, MADE,
         "priced as one contiguous tensor, with one step count"),
    # --- lists, host, metadata
    _row("_foreach_norm _foreach_max", "vector", foreach_reduction, MADE, _LISTS),
    _row("_amp_foreach_non_finite_check_and_unscale", "vector", unscale, MADE,
         "priced as one contiguous tensor"),
    _row("_local_scalar_dense item", "dma", _item, MADE, "the host waits for the value"),
    _row("empty empty_strided empty_like new_empty new_empty_strided resize set view as_strided "
         "_reshape_alias detach alias expand t transpose permute select slice squeeze unsqueeze "
         "unbind split split_with_sizes reshape _unsafe_view view_as lift lift_fresh diagonal "
         "empty_permuted unfold chunk flatten is_set_to _resize_output narrow "
         "swapaxes movedim _has_compatible_shallow_copy_type is_same_size view_as_real "
         "view_as_complex sym_size sym_numel sym_stride record_stream requires_grad "
         "_fused_sdp_choice data is_pinned", "none", _nothing, "free"),
)
# fmt: on

_FOREACH = (
    "add sub mul div neg sqrt rsqrt exp abs reciprocal zero copy lerp addcdiv addcmul "
    "maximum minimum clamp_min clamp_max pow sigmoid tanh log sign"
)


def _table() -> dict[str, Op]:
    """All rows by name; a later row stands for an earlier one."""
    table = {row.name: row for rows in _ROWS for row in rows}
    for name in _FOREACH.split():  # as sure as the operator on one tensor
        (row,) = _row(f"_foreach_{name}", "vector", foreach, table[name].status, _LISTS)
        table[row.name] = row
    return {name: replace(row, lower=on_cores_with_work(row.lower)) for name, row in table.items()}


OPS: Mapping[str, Op] = MappingProxyType(_table())
