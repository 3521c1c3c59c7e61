"""What a graph is said to take, against its operators launched one by one."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_trn_emu

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

META = torch.device("meta")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, device=META)
        self.norm = nn.BatchNorm2d(channels, device=META)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm(self.first(x)))


def classes(x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x, torch.empty(len(x), dtype=torch.long, device=META))


def rows_of(table: torch.Tensor) -> torch.Tensor:
    return F.embedding(torch.empty(4096, dtype=torch.long, device=META), table)


CASES = {
    "mlp": (
        nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)).to(META),
        (2048, 1024),
    ),
    "layer norm": (nn.LayerNorm(1024, device=META), (4096, 1024)),
    "rms norm": (nn.RMSNorm(1024, device=META), (4096, 1024)),
    "softmax": (nn.Softmax(-1), (4096, 4096)),
    "silu": (nn.SiLU(), (4096, 4096)),
    "batch norm": (nn.BatchNorm2d(64, device=META), (32, 64, 56, 56)),
    "convolution": (Block(64), (16, 64, 56, 56)),
    "pooling": (nn.MaxPool2d(3, 2, 1), (16, 64, 112, 112)),
    "cross entropy": (classes, (4096, 8192)),
    "embedding": (rows_of, (32_000, 512)),
    "add": (lambda x: x + 1.5, (4096, 1024)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (4, 64, 32, 32)),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), (4, 64, 32, 32)),
    "nearest": (nn.Upsample(scale_factor=2), (4, 64, 32, 32)),
    "linear": (nn.Upsample(scale_factor=2, mode="linear"), (4, 64, 256)),
    "reflection": (nn.ReflectionPad2d(1), (16, 64, 56, 56)),
    "group norm": (nn.GroupNorm(8, 64, device=META), (32, 64, 56, 56)),
    "group norm of small images": (
        nn.Sequential(nn.GroupNorm(32, 512, device=META), nn.SiLU()), (8, 512, 14, 14)
    ),
    "batch norm of small images": (
        nn.Sequential(nn.BatchNorm2d(512, device=META), nn.ReLU()), (8, 512, 14, 14)
    ),
    "batch norm as learned": (
        nn.Sequential(nn.BatchNorm2d(512, device=META).eval(), nn.ReLU()), (8, 512, 7, 7)
    ),
    "dropout": (nn.Dropout(0.1), (4096, 1024)),
}  # fmt: skip


def device_us(name: str, mode: str, *, backward: bool) -> float:
    call, shape = CASES[name]
    x = torch.empty(shape, device=META, requires_grad=True)

    def step(x: torch.Tensor) -> torch.Tensor | None:
        result = call(x)
        if backward:
            result.backward(torch.empty_like(result))
            return None
        return result

    torch._dynamo.reset()
    if isinstance(call, nn.Module):
        call.zero_grad()
    return torch_trn_emu.estimate(step, x, mode=mode).device_us


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", CASES)
def test_a_graph_takes_no_longer_than_its_operators(name: str, backward: bool) -> None:
    eager, compiled = (device_us(name, mode, backward=backward) for mode in ("eager", "compile"))
    assert compiled <= 1.02 * eager


def test_each_program_of_an_operator_is_priced() -> None:
    """A convolution's gradients are three programs, which differ much."""
    x = torch.empty(8, 16, 32, 32, device=META, requires_grad=True)
    w = torch.empty(64, 16, 3, 3, device=META, requires_grad=True)
    b = torch.empty(64, device=META, requires_grad=True)

    def gradients(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        g = torch.empty(8, 64, 32, 32, device=META)
        window = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True] * 3)
        return torch.ops.aten.convolution_backward(g, x, w, [64], *window)

    with torch.no_grad():
        eager, compiled = (
            torch_trn_emu.estimate(gradients, x, w, b, mode=mode).device_us
            for mode in ("eager", "compile")
        )
    assert compiled == pytest.approx(eager, rel=0.05)


def test_no_gradient_is_lost() -> None:
    """Torch gives `meta` kernels of their own to composite operators, and those no gradient."""
    x = torch.empty(4096, 512, device=META, requires_grad=True)
    w = torch.empty(512, device=META, requires_grad=True)

    def step(x: torch.Tensor, w: torch.Tensor) -> None:
        classes(F.dropout(F.rms_norm(x, (512,), w), 0.1)).backward()

    torch._dynamo.reset()
    found = torch_trn_emu.estimate(step, x, w, mode="compile")
    assert x.grad is not None
    assert w.grad is not None
    took_us = {row.op.split()[-1]: row.device_s * 1e6 for row in found.ops if "graph" in row.op}
    assert took_us["backward"] > 0.5 * took_us["forward"]


def both(function: Callable[..., object], *given: torch.Tensor) -> tuple[float, float]:
    """What it takes eagerly and compiled."""
    torch._dynamo.reset()
    found = []
    for mode in ("eager", "compile"):
        for t in given:
            t.grad = None
        estimated = torch_trn_emu.estimate(function, *given, mode=mode)
        assert all(row.status != "not modelled" for row in estimated.ops)
        found.append(estimated.device_us)
    return found[0], found[1]


PARTS = {
    "chunk": lambda x: x.chunk(3, 1),
    "split": lambda x: x.split([16, 80], 1),
    "unbind": lambda x: x.unbind(1),
    "chunk of images": lambda x: x.view(64, 6, 4, 4).chunk(2, 1),
    "a part and a product": lambda x: (x[:, :32], x * 2),
}


@pytest.mark.parametrize("name", PARTS)
def test_gradients_of_parts_are_read_as_autograd_lays_them_out(name: str) -> None:
    """Of a view with gaps that is contiguous: no copy gives it the strides of the view."""

    def step(x: torch.Tensor) -> None:
        parts = PARTS[name](x)
        torch.autograd.backward(parts, [torch.empty_like(p) for p in parts])

    eager, compiled = both(step, torch.empty(64, 96, device=META, requires_grad=True))
    assert 0 < compiled <= 1.02 * eager


def test_what_is_made_for_nothing_takes_no_time() -> None:
    """The indices of a padding of no elements, say."""
    for mode, rank in (("replicate", 1), ("replicate", 2), ("circular", 2)):
        x = torch.empty(0, *(3,) * (rank + 1), device=META)
        eager, compiled = both(partial(F.pad, pad=(1, 2) * rank, mode=mode), x)
        assert compiled <= eager
    assert both(partial(F.unfold, kernel_size=2), torch.empty(0, 1, 5, 5, device=META))[1] == 0


@pytest.mark.parametrize("rows", [5, 300])
def test_softmax_over_rows_is_priced(rows: int) -> None:
    """The sum of all rows is known when the last one is done: what it divides comes after."""
    x = torch.empty(rows, 96, device=META, requires_grad=True)

    def step(x: torch.Tensor) -> None:
        y = torch.softmax(x, 0)
        y.backward(torch.empty_like(y))

    eager, compiled = both(step, x)
    assert 11 < compiled <= 1.02 * eager


SHORT_ROWS = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", SHORT_ROWS)
def test_what_short_rows_are_reduced_to_is_kept(name: str) -> None:
    """Also where a reduction makes less than four values one; to AOTAutograd that is free."""
    for shape in ((4096, 4), (4, 64, 2)):

        def step(x: torch.Tensor) -> None:
            y = SHORT_ROWS[name](x)
            y.backward(torch.empty_like(y))

        eager, compiled = both(step, torch.empty(shape, device=META, requires_grad=True))
        assert 0 < compiled <= 1.02 * eager


def test_a_graph_that_checks_for_errors_is_priced() -> None:
    """Its order of effects is kept by tokens, which are made of no operand."""

    def step(x: torch.Tensor) -> None:
        y = torch.linalg.cholesky(x @ x.mT)
        y.backward(torch.empty_like(y))

    torch._dynamo.reset()
    x = torch.empty(64, 64, device=META, requires_grad=True)
    found = torch_trn_emu.estimate(step, x, mode="compile")
    assert {row.op.split()[-1] for row in found.ops if "graph" in row.op} == {"forward", "backward"}


@pytest.mark.parametrize(
    "function",
    [lambda a, b: (a @ b).abs() + 1, lambda a, b: a @ b],
    ids=["a graph", "alone"],
)
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_products_of_complex_numbers_are_priced(function: Callable[..., torch.Tensor]) -> None:
    """They have no program, what follows them may have one."""
    x = torch.empty(64, 64, device=META, dtype=torch.complex64)
    torch._dynamo.reset()
    eager, compiled = (torch_trn_emu.estimate(function, x, x, mode=m) for m in ("eager", "compile"))
    assert "trn::graph" not in [row.op for row in compiled.ops]
    assert 0 < compiled.device_us <= 1.02 * eager.device_us


def test_a_product_times_one_is_priced() -> None:
    """By a scale that comes out as 1, say: nothing is left to do after the product."""
    x = torch.empty(64, 64, device=META)
    for follows in (lambda x: x * 1.0, lambda x: torch.relu(x * 1.0)):
        eager, compiled = both(lambda a, follows=follows: follows(a @ a), x)
        assert 0 < compiled <= 0.8 * eager
