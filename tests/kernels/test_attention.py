"""Programs of attention compute on the machine what torch computes, and overlap the engines."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Engine, Program, Role, validate
from torch_trn_emu.kernels.attention import backward, forward
from torch_trn_emu.kernels.attention.backward import attention_backward
from torch_trn_emu.kernels.attention.forward import attention
from torch_trn_emu.kernels.attention.short import short_attention
from torch_trn_emu.kernels.attention.spec import AttentionSpec, Mask
from torch_trn_emu.timing import price

CHIP = get_chip("trn3")
GENERATOR = torch.Generator().manual_seed(3)
SINGLE = {"dtype": "float32", "compute": "float32"}


def _data(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def _run(program: Program, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    validate(program, CHIP)
    fed = [b for b in program.buffers if b.role is Role.INPUT]
    inputs = {b.name: t.detach().numpy() for b, t in zip(fed, tensors, strict=True)}
    return [torch.from_numpy(x) for x in Machine(CHIP).run(program, inputs).values()]


def _agrees(a: AttentionSpec, mask: torch.Tensor | None = None) -> None:
    """Both passes against torch in float64; q, k, v are drawn here."""
    kv_heads = a.kv_heads or a.heads
    q, g = _data(a.batch, a.heads, a.queries, a.dim), _data(a.batch, a.heads, a.queries, a.dim)
    k, v = (_data(a.batch, kv_heads, a.keys, a.dim) for _ in "kv")
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    wide = mask.double() if mask is not None and mask.is_floating_point() else mask
    y = torch.nn.functional.scaled_dot_product_attention(
        *leaves, attn_mask=wide, is_causal=a.causal, enable_gqa=True
    )
    y.backward(g.double())
    scores = leaves[0] @ leaves[1].repeat_interleave(a.group, 1).mT * a.factor
    if a.causal:
        scores = scores + torch.full_like(scores, -torch.inf).triu(1)
    if wide is not None:
        scores = scores + wide if wide.is_floating_point() else scores.masked_fill(~wide, -1e30)
    lse = scores.logsumexp(-1).detach()
    masks = [] if mask is None else [mask.reshape(-1)]

    out, sums = _run(attention(replace(a, stats=True), chip=CHIP), [q, k, v, *masks])
    torch.testing.assert_close(out.reshape(y.shape).double(), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.reshape(lse.shape).double(), lse, rtol=1e-5, atol=1e-5)
    program = attention_backward(a, chip=CHIP)
    results = _run(program, [g, q, k, v, y.float(), lse.float(), *masks])
    for got, leaf in zip(results, leaves, strict=True):
        torch.testing.assert_close(
            got.reshape(leaf.shape).double(), leaf.grad, rtol=1e-3, atol=1e-4
        )


@settings(max_examples=6, deadline=None)
@given(
    queries=st.integers(1, 700),
    keys=st.integers(1, 1100),
    dim=st.integers(1, 40),
    causal=st.booleans(),
)
@example(queries=1, keys=1, dim=1, causal=True)
@example(queries=700, keys=700, dim=8, causal=True)
@example(queries=140, keys=1100, dim=8, causal=True)  # keys that no query sees
@example(queries=700, keys=130, dim=8, causal=True)  # queries that see all keys
@example(queries=3, keys=513, dim=8, causal=False)  # a tile a head, and a block of one key
@example(queries=1030, keys=1030, dim=8, causal=True)  # three blocks
def test_of_any_size(queries: int, keys: int, dim: int, causal: bool) -> None:
    sizes = {"batch": 2, "heads": 2, "queries": queries, "keys": keys, "dim": dim}
    _agrees(AttentionSpec(**sizes, causal=causal, **SINGLE))  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 40])
def test_how_many_tiles_a_pipeline_has(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """One over heads, one a head, and sums that are kept for a few heads only."""
    monkeypatch.setattr(forward, "UNROLLED", most)
    monkeypatch.setattr(backward, "UNROLLED", most)
    monkeypatch.setattr(forward, "SUMS", 20)
    for heads, kv_heads, causal in ((5, 5, False), (6, 2, True)):
        sizes = {"batch": 1, "heads": heads, "kv_heads": kv_heads, "dim": 8}
        a = AttentionSpec(**sizes, queries=300, keys=600, causal=causal, **SINGLE)  # type: ignore[arg-type]
        _agrees(a)


CROSSING = {"batch": 1, "heads": 16, "dim": 64}


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("queries", [1, 32, 512])
def test_keys_beyond_one_block(chip: str, queries: int) -> None:
    """One key more than a block has adds no more than half; twice the keys at most double it."""

    def took(build: Any, keys: int) -> float:
        a = AttentionSpec(**CROSSING, queries=queries, keys=keys)  # type: ignore[arg-type]
        return float(price(build(a, chip=get_chip(chip)), get_chip(chip)).total_s)

    whole = min(took(short_attention, 512), took(attention, 512))
    assert took(attention, 513) < 1.5 * whole
    assert took(attention, 1024) < 2 * whole
    assert took(attention_backward, 513) < 1.6 * took(attention_backward, 512)
    assert took(attention_backward, 1024) < 2.1 * took(attention_backward, 512)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_share_keys(causal: bool) -> None:
    sizes = {"batch": 2, "heads": 6, "kv_heads": 2, "queries": 140, "keys": 140, "dim": 16}
    _agrees(AttentionSpec(**sizes, causal=causal, **SINGLE))  # type: ignore[arg-type]


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 150, 600), (150, 600), (2, 1, 1, 600)], ids=str)
def test_masks(shape: tuple[int, ...], boolean: bool) -> None:
    mask = _data(*shape)
    if boolean:
        mask = (mask > 0) | (torch.arange(600) == 0)  # each query sees a key
    over = mask.expand(2, 3, 150, 600)
    described = Mask(
        strides=over.stride(),  # type: ignore[arg-type]
        elements=mask.numel(),
        dtype="bool" if boolean else "float32",
    )
    sizes = {"batch": 2, "heads": 3, "queries": 150, "keys": 600, "dim": 16}
    _agrees(AttentionSpec(**sizes, mask=described, **SINGLE), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_sections_of_keys(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    monkeypatch.setattr(forward, "SECTION", 512)
    monkeypatch.setattr(forward, "fits", lambda nbytes, chip: False)
    sizes = {"batch": 1, "heads": 1, "queries": 1300, "keys": 1300, "dim": 8}
    _agrees(AttentionSpec(**sizes, causal=causal, **SINGLE))  # type: ignore[arg-type]


SIZES = {"batch": 1, "heads": 16, "queries": 2048, "keys": 2048, "dim": 128}


@pytest.mark.parametrize("build", [attention, attention_backward])
def test_engines_overlap(build: object) -> None:
    """The busiest engine works most of the time, and the loops are extrapolated."""
    run = price(build(AttentionSpec(**SIZES), chip=CHIP), CHIP)  # type: ignore[operator,arg-type]
    busy = [run.engine_busy_s(e) for e in (Engine.TENSOR, Engine.VECTOR, Engine.SCALAR)]
    assert max(busy) > 0.6 * run.total_s
    assert sum(busy) > 1.4 * run.total_s
    assert run.simulated_instructions < 0.7 * sum(r.count for r in run.retired)


def test_causal_leaves_out_blocks_behind_the_diagonal() -> None:
    warm = replace(CHIP, tensor_engine=replace(CHIP.tensor_engine, warm_up_s=0.0))
    times = [
        price(attention(AttentionSpec(**SIZES, causal=c), chip=warm), warm).total_s  # type: ignore[arg-type]
        for c in (False, True)
    ]
    # Of 4 blocks of keys, tiles see 1, 2, 3 and 4. Vector cycles of a block: 576 for the maximum
    # and 256 to keep the weights; 1024 and 256 on the diagonal: (1.5 x 832 + 1280) / (4 x 832).
    assert 0.76 < times[1] / times[0] < 0.9  # and what starting each tile costs


@pytest.mark.parametrize("keys", [2048, 16384, 32768])
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_long_ones_fit(chip: str, keys: int) -> None:
    sizes = {**SIZES, "heads": 2, "queries": keys, "keys": keys}
    validate(attention(AttentionSpec(**sizes), chip=get_chip(chip)), get_chip(chip))  # type: ignore[arg-type]


def test_cores_share_the_batch_or_the_heads() -> None:
    whole = AttentionSpec(batch=3, heads=8, kv_heads=2, queries=5, keys=5, dim=4)
    assert whole.share(2) == replace(whole, heads=4, kv_heads=1)
    assert replace(whole, batch=4).share(2).batch == 2
    np.testing.assert_equal(attention(whole, chip=CHIP, cores=2).model_flops, 4 * 3 * 8 * 25 * 4)


@pytest.mark.parametrize(("causal", "keys_in_a_run"), [(False, 4), (True, 1)])
def test_a_run_has_several_keys_where_their_order_is_all_the_same(
    causal: bool, keys_in_a_run: int
) -> None:
    sizes = {"batch": 1, "heads": 2, "queries": 4, "keys": 1024, "dim": 64}
    program = attention(AttentionSpec(**sizes, causal=causal, **SINGLE), chip=CHIP)  # type: ignore[arg-type]
    for name in "kv":
        loads = [i for i in program.instructions() if i.queue == f"load {name}"]
        assert loads
        assert all(i.reads[0].run_elements == keys_in_a_run * sizes["dim"] for i in loads)
