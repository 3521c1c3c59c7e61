"""What stands around a compiled region and in it: devices, streams, dropout, policies."""

import contextlib

import pytest
import torch
from comparing import TORCHS_OWN, leaf, results
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

import torch_trn_emu
from torch_trn_emu import compiler

pytestmark = [
    *TORCHS_OWN,
    pytest.mark.filterwarnings("ignore:.*does not know how to trace:UserWarning"),
]


def compiled(function, **options):
    return torch.compile(function, backend="trn", options={"strict": True, **options})


def equal(one, other, bound=2e-5):
    assert len(one) == len(other)
    for (device, a), (same, b) in zip(one, other, strict=True):
        assert device == same
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def test_a_subclass_of_two_tensors():
    w = leaf(8, 8).detach()
    halves = torch.randn(2, 4, 8).to("trn")
    made = []
    for wrap in (lambda f: f, compiled):
        x = TwoTensor(halves[0].clone(), halves[1].clone()).requires_grad_()
        y = wrap(lambda x: (x @ w).sin() + 1)(x)
        assert isinstance(y, TwoTensor)
        y.sum().backward()
        made.append((y.a, y.b, x.grad.a, x.grad.b))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_graph_runs_on_the_stream_that_is_current():
    function = compiled(lambda x: (x @ x).relu() + 1)
    x, stream = leaf(64, 64).detach(), torch.trn.Stream()
    function(x)
    start, end = (torch.trn.Event(enable_timing=True) for _ in range(2))
    with torch.trn.stream(stream):
        start.record()
        y = function(x)
        end.record()
    torch.trn.synchronize()
    assert start.elapsed_time(end) > 0
    torch.testing.assert_close(y, (x @ x).relu() + 1)


def test_streams_and_events_inside_a_region_break_the_graph():
    stream = torch.trn.Stream()

    def function(x):
        y = x * 2
        with torch.trn.stream(stream):
            event = torch.trn.Event()
            event.record()
            z = y @ y
        torch.trn.current_stream().wait_stream(stream)
        return z + 1

    x = leaf(16, 16).detach()
    torch.testing.assert_close(compiled(function)(x), function(x))


def test_the_current_device_is_where_factories_go():
    with torch.trn.device(1):
        assert compiled(lambda: torch.ones(3, device="trn") * 2)().device.index == 1
        layer = nn.Linear(16, 8).to("trn")
        y = compiled(layer)(leaf(4, 16))
        y.sum().backward()
    assert y.device.index == layer.weight.grad.device.index == 1


def test_a_model_over_two_devices():
    one, two = nn.Linear(16, 16).to("trn:0"), nn.Linear(16, 16).to("trn:1")

    def function(x):
        return two(one(x).relu().to("trn:1")).to("trn:0")

    x = leaf(4, 16)
    equal(results(compiled(function), [x]), results(function, [x]))
    assert two.weight.grad.device.index == 1


def test_a_compiled_module_inside_a_compiled_module():
    inner = nn.Linear(8, 8).to("trn")
    outer = nn.Sequential(compiled(inner), nn.ReLU(), nn.Linear(8, 8)).to("trn")
    plain = nn.Sequential(inner, nn.ReLU(), outer[2])
    x = leaf(4, 8)
    equal(results(compiled(outer), [x]), results(plain, [x]))


@pytest.mark.parametrize("place", ["process", "module", "block"])
def test_attention_of_mxfp8_all_is_that_of_eager(place):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    module = Attention()
    if place == "module":
        torch_trn_emu.set_precision(module, "mxfp8_all")
    inside = torch_trn_emu.precision("mxfp8_all") if place == "block" else contextlib.nullcontext()

    def function(q, k, v):
        with inside:
            return module(q, k, v)

    heads = [leaf(2, 2, 64, 64) for _ in range(3)]
    with torch_trn_emu.precision("mxfp8_all" if place == "process" else "bf16"):
        call = compiled(module if place == "module" else function)
        made, expected = results(call, heads), results(function, heads)
    # the backward of a compiled block follows the block, that of an eager one what is outside
    gradients = 0 if place == "block" else 3
    # The softmax of the two may differ in the last bit and so, rarely, in a code of MXFP8.
    equal(made[: 1 + gradients], expected[: 1 + gradients], bound=2**-8)
    with torch_trn_emu.precision("bf16"):
        other = F.scaled_dot_product_attention(*heads, is_causal=True)
    assert (made[0][1] - other.detach().cpu()).abs().max() > 2**-5


@pytest.mark.parametrize("recomputed", [True, False])
def test_dropout_with_the_numbers_of_eager(recomputed):
    layer = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.5), nn.Linear(64, 16)).to("trn")

    def function(x):
        if not recomputed:
            return layer(x)
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)

    x, made = leaf(32, 16), []
    for call in (function, compiled(function, fallback_random=True)):
        torch.manual_seed(3)
        made.append(results(call, [x]))
    equal(*made)


def test_recomputed_dropout_draws_what_it_drew():
    """Inductor's own numbers: the gradient passes where values did."""
    drop = nn.Dropout(0.5)

    def function(x):
        return torch.utils.checkpoint.checkpoint(lambda t: drop(t) * 3, x, use_reentrant=False)

    x = torch.ones(64, 64, device="trn").requires_grad_()
    y = compiled(function)(x)
    y.sum().backward()
    assert torch.equal(y, x.grad)


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
def test_a_whole_step_gives_what_it_gives_eagerly(options):
    x, y = torch.randn(8, 16).to("trn"), torch.randn(8, 4).to("trn")
    losses = []
    for wrap in (lambda f: f, compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
        optimizer = torch.optim.AdamW(model.to("trn").parameters(), lr=0.01, **options)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        call = wrap(step)
        losses.append([call().item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_autocast_switched_off_inside_and_scaled_gradients():
    layer = nn.Linear(32, 32).to("trn")

    def function(x):
        with torch.autocast("trn", dtype=torch.bfloat16):
            y = layer(x)
            with torch.autocast("trn", enabled=False):
                z = y.float() @ layer.weight
            return layer(z)

    x = leaf(16, 32)
    made, expected = (results(call, [x]) for call in (compiled(function), function))
    equal(made, expected, bound=5e-2)
    assert made[0][1].dtype == torch.bfloat16

    scaler, optimizer = torch.amp.GradScaler("trn"), torch.optim.SGD(layer.parameters(), lr=0.1)
    call = compiled(layer)
    for _ in range(2):
        with torch.autocast("trn", dtype=torch.float16):
            loss = call(x).float().square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert loss.isfinite()


def broken(x, w):
    y = x @ w
    torch._dynamo.graph_break()
    return y @ w


class Broken(nn.Module):
    def forward(self, x, w):
        return broken(x, w)


def in_a_block(x, w):
    with torch_trn_emu.precision("bf16"):
        y = x @ w
        torch._dynamo.graph_break()
        z = y @ w
    return z @ w


def around_a_call(x, w):
    with torch_trn_emu.precision("bf16"):
        y = broken(x, w)
    return y @ w


@pytest.mark.parametrize("place", ["block", "call", "decorator", "module", "child"])
def test_a_precision_holds_across_a_graph_break(place):
    module = Broken()
    torch_trn_emu.set_precision(module, "bf16")
    function = {
        "block": in_a_block,
        "call": around_a_call,
        "decorator": torch_trn_emu.precision("bf16")(broken),
        "module": module,
        "child": lambda x, w: module(x, w) @ w,
    }[place]
    x, w = leaf(8, 64).detach(), leaf(64, 64).detach()
    with torch_trn_emu.precision("mxfp8"):
        expected = function(x, w)
        assert torch.equal(torch.compile(function, backend="trn")(x, w), expected)
        assert torch_trn_emu.current_precision() == "mxfp8"
    with torch_trn_emu.precision("fp32"):
        assert not torch.equal(broken(x, w), expected)


def test_a_constant_in_the_graph():
    """Dynamo keeps tensors of lists as constants, on the device."""

    def chosen(x):
        return x[torch.tensor([0, 2])] + torch.signal.windows.hann(3, device=x.device)

    x = torch.randn(4, 3).to("trn")
    result = torch.compile(chosen, backend="trn", options={"strict": True})(x)
    torch.testing.assert_close(result, chosen(x))


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax", "SGD"])
def test_optimizers_that_count_on_the_host(name):
    """Arithmetic of host numbers in a graph is the host's: the rest has a program."""
    weights = [torch.nn.Parameter(torch.randn(4, 5).to("trn")) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = getattr(torch.optim, name)(weights, lr=1e-3, foreach=False)
    torch._dynamo.reset()
    compiler.reset()
    torch.compile(optimizer.step, backend="trn")()
    notes = [row.reason for row in compiler.report() if row.status == "note"]
    assert notes == []
    assert any(row.status == "compiled" for row in compiler.report())
