"""torch.func over trn tensors."""

import pytest
import torch
from parity import assert_same_on_trn
from torch import func, nn

# Forward mode compiles its formulas with torch.jit on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")


def loss(w, x):
    return ((x @ w).tanh() - 1).square().mean()


TRANSFORMS = {
    "grad": lambda w, x: func.grad(loss)(w, x),
    "grad and value": lambda w, x: func.grad_and_value(loss)(w, x),
    "vjp": lambda w, x: func.vjp(loss, w, x)[1](torch.ones((), device=x.device)),
    "jvp": lambda w, x: func.jvp(lambda v: loss(v, x), (w,), (torch.ones_like(w),)),
    "jacrev": lambda w, x: func.jacrev(lambda v: (x @ v).sin().sum(0))(w),
    "jacfwd": lambda w, x: func.jacfwd(lambda v: (x @ v).sin().sum(0))(w),
    "hessian": lambda w, x: func.hessian(lambda v: loss(w * v, x))(torch.ones(3, device=x.device)),
    "vmap": lambda w, x: func.vmap(lambda row: (row @ w).softmax(-1))(x),
    "vmap over two": lambda w, x: func.vmap(torch.outer, in_dims=(1, 0))(x, w),
    "vmap in chunks": lambda w, x: func.vmap(lambda row: row @ w, chunk_size=2)(x),
    "gradients of samples": lambda w, x: func.vmap(func.grad(loss), (None, 0))(w, x[:, None]),
    "nested vmap": lambda w, x: func.vmap(func.vmap(lambda a: a * a.sin()))(x),
    "linearize": lambda w, x: func.linearize(lambda v: loss(v, x), w)[1](torch.ones_like(w)),
    "functionalize": lambda w, x: func.functionalize(lambda v: v.clone().add_(1).view(-1).mul_(2))(w),
    "indexing in vmap": lambda w, x: func.vmap(lambda a, i: a[i])(x, torch.arange(5, device=x.device) % 4),
    "in place in vmap": lambda w, x: func.vmap(lambda a: a.clone().mul_(2).cumsum(0))(x),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*get_attr Node with no underlying reference")  # linearize
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform(name):
    def step(device):
        return TRANSFORMS[name](torch.randn(4, 3).to(device), torch.randn(5, 4).to(device))

    assert_same_on_trn(step)


def test_functional_calls_of_modules_and_ensembles():
    def step(device):
        models = [
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).to(device) for _ in range(3)
        ]
        params, buffers = func.stack_module_state(models)
        x = torch.randn(5, 4).to(device)

        def call(p, b, x):
            return func.functional_call(models[0], (p, b), (x,))

        single = {name: torch.zeros_like(p) for name, p in models[0].named_parameters()}
        return func.vmap(call, (0, 0, None))(params, buffers, x), call(single, {}, x)

    assert_same_on_trn(step)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers_in_vmap(randomness):
    def step(device):
        x = torch.ones(3, 4, device=device)
        return func.vmap(lambda a: a + torch.rand(4, device=device), randomness=randomness)(x)

    assert_same_on_trn(step)


def test_tracing_gives_a_graph_that_runs_on_trn():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(3, 4, device="trn")
    f = lambda t: (t @ t.T).relu().sum(0)  # noqa: E731
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(f, tracing_mode=mode)(x)
        assert torch.equal(graph(x), f(x))
        assert "aten.mm.default" in graph.code


def test_symbolic_tracing_of_modules():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).to("trn")
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, device="trn")
    assert torch.equal(traced(x), model(x))
