"""Calls of every row with NaN, infinities, zeros and the ends of a dtype's range among operands."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_trn_emu.chip import get_chip

from . import test_every_row as rows
from .on_cores import computed

INF, NAN = math.inf, math.nan
KINDS = ("odd", "infinite", "zero", "subnormal", "edge")

# Why a program's results may be others than the host's: docs/fidelity.md says so.
MASKED = "a gradient is masked by a multiplication with 0"
RECIPROCAL = "a quotient is a product with the reciprocal"
ORDER = "how the engines order a NaN is not public"
FORMULA = "an infinity less itself, or times 0, on the way of one of both"
HOST = "the host's kernel overflows, or chooses by comparisons"
TAIL = "the host's vectorized kernel and the one for what is left of a tensor differ"
PADDED = "what a padded position adds is the weight times 0"
UNDEFINED = "the host refuses the operand, or reads what the forward pass left"
ROUNDED = "the host's kernel of bfloat16 rounds on the way, or has another result"
FLUSHED = "the host's products take a subnormal for 0"


def _each(names: str, kinds: str, why: str) -> dict[tuple[str, str], str]:
    return {(n, k): why for n in names.split() for k in kinds.split()}


_EVERY = " ".join(KINDS)
_POOLS = "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d"
_NORMS = (
    "var var_mean std std_mean native_layer_norm layer_norm native_layer_norm_backward"
    " native_batch_norm _native_batch_norm_legit _batch_norm_with_update"
    " native_batch_norm_backward batch_norm_backward native_group_norm native_group_norm_backward"
)
_ATTENTION = " ".join(
    n for n in rows.MODELLED if n.startswith("_scaled_dot") or n == "scaled_dot_product_attention"
)
_PRODUCTS = "mm bmm mv dot vdot linear addmm baddbmm addmv _addmm_activation addbmm _scaled_mm"
_CONVOLUTIONS = (
    "convolution convolution_overrideable _convolution conv1d conv2d conv3d convolution_backward"
    " convolution_backward_overrideable"
)
OTHERWISE: dict[tuple[str, str], str] = {
    **_each(
        "hardtanh_backward threshold_backward softshrink_backward hardshrink_backward"
        " _prelu_kernel _prelu_kernel_backward",
        "odd infinite",
        MASKED,
    ),
    **_each(f"{_POOLS.replace('indices', 'indices_backward')} adaptive_max_pool2d_backward"
            " max_pool2d_with_indices_backward max_pool3d_with_indices_backward",
            "odd infinite", MASKED),
    **_each("div true_divide addcdiv _foreach_div _foreach_addcdiv hypot atan2 logit_backward"
            " floor_divide remainder fmod", "subnormal", RECIPROCAL),
    **_each("floor_divide remainder fmod", "edge", "the quotient is beyond 2^23"),
    **_each(f"max min argmax argmin cummax cummin topk {_POOLS}", "odd", ORDER),
    **_each(_NORMS, "odd infinite edge", FORMULA),
    **_each("_fused_adamw _fused_adam native_dropout_backward soft_margin_loss_backward",
            "odd infinite", FORMULA),
    **_each(_ATTENTION, "odd infinite edge", FORMULA),
    **_each("gelu", _EVERY, HOST),
    **_each("hardswish gelu_backward asinh", "edge", HOST),
    **_each("hardswish_backward elu_backward", "odd", TAIL),
    **_each("logit_backward", "odd infinite zero edge", TAIL),
    **_each(f"{_PRODUCTS} sum prod cumsum cumprod nansum _log_softmax_backward_data addmv"
            " _foreach_addcmul _foreach_addcdiv _fused_adamw _fused_adam soft_margin_loss_backward"
            " sigmoid_backward tanh_backward _fused_sgd mean glu_backward _softmax_backward_data"
            " _adaptive_avg_pool2d adaptive_avg_pool2d avg_pool1d avg_pool2d avg_pool3d"
            " _adaptive_avg_pool3d _fused_rms_norm_backward",
            "edge", "a sum or product of the largest numbers overflows, by its order"),
    **_each(_PRODUCTS, "subnormal odd", FLUSHED),
    **_each(_CONVOLUTIONS, "odd infinite edge subnormal", PADDED),
    **_each("log_sigmoid_backward binary_cross_entropy bernoulli", _EVERY, UNDEFINED),
}  # fmt: skip
# Only of bfloat16.
NARROW: dict[str, str] = {
    **dict.fromkeys(("_fused_sgd", "native_layer_norm_backward"), ROUNDED),
    **dict.fromkeys("nll_loss2d_forward nll_loss2d tan asinh tanh_backward".split(), ROUNDED),
    **dict.fromkeys(("signbit", "copysign"), "the host tells the sign of a NaN"),
    **dict.fromkeys(_ATTENTION.split(), "sums of what is rounded to bfloat16"),
}
# Results that are places, or depend on them: those of equal elements may differ.
PLACES = frozenset(
    "topk sort argsort msort kthvalue median nanmedian _unique2 max min argmax argmin cummax cummin"
    .split()
)  # fmt: skip
# The last bit of numbers below 2^-125 is lost where rows are ordered by their halves.
HALVED = frozenset(PLACES & set(rows.ROWS))
# Operands that are in order, or weights that are not 0.
KEPT = {"searchsorted": (0,), "bucketize": (1,), "log_sigmoid_backward": (2,)}


def values_of(kind: str, dtype: torch.dtype, name: str = "") -> list[float]:
    f = torch.finfo(dtype)
    least = f.smallest_normal
    small = [least / 4, -least / 4] + ([] if name in HALVED else [least * f.eps])
    return {
        "odd": [NAN, INF, -INF, -0.0, 0.0],
        "infinite": [INF, -INF, -0.0],
        "zero": [0.0, -0.0],
        "subnormal": small,
        "edge": [f.max, -f.max, least, -least, 1.0, -0.0, 0.0],
    }[kind]


def spoilt(value: Any, values: list[float], generator: torch.Generator) -> Any:
    """With special values here and there: one of six, or the only one; numbers stay."""
    if isinstance(value, list):
        return [spoilt(v, values, generator) for v in value]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return value
    at = torch.randperm(value.numel(), generator=generator)[: -(-value.numel() // 6)]
    chosen = torch.randint(len(values), at.shape, generator=generator)
    flat = value.contiguous().reshape(-1).clone()
    flat[at] = torch.tensor(values, dtype=torch.float64)[chosen].to(value.dtype)
    return torch.empty_like(value).copy_(flat.reshape(value.shape))


def narrowed(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [narrowed(v, dtype) for v in value]
    wide = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim()
    return value.to(dtype) if wide else value


def call_of(name: str, kind: str, dtype: torch.dtype, seed: int) -> tuple[Any, list[Any]]:
    torch.manual_seed(5), rows.RANDOM.manual_seed(23 + seed)
    case = rows._case(name)
    assert case is not None, name
    op, *args = case
    generator = torch.Generator().manual_seed(seed)
    values = values_of(kind, dtype, name)
    given = [narrowed(a, dtype) for a in args]
    return op, [
        a if k in KEPT.get(name, ()) else spoilt(a, values, generator) for k, a in enumerate(given)
    ]


def unlike(name: str, got: Tensor, want: Tensor, dtype: torch.dtype) -> str:
    """How two results differ beyond rounding, "" if they do not. Rounding is relative to a value
    or, where terms cancel, to the largest of those that are not at the end of the range.
    """
    a, b = got.double().reshape(-1), want.double().reshape(-1)
    if name in PLACES and not want.is_floating_point():
        return ""
    ordinary = b.abs()[b.abs() < 1e6]
    top = float(ordinary.max()) if ordinary.numel() else 1.0
    bound = max(rows._bound(name, want), rows._bound(name, torch.empty(0, dtype=dtype)))
    if not want.is_floating_point():
        bound = 0.0
    near = (a - b).abs() <= bound * b.abs().clamp(min=top or 1.0)
    wrong = ~((a == b) | (a.isnan() & b.isnan()) | (near & a.isfinite() & b.isfinite()))
    if not bool(wrong.any()):
        return ""
    k = int(wrong.nonzero()[0])
    return f"{int(wrong.sum())} of {wrong.numel()}: {float(a[k])} for {float(b[k])} at {k}"


@dataclass
class Walked:
    """Results that differ by what was called, and how many results agree, of which rows."""

    differ: dict[str, str] = field(default_factory=dict)
    agree: int = 0
    rows: set[str] = field(default_factory=set)


def known(name: str, kind: str, dtype: torch.dtype) -> bool:
    return (name, kind) in OTHERWISE or (dtype != torch.float32 and name in NARROW)


def walk(
    kinds: Iterable[str], dtype: torch.dtype, chip: str, most: int, seeds: Iterable[int] = (0,)
) -> Walked:
    """Every row that is not known to differ for a kind of values, on up to so many cores."""
    found = Walked()
    seeds = tuple(seeds)
    for name, kind in ((n, k) for n in rows.ROWS for k in kinds):
        if name in rows.NUMBERS or known(name, kind, dtype):
            continue
        for seed in seeds:
            op, args = call_of(name, kind, dtype, seed)
            try:
                host = rows.HOST.get(name) or op
                host(*_copies(args))
            except (RuntimeError, NotImplementedError):  # the host has no such kernel
                assert dtype != torch.float32, name
                continue
            for k, (got, want) in enumerate(_pairs(name, op, args, chip, most)):
                said = unlike(name, got, want, dtype)
                found.agree += not said
                found.rows.add(name)
                if said:
                    found.differ[f"{name}, {kind} {seed}, result {k}"] = said
    return found


def _copies(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_copies(v) for v in value]
    return value.clone() if isinstance(value, Tensor) else value


def _pairs(
    name: str, op: Any, args: list[Any], chip: str, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    spelled, host = rows.SPELLED.get(name), rows.HOST.get(name)
    _, pairs = computed(name, op, *args, spelled=spelled, host=host, chip=get_chip(chip), most=most)
    yield from pairs
