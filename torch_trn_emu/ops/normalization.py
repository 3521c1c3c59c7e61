"""Softmax, losses and norms, forward and backward, as steps over rows (`kernels/rows/__init__.py`).

Each entry of ROW_OPS says which inputs a program has, its steps and what it stores. Values are
float32 between load and store.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from ..chip import Chip
from ..isa import Program
from ..kernels.rows import row_program
from ..kernels.rows.arrange import arranged
from ..kernels.rows.values import Input, Kind, Output, RowStep, Values, column_sum, reduced, step
from ..kernels.scans import LEAST

__all__ = ["ROW_OPS", "RowOp", "row_op"]

Steps = Callable[[int, float], Sequence[RowStep]]  # of the number of columns, and eps


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOp:
    """Inputs are FULL unless named "column:x" or "row:x"; `*x` stores step x as float32."""

    inputs: str
    steps: Steps
    outputs: str


column = partial(step, kind=Kind.COLUMN)  # of one value a row


def _exponentials(_: int, eps: float, *, finite: bool = False) -> list[RowStep]:
    """Of rows less their largest; `finite`: cut to finite numbers."""
    cut: dict[str, Any] = {"op0": "max", "imm0": LEAST, "op1": "min", "imm1": -LEAST}
    return [
        reduced("top" if not finite else "largest", "x", "max"),
        *([column("top", "tensor_scalar", "largest", **cut)] if finite else ()),
        step("z", "tensor_scalar", "x", "top", op0="subtract"),
        step("e", "activation", "z", op="exp"),
        reduced("total", "e"),
    ]


def _softmax(n: int, eps: float) -> list[RowStep]:
    inverse = column("inverse", "reciprocal", "total")
    return [
        *_exponentials(n, eps),
        inverse,
        step("y", "tensor_scalar", "e", "inverse", op0="multiply"),
    ]


def _safe_softmax(n: int, eps: float) -> list[RowStep]:
    """Of a row without a number above -inf it is 0."""
    bounds = {"top": -3.0e38, "total": 1.0e-30}  # the total of other rows is 1 at least
    steps = []
    for s in _softmax(n, eps):
        reads = tuple(f"{r} bounded" if r in bounds else r for r in s.reads)
        steps.append(replace(s, reads=reads))
        if s.name in bounds:
            bound: dict[str, Any] = {"op0": "max", "imm0": bounds[s.name]}
            steps.append(column(f"{s.name} bounded", "tensor_scalar", s.name, **bound))
    return steps


def _log_softmax(n: int, eps: float) -> list[RowStep]:
    log = column("log", "activation", "total", op="log")
    return [*_exponentials(n, eps), log, step("y", "tensor_scalar", "z", "log", op0="subtract")]


def _softmax_backward(_: int, eps: float) -> list[RowStep]:
    return [
        step("gy", "tensor_tensor", "g", "y", op="multiply"),
        reduced("s", "gy"),
        step("d", "tensor_scalar", "g", "s", op0="subtract"),
        step("dx", "tensor_tensor", "d", "y", op="multiply"),
    ]


def _log_softmax_backward(_: int, eps: float) -> list[RowStep]:
    return [
        reduced("s", "g"),
        step("p", "activation", "y", op="exp"),
        step("ps", "tensor_scalar", "p", "s", op0="multiply"),
        step("dx", "tensor_tensor", "g", "ps", op="subtract"),
    ]


def _moments(n: int) -> list[RowStep]:
    return [
        reduced("sum", "x"),
        column("mean", "tensor_scalar", "sum", op0="multiply", imm0=1.0 / n),
        step("centred", "tensor_scalar", "x", "mean", op0="subtract"),
        step("squares", "activation", "centred", op="square"),
        reduced("spread", "squares"),
    ]


def _rstd(n: int, eps: float) -> list[RowStep]:
    scaled: dict[str, Any] = {"op0": "multiply", "imm0": 1.0 / n, "op1": "add", "imm1": eps}
    return [
        column("variance", "tensor_scalar", "spread", **scaled),
        column("rstd", "activation", "variance", op="rsqrt"),
    ]


def _norm(n: int, eps: float) -> list[RowStep]:
    return [*_moments(n), *_rstd(n, eps), *_xhat(n)]


def _layer_norm(n: int, eps: float) -> list[RowStep]:
    return [
        *_norm(n, eps),
        step("wx", "tensor_tensor", "xhat", "w", op="multiply"),
        step("y", "tensor_tensor", "wx", "b", op="add"),
    ]


def _rms_norm(n: int, eps: float) -> list[RowStep]:
    return [
        step("squares", "activation", "x", op="square"),
        reduced("spread", "squares"),
        *_rstd(n, eps),
        step("xhat", "tensor_scalar", "x", "rstd", op0="multiply"),
        step("y", "tensor_tensor", "xhat", "w", op="multiply"),
    ]


def _xhat(_: int) -> list[RowStep]:
    both: dict[str, Any] = {"op0": "subtract", "op1": "multiply"}
    return [step("xhat", "tensor_scalar", "x", "mean", "rstd", **both)]


def _into_x(n: int, gradient: str) -> list[RowStep]:
    """Dx = rstd (h - mean(h) - xhat mean(h xhat)), h the gradient of xhat."""
    return [
        step("hx", "tensor_tensor", gradient, "xhat", op="multiply"),
        reduced("sh", gradient),
        reduced("shx", "hx"),
        column("mh", "tensor_scalar", "sh", op0="multiply", imm0=1.0 / n),
        column("mhx", "tensor_scalar", "shx", op0="multiply", imm0=1.0 / n),
        step("a", "tensor_scalar", "xhat", "mhx", op0="multiply"),
        step("c", "tensor_scalar", gradient, "mh", op0="subtract"),
        step("d", "tensor_tensor", "c", "a", op="subtract"),
        step("dx", "tensor_scalar", "d", "rstd", op0="multiply"),
    ]


def _layer_norm_backward(n: int, eps: float) -> list[RowStep]:
    return [
        *_xhat(n),
        step("h", "tensor_tensor", "g", "w", op="multiply"),
        *_into_x(n, "h"),
        step("gx", "tensor_tensor", "g", "xhat", op="multiply"),
        column_sum("dw", "gx"),
        column_sum("db", "g"),
    ]


def _rms_norm_backward(n: int, eps: float) -> list[RowStep]:
    return [
        step("xhat", "tensor_scalar", "x", "rstd", op0="multiply"),
        step("h", "tensor_tensor", "g", "w", op="multiply"),
        step("hx", "tensor_tensor", "h", "xhat", op="multiply"),
        reduced("shx", "hx"),
        column("mhx", "tensor_scalar", "shx", op0="multiply", imm0=1.0 / n),
        step("a", "tensor_scalar", "xhat", "mhx", op0="multiply"),
        step("d", "tensor_tensor", "h", "a", op="subtract"),
        step("dx", "tensor_scalar", "d", "rstd", op0="multiply"),
        step("gx", "tensor_tensor", "g", "xhat", op="multiply"),
        column_sum("dw", "gx"),
    ]


def _logsumexp(n: int, eps: float) -> list[RowStep]:
    """Infinity where the largest is: exp(inf - inf) would be NaN."""
    log = column("log", "activation", "total", op="log")
    return [
        *_exponentials(n, eps, finite=True),
        log,
        column("y", "tensor_tensor", "log", "top", op="add"),
    ]


# fmt: off
ROW_OPS = MappingProxyType({
    "softmax":              RowOp(inputs="x", steps=_softmax, outputs="y"),
    "safe_softmax":         RowOp(inputs="x", steps=_safe_softmax, outputs="y"),
    "log_softmax":          RowOp(inputs="x", steps=_log_softmax, outputs="y"),
    "softmax_backward":     RowOp(inputs="g y", steps=_softmax_backward, outputs="dx"),
    "log_softmax_backward": RowOp(inputs="g y", steps=_log_softmax_backward, outputs="dx"),
    "layer_norm":           RowOp(inputs="x row:w row:b", steps=_layer_norm,
                                  outputs="y *mean *rstd"),
    "layer_norm_backward":  RowOp(inputs="g x column:mean column:rstd row:w",
                                  steps=_layer_norm_backward, outputs="dx dw db"),
    "rms_norm":             RowOp(inputs="x row:w", steps=_rms_norm, outputs="y *rstd"),
    "rms_norm_backward":    RowOp(inputs="g x column:rstd row:w", steps=_rms_norm_backward,
                                  outputs="dx dw"),
    "logsumexp":            RowOp(inputs="x", steps=_logsumexp, outputs="y"),
})
# fmt: on


def row_op(
    name: str,
    rows: int,
    columns: int,
    dtype: str,
    *,
    chip: Chip,
    cores: int = 1,
    eps: float = 1e-5,
    inner: int = 1,
    absent: Collection[str] = (),
) -> Program:
    """An entry of ROW_OPS over columns of [rows, columns, inner]; COLUMN operands are float32, the
    others of `dtype`.

    absent  inputs that are not there (a factor of 1, an addend of 0), and outputs not asked for
    """
    entry = ROW_OPS[name]
    inputs = []
    for text in entry.inputs.split():
        kind, _, plain = text.rpartition(":")
        held = "float32" if kind == "column" else dtype
        if plain not in absent:
            inputs.append(Input(plain, held, Kind(kind or "full")))
    named = [n for n in entry.outputs.split() if n.lstrip("*") not in absent]
    stored = [n.lstrip("*") for n in named]
    steps = entry.steps(columns, eps)
    if absent:
        given = {text.rpartition(":")[2] for text in entry.inputs.split()}
        steps = _read(_without(steps, given & set(absent), stored), stored)
    kinds = {s.name: s.kind for s in steps}
    outputs = [
        Output(n.lstrip("*"), "float32" if n[0] == "*" or kinds[n] is Kind.ROW else dtype)
        for n in named
    ]
    values = Values(inputs, arranged(inputs, steps, stored, chip), outputs)
    return row_program(name, rows, columns, values, chip=chip, cores=cores, inner=inner)


def _without(
    steps: Sequence[RowStep], absent: Collection[str], stored: Collection[str]
) -> list[RowStep]:
    """The steps where operands that are absent change nothing: the other one stands for both."""
    other: dict[str, str] = {}
    found: list[RowStep] = []
    for s in steps:
        there = tuple(other.get(r, r) for r in s.reads if r not in absent)
        if len(there) == len(s.reads):
            found.append(replace(s, reads=there))
        elif s.name not in stored:
            other[s.name] = there[0]
        else:  # what made the other operand makes what is stored
            k = next(k for k, made in enumerate(found) if made.name == there[0])
            found[k] = replace(found[k], name=s.name)
            other[there[0]] = s.name
    return found


def _read(steps: Sequence[RowStep], stored: Collection[str]) -> list[RowStep]:
    """Those that something stored is made of."""
    wanted, kept = set(stored), []
    for s in reversed(steps):
        if s.name in wanted:
            wanted |= set(s.reads)
            kept.append(s)
    return kept[::-1]
