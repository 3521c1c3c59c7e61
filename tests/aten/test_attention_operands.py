"""Attention of any sizes, layouts, masks and ranks: the CPU's values, or the CPU's error."""

from itertools import product

import acceptance
import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import torch_trn_emu

attend = F.scaled_dot_product_attention
policies = pytest.mark.parametrize("policy", oracle.POLICIES)

Q, KV = (2, 4, 3, 8), (2, 4, 5, 8)
SIZES = {  # query, key and value, and whether heads are grouped
    "plain": (Q, KV, False),
    "grouped": (Q, (2, 2, 5, 8), True),
    "one key head": (Q, (2, 1, 5, 8), True),
    "grouped heads without the flag": (Q, (2, 2, 5, 8), False),
    "one key head to broadcast": (Q, (2, 1, 5, 8), False),
    "heads that do not divide": ((2, 6, 3, 8), (2, 4, 5, 8), True),
    "more key heads": ((2, 2, 3, 8), KV, True),
    "one query head": ((2, 1, 3, 8), KV, False),
    "one batch of keys": (Q, (1, 4, 5, 8), False),
    "one batch of queries": ((1, 4, 3, 8), KV, False),
    "batches that do not fit": ((3, 4, 3, 8), KV, False),
    "three dimensions": (Q[1:], KV[1:], False),
    "two dimensions": (Q[2:], KV[2:], False),
    "one dimension": (Q[3:], KV[3:], False),
    "five dimensions": ((1, *Q), (1, *KV), False),
    "four and three": (Q, KV[1:], False),
    "three and four": (Q[1:], KV, False),
    "head dims that differ": (Q, (2, 4, 5, 6), False),
    "no batch": ((0, 4, 3, 8), (0, 4, 5, 8), False),
    "no queries": ((2, 4, 0, 8), KV, False),
    "no keys": (Q, (2, 4, 0, 8), False),
    "no heads": ((2, 0, 3, 8), (2, 0, 5, 8), False),
    "keys of no heads": (Q, (2, 0, 5, 8), False),
    "keys of no heads, grouped": (Q, (2, 0, 5, 8), True),
    "no head dim": ((2, 4, 3, 0), (2, 4, 5, 0), False),
}
MASKS: tuple[tuple[int, ...] | None, ...] = (
    None, (), (5,), (3, 5), (1, 5), (3, 1), (1, 1), (4, 3, 5), (1, 3, 5), (2, 4, 3, 5),
    (1, 1, 3, 5), (2, 1, 1, 5), (2, 3, 3, 5), (3, 4, 3, 5), (1, 2, 4, 3, 5), (3, 4), (2, 4, 3, 4),
)  # fmt: skip


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def calls(dtypes=(torch.float32,)):
    for (name, (q, kv, grouped)), dtype in product(SIZES.items(), dtypes):
        operands = (draw(q, 0, dtype), draw(kv, 1, dtype), draw(kv, 2, dtype))
        for causal in (False, True):
            kwargs = {"enable_gqa": grouped, "is_causal": causal}
            yield f"{name} {dtype} causal={causal}", attend, operands, kwargs


@policies
def test_sizes_that_the_cpu_refuses_raise_the_same(policy):
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(list(calls((torch.float32, torch.float64)))) == []


@policies
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.float16], ids=str)
def test_masks_that_the_cpu_refuses_raise_the_same(policy, dtype):
    operands = (draw(Q, 0), draw(KV, 1), draw(KV, 2))
    masked = [
        (f"{shape} causal={causal}", attend, operands, {"attn_mask": mask, "is_causal": causal})
        for shape in MASKS
        for causal in (False, True)
        if not (causal and shape is not None and policy == "mxfp8_all")  # products take one mask
        for mask in (draw(shape, 3).to(dtype) if shape is not None else None,)
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(masked) == []


@policies
def test_mixed_dtypes_raise_the_same(policy):
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.int64)
    mixed = [
        (f"{dtypes}", attend, tuple(torch.ones(Q, dtype=d) for d in dtypes), {})
        for dtypes in product(kinds, repeat=3)
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(mixed) == []


@policies
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=str)
def test_a_path_asked_for_is_refused_where_the_cpu_refuses_it(policy, backend):
    if policy == "mxfp8_all" and backend is SDPBackend.FLASH_ATTENTION:
        pytest.skip("this policy quantises the two products, which the fused kernel does not have")
    with torch_trn_emu.precision(policy), sdpa_kernel(backend):
        assert acceptance.differences(list(calls())) == []


@pytest.mark.parametrize("name", ["EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_a_fused_kernel_of_cuda_by_name_is_the_one_of_trn(name):
    """Where the math path is allowed too, the flash kernel's flag decides, as on the CPU."""
    backend = getattr(SDPBackend, name)
    q, k, v = (draw((2, 4, 5, 8), seed).trn() for seed in range(3))
    paths = {}
    for backends in ([SDPBackend.FLASH_ATTENTION], [backend], [backend, SDPBackend.MATH]):
        with sdpa_kernel(backends):
            paths[backends[0].value, len(backends)] = torch._fused_sdp_choice(q, k, v)
    flash, math = SDPBackend.FLASH_ATTENTION.value, SDPBackend.MATH.value
    assert list(paths.values()) == [flash, flash, math]


def test_what_no_path_takes_raises_and_says_why():
    q, wide = draw((2, 4, 5, 8), 0).trn(), draw((2, 4, 5, 6), 1).trn()
    with sdpa_kernel(SDPBackend.ERROR), pytest.raises(RuntimeError, match="No viable backend"):
        attend(q, q, q)
    reasons = {
        "4 dimensional": lambda: attend(q[0], q[0], q[0]),
        "one head size": lambda: attend(q, q, wide),
        "stride 1": lambda: attend(*(q.mT.contiguous().mT,) * 3),
        "dropout": lambda: attend(q, q, q, dropout_p=0.5),
    }
    with torch_trn_emu.precision("fp32"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for why, call in reasons.items():
            raised = pytest.raises(RuntimeError, match="No available kernel")
            with pytest.warns(UserWarning, match=f"(?i){why}"), raised:
                call()


@policies
def test_as_many_values_as_keys(policy):
    """The CPU's kernel reads beyond shorter values; here they raise."""
    q, k = draw(Q, 0).trn(), draw(KV, 1).trn()
    for length in (4, 6):
        value = draw((2, 4, length, 8), 2).trn()
        with torch_trn_emu.precision(policy), pytest.raises(RuntimeError):
            attend(q, k, value)


# --- values ---------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "last two exchanged": lambda x: x.mT.contiguous().mT,
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second": lambda x: torch.stack((x, x + 1), -1).flatten(-2)[..., ::2],
    "offset": lambda x: F.pad(x, (3, 2))[..., 3:-2],
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


def with_gradients(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **kwargs) -> list[Tensor]:
    """Layouts are kept: leaves are views with their own strides."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = attend(*leaves, **kwargs)
    out.backward(g)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layouts", list(product(LAYOUTS, repeat=2)), ids="-".join)
def test_every_layout_gives_the_values_of_the_cpu(layouts, dtype):
    """Bit for bit: the path is the CPU's."""
    laid = [LAYOUTS[name] for name in (*layouts, layouts[0], layouts[1])]
    shapes = ((2, 4, 33, 16), (2, 2, 40, 16), (2, 2, 40, 16), (2, 4, 33, 16))
    operands = [lay(draw(s, i, dtype)) for i, (lay, s) in enumerate(zip(laid, shapes, strict=True))]
    on_trn = [
        lay(draw(s, i, dtype).trn()) for i, (lay, s) in enumerate(zip(laid, shapes, strict=True))
    ]
    assert [t.stride() for t in operands] == [t.stride() for t in on_trn]
    with torch_trn_emu.precision("fp32"):
        got = with_gradients(*on_trn, enable_gqa=True)
    for mine, wanted in zip(got, with_gradients(*operands, enable_gqa=True), strict=True):
        assert torch.equal(mine.cpu(), wanted)


@pytest.mark.parametrize("policy", ["bf16", "mxfp8", "mxfp8_all", "mxfp4"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_no_policy_asks_for_a_layout(policy, layout, masked):
    shapes = ((2, 4, 33, 16), (2, 4, 40, 16), (2, 4, 40, 16), (2, 4, 33, 16))
    operands = [draw(s, i).trn() for i, s in enumerate(shapes)]
    mask = draw((2, 4, 33, 40), 9).trn() if masked else None
    with torch_trn_emu.precision(policy):
        wanted = with_gradients(*operands, attn_mask=mask)
        laid = LAYOUTS[layout](mask) if masked else None
        got = with_gradients(*(LAYOUTS[layout](t) for t in operands), attn_mask=laid)
    for mine, plain in zip(got, wanted, strict=True):
        assert torch.equal(mine, plain)


# --- the fused kernel by its own name -------------------------------------------------------------

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@policies
def test_the_fused_kernel_refuses_what_would_lead_it_beyond_its_operands(policy):
    q, k, v = draw(Q, 0).trn(), draw(KV, 1).trn(), draw(KV, 2).trn()
    wrong = [
        (q[0], k[0], v[0]), (q, k, v[:, :, :4]), (q, k[:1], v[:1]), (q, k[:, :3], v[:, :3]),
        (q, k[..., :6], v), (q, k, v[..., :6]), (q, k.double(), v), (q, k[:, :0], v[:, :0]),
    ]  # fmt: skip
    with torch_trn_emu.precision(policy):
        for operands in wrong:
            with pytest.raises(RuntimeError, match="fused attention"):
                flash(*operands)
        for mask in (torch.ones(5), torch.ones(3, 4), torch.ones(3, 3, 5), torch.ones(3, 5).half()):
            with pytest.raises(RuntimeError):
                flash(q, k, v, attn_mask=mask.trn())
        out, sums = flash(q, k, v)
        for g, o, s in ((out[0], out, sums), (out, out[:1], sums), (out, out, sums[:, :2])):
            with pytest.raises(RuntimeError, match="fused attention"):
                flash_backward(g, q, k, v, o, s, 0.0, False)


@policies
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [torch.bool, None])
def test_a_mask_beside_is_causal_is_one_mask(policy, dtype, masked):
    """As the CPU's fused kernel takes both, under every policy; forward and backward."""
    q, k, v = (draw((2, 4, n, 8), i, dtype).trn() for i, n in enumerate((6, 7, 7)))
    scores = draw((1, 1, 6, 7), 3, dtype).trn()
    mask = scores > -0.5 if masked is torch.bool else scores
    causal = torch.ones(6, 7, dtype=torch.bool, device="trn").tril()
    merged = mask & causal if masked is torch.bool else mask.masked_fill(~causal, -torch.inf)

    def results(**kwargs):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*given, **kwargs)
        return out, *torch.autograd.grad(out.square().sum(), given)

    with torch_trn_emu.precision(policy):
        both = results(attn_mask=mask, is_causal=True)
        one = results(attn_mask=merged)
    for got, expected in zip(both, one, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_fused_kernel_takes_any_layout():
    q, k, v = draw(Q, 0), draw(KV, 1), draw(KV, 2)
    wanted = flash(q, k, v)[0]
    with torch_trn_emu.precision("fp32"):
        got = flash(*(LAYOUTS["last two exchanged"](t.trn()) for t in (q, k, v)))[0]
    assert torch.equal(got.cpu(), wanted)
