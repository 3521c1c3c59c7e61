"""Steps of an LSTM or a GRU whose product and cell share one loop: bits, launches and counters of
the same steps as operators, which a dispatch mode sees.
"""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_trn_emu
from torch_trn_emu import _C

SIZES = (
    (5, 16, 40, 64),
    (3, 8, 128, 256),
    (2, 33, 16, 192),
    (6, 5, 8, 64),
    (4, 1, 8, 576),
    (3, 4, 24, 128),
)
POLICIES = ("bf16", "mxfp8", "mxfp8_all", "mxfp4")
# Each size and each policy in CI, all pairs in `make conformance`.
PAIRS = [
    pytest.param(*pair, marks=[] if i % 5 == 0 else pytest.mark.conformance)
    for i, pair in enumerate(itertools.product(SIZES, POLICIES))
]
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
# Of the output and the states; a GRU has no c.
USED = {
    "out": lambda out, h, *c: out.square().sum(),
    "h": lambda out, h, *c: h.square().sum(),
    "c": lambda out, h, *c: (c or (h,))[0].square().sum(),
    "all": lambda out, h, *c: out.sin().sum() + sum(t.square().sum() for t in (h, *c)),
}


class Watch(TorchDispatchMode):
    """Sees every operator, so that there are some."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Layer:
    def __init__(
        self, steps: int, batch: int, features: int, hidden: int, kind="lstm", **options
    ) -> None:
        torch.manual_seed(0)
        self.module = KINDS[kind](features, hidden, **options).to("trn")
        directions = 2 if options.get("bidirectional") else 1
        states = 2 if kind == "lstm" else 1
        shapes = [(steps, batch, features), *[(directions, batch, hidden)] * states]
        self.inputs = [torch.randn(shape).to("trn").requires_grad_() for shape in shapes]

    def __call__(self) -> tuple[Tensor, ...]:
        """The output and the last states."""
        x, *states = self.inputs
        out, last = self.module(x, tuple(states) if len(states) == 2 else states[0])
        return out, *(last if isinstance(last, tuple) else (last,))

    def run(self, used: str) -> list[Tensor | None]:
        """Results with and without a graph, and all gradients."""
        made = self()
        wanted = [*self.inputs, *self.module.parameters()]
        grads = torch.autograd.grad(USED[used](*made), wanted, allow_unused=True)
        with torch.no_grad():
            again, _ = self.module(self.inputs[0])
        return [t if t is None else t.detach().cpu() for t in (*made, again, *grads)]


def counted(layer: Layer, used: str) -> tuple[list[Tensor | None], dict]:
    torch.trn.reset_counters()
    return layer.run(used), torch.trn.counters()


def assert_bits(made: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for one, other in zip(made, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "policy"), PAIRS)
def test_the_bits_and_the_counters_are_those_of_the_operators(size, policy, kind):
    for bidirectional, (bias, used) in zip(
        itertools.cycle((False, True)), itertools.product((True, False), USED), strict=False
    ):
        layer = Layer(*size, kind=kind, bidirectional=bidirectional, bias=bias)
        with torch_trn_emu.precision(policy):
            made, counters = counted(layer, used)
            with Watch():
                expected, of_operators = counted(layer, used)
        assert_bits(made, expected)
        assert counters == pytest.approx(of_operators, rel=1e-9)  # sums of times in another order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["bf16", "mxfp8"])
def test_subnormal_states_and_gradients(policy, kind):
    layer = Layer(4, 16, 32, 128, kind)  # more rows than a tile of the bfloat16 dot product has
    with torch.no_grad():
        for each in (*layer.inputs, *layer.module.parameters()):
            each.mul_(1e-39 if each.dim() == 3 else 1)

    def run() -> list[Tensor]:
        out, h, *c = layer()
        grads = torch.autograd.grad((out * 1e-38).sum() + h.sum() * 1e-39, layer.inputs)
        return [t.detach().cpu() for t in (out, h, *c, *grads)]

    with torch_trn_emu.precision(policy):
        made = run()
        with Watch():
            expected = run()
    assert_bits(made, expected)
    of_inputs = made[-len(layer.inputs) :]
    assert any((0 < t.abs()).logical_and(t.abs() < 1e-38).any() for t in of_inputs)


def test_batches_of_gradients():
    layer = Layer(3, 8, 16, 64)
    x, *states = layer.inputs
    with torch_trn_emu.precision("mxfp8"):
        out, _ = layer.module(x, tuple(states))
        batch = torch.randn(2, *out.shape).to("trn")
        made = torch.autograd.grad(out, x, batch, retain_graph=True, is_grads_batched=True)[0]
        for each, grad in zip(batch, made, strict=True):
            alone = torch.autograd.grad(out, x, each, retain_graph=True)[0]
            assert torch.equal(grad, alone)


def test_gradients_of_expanded_results_and_of_some_inputs():
    layer = Layer(3, 8, 16, 64)
    x, *states = layer.inputs
    wanted = ([x], [states[1]], [layer.module.weight_hh_l0], [layer.module.bias_ih_l0, states[0]])

    def run() -> list[Tensor]:
        out, _ = layer.module(x, tuple(states))
        return [
            t.cpu()
            for inputs in wanted
            for t in torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        ]

    with torch_trn_emu.precision("mxfp8"):
        made = run()
        with Watch():
            expected = run()
    assert_bits(made, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_no_operator(kind):
    layer = Layer(50, 8, 32, 256, kind)
    with torch_trn_emu.precision("mxfp8"), torch.no_grad():
        layer()
        before = _C.weight_copies()[2]
        layer()
        assert _C.weight_copies()[2] - before < 5  # operators would read the weight 50 times


@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_threads(kind):
    layer = Layer(4, 24, 16, 256, kind)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            with torch_trn_emu.precision("mxfp8"):
                found.append(layer.run("all"))
    finally:
        torch.set_num_threads(threads)
    for each in found[1:]:
        assert_bits(each, found[0])


def test_results_share_no_memory():
    layer = Layer(3, 8, 16, 64)
    x, *states = layer.inputs
    with torch_trn_emu.precision("mxfp8"):
        out, (h, c) = layer.module(x, tuple(states))
        expected = torch.autograd.grad(out.sum() + c.sum(), layer.inputs, retain_graph=True)
        assert len({t.untyped_storage().data_ptr() for t in (out, h, c)}) == 3
        with torch.no_grad():
            h.zero_()
            c.zero_()
        for one, other in zip(
            torch.autograd.grad(out.sum() + c.sum(), layer.inputs), expected, strict=True
        ):
            assert torch.equal(one, other)
