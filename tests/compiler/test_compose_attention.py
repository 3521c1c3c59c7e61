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


def _operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten.scaled_dot_product_attention(q, k, v)


def _of_the_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def _widened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    return torch.matmul(torch.softmax(scores.float(), -1).to(q.dtype), v)


SCALE, GROUP = 64**-0.5, 4
PLAIN = {
    "query scaled": lambda q, k, v: torch.softmax((q * SCALE) @ k.mT, -1) @ v,
    "both scaled": lambda q, k, v: torch.softmax((q * SCALE**0.5) @ (k * SCALE**0.5).mT, -1) @ v,
    "keys scaled when turned": lambda q, k, v: torch.softmax(q @ (k.mT * SCALE), -1) @ v,
    "by a tensor": lambda q, k, v: (
        torch.softmax(q @ k.mT / torch.sqrt(torch.tensor(64.0, dtype=q.dtype)), -1) @ v
    ),
    "einsum": lambda q, k, v: torch.einsum(
        "bhij,bhjd->bihd", torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * SCALE, -1), v
    ).transpose(1, 2),
    "baddbmm": lambda q, k, v: torch.bmm(
        torch.softmax(_added(q.new_zeros(()), q, k, beta=0), -1), v.flatten(0, 1)
    ).view(q.shape),
    "largest of max": lambda q, k, v: _exponentials(q @ k.mT * SCALE) @ v,
}
MASKED = {
    "added first": lambda q, k, v, m: torch.softmax(m + q @ k.mT * SCALE, -1) @ v,
    "baddbmm": lambda q, k, v, m: torch.bmm(
        torch.softmax(_added(m, q, k), -1), v.flatten(0, 1)
    ).view(q.shape),
    "filled": lambda q, k, v, m: (
        torch.softmax((q @ k.mT * SCALE).masked_fill(m, -math.inf), -1) @ v
    ),
    "chosen": lambda q, k, v, m: (
        torch.softmax(torch.where(m, q @ k.mT * SCALE, torch.finfo(q.dtype).min), -1) @ v
    ),
}
COPIED = {
    "a part each": lambda x, w: [_heads(t) for t in (x @ w).chunk(3, -1)],
    "copies": lambda x, w: [_heads(t).contiguous() for t in (x @ w).chunk(3, -1)],
    "a copy of all": lambda x, w: [
        _heads(t) for t in (x @ w).unflatten(-1, (3, -1)).movedim(-2, 0).contiguous().unbind(0)
    ],
}
GROUPED = {
    "repeated": lambda q, k, v: _by_attribute(q, *(t.repeat_interleave(GROUP, 1) for t in (k, v))),
    "products": lambda q, k, v: _products(q, *(t.repeat_interleave(GROUP, 1) for t in (k, v))),
    "broadcast": lambda q, k, v: _products(
        q.unflatten(1, (-1, GROUP)), k[:, :, None], v[:, :, None]
    ).flatten(1, 2),
}


def _heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (12, -1)).transpose(1, 2)


def _added(mask: Tensor, q: Tensor, k: Tensor, beta: int = 1) -> Tensor:
    whole = mask.expand(*q.shape[:2], q.shape[2], k.shape[2]).flatten(0, 1)
    return torch.baddbmm(whole, q.flatten(0, 1), k.flatten(0, 1).mT, beta=beta, alpha=SCALE)


def _exponentials(scores: Tensor) -> Tensor:
    raised = torch.exp(scores - scores.max(-1, keepdim=True)[0])
    return raised / raised.sum(-1, keepdim=True)


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
    spellings = (_by_attribute, _by_import, _native, _operator, _of_the_cpu, _grouped)
    prices = {f.__name__: _us(f, _operands(grad=grad), mode) for f in spellings}
    assert len(set(prices.values())) == 1, prices


@pytest.mark.parametrize("spelled", [_products, _widened])
def test_what_is_spelled_out_costs_the_same(spelled: object) -> None:
    assert _us(spelled, _operands()) == pytest.approx(_us(_by_attribute, _operands()), rel=0.01)


@pytest.mark.parametrize("name", PLAIN)
def test_scales_and_products_may_be_anywhere(name: str) -> None:
    assert _us(PLAIN[name], _operands()) == pytest.approx(_us(_by_attribute, _operands()), rel=0.01)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("sizes", [(128, 128), (2, 1, 1, 128), (2, 12, 128, 128)])
def test_masks_may_be_put_in_any_way(name: str, sizes: tuple[int, ...]) -> None:
    dtype = torch.bool if name in ("filled", "chosen") else torch.bfloat16
    given = [*_operands(), torch.empty(sizes, device="meta", dtype=dtype)]
    found, fused = (_us(f, given) for f in (MASKED[name], F.scaled_dot_product_attention))
    assert found == pytest.approx(fused, rel=0.02)


@pytest.mark.parametrize("name", GROUPED)
def test_keys_are_not_copied_for_each_head_of_a_group(name: str) -> None:
    few = _operands(heads=(12, 12 // GROUP))
    assert _us(GROUPED[name], few) == pytest.approx(_us(_grouped, few), rel=0.01)


def test_groups_that_are_no_neighbours_are_copied() -> None:
    few = _operands(heads=(12, 12 // GROUP))
    copied = _us(lambda q, k, v: _by_attribute(q, *(t.repeat(1, GROUP, 1, 1) for t in (k, v))), few)
    assert copied > 1.02 * _us(_grouped, few)


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("attend", [_by_attribute, _products])
def test_heads_are_read_and_stored_where_they_lie(attend: object, name: str) -> None:
    given = [
        torch.empty(s, device="meta", dtype=torch.bfloat16) for s in ((2, 128, 768), (768, 2304))
    ]

    def layer(x: Tensor, w: Tensor, cut: object = COPIED[name], attend: object = attend) -> Tensor:
        return attend(*cut(x, w)).transpose(1, 2).flatten(2)  # type: ignore[operator]

    plain = _us(lambda x, w: layer(x, w, COPIED["a part each"], _by_attribute), given)
    assert _us(layer, given) == pytest.approx(plain, rel=0.01)


def test_masks_add_up() -> None:
    def biased(q: Tensor, k: Tensor, v: Tensor, b: Tensor, m: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT * SCALE + b + m, -1) @ v

    def summed(q: Tensor, k: Tensor, v: Tensor, b: Tensor, m: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=b + m)

    sizes = ((1, 12, 128, 128), (2, 1, 1, 128))
    given = [*_operands(), *(torch.empty(s, device="meta", dtype=torch.bfloat16) for s in sizes)]
    assert _us(biased, given) == pytest.approx(_us(summed, given), rel=0.01)


def test_a_number_that_hides_nothing_is_no_mask() -> None:
    def shifted(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        return torch.softmax(torch.where(m, q @ k.mT * SCALE, -1.0), -1) @ v

    given = [*_operands(), torch.empty(128, 128, device="meta", dtype=torch.bool)]
    assert _us(shifted, given) > 1.5 * _us(F.scaled_dot_product_attention, given)


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
