"""OPS: one row per aten operator, for all its overloads: what it becomes on the engines.

A row names the engine that does the work, the lowering, how sure we are of its price, and what it
leaves out. To add an operator, add a row (elementwise ones: a line in `elementwise.py`). What has
no row is priced by a class (`classes.py`).
"""

from collections.abc import Mapping
from math import ceil, prod
from types import MappingProxyType

from ..isa import Program, itemsize
from .attention import attention, attention_backward
from .call import Call, Target
from .convolution import conv2d
from .copies import (
    concatenate,
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
from .matmul import matmul
from .norms import batch_norm, batch_norm_backward, group_norm, group_norm_backward
from .op import HostTransfer, Lowered, Lowering, Op, dense, flat
from .optimizers import fused, unscale
from .pointwise import pointwise, tensor_scalar
from .pools import adaptive_pool, adaptive_pool_backward, average_pool, max_pool
from .products import compute_format, format_of, lower_addbmm, lower_matmul
from .reduction import reduce_rows
from .reductions import (
    along_rows,
    over_normalized,
    reduction,
    scan,
    sort,
)

__all__ = ["OPS", "HostTransfer", "Lowered", "Op", "compute_format", "copied", "dense", "flat"]


# --- convolution, pooling, attention -------------------------------------------------------------


def _window(call: Call, position: int, rank: int, default: int) -> tuple[int, ...]:
    given = call.argument(position, ())
    given = given if isinstance(given, tuple) else (given,)
    return (tuple(given) or (default,)) * (rank if len(given) <= 1 else 1)


def _implicit(
    m: int, k: int, n: int, groups: int, call: Call, target: Target, **layouts: str
) -> Program:
    """A convolution as a product over channels and taps, with patches read straight from HBM."""
    dtype = call.out.dtype
    return matmul(
        m,
        k,
        n,
        chip=target.chip,
        compute=format_of(call, target, dtype, "convolution"),
        lhs_dtype=dtype,
        rhs_dtype=dtype,
        out_dtype=dtype,
        batch=groups,
        cores=target.cores,
        **layouts,  # type: ignore[arg-type]
    )


def _convolution(call: Call, target: Target) -> Lowered:
    x, w, out = call.tensors[0], call.tensors[1], call.out
    rank = len(w.shape) - 2
    transposed, groups = bool(call.argument(6, False)), int(call.argument(8, 1) or 1)
    if not out.numel or not x.numel:
        return ()
    stride, padding = _window(call, 3, rank, 1), _window(call, 4, rank, 0)
    dilation = _window(call, 5, rank, 1)
    taps = prod(w.shape[2:])
    plain = rank == 2 and groups == 1 and not transposed and set(stride) | set(dilation) == {1}
    if plain and w.shape[2] == w.shape[3] and x.shape[3] + 2 * padding[1] <= 512:
        program = conv2d(
            x.shape[0],
            x.shape[1],
            x.shape[2] + 2 * padding[0],
            x.shape[3] + 2 * padding[1],
            w.shape[0],
            w.shape[2],
            chip=target.chip,
            dtype=format_of(call, target, x.dtype, "convolution"),
            cores=target.cores,
        )
        return (program,)
    pixels = out.shape[0] * prod(out.shape[2:])
    if transposed:
        pixels = x.shape[0] * prod(x.shape[2:])
        return (_implicit(pixels, x.shape[1] // groups, w.shape[1] * taps, groups, call, target),)
    m, k = out.shape[1] // groups, w.shape[1] * taps
    return (_implicit(m, k, pixels, groups, call, target, rhs_layout="kn"),)


def _convolution_backward(call: Call, target: Target) -> Lowered:
    """The two products of the gradients, and the sum for the bias."""
    g, x, w = call.tensors[:3]
    if not g.numel or not x.numel:
        return ()
    named = call.name == "convolution_backward" and isinstance(call.argument(3), tuple)
    booleans = [a for a in call.arguments if isinstance(a, bool)]
    mask = booleans[-3:] if len(booleans) >= 3 else [True, True, True]
    last = call.arguments[-1] if call.arguments else None
    if isinstance(last, tuple) and len(last) == 3 and isinstance(last[0], bool):
        mask = list(last)
    integers = [a for a in call.arguments if isinstance(a, int) and not isinstance(a, bool)]
    groups = integers[-1] if integers and named else 1
    taps, pixels = prod(w.shape[2:]), g.shape[0] * prod(g.shape[2:])
    out_channels, in_channels = g.shape[1] // groups, x.shape[1] // groups
    programs: list[Program] = []
    if mask[0]:
        n = x.shape[0] * prod(x.shape[2:])
        k = out_channels * taps
        programs.append(_implicit(in_channels, k, n, groups, call, target))
    if mask[1]:
        layouts = {"lhs_layout": "mk", "rhs_layout": "nk"}
        depth = min(pixels, 16384)  # longer contractions add their parts
        program = _implicit(
            out_channels, depth, in_channels * taps, groups, call, target, **layouts
        )
        programs += [program] * ceil(pixels / depth)
    if mask[2]:
        channels, columns = g.shape[1], pixels
        programs.append(reduce_rows(channels, columns, op="add", chip=target.chip, dtype=g.dtype))
    return tuple(programs)


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
    x = call.tensors[0]
    if not x.numel:
        return ()
    steps = [
        random_bits(),
        tensor_scalar(-1, op0="multiply", imm0=2.0**-32),
        drop(0, -1),
        tensor_scalar(-1, op0="multiply", imm0=2.0),
        tensor_scalar(-3, op0="greater", imm0=0.5),
    ]
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
                exact = name not in SIMPLIFIED
                add(name, "vector", lower_elementwise, made if exact else "inferred", bits)
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
    put("sum", "vector", reduction("add"), made)
    put("nansum count_nonzero", "vector", reduction("add"), "inferred", "as the sum")
    put("mean", "vector", reduction("add", "mean"), made)
    put("amax max", "vector", reduction("max"), made)
    put("amin min aminmax argmax argmin median kthvalue mode", "vector", reduction("max"),
        "inferred", "as the maximum")
    put("prod", "vector", reduction("multiply"))
    put("all", "vector", reduction("logical_and"))
    put("any equal", "vector", reduction("logical_or"), "inferred", "as a reduction of the first")
    put("var std var_mean std_mean", "vector", reduction("add", "variance"), "inferred",
        "along rows in one pass; along columns as a sum")
    put("norm linalg_vector_norm frobenius_norm", "vector", reduction("add", "norm"), "inferred",
        "the 2-norm")
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
    put("cat stack _cat _chunk_cat", "dma", concatenate)
    put("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
        "flip roll repeat slice_backward select_backward diagonal_backward unfold_backward "
        "slice_scatter select_scatter as_strided_scatter tril triu repeat_interleave "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_nearest2d_backward "
        "upsample_bilinear2d_backward pixel_shuffle pixel_unshuffle im2col col2im", "dma",
        rearranged)
    put("embedding index_select index _unsafe_index gather take masked_select nonzero "
        "take_along_dim", "dma", gather)
    put("embedding_dense_backward", "dma", scatter(0, copies=False), made)
    put("index_add index_copy", "dma", scatter(2, copies=True))
    put("scatter scatter_add scatter_reduce index_put _index_put_impl _unsafe_index_put put "
        "masked_scatter index_fill", "dma", scatter(9, copies=True))
    put("nll_loss_forward nll_loss nll_loss2d_forward", "dma", nll)
    put("nll_loss_backward nll_loss2d_backward", "dma", nll_backward)
    put("convolution convolution_overrideable _convolution conv2d conv1d", "tensor", _convolution,
        "inferred", "strided and grouped ones as a product over channels and taps")
    put("convolution_backward convolution_backward_overrideable", "tensor", _convolution_backward,
        "inferred", "two products over patches read from HBM")
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
    put("native_dropout dropout", "vector", _dropout, "inferred", "the random bits are ours")
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
