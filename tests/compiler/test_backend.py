"""Whatever PyTorch compiles: same values as eager trn, on trn, forward and backward."""

import pytest
import torch
from comparing import TORCHS_OWN, leaf, results
from torch import library, nn
from torch._inductor.exc import InductorError
from torch.nn import functional as F

import torch_trn_emu
from torch_trn_emu import compiler
from torch_trn_emu.compiler.options import MODES
from torch_trn_emu.precision import POLICIES

pytestmark = TORCHS_OWN


def assert_compiles(function, *arguments, bound=2e-5, broken=False, **options):
    """Compiled equals eager within `bound`, and every graph is compiled."""
    torch.manual_seed(1)
    expected = results(function, arguments)
    torch.manual_seed(1)
    actual = results(torch.compile(function, backend="trn", **options), arguments)
    assert len(actual) == len(expected)
    for (device, a), (same_device, e) in zip(actual, expected, strict=True):
        assert device == same_device
        torch.testing.assert_close(a, e, rtol=bound, atol=bound)
    rows = compiler.report()
    assert rows
    assert all(r.status == "compiled" for r in rows if r.kind != "break"), rows
    assert broken or not any(r.kind == "break" for r in rows), rows


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


FUNCTIONS = {
    "pointwise": (lambda x, y: (x * y).sin() + 2, (8, 16), (8, 16)),
    "softmax": (lambda x: x.softmax(-1), (8, 33)),
    "norm and linear": (lambda x, w: F.gelu(F.layer_norm(x, (16,)) @ w), (8, 16), (16, 8)),
    "addmm": (lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2), (8,), (4, 16), (16, 8)),
    "baddbmm": (lambda c, a, b: torch.baddbmm(c, a, b), (2, 4, 8), (2, 4, 16), (2, 16, 8)),
    "bmm": (torch.bmm, (3, 4, 16), (3, 16, 8)),
    "mv and dot": (lambda a, x: torch.dot(a @ x, a @ x), (4, 40), (40,)),
    "inner size one": (lambda a, b: torch.addmm(a[:, :1].t(), a, b), (4, 1), (1, 4)),
    "bilinear": (lambda a, b, w: F.bilinear(a, b, w / 55), (8, 64), (8, 48), (16, 64, 48)),
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (2, 3, 8, 8), (4, 3, 3, 3), (4,)),
    "attention": (attention, (2, 2, 8, 16), (2, 2, 8, 16), (2, 2, 8, 16)),
    "embedding": (lambda w: F.embedding(torch.arange(6, device=w.device) % 4, w), (4, 8)),
    "cross entropy": (
        lambda x: F.cross_entropy(x, torch.arange(8, device=x.device) % 5),
        (8, 5),
    ),
    "view": (lambda x: x.t()[1:], (4, 8)),
    "returned input": (lambda x: (x, x + 1), (4, 8)),
    "host result": (lambda x: (x * 2).cpu(), (4, 8)),
    "there and back": (lambda x: x.cpu().to("trn") * 1, (4, 8)),
    "cat and split": (lambda x, y: torch.cat([x, y]).split(3)[1], (4, 8), (4, 8)),
    "scatter": (
        lambda x: torch.zeros(9, 8, device=x.device).index_add(
            0, torch.arange(4, device=x.device), x
        ),
        (4, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "mxfp8"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_it_gives_eagerly(name, precision):
    function, *shapes = FUNCTIONS[name]
    torch.manual_seed(0)
    arguments = [leaf(*shape) for shape in shapes]
    with torch_trn_emu.precision(precision):
        assert_compiles(function, *arguments, fullgraph=True)


def test_products_compile_where_inductor_allows_no_fallback_of_its_own(monkeypatch):
    monkeypatch.setenv("CI", "true")
    a, x, y = leaf(4, 8), leaf(8), leaf(4)
    with torch_trn_emu.precision("fp32"):
        assert_compiles(torch.mv, a, x, fullgraph=True)
        assert_compiles(torch.dot, x, x, fullgraph=True)
        assert_compiles(torch.vdot, x, x, fullgraph=True)
        assert_compiles(torch.addmv, y, a, x, fullgraph=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_products_follow_the_policy_bit_for_bit(policy):
    x, w = leaf(33, 70), leaf(70, 9)
    with torch_trn_emu.precision(policy):
        assert_compiles(torch.mm, x, w, bound=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_bilinear_is_made_of_products_that_follow_the_policy(policy):
    arguments = [leaf(2, 8, 64), leaf(2, 8, 48), leaf(16, 64, 48)]
    with torch_trn_emu.precision(policy):
        bound = 2e-5 if policy == "fp32" else 2e-6
        assert_compiles(lambda a, b, w: F.bilinear(a, b, w / 55), *arguments, bound=bound)


def test_a_change_of_policy_compiles_anew():
    x, w = leaf(16, 64), leaf(64, 16)
    compiled = torch.compile(torch.mm, backend="trn")
    for policy in ("mxfp8", "fp32", "mxfp8", "bf16"):
        with torch_trn_emu.precision(policy):
            assert torch.equal(compiled(x, w), torch.mm(x, w))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_bf16_products_equal_eager():
    x, w = leaf(8, 64, dtype=torch.bfloat16), leaf(64, 8, dtype=torch.bfloat16)
    with torch_trn_emu.precision("mxfp8"):
        assert_compiles(torch.mm, x, w, bound=0)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    assert_compiles(lambda x: (x @ x.t()).relu(), leaf(8, 8), mode=mode)


def test_an_unknown_option_is_an_error():
    with pytest.raises(Exception, match=r"has no option 'max_autotun'.*max_autotune"):
        torch.compile(torch.sin, backend="trn", options={"max_autotun": True})(leaf(2))
    with pytest.raises(Exception, match=r"'strict'.*is a bool"):
        torch.compile(torch.sin, backend="trn", options={"strict": 1})(leaf(2))
    with pytest.raises(Exception, match="mode 'fast'"):
        torch.compile(torch.sin, backend="trn", mode="fast")(leaf(2))


@pytest.mark.parametrize("dynamic", [True, None])
def test_dynamic_shapes(dynamic):
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to("trn")
    compiled = torch.compile(model, backend="trn", dynamic=dynamic)
    for rows in (4, 7, 12, 30):
        x = leaf(rows, 16)
        expected, actual = results(model, [x]), results(compiled, [x])
        for (_, a), (_, e) in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_each_call_is_priced_by_its_own_sizes():
    """As the graph that is compiled for these sizes alone: counters and launches."""
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to("trn")
    compiled = torch.compile(model, backend="trn", dynamic=True)

    def counted(function, rows):
        x = leaf(rows, 16)
        torch.trn.reset_counters()
        function(x).sum().backward()
        return torch.trn.counters()

    counted(compiled, 40)  # gradients are set at first, added to afterwards
    dynamic = {rows: counted(compiled, rows) for rows in (40, 3000, 40)}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    for rows, counters in dynamic.items():
        fixed = torch.compile(model, backend="trn", dynamic=False)
        assert counted(fixed, rows) == counters
    assert dynamic[3000]["hbm_read_bytes"] > 10 * dynamic[40]["hbm_read_bytes"]
    launches = {s.name: s.launches for s in compiler.summary() if "=3000" in s.name}
    assert len(launches) == 2


def test_a_graph_break_leaves_two_graphs():
    def function(x):
        y = x * 2
        torch._dynamo.graph_break()
        return y.sin()

    assert_compiles(function, leaf(4, 4), broken=True)
    assert any(r.kind == "break" for r in compiler.report())


def test_inputs_and_buffers_are_written_in_place():
    def function(x, y):
        x.add_(1)
        y[1:].mul_(2)
        return x + y.sum()

    inputs = [torch.arange(6.0).reshape(2, 3).to("trn") for _ in range(2)]
    twins = [t.clone() for t in inputs]
    function(*twins)
    torch.compile(function, backend="trn")(*inputs)
    for one, other in zip(inputs, twins, strict=True):
        assert torch.equal(one, other)


def test_aliased_arguments_that_are_written():
    def function(x, y):
        x.mul_(3)
        return y + 1

    x = torch.arange(8.0, device="trn")
    twin = x.clone()
    expected = function(twin, twin[2:])
    actual = torch.compile(function, backend="trn")(x, x[2:])
    assert torch.equal(actual, expected)
    assert torch.equal(x, twin)


def test_batch_norm_updates_its_buffers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to("trn")
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).to("trn")
    twin.load_state_dict(model.state_dict())
    x = leaf(2, 3, 8, 8)
    model(x), torch.compile(twin, backend="trn")(x)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_view_that_is_returned_shares_its_memory():
    x = torch.zeros(4, 4, device="trn")
    y = torch.compile(lambda x: x.view(2, 8), backend="trn")(x)
    y.fill_(3)
    assert x.sum() == 48
    z = torch.compile(lambda x: x.cpu(), backend="trn")(x)
    assert z.device.type == "cpu"
    z.zero_()
    assert x.sum() == 48


def test_equal_seeds_give_equal_numbers():
    function = torch.compile(lambda x: F.dropout(x, 0.5), backend="trn")
    x = torch.ones(64, 64, device="trn")
    torch.manual_seed(0)
    host_state = torch.random.get_rng_state()
    first, second = function(x), function(x)
    assert torch.equal(torch.random.get_rng_state(), host_state)  # the core's generator is used
    torch.trn.manual_seed(0)
    assert torch.equal(first, function(x))
    assert not torch.equal(first, second)


def test_constants_fold_where_trn_computes_them():
    def function(x):
        return x + torch.full((3,), -2.0, device=x.device).abs()

    assert_compiles(function, leaf(3))


def test_fallback_random_draws_by_eagers_formulas():
    names = "bernoulli_ cauchy_ exponential_ geometric_ log_normal_ normal_ uniform_".split()

    def function(x):
        draws = [getattr(x.clone(), n)(*([0.5] if n == "geometric_" else [])) for n in names]
        return [*draws, F.dropout(x)]

    x, made = torch.ones(64, device="trn"), []
    options = {"fallback_random": True, "strict": True}
    for call in (function, torch.compile(function, backend="trn", options=options)):
        torch.manual_seed(0)
        made.append(call(x))
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_fallback_random_gives_the_numbers_of_eager():
    function = torch.compile(
        lambda: torch.rand(16, device="trn"), backend="trn", options={"fallback_random": True}
    )
    torch.manual_seed(0)
    expected = torch.rand(16, device="trn")
    torch.manual_seed(0)
    assert torch.equal(function(), expected)


def test_autocast_inside_and_outside():
    model = nn.Linear(32, 16).to("trn")

    def inside(x):
        with torch.autocast("trn", dtype=torch.bfloat16):
            return model(x)

    assert_compiles(inside, leaf(4, 32), bound=1e-2)
    torch._dynamo.reset()
    with torch.autocast("trn", dtype=torch.bfloat16):
        assert_compiles(model, leaf(4, 32), bound=1e-2)


@pytest.mark.parametrize("use_reentrant", [False])
def test_activation_checkpoints(use_reentrant):
    layer = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16)).to("trn")

    def function(x):
        return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant)

    compiled = torch.compile(function, backend="trn")
    x = leaf(4, 16)
    y = compiled(x)
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert all(r.status == "compiled" for r in compiler.report())


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": False}], ids=str)
def test_an_optimizer_step(options):
    torch.manual_seed(0)
    start = [torch.randn(8, 8), torch.randn(8)]
    grads = [torch.randn(8, 8), torch.randn(8)]
    both = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="trn")):
        parameters = [nn.Parameter(t.clone().to("trn")) for t in start]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, **options)
        step = wrap(optimizer.step)
        for _ in range(2):
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g.to("trn")
            step()
        both.append(parameters)
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_whole_step_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)).to("trn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(32, 16).to("trn"), torch.randn(32, 1).to("trn")

    @torch.compile(backend="trn")
    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    losses = [float(step().detach()) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_compiled_autograd():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to("trn")
    x = leaf(4, 8)
    expected = results(model, [x])
    with torch._dynamo.config.patch(compiled_autograd=True):
        actual = results(torch.compile(model, backend="trn"), [x])
    for (_, a), (_, e) in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def test_two_devices():
    function = torch.compile(lambda x: x * 2 + 1, backend="trn")
    for index in (0, 1, 0):
        x = torch.ones(4, device=f"trn:{index}")
        y = function(x)
        assert y.device == x.device
        assert y.sum() == 12
    across = torch.compile(lambda x: (x + 1, (x + 1).to("trn:1") * 2), backend="trn")
    one, other = across(torch.ones(4, device="trn:0"))
    assert (str(one.device), str(other.device)) == ("trn:0", "trn:1")
    assert other.sum() == 16


def test_a_sparse_gradient_lies_on_trn():
    indices = torch.tensor([1, 2, 1], device="trn")
    grads = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, backend="trn")):
        layer = nn.Embedding(10, 4, sparse=True).to("trn")
        wrap(layer)(indices).sum().backward()
        grads.append(layer.weight.grad)
    assert grads[1].is_sparse
    assert grads[1].device.type == "trn"
    assert grads[1]._values().device.type == "trn"
    assert torch.equal(grads[1].to_dense(), grads[0].to_dense())


def test_nested_compile_and_disable():
    inner = torch.compile(lambda x: x.sin(), backend="trn")

    @torch.compiler.disable
    def outside(x):
        return x * 3

    def function(x):
        return inner(x) + outside(x).cos()

    assert_compiles(function, leaf(4, 4), broken=True)


def test_control_flow():
    def function(x):
        return torch.cond(x.sum() > 0, lambda x: x @ x, lambda x: x - 1, (x,))

    compiled = torch.compile(function, backend="trn", fullgraph=True)
    for sign in (1, -1):
        x = sign * torch.eye(4, device="trn")
        torch.testing.assert_close(compiled(x), function(x))

    def loop(x):
        return torch._higher_order_ops.while_loop(
            lambda i, x: i < 3,
            lambda i, x: (i + 1, x * 2),
            (torch.zeros((), dtype=torch.int64, device="trn"), x),
        )

    compiled = torch.compile(loop, backend="trn", fullgraph=True)
    assert compiled(torch.ones(2, device="trn"))[1].sum() == 16
    assert all(r.status == "compiled" for r in compiler.report())


def test_custom_operators():
    @library.custom_op("trn_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(lambda x: torch.empty_like(x))
    function = torch.compile(lambda x: twice(x) + 1, backend="trn", fullgraph=True)
    assert function(torch.ones(4, device="trn")).sum() == 12


def test_a_module_keeps_its_own_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to("trn")
    torch_trn_emu.set_precision(model[1], "bf16")
    x = leaf(8, 64)
    with torch_trn_emu.precision("mxfp8"):
        assert_compiles(model, x, bound=1e-6, fullgraph=True)


def test_a_block_of_code_keeps_its_precision():
    def function(x, w):
        with torch_trn_emu.precision("bf16"):
            y = x @ w
        return y @ w

    with torch.no_grad(), torch_trn_emu.precision("mxfp8"):
        assert_compiles(function, leaf(8, 64), leaf(64, 64), bound=0, fullgraph=True)


def test_what_cannot_be_compiled_runs_eagerly_and_says_so(monkeypatch):
    from torch_trn_emu.compiler import backend

    def broken(*_, **__):
        raise InductorError(NotImplementedError("no such loop"), None)

    monkeypatch.setattr(backend, "compile_fx_inner", broken)
    x = leaf(4, 4)
    with pytest.warns(compiler.CompileFallbackWarning, match="no such loop"):
        y = torch.compile(lambda x: x.sin() @ x, backend="trn")(x)
    y.sum().backward()
    torch.testing.assert_close(y, x.sin() @ x)
    rows = compiler.report()
    assert {r.status for r in rows} == {"eager"}
    assert "no such loop" in rows[0].reason
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no such loop"):
        torch.compile(lambda x: x.sin() @ x, backend="trn", options={"strict": True})(x)


def test_results_and_workspaces_lie_in_the_cores_memory():
    before = torch.trn.memory_allocated()
    y = torch.compile(lambda x: x.sin() + 1, backend="trn")(torch.ones(1024, device="trn"))
    assert torch.trn.memory_allocated() >= before + 4096
    del y
    assert torch.trn.memory_allocated() == before


def test_host_graphs_are_inductors():
    x = torch.randn(4, 4)
    y = torch.compile(lambda x: (x @ x).sin(), backend="trn")(x)
    torch.testing.assert_close(y, (x @ x).sin())
    assert y.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*prototype", "ignore:.*pickle")
def test_jagged_tensors_compile():
    """Their ragged dimension is a symbol that stands for no number."""

    def function(nested):
        padded = (nested.sin() * 2).to_padded_tensor(0.5)
        return padded, padded.sum(1).cos()

    compiled = torch.compile(function, backend="trn", fullgraph=True)
    for lengths in ((2, 3), (4, 1)):  # the second with symbolic sizes
        parts = [leaf(n, 6) for n in lengths]
        expected = results(lambda *p: function(_jagged(p)), parts)
        actual = results(lambda *p: compiled(_jagged(p)), parts)
        for (_, a), (_, e) in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
    rows = compiler.report()
    assert rows
    assert {r.status for r in rows} == {"compiled"}


def _jagged(parts):
    return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)
