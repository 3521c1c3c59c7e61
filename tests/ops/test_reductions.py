"""Reductions, moments and places along rows, columns and everything."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.kernels import row_max, variance
from torch_trn_emu.ops import max_and_min

from .calls import CHIP, call_of, lowered, random, run

aten = torch.ops.aten
# Rows of their own, short ones together, long ones in pieces, blocks of which a part is kept.
SHAPES = [(3, 130, 7), (2, 5, 600), (1, 1, 2), (520, 6, 1), (3, 1, 9000), (260, 8, 5), (2, 9000, 3)]
SIZES = st.lists(st.sampled_from([*range(1, 10), 132, 520]), min_size=1, max_size=3)
INF = float("inf")

CASES: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.sum.dim_IntList, ()),
    (aten.mean.dim, ()),
    (aten.amax.default, ()),
    (aten.amin.default, ()),
    (aten.prod.dim_int, ()),
    (aten.any.dim, ()),
    (aten.all.dim, ()),
    (aten.count_nonzero.default, ()),
    *((aten.linalg_vector_norm.default, (p,)) for p in (2, 1, 3, 0.5, 0, INF, -INF)),
    *((aten.var.correction, (c,)) for c in (0, 1)),
    (aten.std.correction, (1,)),
]
NAMES = [f"{op.__name__} {rest}" for op, rest in CASES]


def _call(op: Any, x: torch.Tensor, dim: int | None, rest: tuple[Any, ...]) -> tuple[Any, Any]:
    name = op.__name__
    dims: Any = None if dim is None else [dim]
    if "norm" in name:
        args: tuple[Any, ...] = (x, *rest, dims)
    elif "correction" in name:
        return op(x, dims, correction=rest[0]), call_of(op, x, dims, correction=rest[0])
    elif name.split(".")[0] in ("prod", "any", "all", "count_nonzero"):
        args = (x, dim) if dim is not None else (x,)
        if dim is None:
            op = getattr(aten, name.split(".")[0]).default
    elif dim is None:
        args = (x, [] if name.startswith("am") else None)
    else:
        args = (x, dims)
    return op(*args), call_of(op, *args)


def _feeds(x: torch.Tensor, dim: int | None) -> dict[str, torch.Tensor]:
    """A few rows are read as so many tensors."""
    return {"in": x} | {f"in{k}": row for k, row in enumerate(x.movedim(dim or 0, 0))}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(("op", "rest"), CASES, ids=NAMES)
@pytest.mark.parametrize("dim", [0, 1, -1, None], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reduction(op: Any, rest: tuple[Any, ...], dim: int | None, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    if "prod" in op.__name__:
        x = 1 + 0.01 * x
    if op.__name__.split(".")[0] in ("any", "all", "count_nonzero"):
        x = (x > (1 if dim == 0 else -2)).float()
    expected, call = _call(op, x, dim, rest)
    got = run(lowered(call), _feeds(x, dim))
    out = got["out" if "out" in got else "var"]
    want = expected.numpy().astype(float).reshape(-1)
    np.testing.assert_allclose(out.reshape(-1), want, rtol=2e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=SIZES, data=st.data())
def test_any_shape(shape: list[int], data: st.DataObject) -> None:
    op, rest = data.draw(st.sampled_from(CASES[:4] + CASES[8:10]))
    dim = data.draw(st.sampled_from([None, *range(len(shape))]))
    x = random(*shape[:2], *(min(n, 9) for n in shape[2:]))
    expected, _ = _call(op, x.double(), dim, rest)  # float32 sums of the host are off by 2e-4
    _, call = _call(op, x, dim, rest)
    out = run(lowered(call), _feeds(x, dim))["out"].reshape(-1)
    terms = float(x.abs().sum()) / expected.numel()  # a sum may cancel
    np.testing.assert_allclose(out, expected.reshape(-1), rtol=1e-4, atol=1e-5 + 1e-6 * terms)


@pytest.mark.parametrize("wide", [8192, 512])
def test_moments_of_long_rows(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variance, "WIDE", wide)
    x = random(3, 1700)
    call = call_of(aten.var_mean.correction, x, [1], correction=1)
    got = run(lowered(call), {"in": x})
    for name, want in zip(("var", "mean"), torch.var_mean(x, 1), strict=True):
        np.testing.assert_allclose(got[name][:, 0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [128, 4])
@pytest.mark.parametrize("columns", [1, 5, 8, 39, 64])
@pytest.mark.parametrize("name", ["max", "min"])
def test_places(name: str, columns: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole rows, and of chunks of them."""
    for name_, value in (("CHUNK", chunk), ("WIDE", 4 * chunk)):
        monkeypatch.setattr(row_max, name_, value)
    if chunk < 128:
        monkeypatch.setattr(max_and_min, "LEAST", 8 * chunk)
        monkeypatch.setattr(max_and_min, "WIDE", 16)
    x = random(140, columns).round(decimals=1)  # some are equal: the first counts
    op = getattr(aten, name).dim
    got = run(lowered(call_of(op, x, 1)), {"in": x})
    values = op(x, 1)[0]
    np.testing.assert_array_equal(got["values"][:, 0], values)
    np.testing.assert_array_equal(
        np.take_along_axis(x.numpy(), got["index"].astype(int), 1)[:, 0], values
    )
    first = (x == values[:, None]).int().argmax(1)
    np.testing.assert_array_equal(got["index"][:, 0], first)
    got = run(lowered(call_of(getattr(aten, f"arg{name}").default, x, 1)), {"in": x})
    np.testing.assert_array_equal(got["index"][:, 0], first)


@pytest.mark.parametrize("shape", [(7, 9), (3, 300), (2000,)], ids=str)
def test_both_extremes(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    least, most = lowered(call_of(aten.aminmax.default, x))
    np.testing.assert_array_equal(run((least,), {"in": x})["out"].reshape(()), x.min())
    np.testing.assert_array_equal(run((most,), {"in": x})["out"].reshape(()), x.max())
    both = lowered(call_of(aten.aminmax.default, x, dim=-1))
    for program, expected in zip(both, aten.aminmax.default(x, dim=-1), strict=True):
        np.testing.assert_array_equal(
            run((program,), {"in": x})["out"].reshape(-1), expected.reshape(-1)
        )


def test_sums_leave_nan_out() -> None:
    x = random(40, 30)
    x[random(40, 30) > 0.5] = float("nan")
    for rest, expected in (((), x.double().nansum()), (([1],), x.double().nansum(1))):
        programs = lowered(call_of(aten.nansum.default, x, *rest))
        got = run(programs, {"in0": x}, [{}, {"in": "out"}])["out"]
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("differ", [False, True])
@pytest.mark.parametrize("shape", [(40, 30), (5,), (1500,)], ids=str)
def test_equality_of_tensors(shape: tuple[int, ...], differ: bool) -> None:
    x = random(*shape)
    y = x.clone()
    y.reshape(-1)[-1] += differ
    programs = lowered(call_of(aten.equal.default, x, y, results=()))
    got = run(programs, {"in0": x, "in1": y}, [{}, {"in": "out"}])["out"]
    assert bool(got.reshape(-1)[0]) is not differ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(300, 40), (257, 700), (1000, 3)])
def test_variances_of_columns_of_any_dtype(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Around a mean that is much larger; squares of 16-bit elements are rounded once."""
    x = (8 + random(rows, columns)).to(dtype)
    name = str(dtype).removeprefix("torch.")
    program = variance.moments_of_columns(
        1, rows, columns, less=1.0, root=False, chip=CHIP, dtype=name
    )
    got = run((program,), {"in": x.float()})
    wide = 1e-4 if dtype == torch.float32 else 2e-2
    np.testing.assert_allclose(got["var"][0], x.double().var(0), rtol=wide)
    np.testing.assert_allclose(got["mean"][0], x.double().mean(0), rtol=wide)
