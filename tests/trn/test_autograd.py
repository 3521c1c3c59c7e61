"""Autograd on trn: higher orders, forward mode, hooks, checkpoints, modes that switch it off."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from parity import assert_same_on_trn, leaf, with_gradients
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import torch_trn_emu

# Forward mode compiles its formulas with torch.jit on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")

DOUBLE = (
    lambda x, w: torch.tanh(x @ w),
    lambda x, w: F.layer_norm(x, (3,)) * w[0],
    lambda x, w: F.conv1d(x[None], w[:, :, None]),
    lambda x, w: torch.softmax(x, -1) @ w,
    lambda x, w: F.gelu(x @ w).cumsum(0),
    lambda x, w: x[[0, 2, 2]] * w[0],
    lambda x, w: torch.linalg.solve(
        w @ w.T + 3 * torch.eye(3, dtype=w.dtype, device=w.device), x.T
    ),
)


@pytest.mark.parametrize("number", range(len(DOUBLE)))
def test_gradients_of_any_order_are_right(number):
    torch.manual_seed(0)
    x = torch.randn(3, 3, dtype=torch.float64, device="trn", requires_grad=True)
    w = torch.randn(3, 3, dtype=torch.float64, device="trn", requires_grad=True)
    assert gradcheck(DOUBLE[number], (x, w), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(DOUBLE[number], (x, w), fast_mode=True)


def test_second_derivatives_equal_the_hosts():
    def step(device):
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
        x = leaf(device, 5, 4)
        (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        penalty = (gradient.norm(2, 1) - 1).square().mean()
        penalty.backward()
        return penalty, [p.grad for p in model.parameters()]

    assert_same_on_trn(step)


def test_forward_mode_equals_the_hosts():
    def step(device):
        x, tangent = torch.randn(3, 4).to(device), torch.randn(3, 4).to(device)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            return tuple(forward_ad.unpack_dual(F.gelu(dual @ dual.T).softmax(1)))

    assert_same_on_trn(step)


def test_functions_written_in_python():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    def step(device):
        x = leaf(device, 5)
        return with_gradients(Cube.apply(x), x)

    assert_same_on_trn(step)


def test_hooks_see_trn_gradients():
    seen = []
    x = torch.ones(2, device="trn", requires_grad=True)
    y = x * 3
    y.register_hook(lambda grad: seen.append(grad.device.type) or grad * 2)
    y.retain_grad()
    x.register_post_accumulate_grad_hook(lambda t: seen.append("after"))
    y.sum().backward()
    assert seen == ["trn", "after"]
    assert x.grad.tolist() == [6, 6]
    assert y.grad.tolist() == [2, 2]


def test_saved_tensors_can_be_kept_on_the_host():
    def step(device):
        x = leaf(device, 6, 6)
        with torch.autograd.graph.save_on_cpu(pin_memory=device == "trn"):
            y = (x.exp() @ x).tanh()
        return with_gradients(y, x)

    assert_same_on_trn(step)


def test_anomaly_mode_names_the_forward_operator():
    x = torch.zeros(2, device="trn", requires_grad=True)
    with (
        pytest.warns(UserWarning, match="Anomaly Detection"),
        torch.autograd.detect_anomaly(),
        pytest.warns(UserWarning, match="Error detected in SqrtBackward0"),
        pytest.raises(RuntimeError, match="'SqrtBackward0' returned nan values"),
    ):
        (x.sqrt() * 0).sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_give_the_same_gradients(reentrant):
    def block(model, x):
        return F.dropout(model(x).relu(), 0.3)

    def step(device):
        model = nn.Linear(6, 6).to(device)
        x = leaf(device, 4, 6)
        torch.manual_seed(1)
        y = checkpoint(block, model, x, use_reentrant=reentrant)
        return with_gradients(y, x, *model.parameters())

    assert_same_on_trn(step)


def test_checkpointed_sequences():
    def step(device):
        model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)]).to(device)
        x = leaf(device, 4, 6)
        return with_gradients(checkpoint_sequential(model, 2, x, use_reentrant=False), x)

    assert_same_on_trn(step)


def test_a_checkpoint_saves_memory():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)]).to(
        "trn"
    )
    x = torch.randn(512, 64, device="trn", requires_grad=True)

    def peak(run):
        gc.collect()
        torch.trn.reset_peak_memory_stats()
        run(x).sum().backward()
        return torch.trn.max_memory_allocated() - torch.trn.memory_allocated()

    peak(model)
    assert peak(lambda t: checkpoint_sequential(model, 4, t, use_reentrant=False)) < peak(model)


def test_no_grad_and_inference_mode():
    x = torch.ones(2, device="trn", requires_grad=True)
    with torch.no_grad():
        assert not (x * 2).requires_grad
        with torch.enable_grad():
            assert (x * 2).requires_grad
    with torch.inference_mode():
        y = x * 2
        assert y.is_inference()
        y.add_(1)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        y * x
    assert y.clone().is_inference() is False


def test_in_place_mistakes_are_found():
    x = torch.ones(2, device="trn", requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        x.add_(1)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_versions_count_writes():
    x = torch.ones(4, device="trn")
    view = x[1:]
    version = x._version
    view.mul_(2)
    torch.add(x, 1, out=x)
    x[0] = 3
    assert x._version == view._version == version + 3


def test_views_and_in_place_writes_keep_gradients():
    def step(device):
        x = leaf(device, 4, 4)
        y = x * 1
        y[1].mul_(3)
        y.t()[2].copy_(x[0] ** 2)
        y.view(-1)[5:7] = 0
        return with_gradients(y, x)

    assert_same_on_trn(step)


def test_gradients_accumulate_and_clear():
    x = torch.ones(2, device="trn", requires_grad=True)
    for _ in range(3):
        (x * 2).sum().backward()
    assert x.grad.tolist() == [6, 6]
    x.grad = None
    x.grad = torch.ones(2, device="trn")
    with pytest.raises(RuntimeError, match="device"):
        x.grad = torch.ones(2)


def test_graphs_are_freed():
    x = torch.ones(2, device="trn", requires_grad=True)
    y = x.exp()
    reference = weakref.ref(y)
    before = torch.trn.memory_allocated()
    y.sum().backward()
    del y
    gc.collect()
    assert reference() is None
    assert torch.trn.memory_allocated() <= before


def test_backward_in_a_backward():
    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (y**2).sum().backward()
            return grad * y.grad

    x = torch.full((2,), 3.0, device="trn", requires_grad=True)
    Inner.apply(x).sum().backward()
    assert x.grad.tolist() == [6, 6]


def test_clipping_gradients():
    def step(device):
        model = nn.Linear(4, 4).to(device)
        model(torch.randn(3, 4).to(device)).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        other = nn.utils.clip_grad_norm_(
            model.parameters(), 0.2, norm_type=float("inf"), foreach=False
        )
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        return norm, other, [p.grad for p in model.parameters()]

    assert_same_on_trn(step)


def test_jacobians_and_hessians():
    def step(device):
        x = torch.randn(4).to(device)
        f = lambda t: (t.sin() * t.sum()).cumsum(0)  # noqa: E731
        return (
            torch.autograd.functional.jacobian(f, x),
            torch.autograd.functional.jacobian(f, x, vectorize=True),
            torch.autograd.functional.hessian(lambda t: f(t).sum(), x),
            torch.autograd.functional.jvp(f, x, torch.ones_like(x))[1],
        )

    assert_same_on_trn(step)


def products(x, w, b):
    return {
        "mm": x @ w,
        "addmm": torch.addmm(b, x, w, beta=0.5, alpha=2),
        "bmm": torch.bmm(x[None], w[None]),
        "baddbmm": torch.baddbmm(b, x[None], w[None], beta=0.5, alpha=2),
        "mv": torch.mv(x, w[0]),
        "conv": torch.nn.functional.conv1d(x[None], w[:, :4, None]),
        "attention": torch.nn.functional.scaled_dot_product_attention(*(x[None, None],) * 3),
    }


@pytest.mark.parametrize("policy", ["fp32", "mxfp8", "mxfp4"])
def test_nodes_of_products_show_what_they_saved(policy):
    """As on the CPU: names, numbers, sizes, and the tensors themselves."""
    given = [torch.randn(s) for s in ((4, 32), (32, 32), (32,))]
    with torch_trn_emu.precision(policy):
        host = products(*(x.clone().requires_grad_() for x in given))
        trn = products(*(x.trn().requires_grad_() for x in given))
    for name, result in host.items():
        node, ours = result.grad_fn, trn[name].grad_fn
        saved = {a for a in dir(node) if a.startswith(("_saved", "_raw_saved"))}
        assert saved == {a for a in dir(ours) if a.startswith(("_saved", "_raw_saved"))}, name
        for attribute in (a for a in saved if a.startswith("_saved")):
            expected, got = getattr(node, attribute), getattr(ours, attribute)
            if isinstance(expected, torch.Tensor):
                assert got.is_trn, attribute
                assert got.shape == expected.shape, attribute
            else:
                assert got == expected, attribute
    used = trn["mm"].grad_fn
    trn["mm"].sum().backward()
    with pytest.raises(RuntimeError, match="already been freed"):
        _ = used._saved_self
