"""Operators on lists of tensors."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.ops import OPS

from .calls import call_of, lowered, random, run

aten = torch.ops.aten
FOREACH = sorted(n for n in OPS if n.startswith("_foreach_"))


def _flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


@pytest.mark.parametrize("name", FOREACH)
def test_a_list_has_the_status_of_its_elementwise_row(name: str) -> None:
    plain = OPS.get(name.removeprefix("_foreach_"))
    if plain is not None and name not in ("_foreach_norm", "_foreach_max"):
        assert OPS[name].status == plain.status


@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (aten._foreach_add.List, {"alpha": 0.5}),
        (aten._foreach_mul.Scalar, {"scalar": 0.9}),
        (aten._foreach_lerp.Scalar, {"weight": 0.25}),
        (aten._foreach_addcmul.Scalar, {"value": 0.5}),
        (aten._foreach_maximum.List, {}),
        (aten._foreach_sqrt.default, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_foreach(op: Any, rest: dict[str, float]) -> None:
    shapes = [(3, 70), (5,), (129,)]
    count = sum(isinstance(a.type, torch.ListType) for a in op._schema.arguments)
    lists = [[random(*shape).abs() for shape in shapes] for _ in range(count)]
    call = call_of(op, *lists, **rest)
    got = run(lowered(call), {f"in{k}": _flat(ts) for k, ts in enumerate(lists)})["out"]
    np.testing.assert_allclose(got, _flat(op(*lists, **rest)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, float("inf")])
def test_norms(order: float) -> None:
    tensors = [random(3, 70), random(5), random(5), random(300, 5)]  # those alike lie together
    call = call_of(aten._foreach_norm.Scalar, tensors, order)
    got = run(lowered(call), {"in": _flat(tensors)})["out"]
    np.testing.assert_allclose(got, torch.stack(torch._foreach_norm(tensors, order)), rtol=1e-5)


def test_maxima() -> None:
    tensors = [random(3, 70), random(5)]
    call = call_of(aten._foreach_max.default, tensors)
    got = run(lowered(call), {"in": _flat(tensors)})["out"]
    np.testing.assert_array_equal(got, torch.stack(torch._foreach_max(tensors)))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout(p: float) -> None:
    x = random(300, 40)
    call = call_of(aten.native_dropout.default, x, p, True)
    got = run(lowered(call), {"in0": x})
    mask = torch.from_numpy(got["out1"]).reshape(x.shape).bool()
    assert abs(mask.float().mean() - (1 - p)) < 0.05
    expected = x * mask / (1 - p) if p < 1 else torch.zeros_like(x)
    np.testing.assert_allclose(got["out"].reshape(x.shape), expected, rtol=1e-6)


def test_embedding() -> None:
    table, index = random(50, 12), torch.arange(210).reshape(3, 70) * 7 % 50
    call = call_of(aten.embedding.default, table, index)
    got = run(lowered(call), {"table": table, "index": index})["out"]
    np.testing.assert_array_equal(got.reshape(3, 70, 12), table[index])
