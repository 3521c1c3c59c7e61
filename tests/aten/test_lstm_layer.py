"""LSTM of float32 under `fp32`: oneDNN's layer, as on the CPU, launched as the steps are."""

import itertools
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import torch_trn_emu
from torch_trn_emu.cli.estimate import ShapesOnly
from torch_trn_emu.estimation.recorder import Recorder
from torch_trn_emu.parity.trace import Tracer
from torch_trn_emu.trn.executor import MachineExecutor

BOOLS = (False, True)
STEPS, BATCH, FEATURES, HIDDEN = 9, 4, 40, 32
INPUTS = ("x", "h", "c", "weights", "biases")


@pytest.fixture(autouse=True)
def as_given():
    with torch_trn_emu.precision("fp32"):
        yield


@contextmanager
def without_onednn():
    """The steps. The flag is set past `torch.backends`, whose flags other tests freeze."""
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


class Case:
    """A module and its arguments, the same on each device, of which some require gradients."""

    def __init__(
        self, *, layers=1, both=False, bias=True, batch_first=False, wanted=INPUTS
    ) -> None:
        torch.manual_seed(0)
        self.module = nn.LSTM(
            FEATURES, HIDDEN, layers, bias=bias, bidirectional=both, batch_first=batch_first
        )
        rows = layers * (2 if both else 1)
        shape = (BATCH, STEPS) if batch_first else (STEPS, BATCH)
        self.given = [torch.randn(*shape, FEATURES), *torch.randn(2, rows, BATCH, HIDDEN)]
        self.wanted = wanted

    def tensors(self, device):
        """Input, states and parameters on a device, and those whose gradient is wanted."""
        given = [t.detach().to(device) for t in self.given]
        parameters = {n: p.detach().to(device) for n, p in self.module.named_parameters()}
        chosen = [t for n, t in zip(INPUTS, given, strict=False) if n in self.wanted]
        for name, tensor in parameters.items():
            if ("biases" if name.startswith("bias") else "weights") in self.wanted:
                chosen.append(tensor)
        return given, parameters, [t.requires_grad_() for t in chosen]

    def call(self, given, parameters):
        x, h, c = given
        m = self.module
        flags = (m.bias, m.num_layers, 0.0, True, m.bidirectional, m.batch_first)
        return list(torch.lstm(x, (h, c), list(parameters.values()), *flags))

    def run(self, device, used=(0, 1, 2)):
        given, parameters, chosen = self.tensors(device)
        results = self.call(given, parameters)
        torch.manual_seed(1)
        weights = [torch.randn(r.shape).to(device) for r in results]
        grads = []
        if chosen:
            loss = sum((results[i] * weights[i]).sum() for i in used)
            grads = torch.autograd.grad(loss, chosen, allow_unused=True)
        return [None if t is None else t.detach().cpu() for t in (*results, *grads)]


def same(found, wanted) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("bias", BOOLS)
@pytest.mark.parametrize("batch_first", BOOLS)
def test_bits_are_the_cpus(layers, both, bias, batch_first):
    case = Case(layers=layers, both=both, bias=bias, batch_first=batch_first)
    assert same(case.run("trn"), case.run("cpu"))
    with torch.no_grad():
        found, wanted = (case.call(*case.tensors(d)[:2]) for d in ("trn", "cpu"))
    assert same([t.cpu() for t in found], wanted)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
def test_bits_of_gradients_of_some_of_the_results(used):
    case = Case()
    assert same(case.run("trn", used), case.run("cpu", used))


def test_bits_where_operands_are_views():
    case = Case()
    case.given = [t.flip(0).transpose(0, -1).contiguous().transpose(0, -1) for t in case.given]
    assert same(case.run("trn"), case.run("cpu"))
    case.given[1:] = [case.given[1]] * 2  # one state for both
    assert same(case.run("trn"), case.run("cpu"))


# ---- what is launched ----

WANTED = [w for n in range(len(INPUTS) + 1) for w in itertools.combinations(INPUTS, n)]


def launched(case: Case, used=(0, 1, 2)) -> dict[object, float]:
    """Counters, and the time of each operator by its calls."""
    torch.trn.reset_counters()
    case.run("trn", used)
    rows = {(r.op, r.calls): r.device_s for r in torch_trn_emu.op_report()}
    return torch.trn.counters() | rows


def of_the_steps(case: Case, used=(0, 1, 2)):
    with without_onednn():
        return launched(case, used)


@pytest.mark.parametrize("asked", WANTED, ids=" ".join)
@pytest.mark.parametrize("both", BOOLS)
def test_launches_are_those_of_the_steps(asked, both):
    case = Case(wanted=set(asked), both=both)
    wanted = pytest.approx(of_the_steps(case))  # times are added in any order
    assert launched(case) == wanted
    assert launched(case) == wanted


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("bias", BOOLS)
def test_launches_where_some_of_the_results_are_used(used, bias):
    case = Case(bias=bias)
    assert launched(case, used) == pytest.approx(of_the_steps(case, used))


def test_launches_are_found_where_they_are_not_counted():
    case = Case(layers=2, batch_first=True)
    x = case.given[0].to("trn")
    with torch.no_grad():
        module = case.module.to("trn")
        graph = torch.accelerator.Graph()
        with graph:
            out = module(x)[0]
        torch.trn.reset_counters()
        graph.replay()
        replayed = torch.trn.counters()["matmul_instruction_count"]
        torch.trn.reset_counters()
        assert torch.equal(out, module(x)[0])
        assert replayed == torch.trn.counters()["matmul_instruction_count"]


# ---- conditions ----


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def operators(module: nn.Module, x: Tensor) -> set[str]:
    with torch.no_grad(), Operators() as mode:
        module(x)
    return mode.names


def test_when_it_is_taken():
    x = torch.randn(STEPS, BATCH, FEATURES, device="trn")
    module = nn.LSTM(FEATURES, HIDDEN, device="trn")
    projected = nn.LSTM(FEATURES, HIDDEN, proj_size=7, device="trn")
    layer = "trn::_lstm_layer"
    assert layer in operators(module, x)
    assert layer not in operators(projected, x)
    assert layer not in operators(module.double(), x.double())
    assert layer not in operators(module.bfloat16(), x.bfloat16())
    module.float()
    for policy in ("bf16", "mxfp8"):
        with torch_trn_emu.precision(policy):
            assert layer not in operators(module, x)
    with without_onednn():
        assert layer not in operators(module, x)


# ---- gradients that are not oneDNN's ----


@pytest.mark.parametrize("policy", ["bf16", "mxfp8"])
def test_the_policy_of_the_backward_pass(policy):
    case = Case(both=True)

    def run():
        given, parameters, chosen = case.tensors("trn")
        out, h, c = case.call(given, parameters)
        loss = out.square().sum() + h.sum() + c.sum()
        torch.trn.reset_counters()
        with torch_trn_emu.precision(policy):
            grads = torch.autograd.grad(loss, chosen)
        return [g.cpu() for g in grads], torch.trn.counters()

    found, counted = run()
    with without_onednn():
        wanted, of_steps = run()
    assert counted == pytest.approx(of_steps)
    for a, b in zip(found, wanted, strict=True):  # rounded after sums in another order
        assert float((a - b).norm()) <= 0.01 * float(b.norm())


@pytest.mark.parametrize("bias", BOOLS)
def test_gradients_of_gradients(bias):
    case, results = Case(both=True, bias=bias), []
    for device in ("cpu", "trn"):
        given, parameters, chosen = case.tensors(device)
        loss = sum(r.square().sum() for r in case.call(given, parameters))
        first = torch.autograd.grad(loss, chosen, create_graph=True)
        grads = torch.autograd.grad(sum(g.square().sum() for g in first), chosen)
        results.append([g.cpu() for g in grads])
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_a_weight_that_changed_is_refused():
    case = Case()
    given, parameters, chosen = case.tensors("trn")
    out = case.call(given, parameters)[0]
    with torch.no_grad():
        parameters["weight_hh_l0"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out.sum(), chosen)


# ---- who sees the steps ----


class Observer(Operators):
    sees_launches = True


def test_modes_that_observe_launches_see_the_steps():
    x = torch.randn(STEPS, BATCH, FEATURES, device="trn")
    module = nn.LSTM(FEATURES, HIDDEN, device="trn")
    with torch.no_grad(), Observer() as mode, Operators():
        out = module(x)[0]
    assert "aten::_thnn_fused_lstm_cell" in mode.names
    assert "trn::_lstm_layer" not in mode.names
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], out)


@pytest.mark.parametrize("mode", [MachineExecutor, Recorder, ShapesOnly, Tracer])
def test_observers(mode):
    assert mode.sees_launches


def test_what_is_traced_has_the_steps():
    x = torch.randn(3, BATCH, FEATURES, device="trn")
    module = nn.LSTM(FEATURES, HIDDEN, device="trn")
    with torch.no_grad():
        graph = make_fx(lambda x: module(x)[0])(x)
        assert "_lstm_layer" not in graph.code
        torch.testing.assert_close(graph(x), module(x)[0])


@pytest.mark.filterwarnings("ignore:TRN_EMU_EXECUTOR")  # of the fused cells
def test_the_machine_computes_its_products():
    case = Case(wanted=())
    mode = MachineExecutor()
    with torch.no_grad(), mode:
        found = case.run("trn")
    products = mode.rows["aten.mm.default"]
    assert products.machine == products.calls == 1 + STEPS
    for a, b in zip(found, case.run("cpu"), strict=True):
        torch.testing.assert_close(a, b)
