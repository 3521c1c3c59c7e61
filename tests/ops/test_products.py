"""What is added to a product as it leaves PSUM."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .calls import call_of, lowered, memory, random, run

aten = torch.ops.aten
FACTORS = st.sampled_from([1.0, 0.5, -2.0])
SIZE = st.integers(1, 150)


@settings(max_examples=15, deadline=None)
@given(
    m=SIZE,
    k=SIZE,
    n=st.integers(1, 600),
    kind=st.sampled_from(["row", "full", "turned", "column", "one"]),
    beta=FACTORS,
    alpha=FACTORS,
)
def test_addmm(m: int, k: int, n: int, kind: str, beta: float, alpha: float) -> None:
    a, b = random(m, k), random(k, n)
    added = {"row": (n,), "full": (m, n), "turned": (n, m), "column": (m, 1), "one": (1,)}[kind]
    addend = random(*added).T if kind == "turned" else random(*added)
    call = call_of(aten.addmm.default, addend, a, b, beta=beta, alpha=alpha)
    out = run(lowered(call), {"lhs": a, "rhs": b, "addend": memory(addend)})["out"]
    expected = torch.addmm(addend.double(), a.double(), b.double(), beta=beta, alpha=alpha)
    np.testing.assert_allclose(out.reshape(m, n), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 70, 33), (33,), (2, 1, 33), (70, 1)], ids=str)
def test_baddbmm(shape: tuple[int, ...]) -> None:
    addend, a, b = random(*shape), random(2, 70, 40), random(2, 40, 33)
    call = call_of(aten.baddbmm.default, addend, a, b, beta=0.5, alpha=2)
    out = run(lowered(call), {"lhs": a, "rhs": b, "addend": addend})["out"]
    expected = torch.baddbmm(addend, a, b, beta=0.5, alpha=2)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_addmv_and_linear() -> None:
    addend, a, x = random(140), random(140, 30), random(30)
    out = run(lowered(call_of(aten.addmv.default, addend, a, x)),
              {"lhs": a, "rhs": x, "addend": addend})["out"]  # fmt: skip
    np.testing.assert_allclose(out.reshape(-1), torch.addmv(addend, a, x), rtol=1e-4, atol=1e-4)
    rows, weight = random(2, 5, 30), random(140, 30)
    call = call_of(aten.linear.default, rows, weight, addend)
    out = run(lowered(call), {"lhs": rows, "rhs": weight, "addend": addend})["out"]
    expected = torch.nn.functional.linear(rows, weight, addend)
    np.testing.assert_allclose(out.reshape(2, 5, 140), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("gelu", [False, True])
def test_an_activation_follows(gelu: bool, beta: int) -> None:
    addend, a, b = random(60), random(130, 40), random(40, 60)
    call = call_of(aten._addmm_activation.default, addend, a, b, use_gelu=gelu, beta=beta)
    out = run(lowered(call), {"lhs": a, "rhs": b, "addend": addend})["out"]
    product = torch.addmm(addend, a, b, beta=beta)
    expected = torch.nn.functional.gelu(product) if gelu else product.relu()
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-4)


def test_addbmm() -> None:
    addend, a, b = random(1, 33), random(3, 70, 40), random(3, 40, 33)
    call = call_of(aten.addbmm.default, addend, a, b, beta=0.5, alpha=2)
    feeds = {"lhs": a, "rhs": b, "addend": addend}
    out = run(lowered(call), feeds, [{}, {"in": "out"}, {"in0": "out", "in1": "addend"}])["out"]
    expected = torch.addbmm(addend, a, b, beta=0.5, alpha=2)
    np.testing.assert_allclose(out.reshape(70, 33), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("sizes", [(16, 32, 48), (160, 64, 32), (32, 256, 624)], ids=str)
def test_scaled(sizes: tuple[int, int, int], by_row: bool, biased: bool) -> None:
    """8-bit operands are exact in the array; sums of k terms, and the scales' roundings."""
    m, k, n = sizes
    a, b = random(m, k).to(torch.float8_e4m3fn), random(n, k).to(torch.float8_e4m3fn).t()
    scale_a, scale_b = (
        (random(m, 1).abs() + 0.5, random(1, n).abs() + 0.5)
        if by_row
        else (torch.tensor(0.3), torch.tensor(1.7))
    )
    bias = random(n) if biased else None
    exact = (a.double() @ b.double()) * scale_a.double() * scale_b.double()
    exact = exact + (bias.double() if bias is not None else 0)
    call = call_of(
        aten._scaled_mm.default, a, b, scale_a, scale_b, bias=bias, out_dtype=torch.float32,
        results=exact.float(),
    )  # fmt: skip
    feeds = {"lhs": a.float(), "rhs": b.t().float(), "operand 2": scale_a,
             "operand 3": scale_b} | ({} if bias is None else {"operand 4": bias})  # fmt: skip
    got = run(lowered(call), feeds)
    (out,) = (x for name, x in got.items() if name.startswith("out"))
    size = (a.double().abs() @ b.double().abs()) * scale_a.double() * scale_b.double()
    bound = (k + 4) * 2.0**-24 * (size + (bias.abs() if bias is not None else 0))
    assert (np.abs(out.reshape(m, n) - exact.numpy()) <= bound.numpy()).all()
