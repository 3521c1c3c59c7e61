"""torch.autocast("trn") in estimates: tensors of `meta` are cast as those of the device."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db

import torch_trn_emu
from torch_trn_emu import estimate

pytestmark = pytest.mark.filterwarnings("ignore:(Using torch.cross|Sparse CSR)")

REGISTERED = torch._C._dispatch_get_registrations_for_dispatch_key


def _cast_operators(key: str) -> set[str]:
    return {name for name in REGISTERED(key) if name.startswith("aten::")}


def test_the_operators_are_those_of_the_device():
    assert _cast_operators("AutocastIPU") == _cast_operators("AutocastPrivateUse1")


NAMES = {name.removeprefix("aten::").split(".")[0] for name in _cast_operators("AutocastIPU")}
SWEPT = [op for op in op_db if op.name.rpartition(".")[2] in NAMES and torch.float32 in op.dtypes]


def _formats(made: Any) -> list[torch.dtype]:
    return [t.dtype for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("op", SWEPT, ids=lambda op: f"{op.name} {op.variant_test_name}".strip())
def test_results_have_the_formats_of_the_device(op, dtype):
    def formats(device: str) -> list[torch.dtype] | str:
        move = lambda x: x.to(device) if isinstance(x, torch.Tensor) else x  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(
            move, ([sample.input, *sample.args], sample.kwargs)
        )
        found: list[torch.dtype] = []

        def run() -> None:
            with torch.autocast("trn", torch.bfloat16):
                found.extend(_formats(op(*args, **kwargs)))

        try:
            estimate(run) if device == "meta" else run()
        except (RuntimeError, NotImplementedError) as error:
            return type(error).__name__
        return found

    if dtype not in op.dtypes:
        pytest.skip("not of this format")
    sample = next(iter(op.sample_inputs("cpu", dtype)))
    ours, theirs = formats("meta"), formats("trn")
    if isinstance(ours, str) and isinstance(theirs, list):
        pytest.skip("torch has no kernel for meta")
    assert ours == theirs


def _step(model: nn.Module, x: torch.Tensor) -> None:
    with torch.autocast("trn", torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()


class _Cells(nn.Module):
    """Whose weights are used at each step, and cast once."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(24, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[1], 32)
        for each in x.unbind():
            h = self.cell(each, h)
        return F.softmax(self.head(h), -1) + torch.einsum("bi,bi->b", h, h)[:, None]


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.LayerNorm(96), nn.Linear(96, 8)),
        torch.randn(16, 24),
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
        ),
        torch.randn(2, 3, 8, 8),
    ),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
        torch.randn(2, 10, 32),
    ),
    "cells": lambda: (_Cells(), torch.randn(5, 4, 24)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_step_launches_what_it_does_on_the_device(name):
    model, x = MODELS[name]()
    on_meta = estimate(_step, model.to("meta"), x.to("meta"))
    model, x = MODELS[name]()
    model, x = model.to("trn"), x.to("trn")
    torch.trn.reset_counters()
    _step(model, x)
    assert _calls(on_meta.ops) == _calls(torch_trn_emu.op_report())


def _calls(rows: Iterable[Any]) -> Counter[str]:
    """By operator; a sum of gradients is in place where torch finds that nobody else has them."""
    made = Counter[str]()
    for row in rows:
        made[row.op.replace("add_.", "add.")] += row.calls
    return made


def test_a_compiled_step_has_narrow_results_too():
    layers = (nn.Linear(2048, 2048, device="meta") for _ in range(3))
    model, x = nn.Sequential(*layers), torch.empty(2048, 2048, device="meta")
    formats: list[torch.dtype] = []

    def run(enabled: bool) -> torch.Tensor:
        with torch.autocast("trn", torch.bfloat16, enabled=enabled):
            made: torch.Tensor = model(x)
        formats.append(made.dtype)
        return made

    with torch_trn_emu.precision("fp32"):
        narrow, wide = (estimate(run, enabled, mode="compile") for enabled in (True, False))
    assert narrow.device_us < 0.5 * wide.device_us
    assert formats == [torch.bfloat16, torch.float32]
    assert torch.mm(x, x).dtype == torch.float32


def test_nothing_is_cast_outside_of_estimates():
    x = torch.empty(4, 4, device="meta")
    estimate(torch.mm, x, x)
    with torch.autocast("trn", torch.bfloat16):
        assert torch.mm(x, x).dtype == torch.float32


@pytest.mark.parametrize("operator", [F.linear, torch.matmul], ids=lambda f: f.__name__)
def test_products_of_rows_that_lie_across_are_those_of_the_device(operator):
    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> None:
        args = (x.transpose(0, 1), w, b) if operator is F.linear else (x.transpose(0, 1), w.t())
        operator(*args).sum().backward()

    def tensors(device: str) -> list[torch.Tensor]:
        shapes = ((3, 10, 32), (16, 32), (16,))
        return [torch.randn(shape).to(device).requires_grad_() for shape in shapes]

    made = estimate(run, *tensors("meta"))
    on_device = tensors("trn")
    torch.trn.reset_counters()
    run(*on_device)
    assert _calls(made.ops) == _calls(torch_trn_emu.op_report())


def test_what_is_unsafe_is_refused():
    def loss(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("trn"):
            return F.binary_cross_entropy(x, x)

    with pytest.raises(RuntimeError, match="unsafe to autocast"):
        estimate(loss, torch.empty(4, device="meta"))
