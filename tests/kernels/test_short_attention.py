"""Attention of few keys: right for any layout, never slower than that of many, nothing twice."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Memory, Role, validate
from torch_trn_emu.kernels.attention.backward import attention_backward
from torch_trn_emu.kernels.attention.forward import attention
from torch_trn_emu.kernels.attention.heads import Layout
from torch_trn_emu.kernels.attention.short import short_attention
from torch_trn_emu.kernels.attention.spec import AttentionSpec, Mask
from torch_trn_emu.ops.attention import ATTENTION
from torch_trn_emu.ops.op import dense
from torch_trn_emu.timing import price

CHIPS = ("trn1", "trn2", "trn3")
CHIP = get_chip("trn3")
GENERATOR = torch.Generator().manual_seed(5)
SINGLE = {"dtype": "float32", "compute": "float32"}
BERT = AttentionSpec(batch=16, heads=12, queries=128, keys=128, dim=64)


def _sizes(a: AttentionSpec, name: str) -> tuple[int, int, int, int]:
    keys = name.lstrip("d") in ("k", "v")
    return a.batch, a.heads // a.group if keys else a.heads, a.keys if keys else a.queries, a.dim


def _projected(a: AttentionSpec, names: Sequence[str]) -> AttentionSpec:
    """Operands as views [batch, length, heads, dim] of one projection, results alone."""
    found = []
    for name in names:
        _, heads, length, dim = _sizes(a, name)
        row = heads * dim * (3 if name in ("q", "k", "v") else 1)
        found.append((name, Layout(length * row, dim, row)))
    return replace(a, layouts=tuple(found))


def _spread(x: torch.Tensor, layout: Layout | None) -> torch.Tensor:
    """The memory of a tensor that lies so; NaN between its elements."""
    if layout is None:
        return x
    strides = (layout.batch, layout.head, layout.row, layout.dim)
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
    memory = torch.full((span,), float("nan"))
    memory.as_strided(x.shape, strides).copy_(x)
    return memory


def _run(program: Any, fed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    validate(program, CHIP)
    made = Machine(CHIP).run(program, {n: t.detach().numpy() for n, t in fed.items()})
    return {name: torch.from_numpy(value) for name, value in made.items()}


def _agrees(a: AttentionSpec, mask: torch.Tensor | None = None) -> None:
    """All programs of the forward pass, and the backward pass, against torch in float64."""
    a, layouts = replace(a, stats=True), dict(a.layouts)
    drawn = {n: torch.randn(_sizes(a, n), generator=GENERATOR) for n in ("q", "k", "v", "g")}
    leaves = [drawn[n].double().requires_grad_() for n in "qkv"]
    wide = mask.double() if mask is not None and mask.is_floating_point() else mask
    y = torch.nn.functional.scaled_dot_product_attention(
        *leaves, attn_mask=wide, is_causal=a.causal, enable_gqa=True
    )
    y.backward(drawn["g"].double())
    scores = (leaves[0] @ leaves[1].repeat_interleave(a.group, 1).mT * a.factor).detach()
    if a.causal:
        scores = scores + torch.full_like(scores, -torch.inf).triu(1)
    if wide is not None:
        scores = scores + wide if wide.is_floating_point() else scores.masked_fill(~wide, -1e30)
    lse = scores.logsumexp(-1)
    masks = {} if mask is None else {"mask": mask.reshape(-1)}
    fed = {n: _spread(drawn[n], layouts.get(n)) for n in "qkv"} | masks

    def taken(made: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        sizes, layout = _sizes(a, name), layouts.get(name)
        if layout is None:
            return made[name].reshape(sizes).double()
        strides = (layout.batch, layout.head, layout.row, layout.dim)
        return made[name].reshape(-1).as_strided(sizes, strides).double()

    for build in (short_attention, attention):
        made = _run(build(a, chip=CHIP), fed)
        torch.testing.assert_close(taken(made, "out"), y, rtol=1e-4, atol=1e-5)
        sums = made["lse"].reshape(lse.shape).double()
        torch.testing.assert_close(sums, lse, rtol=1e-5, atol=1e-5)
    fed |= {n: _spread(x, layouts.get(n)) for n, x in (("g", drawn["g"]), ("out", y.float()))}
    made = _run(attention_backward(a, chip=CHIP), fed | {"lse": lse.float()})
    for name, leaf in zip(("dq", "dk", "dv"), leaves, strict=True):
        torch.testing.assert_close(taken(made, name), leaf.grad, rtol=1e-3, atol=1e-4)


SHAPES = [
    {"batch": 1, "heads": 1, "queries": 1, "keys": 1, "dim": 1},
    {"batch": 2, "heads": 4, "queries": 128, "keys": 128, "dim": 64},
    {"batch": 1, "heads": 6, "queries": 130, "keys": 197, "dim": 32},
    {"batch": 2, "heads": 8, "kv_heads": 1, "queries": 20, "keys": 100, "dim": 24},
    {"batch": 1, "heads": 3, "queries": 1300, "keys": 77, "dim": 40},
    {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 300, "keys": 512, "dim": 8},
    {"batch": 7, "heads": 3, "queries": 5, "keys": 9, "dim": 64},
]
NAMES = ("q", "k", "v", "out", "g", "dq", "dk", "dv")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: "x".join(map(str, s.values())))
def test_of_any_size_and_layout(sizes: dict[str, int], causal: bool) -> None:
    a = AttentionSpec(**sizes, causal=causal, **SINGLE)  # type: ignore[arg-type]
    _agrees(_projected(a, NAMES) if causal else a)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", [(2, 6, 150, 90), (150, 90), (2, 1, 1, 90)], ids=str)
def test_masks(shape: tuple[int, ...], boolean: bool) -> None:
    mask = torch.randn(shape, generator=GENERATOR)
    if boolean:
        mask = (mask > 0) | (torch.arange(90) == 0)  # each query sees a key
    over = mask.expand(2, 6, 150, 90)
    dtype = "bool" if boolean else "float32"
    described = Mask(strides=over.stride(), elements=mask.numel(), dtype=dtype)  # type: ignore[arg-type]
    sizes = {"batch": 2, "heads": 6, "queries": 150, "keys": 90, "dim": 16}
    _agrees(AttentionSpec(**sizes, mask=described, **SINGLE), mask)  # type: ignore[arg-type]


def _drawn(rng: random.Random) -> AttentionSpec:
    group, kv = rng.choice([1, 1, 1, 2, 8]), rng.choice([1, 2, 3, 4, 12])
    a = AttentionSpec(
        batch=rng.choice([1, 2, 16]),
        heads=kv * group,
        kv_heads=kv,
        queries=rng.choice([1, 16, 77, 128, 197, 300, 512, 1024]),
        keys=rng.choice([7, 64, 77, 128, 129, 197, 256, 300, 384, 512]),
        dim=rng.choice([16, 40, 64, 64, 80, 128]),
        causal=rng.random() < 0.3,
        compute=rng.choice(["bfloat16", "bfloat16", "float32"]),
        stats=rng.random() < 0.3,
    )
    return _projected(a, NAMES) if rng.random() < 0.5 else a


def _called(a: AttentionSpec) -> Call:
    shapes = [_sizes(a, n) for n in "qkv"]
    q, k, v = (dense(shape, "BFloat16") for shape in shapes)
    name = "aten::_scaled_dot_product_flash_attention_for_cpu"
    return Call(name, (q, k, v, 0.0, a.causal, None, None), (q,), "bf16")


@pytest.mark.parametrize("chip", CHIPS)
def test_never_slower_than_a_program_for_many_keys(chip: str) -> None:
    rng, described = random.Random(7), get_chip(chip)
    for _ in range(12):
        a = replace(_drawn(rng), compute="bfloat16", stats=False, layouts=())
        (chosen,) = ATTENTION(_called(a), Target(described, 1))  # type: ignore[misc]
        other = attention(a, chip=described)
        assert price(chosen, described).total_s <= price(other, described).total_s, a


@pytest.mark.parametrize("chip", CHIPS)
def test_never_faster_than_its_bytes_or_products(chip: str) -> None:
    rng, described = random.Random(11), get_chip(chip)
    te, rate = described.tensor_engine, described.dma
    for _ in range(12):
        a = _drawn(rng)
        program = short_attention(a, chip=described)
        validate(program, described)
        time = price(program, described).total_s - described.launch.kernel_overhead_s
        held = (b for b in program.buffers if b.memory is Memory.HBM)
        moved = sum(b.elements for b in held if not a.layouts) * 2  # views span more than is read
        assert time >= moved / (rate.engines * rate.engine_bytes_per_s)
        seen = 0.5 if a.causal else 1.0  # half of the rows: two products, a head a pass
        products = 2 * a.batch * a.heads * a.queries * a.keys * a.dim * seen
        assert time >= products / (te.rows * te.cols * te.clock_hz)


@pytest.mark.parametrize("build", [attention, short_attention])
@pytest.mark.parametrize("stats", [False, True])
def test_results_are_stored_once(build: Any, stats: bool) -> None:
    a = replace(BERT, stats=stats)
    run = price(build(a, chip=CHIP), CHIP)
    stored = {"out": 0, "lse": 0}
    for r in run.retired:
        for w in r.instruction.writes:
            if w.buffer.role is Role.OUTPUT:
                stored[w.buffer.name] += r.count * w.elements
    rows = a.batch * a.heads * a.queries
    assert stored == {"out": rows * a.dim, "lse": rows * stats}


@pytest.mark.parametrize("stats", [False, True])
def test_loads_tables_once(stats: bool) -> None:
    run = price(short_attention(replace(BERT, stats=stats), chip=CHIP), CHIP)
    assert run.table_loads == 1 + stats
