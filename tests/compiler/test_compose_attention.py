"""Spellings of one attention cost the same; what is read in between keeps its steps apart."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch._C._nn import scaled_dot_product_attention as native
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention as imported

import torch_trn_emu

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def _by_attribute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _by_import(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return imported(q, k, v)


def _native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return native(q, k, v)


def _of_the_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def _widened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    return torch.matmul(torch.softmax(scores.float(), -1).to(q.dtype), v)


def _weights_too(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
    return weights @ v, weights


def _operands(*, grad: bool = False, heads: tuple[int, int] = (12, 12)) -> list[Tensor]:
    return [
        torch.empty(2, h, 128, 64, device="meta", dtype=torch.bfloat16).requires_grad_(grad)
        for h in (heads[0], heads[1], heads[1])
    ]


def _us(function: object, operands: list[Tensor], mode: str = "compile") -> float:
    torch._dynamo.reset()
    found = torch_trn_emu.estimate(function, *operands, chip="trn2", mode=mode)  # type: ignore[arg-type]
    return found.device_us


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_names_of_one_function_cost_the_same(mode: str, grad: bool) -> None:
    spellings = (_by_attribute, _by_import, _native, _of_the_cpu, _grouped)
    prices = {f.__name__: _us(f, _operands(grad=grad), mode) for f in spellings}
    assert len(set(prices.values())) == 1, prices


@pytest.mark.parametrize("spelled", [_products, _widened])
def test_what_is_spelled_out_costs_the_same(spelled: object) -> None:
    assert _us(spelled, _operands()) == pytest.approx(_us(_by_attribute, _operands()), rel=0.01)


def test_weights_that_are_read_keep_the_steps_apart() -> None:
    assert _us(_weights_too, _operands()) > 1.5 * _us(_by_attribute, _operands())


def test_gradients_read_the_weights() -> None:
    assert _us(_products, _operands(grad=True)) > 1.5 * _us(_by_attribute, _operands(grad=True))


def test_a_policy_that_quantizes_attention_keeps_its_products() -> None:
    with torch_trn_emu.precision("mxfp8_all"):
        torch._dynamo.reset()
        found = [
            torch_trn_emu.estimate(f, *_operands(), chip="trn3", mode="compile").device_us
            for f in (_products, _by_attribute)
        ]
    assert found[0] == pytest.approx(found[1], rel=0.3)


def test_groups_cost_no_more_than_heads_of_their_own() -> None:
    few = _operands(heads=(12, 3))
    assert _us(_grouped, few, "eager") <= 1.05 * _us(_by_attribute, _operands(), "eager")


def test_inference_of_a_module_stores_no_sums() -> None:
    with torch.device("meta"):
        mha = nn.MultiheadAttention(768, 12, batch_first=True, dtype=torch.bfloat16).eval()
        x = torch.empty(2, 128, 768, dtype=torch.bfloat16)

    def attend(x: Tensor) -> Tensor:
        return mha(x, x, x, need_weights=False)[0]

    with torch.no_grad():
        without = _us(attend, [x])
    assert without < _us(attend, [x])
