"""LSTM, GRU and RNN of all layers: the values of the CPU under `fp32`, those of torch's operator,
which multiplies the input of each step, under every policy, and gradients of gradients.
"""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import torch_trn_emu

aten = torch.ops.aten
OPERATORS = {
    "LSTM": (aten.lstm.input, aten.lstm.data),
    "GRU": (aten.gru.input, aten.gru.data),
    "tanh": (aten.rnn_tanh.input, aten.rnn_tanh.data),
    "relu": (aten.rnn_relu.input, aten.rnn_relu.data),
}
STEPS, BATCH, FEATURES, HIDDEN = 5, 4, 40, 32
LENGTHS = [5, 4, 4, 1]
POLICIES = ("fp32", "bf16", "mxfp8", "mxfp8_all", "mxfp4")
KINDS = [(name, size) for name in OPERATORS for size in ((0, 7) if name == "LSTM" else (0,))]
BOOLS = (False, True)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # of the CPU


class Layers:
    """All arguments of one call, drawn anew with the same values for each device."""

    def __init__(self, kind, projection, *, layers=2, both=True, bias=True, batch_first=False,
                 packed=False, dtype=torch.float32, dropout=0.0) -> None:  # fmt: skip
        torch.manual_seed(0)
        options = {"bias": bias, "bidirectional": both, "dropout": dropout}
        if projection:
            options["proj_size"] = projection
        if kind in ("tanh", "relu"):
            options["nonlinearity"] = kind
        make = getattr(nn, kind if kind in ("LSTM", "GRU") else "RNN")
        module = make(FEATURES, HIDDEN, layers, **options).to(dtype)
        shape = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
        rows = layers * (2 if both else 1)
        states = [torch.randn(rows, BATCH, projection or HIDDEN, dtype=dtype)]
        if kind == "LSTM":
            states.append(torch.randn(rows, BATCH, HIDDEN, dtype=dtype))
        self.parameters = [p.detach() for p in module.parameters()]
        self.given = [torch.randn(*shape, FEATURES, dtype=dtype), *states]
        self.flags = (bias, layers, dropout, True, both)
        self.kind, self.packed, self.batch_first = kind, packed, batch_first

    def on(self, device, key=None):
        """Tensors that require gradients, and the call that takes them."""
        inputs = [t.to(device).requires_grad_() for t in (*self.given, *self.parameters)]

        def call(x, *rest):
            states, parameters = rest[: len(self.given) - 1], rest[len(self.given) - 1 :]
            op = OPERATORS[self.kind][self.packed]
            args = [list(states) if self.kind == "LSTM" else states[0], parameters, *self.flags]
            if self.packed:
                args = [*pack_padded_sequence(x, torch.tensor(LENGTHS))[:2], *args]
            else:
                args = [x, *args, self.batch_first]
            return op(*args) if key is None else op._op_dk(key, *args)

        return inputs, call

    def run(self, device, key=None, used=(0, 1, 2)):
        """The results, and the gradients of a sum of those that are `used`."""
        inputs, call = self.on(device, key)
        results = call(*inputs)
        torch.manual_seed(1)
        weights = [torch.randn(r.shape, dtype=r.dtype).to(device) for r in results]
        loss = sum((r * w).sum() for i, (r, w) in enumerate(zip(results, weights, strict=True))
                   if i in used)  # fmt: skip
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        return [r.detach().cpu() for r in results], [g if g is None else g.cpu() for g in grads]


def torchs(layers: Layers, **options):
    """What torch makes of the operator on trn: a product for the input of each step."""
    return layers.run("trn", torch._C.DispatchKey.CompositeImplicitAutograd, **options)


def check(found, wanted, **tolerance) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


FORMS = list(itertools.product(((1, False), (2, True)), BOOLS, ("steps", "batch first", "packed")))


@pytest.mark.parametrize(("kind", "projection"), KINDS)
@pytest.mark.parametrize(("stack", "bias", "form"), FORMS)
def test_values_and_gradients_are_those_of_the_cpu(kind, projection, stack, bias, form):
    layers, both = stack
    made = Layers(kind, projection, layers=layers, both=both, bias=bias,
                  batch_first=form == "batch first", packed=form == "packed")  # fmt: skip
    with torch_trn_emu.precision("fp32"):
        found, wanted = made.run("trn"), made.run("cpu")
    check(found[0], wanted[0])
    check(found[1], wanted[1])
    if kind != "LSTM" or projection or form != "packed":  # the CPU's other cells add no biases
        assert all(map(torch.equal, found[0], wanted[0]))


@pytest.mark.parametrize(("kind", "projection"), KINDS)
@pytest.mark.parametrize("packed", BOOLS)
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_product_of_all_steps_rounds_as_those_of_each(kind, projection, packed, policy):
    made = Layers(kind, projection, packed=packed)
    with torch_trn_emu.precision(policy):
        found, wanted = made.run("trn"), torchs(made)
    # Sums may be taken in another order, which rounds a few operands to a neighbor.
    for a, b in zip(found[0] + found[1], wanted[0] + wanted[1], strict=True):
        assert float((a - b).norm()) <= 0.01 * float(b.norm())


@pytest.mark.parametrize(("kind", "projection"), KINDS)
@pytest.mark.parametrize("packed", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_formats(kind, projection, packed, dtype):
    made = Layers(kind, projection, packed=packed, dtype=dtype)
    with torch_trn_emu.precision("fp32"):
        found, wanted = made.run("trn"), torchs(made)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    check(found[0] + found[1], wanted[0] + wanted[1], **tolerance)


USED = [
    (*kind, used)
    for kind in KINDS
    for used in ((0,), (1,), (2,), (0, 2))
    if kind[0] == "LSTM" or 2 not in used
]  # others have one state


@pytest.mark.parametrize(("kind", "projection", "used"), USED)
@pytest.mark.parametrize("packed", BOOLS)
def test_gradients_of_some_of_the_results(kind, projection, packed, used):
    made = Layers(kind, projection, layers=1, packed=packed, dtype=torch.float64)
    check(made.run("trn", used=used)[1], made.run("cpu", used=used)[1])


@pytest.mark.parametrize(("kind", "projection"), KINDS)
@pytest.mark.parametrize("packed", BOOLS)
def test_gradients_of_gradients(kind, projection, packed):
    made = Layers(kind, projection, layers=1, packed=packed, dtype=torch.float64)
    results = []
    for device in ("cpu", "trn"):
        inputs, call = made.on(device)
        loss = sum(r.square().sum() for r in call(*inputs))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    check([g.cpu() for g in results[1]], results[0])


@pytest.mark.parametrize(("kind", "projection"), KINDS)
@pytest.mark.parametrize("packed", BOOLS)
def test_autocast_is_that_of_torchs_operators(kind, projection, packed):
    made = Layers(kind, projection, packed=packed)
    with torch_trn_emu.precision("fp32"), torch.autocast("trn", dtype=torch.bfloat16):
        found, wanted = made.run("trn"), torchs(made)
    assert [r.dtype for r in found[0]] == [r.dtype for r in wanted[0]]
    assert [g.dtype for g in found[1]] == [torch.float32] * len(found[1])
    check(found[0] + found[1], wanted[0] + wanted[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", OPERATORS)
def test_dropout_draws_what_torchs_operator_draws(kind):
    made = Layers(kind, 0, dropout=0.5, dtype=torch.float64)
    drawn = []
    for run in (made.run, lambda _: torchs(made)):
        torch.trn.manual_seed(3)
        drawn.append(run("trn"))
    check(drawn[0][0] + drawn[0][1], drawn[1][0] + drawn[1][1])


@pytest.mark.parametrize("kind", OPERATORS)
def test_one_product_for_the_inputs_and_one_for_each_gradient(kind):
    module = nn.RNN(FEATURES, HIDDEN, nonlinearity=kind) if kind in ("tanh", "relu") else (
        getattr(nn, kind)(FEATURES, HIDDEN))  # fmt: skip
    module = module.to("trn")
    x = torch.randn(STEPS, BATCH, FEATURES).to("trn").requires_grad_()

    def products(run) -> int:
        torch.trn.reset_counters()
        run()
        return sum(
            r.calls for r in torch_trn_emu.op_report() if r.op in ("aten::mm", "aten::addmm")
        )

    made: list[Tensor] = []
    assert products(lambda: made.append(module(x)[0])) == 1 + STEPS
    # two for the input's product, one for the recurrent weight, and one between two steps
    assert products(lambda: made[0].sum().backward()) == 2 + 1 + STEPS - 1


@pytest.mark.parametrize("kind", OPERATORS)
def test_without_gradients_it_is_the_same(kind):
    inputs, call = Layers(kind, 0).on("trn")
    wanted = call(*inputs)
    with torch.no_grad():
        check(call(*inputs), wanted, rtol=0, atol=0)
    with torch.inference_mode():
        check(call(*(t.detach().clone() for t in inputs)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kind", OPERATORS)
def test_transforms_of_functions_take_torchs_operator(kind):
    made = Layers(kind, 0, layers=1, both=False)
    with torch_trn_emu.precision("fp32"):
        inputs, call = made.on("trn")
        (wanted,) = torch.autograd.grad(call(*inputs)[0].sum(), inputs[0])
        found = torch.func.grad(lambda x: call(x, *inputs[1:])[0].sum())(inputs[0])
        torch.testing.assert_close(found, wanted)


def test_a_state_that_is_both_of_an_lstms():
    """Second derivatives, where two inputs are one tensor."""
    results = []
    for device in ("cpu", "trn"):
        torch.manual_seed(0)
        module = nn.LSTM(3, 4).double().to(device)
        x = torch.randn(2, 2, 3, dtype=torch.float64).to(device)
        state = torch.randn(1, 2, 4, dtype=torch.float64).to(device).requires_grad_()
        out = module(x, (state, state))[0].square().sum()
        (first,) = torch.autograd.grad(out, state, create_graph=True)
        results.append([first.detach().cpu(), torch.autograd.grad(first.sum(), state)[0].cpu()])
    check(results[1], results[0])


@pytest.mark.parametrize("kind", OPERATORS)
def test_inputs_that_are_parameters_are_not_weights(kind):
    inputs, call = Layers(kind, 0).on("trn")
    states = 2 if kind == "LSTM" else 1
    learned = [nn.Parameter(t.detach().clone()) for t in inputs[: 1 + states]]
    with torch_trn_emu.precision("mxfp4"):  # weights in a format of their own
        wanted, found = call(*inputs), call(*learned, *inputs[1 + states :])
        assert all(map(torch.equal, found, wanted))
        grads = [torch.autograd.grad(r[0].sum(), inputs[1 + states :]) for r in (found, wanted)]
    assert all(map(torch.equal, *grads))


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [1, 7, 8, 20])
def test_a_copy_of_the_weight_for_all_steps(steps):
    """Of an LSTM with many steps, from the weight as it is then."""
    torch.manual_seed(0)
    there, here = nn.LSTM(40, 96), nn.LSTM(40, 96).to("trn")
    x, grad = torch.randn(steps, 3, 40), torch.randn(steps, 3, 96)
    with torch_trn_emu.precision("fp32"):
        for _ in range(2):
            here.load_state_dict({name: 2 * p for name, p in there.state_dict().items()})
            there.load_state_dict(here.state_dict())
            out, wanted = here(x.to("trn"))[0], there(x)[0]
            torch.testing.assert_close(out.cpu(), wanted)
            out.backward(grad.to("trn"))
            wanted.backward(grad)
            check([p.grad.cpu() for p in here.parameters()], [p.grad for p in there.parameters()])
            there.zero_grad(), here.zero_grad()
            with torch.no_grad(), Passing():
                assert torch.equal(here(x.to("trn"))[0], out)


@pytest.mark.parametrize("policy", ["fp32", "mxfp8"])
def test_a_replay_is_equal(policy):
    module, x = nn.LSTM(40, 96).to("trn"), torch.randn(20, 3, 40).to("trn")
    with torch_trn_emu.precision(policy), torch.no_grad():
        graph = torch.accelerator.Graph()
        with graph:
            out = module(x)[0]
        module.weight_hh_l0.mul_(1.5)
        graph.replay()
        torch.trn.synchronize()
        assert torch.equal(out, module(x)[0])


@pytest.mark.parametrize("kind", OPERATORS)
def test_graphs_decompose_it_as_on_the_cpu(kind):
    keys = torch._C.DispatchKey
    for op in OPERATORS[kind]:
        for key in (keys.PrivateUse1, keys.AutogradPrivateUse1):
            assert op.py_kernels[key] is op.py_kernels[keys.Autograd]


def test_fake_tensors():
    module = nn.LSTM(3, 4, 2, bidirectional=True).to("trn")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = module(mode.from_tensor(torch.ones(5, 2, 3, device="trn")))[0]
        grads = torch.autograd.grad(out.sum(), list(module.parameters()))
    assert out.shape == (5, 2, 8)
    assert [g.shape for g in grads] == [p.shape for p in module.parameters()]


def test_errors_are_torchs():
    module = nn.GRU(3, 4).to("trn")
    x = torch.ones(2, 2, 3, device="trn")
    parameters = [p.detach() for p in module.parameters()]
    with pytest.raises(RuntimeError, match="size"):
        torch.gru(
            x, torch.ones(1, 3, 4, device="trn"), parameters, True, 1, 0.0, True, False, False
        )
    with pytest.raises(RuntimeError, match="incorrect number of RNN parameters"):
        torch.gru(x, torch.ones(1, 2, 4, device="trn"), parameters[:3], True, 1, 0.0, True, False,
                  False)  # fmt: skip
    with pytest.raises(RuntimeError, match="larger than 0"):
        torch.gru(x[:0], torch.ones(1, 2, 4, device="trn"), parameters, True, 1, 0.0, True, False,
                  False)  # fmt: skip
