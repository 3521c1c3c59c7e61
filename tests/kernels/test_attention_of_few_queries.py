"""Attention of few queries: right for any layout, heads and users apart, near its bytes."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate
from torch_trn_emu.kernels.attention.few_queries import attention_of_few_queries
from torch_trn_emu.kernels.attention.forward import attention
from torch_trn_emu.kernels.attention.heads import Layout
from torch_trn_emu.kernels.attention.spec import AttentionSpec, Mask
from torch_trn_emu.timing import price

CHIP = get_chip("trn3")
Sizes = tuple[int, int, int, int, int]  # batch, heads, queries, keys, head_dim


def _spec(sizes: Sizes, compute: str = "float32") -> AttentionSpec:
    names = ("batch", "heads", "queries", "keys", "dim")
    return AttentionSpec(**dict(zip(names, sizes, strict=True)), dtype=compute, compute=compute)  # type: ignore[arg-type]


def _drawn(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, queries, keys, dim = sizes
    g = torch.Generator().manual_seed(sum(sizes))
    q = torch.randn(batch, heads, queries, dim, generator=g)
    k, v = (torch.randn(batch, heads, keys, dim, generator=g) for _ in "kv")
    return q, k, v


def _padded(x: torch.Tensor, *, beside: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A longer cache, or a projection, with NaN where the tensor is not, and the tensor in it."""
    batch, heads, length, dim = x.shape
    if beside:
        memory = torch.full((batch, length, heads + 1, dim), torch.nan)
        return memory, memory[:, :, :heads].transpose(1, 2).copy_(x)
    memory = torch.full((batch, heads, length + 3, dim), torch.nan)
    return memory, memory[:, :, :length].copy_(x)


def _computed(
    a: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    found, fed = [], {}
    for name, x in zip("qkv", (q, k, v), strict=True):
        span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        found.append((name, Layout(*x.stride())))
        fed[name] = x.as_strided((span,), (1,)).numpy()
    if mask is not None:
        fed["mask"] = mask.numpy().reshape(-1)
        strides = mask.expand(a.batch, a.heads, a.queries, a.keys).stride()
        dtype = "bool" if mask.dtype is torch.bool else "float32"
        a = replace(a, mask=Mask(strides=strides, elements=mask.numel(), dtype=dtype))  # type: ignore[arg-type]
    program = attention_of_few_queries(replace(a, layouts=tuple(found)), chip=CHIP)
    validate(program, CHIP)
    return torch.from_numpy(Machine(CHIP).run(program, fed)["out"]).reshape(q.shape)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1, 1),
        (3, 5, 1, 513, 64),  # users share a step, the last keys are one
        (1, 17, 4, 130, 64),  # heads that a step does not divide, stacked by two
        (2, 9, 3, 383, 32),  # by four, runs of unequal tiles
        (1, 2, 100, 70, 128),  # a head alone
        (1, 2, 2, 12800, 16),  # four sections
    ],
    ids=str,
)
def test_of_any_size_and_layout(sizes: Sizes, beside: bool) -> None:
    q, k, v = _drawn(sizes)
    k, v = (_padded(x, beside=beside)[1] for x in (k, v))
    y = scaled_dot_product_attention(q.double(), k.double(), v.double())
    got = _computed(_spec(sizes), q, k, v, None)
    torch.testing.assert_close(got.double(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 1, 390), (3, 4, 2, 390), (2, 390)], ids=str)
def test_masks(shape: tuple[int, ...], boolean: bool) -> None:
    sizes = (3, 4, 2, 390, 64)
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if boolean:
        mask = (mask > 0) | (torch.arange(390) == 0)  # each query sees a key
    q, k, v = _drawn(sizes)
    wide = mask if boolean else mask.double()
    y = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=wide)
    got = _computed(_spec(sizes), q, k, v, mask)
    torch.testing.assert_close(got.double(), y, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_stays_with_its_head() -> None:
    sizes = (2, 4, 3, 200, 64)
    q, k, v = _drawn(sizes)
    k[0, 1, 7, 0], k[1, 0, 199, 3] = torch.inf, torch.nan
    v[1, 3, 5, 10] = torch.nan
    y = scaled_dot_product_attention(q.double(), k.double(), v.double())
    got = _computed(_spec(sizes), q, k, v, None)
    assert got.isfinite().any()
    torch.testing.assert_close(got.double(), y, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("dim", [64, 128])
def test_many_users_take_about_as_long_as_their_keys(chip: str, dim: int) -> None:
    described = get_chip(chip)
    a = _spec((32, 8, 4, 2048, dim), "bfloat16")
    program = attention_of_few_queries(a, chip=described)
    took = price(program, described).total_s - described.launch.kernel_overhead_s
    read_s = 2 * 32 * 8 * 2048 * dim * 2 / described.hbm_bytes_per_s_per_core()
    assert read_s < took < 2 * read_s
    many = attention(a, chip=described)
    assert 1.7 * took < price(many, described).total_s


def test_one_more_of_each_takes_hardly_longer() -> None:
    def us(*sizes: int) -> float:
        program = attention_of_few_queries(_spec(sizes, "bfloat16"), chip=CHIP)  # type: ignore[arg-type]
        return price(program, CHIP).total_s * 1e6

    base = (16, 8, 4, 1000, 64)
    here = us(*base)
    for at, more in ((0, 17), (1, 9), (3, 1001), (3, 999), (2, 5)):
        sizes = (*base[:at], more, *base[at + 1 :])
        assert abs(us(*sizes) - here) < 0.2 * here, sizes


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3", "trn4"])
def test_sbuf_holds_it(chip: str, compute: str) -> None:
    for dim in (1, 16, 31, 32, 33, 63, 64, 65, 128):
        for queries, keys in ((1, 5000), (64, 300), (128, 40_000)):
            a = _spec((3, 32, queries, keys, dim), compute)
            a = replace(a, mask=Mask(strides=(keys, 0, 0, 1), elements=3 * keys, dtype=compute))  # type: ignore[arg-type]
            validate(attention_of_few_queries(a, chip=get_chip(chip)), get_chip(chip))
