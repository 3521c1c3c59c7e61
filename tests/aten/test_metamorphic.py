"""No value depends on strides: every product, forward and backward, in every layout.

The same values in another layout give the same bits, or differ by no more than another order of
float32 sums does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_trn_emu

B, M, K, N = 2, 6, 70, 5  # K: two blocks of 32 and a ragged one


@dataclass(frozen=True)
class Case:
    """An operator, the shapes of its operands, and which of them are parameters."""

    fn: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...] = ()
    differentiable: bool = True


def cell(fn: Callable[..., Any]) -> Callable[..., Tensor]:
    def run(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b: Tensor) -> Tensor:
        state = (h, h) if fn is torch.lstm_cell else h
        made = fn(x, state, w_ih, w_hh, b, b)
        return made[0] if isinstance(made, tuple) else made

    return run


def einsum(equation: str) -> Callable[..., Tensor]:
    return lambda a, b: torch.einsum(equation, a, b)


mm, vector, bias = ((M, K), (K, N)), (K,), (N,)
CASES = {
    "mm": Case(torch.mm, mm),
    "mm of a weight": Case(torch.mm, mm, weights=(1,)),
    "mm by a weight": Case(torch.mm, mm, weights=(0,)),
    "addmm": Case(torch.addmm, (bias, *mm)),
    "addmm, scaled": Case(lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=3), ((M, N), *mm)),
    "addmm_": Case(lambda c, a, b: c.clone().addmm_(a, b), ((M, N), *mm)),
    "bmm": Case(torch.bmm, ((B, M, K), (B, K, N))),
    "bmm of a weight": Case(torch.bmm, ((B, M, K), (B, K, N)), weights=(1,)),
    "bmm by a weight": Case(torch.bmm, ((B, M, K), (B, K, N)), weights=(0,)),
    "bmm of a chosen weight": Case(
        lambda x, w: torch.bmm(x, w[torch.tensor([1, 0], device=w.device)]),
        ((B, M, K), (B, K, N)),
        weights=(1,),
    ),
    "baddbmm": Case(torch.baddbmm, ((M, N), (B, M, K), (B, K, N))),
    "baddbmm of a weight": Case(torch.baddbmm, ((M, N), (B, M, K), (B, K, N)), weights=(2,)),
    "baddbmm_": Case(lambda c, a, b: c.clone().baddbmm_(a, b), ((B, M, N), (B, M, K), (B, K, N))),
    "addbmm": Case(torch.addbmm, ((M, N), (B, M, K), (B, K, N))),
    "mv": Case(torch.mv, ((M, K), vector)),
    "addmv": Case(torch.addmv, ((M,), (M, K), vector)),
    "dot": Case(torch.dot, (vector, vector)),
    "matmul 1x2": Case(torch.matmul, (vector, (K, N))),
    "matmul 2x1": Case(torch.matmul, ((M, K), vector)),
    "matmul 3x1": Case(torch.matmul, ((B, M, K), vector)),
    "matmul 1x3": Case(torch.matmul, (vector, (B, K, N))),
    "matmul 3x2": Case(torch.matmul, ((B, M, K), (K, N))),
    "matmul 3x2 of a weight": Case(torch.matmul, ((B, M, K), (K, N)), weights=(1,)),
    "matmul 2x3": Case(torch.matmul, ((M, K), (B, K, N))),
    "matmul 4x2": Case(torch.matmul, ((B, 2, M, K), (K, N))),
    "matmul 4x3": Case(torch.matmul, ((B, 2, M, K), (2, K, N))),
    "matmul 4x4": Case(torch.matmul, ((B, 2, M, K), (B, 2, K, N))),
    "linear": Case(F.linear, ((M, K), (N, K), bias), weights=(1, 2)),
    "linear 1": Case(F.linear, (vector, (N, K), bias), weights=(1, 2)),
    "linear 3": Case(F.linear, ((B, M, K), (N, K), bias), weights=(1, 2)),
    "linear 3 of no parameter": Case(F.linear, ((B, M, K), (N, K), bias)),
    "linear 3 without a bias": Case(F.linear, ((B, M, K), (N, K)), weights=(1,)),
    "linear 4": Case(F.linear, ((B, 2, M, K), (N, K), bias), weights=(1, 2)),
    "einsum bij,jk": Case(einsum("bij,jk->bik"), ((B, M, K), (K, N))),
    "einsum bij,bjk": Case(einsum("bij,bjk->bik"), ((B, M, K), (B, K, N))),
    "einsum ij,bjk of a weight": Case(einsum("bij,bkj->bik"), ((B, M, K), (B, N, K)), weights=(1,)),
    "tensordot": Case(lambda a, b: torch.tensordot(a, b, dims=1), ((B, M, K), (K, N))),
    "inner": Case(torch.inner, ((B, M, K), (N, K))),
    "multi_dot": Case(lambda a, b: torch.linalg.multi_dot([a, b]), mm),
    "bilinear": Case(F.bilinear, ((M, 33), (M, 7), (N, 33, 7), bias), weights=(2, 3)),
    "addr": Case(torch.addr, ((M, N), (M,), (N,))),
    "vecdot": Case(torch.linalg.vecdot, ((M, K), (M, K))),
    "_addmm_activation": Case(torch._addmm_activation, (bias, *mm), differentiable=False),
    "lstm_cell": Case(cell(torch.lstm_cell), ((M, 33), (M, 4), (16, 33), (16, 4), (16,))),
    "gru_cell": Case(cell(torch.gru_cell), ((M, 33), (M, 4), (12, 33), (12, 4), (12,))),
    "conv1d": Case(F.conv1d, ((B, 8, 9), (4, 8, 3), (4,)), weights=(1, 2)),
    "conv2d": Case(F.conv2d, ((B, 8, 9, 9), (4, 8, 3, 3), (4,)), weights=(1, 2)),
    "conv3d": Case(F.conv3d, ((B, 4, 5, 5, 5), (4, 4, 3, 3, 3), (4,)), weights=(1, 2)),
    "conv_transpose2d": Case(F.conv_transpose2d, ((B, 8, 9, 9), (8, 4, 3, 3), (4,))),
    "attention": Case(F.scaled_dot_product_attention, ((B, 2, M, 16),) * 3),
}  # fmt: skip


def exchanged(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": exchanged,
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(
        *reversed(range(x.dim()))
    ),
    "every second": lambda x: torch.stack((x, x + 1), -1).flatten(-2)[..., ::2],
    "every second row": lambda x: torch.stack((x, x + 1), 1).flatten(0, 1)[::2],
    "offset": lambda x: F.pad(x, (3, 2))[..., 3:-2],
    "expanded": lambda x: x[:1].expand_as(x),
    "a column expanded": lambda x: x[..., :1].expand_as(x),
    "one value": lambda x: x.flatten()[0].expand_as(x),
}  # fmt: skip


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5
    return x.to(dtype).trn()


def results(case: Case, operands: list[Tensor], gradient: Tensor | None) -> list[Tensor]:
    """The result and the gradients; leaves keep the layouts of the operands."""
    leaves = [
        nn.Parameter(x) if i in case.weights else x.detach().requires_grad_(case.differentiable)
        for i, x in enumerate(operands)
    ]
    with torch.set_grad_enabled(case.differentiable):
        out = case.fn(*leaves)
    if not case.differentiable or gradient is None:
        return [out.detach()]
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def layouts(shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield from ((name, lay) for name, lay in LAYOUTS.items() if len(shape) > 0)


def assert_alike(got: list[Tensor], wanted: list[Tensor], what: str) -> None:
    for i, (mine, plain) in enumerate(zip(got, wanted, strict=True)):
        if torch.equal(mine, plain):
            continue
        # Another order of the sums: two bounds of k * 2^-24 of the terms' magnitudes, which these
        # operands of one scale bound by k times the largest, and the result's own rounding.
        unit = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}[plain.dtype]
        bound = (4 * K * 2.0**-24 * K**0.5 + 2 * unit) * max(1.0, float(plain.abs().max()))
        error = float((mine.float() - plain.float()).abs().max())
        assert error <= bound, f"{what}, result {i}: differs by {error:.3g}, bound {bound:.3g}"


DTYPES = (torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy", oracle.POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_no_value_depends_on_strides(name, policy, dtype):
    case = CASES[name]
    operands = [draw(shape, i, dtype) for i, shape in enumerate(case.shapes)]
    with torch_trn_emu.precision(policy):
        out = case.fn(*operands)
        gradient = draw(tuple(out.shape), 9, dtype) if case.differentiable else None
        for i, shape in enumerate(case.shapes):
            for layout, lay in layouts(shape):
                laid = [lay(x) if i == j else x for j, x in enumerate(operands)]
                plain = [x.contiguous() for x in laid]
                got = results(case, laid, gradient)
                assert_alike(got, results(case, plain, gradient), f"operand {i} {layout}")
        if gradient is None or gradient.dim() == 0:
            return
        for layout, lay in layouts(tuple(gradient.shape)):
            laid_gradient = lay(gradient)
            got = results(case, operands, laid_gradient)
            wanted = results(case, operands, laid_gradient.contiguous())
            assert_alike(got, wanted, f"gradient {layout}")


@pytest.mark.parametrize("policy", oracle.POLICIES)
def test_a_batch_of_one_has_the_values_of_its_row(policy):
    """A matrix of one row lies in memory as one of one column does.

    Kernels of one row may add in another order: twice the bound of a sum of K products, of operands
    that rounding makes no more than twice as large.
    """
    x, w = draw((M, K), 0, torch.float32), draw((N, K), 1, torch.float32)
    with torch_trn_emu.precision("fp32"):
        bound = 8 * K * 2.0**-24 * (x.abs() @ w.abs().t())
    with torch_trn_emu.precision(policy):
        many = F.linear(x, w)
        for row in range(M):
            one, batch = F.linear(x[row : row + 1], w)[0], F.linear(x[None, row : row + 1], w)[0, 0]
            assert ((one - many[row]).abs() <= bound[row]).all()
            assert ((batch - many[row]).abs() <= bound[row]).all()


@pytest.mark.parametrize("policy", oracle.POLICIES)
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_weights_gradient_is_a_product_of_activations_in_every_layout(policy, rows):
    """Against the oracle: neither operand is a weight, however the gradient arrives."""
    both = oracle.POLICIES[policy][1]
    x, w = draw((rows, K), 0, torch.float32), draw((N, K), 1, torch.float32)
    for lay in (lambda g: g, exchanged, LAYOUTS["expanded"], LAYOUTS["every second"]):
        g = lay(draw((rows, N), 2, torch.float32))
        weight = nn.Parameter(w)
        with torch_trn_emu.precision(policy):
            F.linear(x, weight).backward(g)
        oracle.assert_product(weight.grad, *both.apply(g.cpu().t(), x.cpu()))
