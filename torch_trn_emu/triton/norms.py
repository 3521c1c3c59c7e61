"""LayerNorm and RMSNorm over the last axis, fused with MX quantisation."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .bits import float_bits
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

__all__ = ["layer_norm_mx", "layer_norm_operand", "rms_norm_mx", "rms_norm_operand"]

# Columns up to which a program holds whole rows in registers: 4 warps, 32 values a thread. Chosen.
WHOLE_ROW = 4096


@triton.jit
def deviation(x, x_row, mean, rows, at_k, m, k):
    """float32 x - mean, zeros outside."""
    value = load_rows(x, x_row, rows, at_k, m, k) - mean[:, None]
    return tl.where(at_k[None, :] < k, value, 0.0)


@triton.jit
def scale_columns(
    value, y, weight, bias, at_k, k,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, ROUND_FIRST: tl.constexpr,
):  # fmt: skip
    """value * weight + bias, by column; the value rounded as y holds it before (ROUND_FIRST)."""
    if ROUND_FIRST:
        value = round_as(value, y).to(tl.float32, bitcast=True)
    if WEIGHTED:
        w = float_bits(tl.load(weight + at_k, mask=at_k < k, other=0))
        value = value * w.to(tl.float32, bitcast=True)[None, :]
    if BIASED:
        b = float_bits(tl.load(bias + at_k, mask=at_k < k, other=0))
        value = value + b.to(tl.float32, bitcast=True)[None, :]
    return value


@triton.jit
def store_normalised(
    value, rstd, y, to, scales, weight, bias, rows, first, m, k, width,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, KEEP: tl.constexpr, CODES: tl.constexpr,
    BITS: tl.constexpr, NAN: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr, FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr,
):  # fmt: skip
    """Deviations [ROWS, COLS] from column `first` on, scaled by row and by column, and stored."""
    value = value * rstd[:, None]
    at_k = first + tl.arange(0, COLS)
    value = scale_columns(value, y, weight, bias, at_k, k, WEIGHTED, BIASED, ROUND_FIRST)
    store_produced(
        value, y, to, scales, rows, first, m, k, width, ROWS, COLS, KEEP, CODES,
        BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
    )  # fmt: skip


@triton.jit
def moments_of_long_rows(
    x, x_row, rows, m, k, CENTRED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """(mean, 0 unless CENTRED, and the sum of squares about it) of rows read for each sum."""
    cols = tl.arange(0, COLS)
    mean = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    if CENTRED:
        for first in range(0, k, COLS):
            mean += tl.sum(load_rows(x, x_row, rows, first + cols, m, k), 1)
        mean = mean / k
    for first in range(0, k, COLS):
        value = deviation(x, x_row, mean, rows, first + cols, m, k)
        squares += tl.sum(value * value, 1)
    return mean, squares


@triton.jit
def norm_kernel(
    x, weight, bias, y, to, scales, means, rstds, m, k, width, x_row, eps,
    CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, BIASED: tl.constexpr, WHOLE: tl.constexpr,
    STATS: tl.constexpr, ROUND_FIRST: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, KEEP: tl.constexpr, CODES: tl.constexpr,
    BITS: tl.constexpr, NAN: tl.constexpr, M: tl.constexpr, MIN_FIELD: tl.constexpr,
    MAX_BITS: tl.constexpr, FACTOR: tl.constexpr, ROUND: tl.constexpr, SUBTRACT: tl.constexpr,
):  # fmt: skip
    """Rows of x [m, k] divided by their root mean square, or standard deviation (CENTRED).

    A tile that holds WHOLE rows is loaded once, longer rows are read for each sum.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, COLS)
    if WHOLE:
        mean = tl.zeros([ROWS], tl.float32)
        value = load_rows(x, x_row, rows, cols, m, k)
        if CENTRED:
            mean = tl.sum(value, 1) / k
            value = tl.where(cols[None, :] < k, value - mean[:, None], 0.0)
        squares = tl.sum(value * value, 1)
    else:
        mean, squares = moments_of_long_rows(x, x_row, rows, m, k, CENTRED, ROWS, COLS)
    rstd = 1.0 / tl.sqrt_rn(squares / k + eps)
    if STATS:
        tl.store(rstds + rows, rstd, mask=rows < m)
        if CENTRED:
            tl.store(means + rows, mean, mask=rows < m)
    if WHOLE:
        store_normalised(
            value, rstd, y, to, scales, weight, bias, rows, 0, m, k, width,
            WEIGHTED, BIASED, ROUND_FIRST, ROWS, COLS, KEEP, CODES,
            BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
        )  # fmt: skip
    else:
        for first in range(0, k, COLS):
            store_normalised(
                deviation(x, x_row, mean, rows, first + cols, m, k),
                rstd, y, to, scales, weight, bias, rows, first, m, k, width,
                WEIGHTED, BIASED, ROUND_FIRST, ROWS, COLS, KEEP, CODES,
                BITS, NAN, M, MIN_FIELD, MAX_BITS, FACTOR, ROUND, SUBTRACT,
            )  # fmt: skip


class Norm(NamedTuple):
    """A norm's parameters; an RMS norm is not centred."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    centred: bool
    round_before_weight: bool = False

    def run(
        self, x: torch.Tensor, spec: Spec, codes: bool, keep: bool
    ) -> tuple[Outputs, torch.Tensor, torch.Tensor]:
        """What is stored, mean and 1 / standard deviation, [..., 1] float32, with values only."""
        what = f"{'layer' if self.centred else 'rms'}_norm_{'mx' if codes else 'operand'}"
        rows = matrix(x, what)
        m, k = rows.shape
        for name, vector in (("weight", self.weight), ("bias", self.bias)):
            if vector is not None and list(vector.shape) != [k]:
                raise RuntimeError(f"{what}: {name} has shape {list(vector.shape)}, not [{k}]")
        outputs = Outputs.of(x, spec, codes, keep)
        sizes = (0,) if codes else (*x.shape[:-1], 1)
        mean, rstd = (torch.empty(sizes, dtype=torch.float32, device=x.device) for _ in "12")
        cols = max(32, min(WHOLE_ROW, power_of_two(k)))
        depth = min(max(1, (1 << 18 if INTERPRETED else 4096) // cols), power_of_two(m))
        launch(
            norm_kernel,
            (cdiv(m, depth),),
            raw(rows), *(raw(rows if v is None else v.contiguous()) for v in self[:2]),
            *outputs.arguments(rows), mean, rstd, m, k, outputs.width,
            rows.stride(0), float(self.eps),
            CENTRED=self.centred,
            WEIGHTED=self.weight is not None,
            BIASED=self.bias is not None,
            WHOLE=k <= cols,
            STATS=not codes,
            ROUND_FIRST=self.round_before_weight,
            ROWS=depth,
            COLS=cols,
            **outputs.constants(spec),
        )  # fmt: skip
        return outputs, mean, rstd


def rms_norm_mx(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """x over the root mean square of its last axis, times weight [k]; with codes and scales."""
    spec = mx_spec(element, scale_rule)
    return Norm(weight, None, eps, False).run(x, spec, True, True)[0].produced()


def layer_norm_mx(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    element: str = "float8_e4m3fn",
    scale_rule: str = "trn3",
) -> Produced:
    """layer_norm(x) over its last axis, and its codes and scales along it."""
    spec = mx_spec(element, scale_rule)
    return Norm(weight, bias, eps, True).run(x, spec, True, True)[0].produced()


def rms_norm_operand(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    round_before_weight: bool = False,
    format: str = "mxfp8",
    keep: bool = True,
) -> tuple[torch.Tensor, Kept, torch.Tensor]:
    """rms_norm(x) as an operand of its last axis, itself (keep), and 1 / rms, [..., 1] float32."""
    norm = Norm(weight, None, eps, False, round_before_weight)
    made, _, rstd = norm.run(x, operand_spec(format), False, keep)
    return made.to, made.y, rstd


def layer_norm_operand(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    format: str = "mxfp8",
    keep: bool = True,
) -> tuple[torch.Tensor, Kept, torch.Tensor, torch.Tensor]:
    """layer_norm(x) as an operand along its last axis, itself (keep), mean and 1 / deviation.

    The last two are float32 [..., 1].
    """
    made, mean, rstd = Norm(weight, bias, eps, True).run(x, operand_spec(format), False, keep)
    return made.to, made.y, mean, rstd
