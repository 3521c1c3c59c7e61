"""Every row of OPS called modelled computes its values on the machine, on two cores if it can."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.activations import ACTIVATIONS
from torch_trn_emu.ops.elementwise import BINARY, TERNARY, UNARY
from torch_trn_emu.parity.noise import SAFETY, unit_roundoff

from .on_cores import computed
from .test_special_values import overload

aten = torch.ops.aten
MODELLED = [n for n, row in OPS.items() if row.status == "modelled"]

# Rows that give no tensor, or of which the machine cannot have the values, with the reason.
EXCEPTIONS = dict.fromkeys(
    ("item", "_local_scalar_dense"), "the value goes to the host over the link: no program"
) | dict.fromkeys(
    [n for n in MODELLED if n.startswith(("upsample_", "_upsample_"))
     and n not in ("upsample_nearest1d", "upsample_nearest2d")],
    "the matrices of weights that its products read are not made from the call",
)  # fmt: skip
# Rows whose cores' parts are not parts of the results in order, so that they run on one core.
ONE_CORE = frozenset(
    "_chunk_cat cat stack _cat constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d flip roll repeat slice_backward select_backward slice_scatter "
    "select_scatter pixel_shuffle pixel_unshuffle upsample_nearest1d upsample_nearest2d "
    "diagonal_backward as_strided_scatter unfold_backward "  # a core has its part of each box
    "embedding_dense_backward bincount "  # each core clears its part, then adds to all
    "tril_indices triu_indices".split()  # of one matrix a core has every other tile of rows
)

RANDOM = torch.Generator().manual_seed(23)


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM)


def u(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=RANDOM) * 0.8 + 0.1


def i(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=RANDOM)


def mask(*shape: int) -> torch.Tensor:
    return x(*shape) > 0


Case = tuple[Any, ...]  # an overload and its arguments
T = Callable[[], Case]
# fmt: off
CALLS: dict[str, T] = {
    "log_sigmoid_backward": lambda: _log_sigmoid(x(9, 4)),
    "native_dropout_backward": lambda: (aten.native_dropout_backward.default, x(9, 4), mask(9, 4), 2.0),
    "floor_divide": lambda: (aten.floor_divide.default, x(9, 4), u(9, 4)),
    "remainder": lambda: (aten.remainder.Tensor, x(9, 4), u(9, 4)),
    "fmod": lambda: (aten.fmod.Tensor, x(9, 4), u(9, 4)),
    "clamp": lambda: (aten.clamp.default, x(9, 4), -0.5, 0.5),
    "arange": lambda: (aten.arange.start_step, 1, 9.0, 2),
    "range": lambda: (aten.range.step, 1, 9.0, 2),
    "linspace": lambda: (aten.linspace.default, 1, 9.0, 5),
    "glu": lambda: (aten.glu.default, x(9, 4, 3), 1),
    "glu_backward": lambda: (aten.glu_backward.default, x(9, 2, 3), x(9, 4, 3), 1),
    "_prelu_kernel": lambda: (aten._prelu_kernel.default, x(9, 4), x(1, 4)),
    "_prelu_kernel_backward": lambda: (aten._prelu_kernel_backward.default, x(9, 4), x(9, 4), x(1, 4)),
    "threshold": lambda: (aten.threshold.default, x(9, 4), 0.1, 2.0),
    "threshold_backward": lambda: (aten.threshold_backward.default, x(9, 4), x(9, 4), 0.1),
    "elu_backward": lambda: (aten.elu_backward.default, x(9, 4), 0.7, 1, 1, False, x(9, 4)),
    "leaky_relu_backward": lambda: (aten.leaky_relu_backward.default, x(9, 4), x(9, 4), 0.1, False),
    "hardtanh_backward": lambda: (aten.hardtanh_backward.default, x(9, 4), x(9, 4), -1, 1),
    "softplus_backward": lambda: (aten.softplus_backward.default, x(9, 4), x(9, 4), 1, 20),
    "softshrink_backward": lambda: (aten.softshrink_backward.default, x(9, 4), x(9, 4), 0.5),
    "hardshrink_backward": lambda: (aten.hardshrink_backward.default, x(9, 4), x(9, 4), 0.5),
    "mish_backward": lambda: (aten.mish_backward.default, x(9, 4), x(9, 4)),
    "logit": lambda: (aten.logit.default, u(9, 4)),
    "logit_backward": lambda: (aten.logit_backward.default, x(9, 4), u(9, 4)),
    "eye": lambda: (aten.eye.m, 9, 5),
    "tril_indices": lambda: (aten.tril_indices.default, 9, 5, 1),
    "triu_indices": lambda: (aten.triu_indices.default, 9, 5, 1),
    "where": lambda: (aten.where.self, mask(9, 4), x(9, 4), x(1, 4)),
    "masked_fill": lambda: (aten.masked_fill.Scalar, x(9, 4), mask(9, 4), 2.5),
    "_scaled_mm": lambda: (aten._scaled_mm.default, x(32, 64).to(torch.float8_e4m3fn),
                           x(32, 64).to(torch.float8_e4m3fn).t(), u(1)[0], u(1)[0], None, None,
                           torch.bfloat16),
    "mm": lambda: (aten.mm.default, x(300, 70), x(70, 40)),
    "bmm": lambda: (aten.bmm.default, x(3, 33, 70), x(3, 70, 20)),
    "mv": lambda: (aten.mv.default, x(300, 70), x(70)),
    "dot": lambda: (aten.dot.default, x(70), x(70)),
    "vdot": lambda: (aten.vdot.default, x(70), x(70)),
    "linear": lambda: (aten.linear.default, x(2, 33, 70), x(90, 70), x(90)),
    "addmm": lambda: (aten.addmm.default, x(33, 90), x(33, 70), x(70, 90)),
    "baddbmm": lambda: (aten.baddbmm.default, x(3, 33, 20), x(3, 33, 70), x(3, 70, 20)),
    "addmv": lambda: (aten.addmv.default, x(300), x(300, 70), x(70)),
    "_addmm_activation": lambda: (aten._addmm_activation.default, x(20), x(33, 70), x(70, 20)),
    "addbmm": lambda: (aten.addbmm.default, x(33, 20), x(3, 33, 70), x(3, 70, 20)),
    "sum": lambda: (aten.sum.dim_IntList, x(200, 9), [1]),
    "mean": lambda: (aten.mean.dim, x(9, 200), [0]),
    "amax": lambda: (aten.amax.default, x(9, 20, 4), [1]),
    "amin": lambda: (aten.amin.default, x(9, 20, 4), [0, 2]),
    "max": lambda: (aten.max.dim, x(9, 40), 1),
    "min": lambda: (aten.min.dim, x(9, 40), 1),
    "argmax": lambda: (aten.argmax.default, x(9, 40), 1),
    "argmin": lambda: (aten.argmin.default, x(9, 40), 1),
    "aminmax": lambda: (partial(aten.aminmax.default, dim=1), x(9, 40)),
    "prod": lambda: (aten.prod.dim_int, u(9, 40), 1),
    "all": lambda: (aten.all.dim, mask(9, 4), 1),
    "any": lambda: (aten.any.dim, mask(9, 4), 1),
    "count_nonzero": lambda: (aten.count_nonzero.dim_IntList, x(9, 40).relu(), [1]),
    "nansum": lambda: (aten.nansum.default, x(9, 40).log(), [1]),
    "var": lambda: (aten.var.correction, x(9, 40), [1]),
    "std": lambda: (aten.std.correction, x(9, 40), [0]),
    "var_mean": lambda: (aten.var_mean.correction, x(9, 40), [1]),
    "std_mean": lambda: (aten.std_mean.correction, x(9, 40), [0]),
    "norm": lambda: (aten.norm.ScalarOpt_dim, x(9, 40), 2, [1]),
    "linalg_vector_norm": lambda: (aten.linalg_vector_norm.default, x(9, 40), 1, [1]),
    "frobenius_norm": lambda: (aten.frobenius_norm.dim, x(9, 40), [1]),
    "logsumexp": lambda: (aten.logsumexp.default, x(9, 40), [1]),
    **{n: partial(lambda n: (getattr(aten, n).default, x(9, 40, 3), 1, False), n)
       for n in ("_softmax", "_log_softmax")},
    "softmax": lambda: (aten.softmax.int, x(9, 40), 1),
    "log_softmax": lambda: (aten.log_softmax.int, x(9, 40), 0),
    "_safe_softmax": lambda: (aten._safe_softmax.default, x(9, 40), 1),
    **{n: partial(lambda n: (getattr(aten, n).default, x(9, 40), u(9, 40), 1, torch.float32), n)
       for n in ("_softmax_backward_data", "_log_softmax_backward_data")},
    "native_layer_norm": lambda: (aten.native_layer_norm.default, x(9, 40), [40], x(40), x(40), 1e-5),
    "layer_norm": lambda: (aten.layer_norm.default, x(9, 40), [40], None, None, 1e-5),
    "native_layer_norm_backward": lambda: (
        aten.native_layer_norm_backward.default, x(9, 40), x(9, 40), [40], x(9, 1), u(9, 1), x(40),
        x(40), [True, True, True]),
    "rms_norm": lambda: (aten.rms_norm.default, x(9, 40), [40], x(40), 1e-3),
    "_fused_rms_norm": lambda: (aten._fused_rms_norm.default, x(9, 40), [40], x(40), 1e-3),
    "_fused_rms_norm_backward": lambda: (
        aten._fused_rms_norm_backward.default, x(9, 40), x(9, 40), [40], u(9, 1), x(40), [True, True]),
    **{n: partial(lambda n: (getattr(aten, n).default, x(2, 4, 3, 3), x(4), x(4), x(4), u(4), True,
                             0.1, 1e-5), n) for n in ("native_batch_norm", "_native_batch_norm_legit")},
    "_native_batch_norm_legit_no_training": lambda: (
        aten._native_batch_norm_legit_no_training.default, x(2, 4, 3, 3), x(4), x(4), x(4), u(4), 0.1, 1e-5),
    "_batch_norm_no_update": lambda: (
        aten._batch_norm_no_update.default, x(2, 4, 3, 3), x(4), x(4), x(4), u(4), 0.1, 1e-5),
    "_batch_norm_with_update": lambda: (
        aten._batch_norm_with_update.default, x(2, 4, 3, 3), x(4), x(4), x(4), u(4), 0.1, 1e-5),
    "batch_norm": lambda: (aten.batch_norm.default, x(2, 4, 3, 3), x(4), x(4), x(4), u(4), False, 0.1,
                           1e-5, False),
    "native_batch_norm_backward": lambda: (
        aten.native_batch_norm_backward.default, x(2, 4, 3, 3), x(2, 4, 3, 3), x(4), x(4), u(4), x(4),
        u(4), True, 1e-5, [True, True, True]),
    "batch_norm_backward": lambda: (
        aten.batch_norm_backward.default, x(2, 4, 3, 3), x(2, 4, 3, 3), x(4), x(4), u(4), x(4), u(4),
        True, 1e-5, [True, True, True], torch.empty(0, dtype=torch.uint8)),
    "native_group_norm": lambda: (aten.native_group_norm.default, x(2, 4, 3, 3), x(4), x(4), 2, 4, 9, 2, 1e-5),
    "native_group_norm_backward": lambda: (
        aten.native_group_norm_backward.default, x(2, 4, 3, 3), x(2, 4, 3, 3), x(2, 2), u(2, 2), x(4), 2,
        4, 9, 2, [True, True, True]),
    "cumsum": lambda: (aten.cumsum.default, x(9, 40), 1),
    "logcumsumexp": lambda: (aten.logcumsumexp.default, x(9, 40), 1),
    "cumprod": lambda: (aten.cumprod.default, u(9, 4), 1),
    "cummax": lambda: (aten.cummax.default, x(9, 40), 1),
    "cummin": lambda: (aten.cummin.default, x(9, 40), 1),
    "topk": lambda: (aten.topk.default, x(9, 40), 3),
    "sort": lambda: (aten.sort.default, x(9, 40), 0),
    "argsort": lambda: (aten.argsort.default, x(9, 40)),
    "msort": lambda: (aten.msort.default, x(9, 40)),
    "kthvalue": lambda: (aten.kthvalue.default, x(9, 40), 7),
    "median": lambda: (aten.median.dim, x(9, 40), 1),
    "nanmedian": lambda: (aten.nanmedian.default, x(9, 5)),
    "_unique2": lambda: (aten._unique2.default, i(5, 40).float(), True, True, True),
    "unique_consecutive": lambda: (aten.unique_consecutive.default, i(3, 40).float(), True, True),
    "copy": lambda: (aten.copy_.default, x(9, 4), x(4, 9).t()),
    "_copy_from": lambda: (aten.clone.default, x(9, 4)),
    "clone": lambda: (aten.clone.default, x(2, 40, 30).mT),
    "contiguous": lambda: (aten.contiguous.default, x(20, 3, 9).transpose(0, 1)),
    "_to_copy": lambda: (partial(aten._to_copy.default, dtype=torch.bfloat16), x(9, 4)),
    "lift_fresh_copy": lambda: (aten.lift_fresh_copy.default, x(9, 4)),
    "cat": lambda: (aten.cat.default, [x(4, 9), x(4, 3)], 1),
    "stack": lambda: (aten.stack.default, [x(4, 9), x(4, 9)], 1),
    "_chunk_cat": lambda: (aten._chunk_cat.default, [x(1, 2, 3), x(1, 2, 5)], -1, 5),
    "constant_pad_nd": lambda: (aten.constant_pad_nd.default, x(4, 9), [1, 2], 3.0),
    "reflection_pad1d": lambda: (aten.reflection_pad1d.default, x(4, 9), [1, 2]),
    "reflection_pad2d": lambda: (aten.reflection_pad2d.default, x(2, 4, 9), [1, 2, 1, 0]),
    "replication_pad1d": lambda: (aten.replication_pad1d.default, x(4, 9), [1, 2]),
    "replication_pad2d": lambda: (aten.replication_pad2d.default, x(2, 4, 9), [1, 2, 1, 0]),
    "flip": lambda: (aten.flip.default, x(4, 9), [1]),
    "roll": lambda: (aten.roll.default, x(4, 9), [2]),
    "repeat": lambda: (aten.repeat.default, x(4, 9), [2, 3]),
    "slice_backward": lambda: (aten.slice_backward.default, x(4, 3), [4, 9], 1, 1, 7, 2),
    "select_backward": lambda: (aten.select_backward.default, x(4), [4, 9], 1, 3),
    "slice_scatter": lambda: (aten.slice_scatter.default, x(9, 4), x(3, 4), 0, 1, 7, 2),
    "select_scatter": lambda: (aten.select_scatter.default, x(9, 4), x(9), 1, 2),
    "pixel_shuffle": lambda: (aten.pixel_shuffle.default, x(2, 8, 3, 5), 2),
    "pixel_unshuffle": lambda: (aten.pixel_unshuffle.default, x(2, 2, 4, 6), 2),
    "upsample_nearest1d": lambda: (aten.upsample_nearest1d.default, x(2, 3, 5), [10]),
    "upsample_nearest2d": lambda: (aten.upsample_nearest2d.default, x(2, 3, 5, 4), [10, 8]),
    "tril": lambda: (aten.tril.default, x(3, 20, 9)),
    "triu": lambda: (aten.triu.default, x(3, 20, 9), 1),
    "diagonal_backward": lambda: (aten.diagonal_backward.default, x(6), [6, 7], 1, 0, 1),
    "im2col": lambda: (aten.im2col.default, x(2, 3, 7, 6), [3, 3], [1, 1], [1, 1], [1, 1]),
    "col2im": lambda: (aten.col2im.default, x(2, 12, 30), [6, 7], [2, 2], [1, 1], [0, 0], [1, 1]),
    "as_strided_scatter": lambda: (aten.as_strided_scatter.default, x(9, 4), x(3, 2), [3, 2], [8, 2], 1),
    "unfold_backward": lambda: (aten.unfold_backward.default, x(3, 4, 2), [9, 4], 0, 2, 3),
    "repeat_interleave": lambda: (aten.repeat_interleave.Tensor, torch.tensor([2, 0, 3])),
    "embedding": lambda: (aten.embedding.default, x(8, 9), i(8, 2, 3)),
    "index_select": lambda: (aten.index_select.default, x(20, 9, 4), 1, i(9, 3)),
    "gather": lambda: (aten.gather.default, x(20, 9), 1, i(9, 20, 3)),
    **{n: partial(lambda n: (getattr(aten, n).Tensor, x(9, 4), [torch.tensor([3, 0, -1])]), n)
       for n in ("index", "_unsafe_index")},
    "take": lambda: (aten.take.default, x(9, 4), i(36, 7)),
    "embedding_dense_backward": lambda: (aten.embedding_dense_backward.default, x(2, 3, 9), i(8, 2, 3), 8, -1, False),
    "bincount": lambda: (aten.bincount.default, i(5, 40)),
    "searchsorted": lambda: (aten.searchsorted.Tensor, u(20).cumsum(0), u(9, 4)),
    "bucketize": lambda: (aten.bucketize.Tensor, u(9, 4), u(20).cumsum(0)),
    "index_add": lambda: (aten.index_add.default, x(9, 4), 0, torch.tensor([3, 0]), x(2, 4)),
    "index_copy": lambda: (aten.index_copy.default, x(9, 4), 0, torch.tensor([3, 0]), x(2, 4)),
    "index_fill": lambda: (aten.index_fill.int_Scalar, x(9, 4), 0, torch.tensor([3, 0]), 2.5),
    "scatter_add": lambda: (aten.scatter_add.default, x(3, 4), 1, i(4, 3, 2), x(3, 2)),
    "scatter": lambda: (aten.scatter.src, x(4, 4), 1, torch.tensor([[1], [0], [2], [0]]), x(4, 1)),
    "scatter_reduce": lambda: (aten.scatter_reduce.two, x(3, 4), 1, i(4, 3, 2), x(3, 2), "sum"),
    "index_put": lambda: (aten.index_put.default, x(3, 4), [torch.tensor([1, 0])], x(2, 4)),
    "_index_put_impl": lambda: (aten._index_put_impl_.default, x(3, 4), [torch.tensor([1, 0])], x(2, 4)),
    "_unsafe_index_put": lambda: (aten._unsafe_index_put.default, x(3, 4), [torch.tensor([1, 0])], x(2, 4), True),
    "put": lambda: (aten.put.default, x(9, 4), torch.tensor([3, 17, 5, 0]), x(4)),
    "masked_select": lambda: (aten.masked_select.default, x(9, 40), mask(9, 40)),
    "nonzero": lambda: (aten.nonzero.default, x(9, 4).relu()),
    "masked_scatter": lambda: (aten.masked_scatter.default, x(9, 4), mask(9, 4), x(36)),
    **{n: partial(lambda n: (getattr(aten, n).default, x(9, 5).log_softmax(1), i(5, 9), u(5), 1, -100), n)
       for n in ("nll_loss_forward", "nll_loss")},
    **{n: partial(lambda n: (getattr(aten, n).default, x(2, 5, 3, 3), i(5, 2, 3, 3), u(5), 1, -100), n)
       for n in ("nll_loss2d_forward", "nll_loss2d")},
    "nll_loss_backward": lambda: (aten.nll_loss_backward.default, x(1)[0], x(9, 5), i(5, 9), None, 1, -100,
                                  torch.tensor(9.0)),
    "nll_loss2d_backward": lambda: (aten.nll_loss2d_backward.default, x(2, 3, 3), x(2, 5, 3, 3),
                                    i(5, 2, 3, 3), None, 0, -100, torch.tensor(18.0)),
    "convolution": lambda: (aten.convolution.default, x(2, 3, 9, 8), x(5, 3, 3, 3), x(5), [1, 1], [1, 1],
                            [1, 1], False, [0, 0], 1),
    "_convolution": lambda: (aten._convolution.default, x(1, 4, 9, 8), x(4, 1, 3, 3), None, [2, 2], [1, 1],
                             [1, 1], False, [0, 0], 4, False, False, False, False),
    **{f"conv{d}d": partial(lambda d: (getattr(aten, f"conv{d}d").default, x(1, 3, *[6] * d),
                                       x(5, 3, *[3] * d), x(5)), d) for d in (1, 2, 3)},
    "convolution_backward": lambda: (
        aten.convolution_backward.default, x(2, 5, 9, 8), x(2, 3, 9, 8), x(5, 3, 3, 3), [5], [1, 1],
        [1, 1], [1, 1], False, [0, 0], 1, [True, True, True]),
    "max_pool2d_with_indices": lambda: (aten.max_pool2d_with_indices.default, x(2, 3, 8, 8), [2, 2]),
    "max_pool2d": lambda: (aten.max_pool2d.default, x(2, 3, 8, 8), [2, 2]),
    "max_pool1d": lambda: (aten.max_pool1d.default, x(2, 3, 8), [2]),
    "max_pool3d_with_indices": lambda: (aten.max_pool3d_with_indices.default, x(2, 3, 4, 4, 4), [2, 2, 2]),
    "max_pool2d_with_indices_backward": lambda: _pooled(2),
    "max_pool3d_with_indices_backward": lambda: _pooled(3),
    "avg_pool1d": lambda: (aten.avg_pool1d.default, x(2, 3, 8), [2]),
    "avg_pool2d": lambda: (aten.avg_pool2d.default, x(2, 3, 8, 8), [2, 2]),
    "avg_pool3d": lambda: (aten.avg_pool3d.default, x(2, 3, 4, 4, 4), [2, 2, 2]),
    "avg_pool2d_backward": lambda: (aten.avg_pool2d_backward.default, x(2, 3, 4, 4), x(2, 3, 8, 8), [2, 2],
                                    [2, 2], [0, 0], False, True, None),
    "avg_pool3d_backward": lambda: (aten.avg_pool3d_backward.default, x(2, 3, 2, 2, 2), x(2, 3, 4, 4, 4),
                                    [2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, None),
    "_adaptive_avg_pool2d": lambda: (aten._adaptive_avg_pool2d.default, x(2, 3, 9, 8), [4, 4]),
    "adaptive_avg_pool2d": lambda: (aten.adaptive_avg_pool2d.default, x(2, 3, 8, 8), [4, 4]),
    "_adaptive_avg_pool2d_backward": lambda: (aten._adaptive_avg_pool2d_backward.default, x(2, 3, 4, 4), x(2, 3, 9, 8)),
    "_adaptive_avg_pool3d": lambda: (aten._adaptive_avg_pool3d.default, x(2, 3, 4, 4, 4), [2, 2, 2]),
    "adaptive_max_pool2d": lambda: (aten.adaptive_max_pool2d.default, x(2, 3, 8, 8), [4, 4]),
    "adaptive_max_pool2d_backward": lambda: (
        aten.adaptive_max_pool2d_backward.default, x(2, 3, 4, 4), *_taken(x(2, 3, 8, 8))),
    "_scaled_dot_product_flash_attention_for_cpu": lambda: (
        aten._scaled_dot_product_flash_attention_for_cpu.default, x(2, 2, 40, 16), x(2, 2, 50, 16), x(2, 2, 50, 16)),
    "scaled_dot_product_attention": lambda: (
        aten.scaled_dot_product_attention.default, x(2, 2, 40, 16), x(2, 2, 50, 16), x(2, 2, 50, 16)),
    "_scaled_dot_product_flash_attention_for_cpu_backward": lambda: _attended(),
    "_fused_adamw": lambda: _optimizer("_fused_adamw_", 3, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1,
                                       eps=1e-8, amsgrad=False, maximize=False),
    "_fused_adam": lambda: _optimizer("_fused_adam_", 3, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1,
                                      eps=1e-8, amsgrad=True, maximize=False),
    "_fused_adagrad": lambda: _optimizer("_fused_adagrad_", 1, lr=0.1, lr_decay=0.01, weight_decay=0.1,
                                         eps=1e-8, maximize=False),
    "_fused_sgd": lambda: (partial(aten._fused_sgd_.default, weight_decay=0.1, momentum=0.9, lr=0.1,
                                   dampening=0.1, nesterov=True, maximize=False, is_first_step=False),
                           [x(9, 4), x(3)], [x(9, 4), x(3)], [x(9, 4), x(3)]),
    "_amp_foreach_non_finite_check_and_unscale": lambda: (
        aten._amp_foreach_non_finite_check_and_unscale_.default, [x(9, 4), x(3) / 0], torch.zeros(1), u(1)),
    "_foreach_norm": lambda: (aten._foreach_norm.Scalar, [x(9, 4), x(9, 4)], 2),
    "_foreach_max": lambda: (aten._foreach_max.default, [x(9, 4), x(9, 4)]),
    "_foreach_copy": lambda: (aten._foreach_copy_.default, [x(9, 4), x(3)], [x(9, 4), x(3)]),
    "_foreach_zero": lambda: (aten._foreach_zero_.default, [x(9, 4), x(3)]),
    "_foreach_lerp": lambda: (aten._foreach_lerp.Scalar, [x(9, 4), x(3)], [x(9, 4), x(3)], 0.3),
    "_foreach_pow": lambda: (aten._foreach_pow.Scalar, [u(9, 4), u(3)], 2.0),
    **{f"_foreach_{n}": partial(lambda n: (getattr(aten, f"_foreach_{n}").List, [x(9, 4), x(3)],
                                           [u(9, 4), u(3)]), n)
       for n in "add sub mul div maximum minimum clamp_min clamp_max".split()},
    **{f"_foreach_{n}": partial(lambda n: (getattr(aten, f"_foreach_{n}").default, [u(9, 4), u(3)]), n)
       for n in "neg sqrt rsqrt exp abs reciprocal sigmoid tanh log sign".split()},
    **{f"_foreach_{n}": partial(lambda n: (getattr(aten, f"_foreach_{n}").Scalar, [x(9, 4), x(3)],
                                           [x(9, 4), x(3)], [u(9, 4), u(3)], 0.5), n)
       for n in ("addcdiv", "addcmul")},
    **{n: partial(lambda n: (getattr(aten, n).default, u(9, 40), u(9, 40)), n)
       for n in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss",
                 "binary_cross_entropy", "binary_cross_entropy_with_logits")},
    "mse_loss_backward": lambda: (aten.mse_loss_backward.default, x(1)[0], x(9, 4), x(9, 4), 1),
    "soft_margin_loss_backward": lambda: (aten.soft_margin_loss_backward.default, x(1)[0], x(9, 4), x(9, 4), 1),
    "smooth_l1_loss_backward": lambda: (aten.smooth_l1_loss_backward.default, x(9, 4), x(9, 4), x(9, 4), 0, 0.5),
    "huber_loss_backward": lambda: (aten.huber_loss_backward.default, x(9, 4), x(9, 4), x(9, 4), 0, 0.5),
    "binary_cross_entropy_backward": lambda: (
        aten.binary_cross_entropy_backward.default, x(9, 4), u(9, 4), u(9, 4), None, 0),
    "zero": lambda: (aten.zero_.default, x(9, 4)), "fill": lambda: (aten.fill_.Scalar, x(9, 4), 2.5),
    **{n: partial(lambda n: (getattr(aten, n).default, [9, 4]), n) for n in ("zeros", "ones")},
    **{f"{n}_like": partial(lambda n: (getattr(aten, f"{n}_like").default, x(9, 4)), n)
       for n in ("zeros", "ones")},
    **{f"new_{n}": partial(lambda n: (getattr(aten, f"new_{n}").default, x(1), [9, 4]), n)
       for n in ("zeros", "ones")},
    "full": lambda: (aten.full.default, [9, 4], 2.5), "full_like": lambda: (aten.full_like.default, x(9, 4), 2.5),
    "new_full": lambda: (aten.new_full.default, x(1), [9, 4], 2.5),
    "scalar_tensor": lambda: (aten.scalar_tensor.default, 2.5),
}
# fmt: on
# Rows that this build of torch computes on other devices only: by the call of one lowered alike.
ALIKE = {
    "convolution_overrideable": "convolution",
    "convolution_backward_overrideable": "convolution_backward",
    "_copy_from_and_resize": "_copy_from",
    "_pin_memory": "clone",
    "_cat": "cat",
}
SDPA = "_scaled_dot_product_flash_attention_for_cpu"
# Other spellings of attention: the arguments in the order of their schemas, results as those.
SPELLED: dict[str, Callable[[list[Any]], list[Any]]] = {
    "_copy_from": lambda a: [a[0], x(9, 4)],
    "_copy_from_and_resize": lambda a: [a[0], x(9, 4)],
    "convolution_backward_overrideable": lambda a: [*a[:3], *a[4:]],
    "_scaled_dot_product_flash_attention": lambda a: [*a[:3], 0.0, False, False, None],
    "_scaled_dot_product_efficient_attention": lambda a: [*a[:3], None, True, 0.0, False, None],
    "_scaled_dot_product_fused_attention_overrideable": lambda a: [*a[:3], None, 0.0, False, False, None],
    "_scaled_dot_product_flash_attention_backward": lambda a: [
        *a[:6], None, None, 0, 0, 0.0, False, None, None, None],
    "_scaled_dot_product_fused_attention_overrideable_backward": lambda a: [
        *a[:4], None, [True] * 4, *a[4:6], None, None, 0, 0, 0.0, False, None, None, None],
}  # fmt: skip
NUMBERS = {
    "uniform": lambda: (aten.uniform_.default, x(60, 61), -1, 3),
    "rand": lambda: (aten.rand.default, [60, 61]),
    "rand_like": lambda: (aten.rand_like.default, x(60, 61)),
    "normal": lambda: (aten.normal_.default, x(60, 61), 1, 2),
    "normal_functional": lambda: (aten.normal_functional.default, x(60, 61), 1, 2),
    "randn": lambda: (aten.randn.default, [60, 61]),
    "randn_like": lambda: (aten.randn_like.default, x(60, 61)),
    "log_normal": lambda: (aten.log_normal_.default, x(60, 61)),
    "exponential": lambda: (aten.exponential_.default, x(60, 61), 2),
    "geometric": lambda: (aten.geometric_.default, x(60, 61), 0.3),
    "cauchy": lambda: (aten.cauchy_.default, x(60, 61)),
    "bernoulli": lambda: (aten.bernoulli.default, u(60, 61)),
    "random": lambda: (getattr(aten.random_, "from"), x(60, 61), 3, 90),
    "randint": lambda: (aten.randint.default, 90, [60, 61]),
    "randint_like": lambda: (aten.randint_like.default, x(60, 61), 90),
    "multinomial": lambda: (aten.multinomial.default, torch.ones(60, 90), 60),
    "randperm": lambda: (aten.randperm.default, 3660),
    "native_dropout": lambda: (aten.native_dropout.default, x(60, 61), 0.5, True),
    "dropout": lambda: (aten.dropout.default, x(60, 61), 0.5, False),
}


def _log_sigmoid(inside: torch.Tensor) -> Case:
    held = aten.log_sigmoid_forward.default(inside)[1]
    return aten.log_sigmoid_backward.default, x(9, 4), inside, held


def _pooled(rank: int) -> Case:
    """The gradient of a maximum over windows of two."""
    inside, window = x(2, 3, *[4] * rank), [2] * rank
    forward = getattr(aten, f"max_pool{rank}d_with_indices").default
    y, places = forward(inside, window)
    backward = getattr(aten, f"max_pool{rank}d_with_indices_backward").default
    zeros, ones = [0] * rank, [1] * rank
    return backward, torch.randn_like(y), inside, window, window, zeros, ones, False, places


def _taken(inside: torch.Tensor) -> Case:
    return inside, aten.adaptive_max_pool2d.default(inside, [4, 4])[1]


def _attended() -> Case:
    q, k, v = x(2, 2, 40, 16), x(2, 2, 50, 16), x(2, 2, 50, 16)
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return backward, x(2, 2, 40, 16), q, k, v, out, lse, 0.0, False


def _optimizer(name: str, states: int, **numbers: Any) -> Case:
    """Lists of two parameters, gradients and states; the third step."""
    lists = [[x(9, 4), x(3)], [x(9, 4), x(3)], *([u(9, 4), u(3)] for _ in range(states))]
    if not numbers.get("amsgrad", True):
        lists[-1] = []
    steps = [torch.tensor(3.0), torch.tensor(3.0)]
    return partial(getattr(aten, name).default, **numbers), *lists, steps


def _elementwise(name: str) -> Case | None:
    """A call of an operator that takes tensors alone, or numbers that have defaults."""
    for table, arity in ((UNARY, 1), (ACTIVATIONS, 1), (BINARY, 2), (TERNARY, 3)):
        op = overload(name, arity) if name in table else None
        if op is not None:
            integers = name.startswith("bitwise")
            return op, *(i(64, 9, 41) if integers else u(9, 41) for _ in range(arity))
    return None


def _rms_norm_gradients(
    g: torch.Tensor,
    inside: torch.Tensor,
    shape: Any,
    rstd: torch.Tensor,
    w: torch.Tensor,
    wants: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x and w, with the inverse root that is given."""
    normal, h = inside * rstd, g * w
    return (h - normal * (h * normal).mean(-1, keepdim=True)) * rstd, (g * normal).sum(0)


HOST = {"_fused_rms_norm_backward": _rms_norm_gradients}


def _case(name: str) -> Case | None:
    known = {**CALLS, **NUMBERS}.get(ALIKE.get(name, name))
    if "attention" in name and name in SPELLED:
        known = CALLS[SDPA + "_backward" * name.endswith("_backward")]
    return known() if known else _elementwise(name)


# Results whose rounding errors are not those of one sum: sums that cancel, and ranges of functions.
LOOSE = {"tan": 1e-3, "tanh_backward": 2e-5, "expm1": 1e-6, "log1p": 1e-6}


def _bound(name: str, want: torch.Tensor) -> float:
    """Of sums of up to 200 terms in another order and the last bits of functions, relative to the
    largest value; one rounding of a result of 16 bits, which may fall to the other side.
    """
    terms = SAFETY * math.sqrt(200) * 2.0**-24
    narrow = str(want.dtype).removeprefix("torch.")
    rounds = 2 * unit_roundoff(narrow) if narrow in ("bfloat16", "float16") else 0.0
    return max(terms + rounds, LOOSE.get(name, 0.0))


ROWS = [n for n in MODELLED if n not in EXCEPTIONS and n != "equal"]


def _same(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    a, b = got.double().reshape(-1), want.double().reshape(-1)
    finite = b.isfinite()
    top = float(b[finite].abs().max()) if finite.any() else 1.0
    assert torch.equal(a.isnan(), b.isnan()), name
    assert torch.equal(a[~finite & ~b.isnan()], b[~finite & ~b.isnan()]), name
    difference = float((a - b)[finite].abs().max()) if finite.any() else 0.0
    assert difference <= _bound(name, want) * (top or 1.0), (name, difference / (top or 1.0))


@pytest.mark.parametrize("name", ROWS)
def test_computes_its_values(name: str) -> None:
    torch.manual_seed(5), RANDOM.manual_seed(23)
    case = _case(name)
    assert case is not None, f"{name} is modelled: add a call of it to CALLS"
    op, *args = case
    cores, pairs = computed(name, op, *args, spelled=SPELLED.get(name), host=HOST.get(name))
    assert cores == (1 if name in ONE_CORE else 2), name
    assert pairs
    for got, want in pairs:
        if name not in NUMBERS:
            _same(name, got, want)
            continue
        middle = [t.double().median() for t in (got, want)]
        spread = want.double().sub(middle[1]).abs().median()
        # Six standard errors of both medians, sigma from the spread; whole numbers may be next ones.
        error = 6 * math.sqrt(2) * 1.253 * 1.483 * spread / math.sqrt(want.numel())
        assert abs(middle[0] - middle[1]) <= error + (spread == 0), (name, middle)


def test_the_lists_name_rows() -> None:
    for names in (EXCEPTIONS, ONE_CORE, CALLS, ALIKE, SPELLED, NUMBERS, LOOSE):
        assert set(names) <= set(OPS), set(names) - set(OPS)
    assert set(EXCEPTIONS) | ONE_CORE <= set(MODELLED)
