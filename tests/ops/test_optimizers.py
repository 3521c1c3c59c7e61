"""Fused optimizers compute torch's formulas."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
ADAM = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6}


def _check(
    op: Any, lists: dict[str, list[torch.Tensor]], step: float | None, **options: Any
) -> None:
    """Lists that lie one after the other, as the program sees them, against torch's."""
    steps = [[torch.tensor(step) for _ in lists["p"]]] if step is not None else []
    call = call_of(op, *lists.values(), *steps, **options, results=())
    feeds = {name: torch.cat([t.reshape(-1) for t in ts]) for name, ts in lists.items() if ts}
    feeds |= {n: v.reshape(1) for n, v in options.items() if isinstance(v, torch.Tensor)}
    if step is not None:
        feeds["step"] = torch.tensor([step])
    got = run(lowered(call), feeds)
    after = {name: [t.clone() for t in ts] for name, ts in lists.items()}
    op(*after.values(), *steps, **options)
    for name, ts in after.items():
        if f"new {name}" in got:
            expected = torch.cat([t.reshape(-1) for t in ts])
            np.testing.assert_allclose(got[f"new {name}"], expected, rtol=2e-5, atol=2e-6)


def _lists(names: str, *sizes: int) -> dict[str, list[torch.Tensor]]:
    made = {n: [random(size) for size in sizes] for n in names.split()}
    return {n: [t.abs() for t in ts] if n in ("v", "vmax", "sum") else ts for n, ts in made.items()}


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 900), min_size=1, max_size=3),
    decoupled=st.booleans(),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
    step=st.sampled_from([1.0, 7.0]),
)
def test_adam(
    sizes: list[int], decoupled: bool, amsgrad: bool, maximize: bool, decay: float, step: float
) -> None:
    op = aten._fused_adamw_.default if decoupled else aten._fused_adam_.default
    lists = _lists("p g m v vmax", *sizes)
    if not amsgrad:
        lists["vmax"] = []
    flags = {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay}
    _check(op, lists, step, **ADAM, **flags)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_adam_with_a_gradient_scaler_and_a_rate_on_the_device(found: float) -> None:
    scaled = {"grad_scale": torch.tensor([8.0]), "found_inf": torch.tensor([found])}
    options = ADAM | {"lr": torch.tensor(0.01), "amsgrad": False, "maximize": False}
    lists = _lists("p g m v vmax", 300, 5)
    lists["vmax"] = []
    _check(aten._fused_adamw_.tensor_lr, lists, 3.0, weight_decay=0.1, **options, **scaled)


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 900),
    momentum=st.sampled_from([0.0, 0.9]),
    nesterov=st.booleans(),
    first=st.booleans(),
    maximize=st.booleans(),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_sgd(
    size: int, momentum: float, nesterov: bool, first: bool, maximize: bool, decay: float
) -> None:
    lists = _lists("p g m", size)
    if not momentum:
        lists["m"] = []
    _check(
        aten._fused_sgd_.default, lists, None, lr=0.1, momentum=momentum, weight_decay=decay,
        dampening=0.0 if nesterov else 0.3, nesterov=nesterov and momentum > 0,
        maximize=maximize, is_first_step=first,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adagrad(decay: float) -> None:
    options = {"lr": 0.1, "lr_decay": 0.05, "weight_decay": decay, "eps": 1e-6, "maximize": False}
    _check(aten._fused_adagrad_.default, _lists("p g sum", 40, 700), 5.0, **options)


@pytest.mark.parametrize("bad", [None, float("inf"), float("nan")])
def test_unscale(bad: float | None) -> None:
    grads = [random(300), random(70)]
    if bad is not None:
        grads[1][3] = bad
    found, inverse = torch.zeros(1), torch.tensor([0.25])
    op = aten._amp_foreach_non_finite_check_and_unscale_.default
    call = call_of(op, grads, found, inverse, results=())
    got = run(lowered(call), {"g": torch.cat(grads), "found_inf": found, "inv_scale": inverse})
    assert got["new found_inf"] == (bad is not None)
    if bad is None:
        np.testing.assert_array_equal(got["new g"], torch.cat(grads) * 0.25)
