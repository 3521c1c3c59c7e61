"""What a function compiles for itself is priced in an estimate as on the device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as flex

import torch_trn_emu
from torch_trn_emu import estimate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),  # torch 2.13 uses what it deprecates
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]


def empty(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=grad)


def _model() -> nn.Module:
    layers = nn.Linear(96, 384), nn.GELU(), nn.Linear(384, 40)
    return nn.Sequential(*layers).to("meta", torch.bfloat16)


@pytest.mark.parametrize("backend", ["inductor", "trn"])
def test_a_compiled_model_is_priced_as_one(backend: str) -> None:
    """Also one that ran outside of estimates, and again for each chip, precision and shape."""
    model = _model()
    compiled: Any = torch.compile(model, backend=backend)
    compiled(empty(3, 96))
    for chip in ("trn3", "trn1", "trn3"):
        for policy in ("bf16", "fp32"):
            with torch_trn_emu.precision(policy):
                for rows in (70, 256):
                    x = empty(rows, 96)
                    found = estimate(compiled, x, chip=chip)
                    asked = estimate(model, x, chip=chip, mode="compile")
                    assert found.device_us == asked.device_us > 0
                    assert [row.status for row in found.ops] == ["inferred"]


def test_sizes_that_may_change_are_priced_as_they_are() -> None:
    model = _model()
    compiled: Any = torch.compile(model, dynamic=True)
    for rows in (5, 300):
        fixed = estimate(model, empty(rows, 96), mode="compile")
        assert estimate(compiled, empty(rows, 96)).device_us == fixed.device_us
    marked = empty(300, 96)
    torch._dynamo.mark_dynamic(marked, 0)
    assert estimate(model, marked, mode="compile").device_us == fixed.device_us


def test_a_backend_that_compiles_nothing_launches_operators() -> None:
    model, x = _model(), empty(70, 96)
    compiled: Any = torch.compile(model, backend="eager")
    assert estimate(compiled, x).device_us == estimate(model, x).device_us


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[..., [-2], :] + 1,
        lambda x: x[[0, 2]],
        lambda x: x * torch.tensor(2.0, device=x.device),
        lambda x: x.index_fill(1, torch.tensor([1], device=x.device), 0.0),
    ],
)
def test_constants_of_meta_are_compiled(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
    made = estimate(call, empty(4, 6, 8), mode="compile")
    assert [row.status for row in made.ops] == ["inferred"]


def test_estimates_leave_dynamos_limits_to_the_device() -> None:
    """All modules of torch share the code that Dynamo counts by."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).to("meta")
    for rows in range(2, 12):
        estimate(model, torch.empty(rows, 8, device="meta"), mode="compile")
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).to("trn"))
    x = torch.zeros(3, 8, device="trn")
    torch.trn.reset_counters()
    compiled(x)
    assert torch.trn.counters()["launch_count"] == 1


def test_values_that_a_graph_makes_are_known() -> None:
    """As `nn.Transformer` asks whether its mask is causal."""

    def attend(x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5, device=x.device)
        return x + mask if (mask == mask.triu(1)).all() else x

    made = estimate(attend, torch.empty(3, 5, 5, device="meta"), mode="compile")
    assert [row.op for row in made.ops if row.op.startswith("graph ")]


# --- FlexAttention --------------------------------------------------------------------------------


def _earlier(b: Any, h: Any, row: Any, column: Any) -> Any:
    return row >= column


def _attention(q: torch.Tensor, size: int, compiled: bool) -> torch.Tensor:
    blocks = flex.create_block_mask(_earlier, None, None, size, size, q.device, BLOCK_SIZE=64)
    run: Any = torch.compile(flex.flex_attention) if compiled else flex.flex_attention
    made: torch.Tensor = run(q, q, q, block_mask=blocks)
    return made


def _row(made: torch_trn_emu.estimation.Estimate, name: str) -> Any:
    (row,) = [row for row in made.ops if row.op == name]
    return row


def test_flex_attention_is_what_the_device_counts() -> None:
    """One launch, and one for gradients, by the blocks that its mask keeps."""
    made = estimate(
        lambda q: _attention(q, 256, False).sum().backward(), empty(1, 4, 256, 64, grad=True)
    )
    q = torch.zeros(1, 4, 256, 64, dtype=torch.bfloat16, device="trn", requires_grad=True)
    torch.trn.reset_counters()
    _attention(q, 256, False).sum().backward()
    for row in torch_trn_emu.op_report():
        if "flex" in row.op:
            found = _row(made, row.op)
            assert (found.calls, found.device_s) == (1, row.device_s)


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_compiled_flex_attention_is_part_of_a_graph(mode: str) -> None:
    made = estimate(_attention, empty(1, 4, 128, 64), 128, True, mode=mode)
    assert made.ops
    assert all(row.device_s > 0 and row.status != "not modelled" for row in made.ops)
