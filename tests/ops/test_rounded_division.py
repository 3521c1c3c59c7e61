"""Rounded quotients and what they leave: whole numbers exactly, others up to a rounding of them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
MODES = {
    "floor_divide": (aten.floor_divide.default, {}),
    "remainder": (aten.remainder.Tensor, {}),
    "fmod": (aten.fmod.Tensor, {}),
    "floor": (aten.div.Tensor_mode, {"rounding_mode": "floor"}),
    "trunc": (aten.div.Tensor_mode, {"rounding_mode": "trunc"}),
}
SCALAR = {
    "remainder": (aten.remainder.Scalar, {}),
    "fmod": (aten.fmod.Scalar, {}),
    "floor": (aten.div.Scalar_mode, {"rounding_mode": "floor"}),
    "trunc": (aten.div.Scalar_mode, {"rounding_mode": "trunc"}),
}


def _machine(op: Any, a: torch.Tensor, b: Any, named: dict[str, Any]) -> np.ndarray:
    feeds = {"in0": a} | ({"in1": b} if isinstance(b, torch.Tensor) else {})
    return run(lowered(call_of(op, a, b, **named)), feeds)["out"].reshape(a.shape)


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(sorted(MODES)),
    pairs=st.lists(
        st.tuples(st.integers(-(2**23), 2**23), st.integers(-(2**12), 2**12).filter(bool)),
        min_size=1, max_size=300,
    ),
    dtype=st.sampled_from([torch.int32, torch.float32]),
)  # fmt: skip
def test_whole_numbers(mode: str, pairs: list[tuple[int, int]], dtype: torch.dtype) -> None:
    a, b = torch.tensor(pairs, dtype=dtype).T.contiguous()
    op, named = MODES[mode]
    np.testing.assert_array_equal(_machine(op, a, b, named), op(a, b, **named))


@pytest.mark.parametrize("mode", SCALAR)
@pytest.mark.parametrize("divisor", [3, -7, 49, 1])
def test_by_a_number(mode: str, divisor: int) -> None:
    op, named = SCALAR[mode]
    a = torch.arange(-500, 501)
    np.testing.assert_array_equal(_machine(op, a, divisor, named), op(a, divisor, **named))


VALUES = (
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    1.0,
    -2.5,
    3.0,
    1e-10,
    -1e-10,
    3.4e38,
    -3.4e38,
    1.2e-38,
)


def _near(got: np.ndarray, want: torch.Tensor) -> None:
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6)  # NaN equals NaN


@pytest.mark.parametrize("mode", MODES)
def test_special_values(mode: str) -> None:
    """Of all pairs whose quotient is below 2^23, or not finite."""
    op, named = MODES[mode]
    a, b = torch.cartesian_prod(torch.tensor(VALUES), torch.tensor(VALUES)).T.contiguous()
    quotient = (a.double() / b.double()).abs()
    kept = (quotient < 2**23) | ~quotient.isfinite()
    a, b = a[kept], b[kept]
    _near(_machine(op, a, b, named), op(a, b, **named))


@pytest.mark.parametrize("mode", SCALAR)
@pytest.mark.parametrize("divisor", [0.0, -0.0, np.inf, -np.inf, np.nan, 2.5, -3.0], ids=str)
def test_special_numbers(mode: str, divisor: float) -> None:
    op, named = SCALAR[mode]
    a = torch.tensor([v for v in VALUES if not 1e10 < abs(v) < np.inf])
    _near(_machine(op, a, divisor, named), op(a, divisor, **named))


@pytest.mark.parametrize("mode", MODES)
def test_fractions(mode: str) -> None:
    """A whole part times the divisor rounds, and what is left of a: to a unit of either, which may
    make it one divisor off.
    """
    a, b = 100 * random(300, 7), random(300, 7)
    op, named = MODES[mode]
    got, expected = _machine(op, a, b, named), op(a.double(), b.double(), **named).numpy()
    unit = 2.0**-23 * (a.abs() + b.abs()).numpy()
    if mode in ("remainder", "fmod"):
        off, period = np.abs(got - expected), np.abs(b.numpy())
        assert (np.minimum(off, np.abs(off - period)) <= unit).all()
    else:
        quotient = (a.double() / b.double()).numpy()
        beside = np.abs(quotient - np.rint(quotient)) <= unit / np.abs(b.numpy())
        assert (np.abs(got - expected) <= beside).all()
