"""Products and convolutions accept what the CPU accepts, of every rank, under every policy."""

from itertools import product

import acceptance
import oracle
import pytest
import torch
import torch.nn.functional as F

import torch_trn_emu

policies = pytest.mark.parametrize("policy", oracle.POLICIES)

TWO = {
    f.__name__: f
    for f in (torch.mm, torch.bmm, torch.mv, torch.dot, torch.vdot, torch.matmul, torch.inner)
} | {
    "outer": torch.outer,
    "linear": F.linear,
    "chain_matmul": lambda a, b: torch.linalg.multi_dot([a, b]),
    "tensordot": lambda a, b: torch.tensordot(a, b, dims=1),
    "kron": torch.kron,
    "vecdot": torch.linalg.vecdot,
}
THREE = {f.__name__: f for f in (torch.addmm, torch.baddbmm, torch.addmv, torch.addbmm)} | {
    "addr": torch.addr,
    "linear with bias": lambda c, a, b: F.linear(a, b, c),
    "bilinear": lambda c, a, b: F.bilinear(a, b, c),
    "_addmm_activation": torch._addmm_activation,
    "addmm_": lambda c, a, b: c.addmm_(a, b),
    "baddbmm_": lambda c, a, b: c.baddbmm_(a, b),
    "addmv_": lambda c, a, b: c.addmv_(a, b),
    "addbmm_": lambda c, a, b: c.addbmm_(a, b),
}
RANKS = range(5)


def tensor(rank: int, size: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones((size,) * rank, dtype=dtype)


@policies
def test_products_of_two_accept_what_the_cpu_accepts(policy):
    calls = [
        (
            f"{name} {a}x{b} {sizes} {dtypes}",
            fn,
            (tensor(a, sizes[0], dtypes[0]), tensor(b, *rest)),
            {},
        )
        for name, fn in TWO.items()
        for a, b in product(RANKS, RANKS)
        for sizes, dtypes in (
            ((2, 2), (torch.float32, torch.float32)),
            ((2, 3), (torch.float32, torch.float32)),
            ((2, 1), (torch.bfloat16, torch.bfloat16)),
            ((2, 2), (torch.float32, torch.bfloat16)),
        )
        for rest in ((sizes[1], dtypes[1]),)
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(calls) == []


@policies
@pytest.mark.parametrize("name", THREE)
def test_products_that_add_accept_what_the_cpu_accepts(policy, name):
    calls = [
        (f"{name} {c}+{a}x{b} {size}", THREE[name], (tensor(c, size), tensor(a), tensor(b)), {})
        for c, a, b in product(RANKS, RANKS, RANKS)
        for size in (1, 2, 3)
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(calls) == []


@policies
def test_products_refuse_mixed_dtypes_as_the_cpu_does(policy):
    right = {"addmm": (2, 2, 2), "baddbmm": (3, 3, 3), "addmv": (1, 2, 1), "addbmm": (2, 3, 3)}
    kinds = (torch.float32, torch.bfloat16, torch.float64)
    calls = [
        (
            f"{name} {dtypes}",
            THREE[name],
            tuple(tensor(r, 2, d) for r, d in zip(ranks, dtypes, strict=True)),
            {},
        )
        for name, ranks in right.items()
        for dtypes in product(kinds, repeat=3)
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(calls) == []


@policies
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_refuse_what_the_cpu_refuses(policy, transposed, dims):
    fn = getattr(F, f"conv{'_transpose' if transposed else ''}{dims}d")
    kinds = (torch.float32, torch.bfloat16, torch.float64)

    def image(*lead: int, size: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.ones(*lead, *(size,) * dims, dtype=dtype)

    calls = [
        (
            f"{dtypes}",
            fn,
            (image(2, 3, dtype=x), image(3, 3, size=2, dtype=w), torch.ones(3, dtype=b)),
            {},
        )
        for dtypes in product(kinds, repeat=3)
        for x, w, b in (dtypes,)
    ]
    calls += [
        (f"bias {shape}", fn, (image(2, 3), image(3, 3, size=2), torch.ones(shape)), {})
        for shape in ((), (1,), (2,), (3, 1), (3, 3))
    ]
    calls += [
        (f"lead {x} {w}", fn, (image(*x), image(*w, size=2)), {})
        for x, w in product(
            ((), (3,), (2, 3), (2, 4), (1, 2, 3)), ((3,), (3, 3), (4, 2), (3, 3, 1))
        )
    ]
    calls += [
        (f"{kwargs}", fn, (image(2, 4), image(4, 2, size=2)), kwargs)
        for kwargs in (
            {"groups": 2},
            {"groups": 3},
            {"stride": 0},
            {"padding": -1},
            {"dilation": 0},
        )
    ]
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(calls) == []
