"""Activations that were decomposed for the host are one node again for the engines."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler import recover_composites, subgraphs

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

TARGET = Target(get_chip("trn2"), 2)


def priced(function, dtype, *, backward=False):
    """The prices of a function's graphs."""
    from torch_trn_emu.compiler.estimate import pricing_backend  # warns as it is imported

    prices = []
    torch._dynamo.reset()
    x = torch.empty(2048, 64, dtype=dtype, device="meta", requires_grad=backward)

    def told(run):
        launches, results, _ = run()
        prices.extend(one.priced for one in launches)
        return results

    backend = pricing_backend("bf16", TARGET, told, F.scaled_dot_product_attention)
    result = torch.compile(function, backend=backend)(x)
    if backward:
        result.float().sum().backward()
    return prices


def graphs_of(function, dtype, monkeypatch, *, backward=False):
    """The operators of each graph that is priced, by name."""
    found = []
    regions_of = subgraphs.regions_of

    def spy(graph, policy):
        found.append([n.target._opname for n in graph.nodes if n.op == "call_function"])
        return regions_of(graph, policy)

    monkeypatch.setattr(subgraphs, "regions_of", spy)
    priced(function, dtype, backward=backward)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_call_is_one_node(dtype, approximate, monkeypatch):
    torch.ones(2, requires_grad=True).sum().backward()  # autograd numbers calls from now on

    def function(x):
        return F.silu(F.silu(F.gelu(x * 2, approximate=approximate)))

    (names,) = graphs_of(function, dtype, monkeypatch)
    assert names == ["mul", "gelu", "silu", "silu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_one_node_each(dtype, monkeypatch):
    def function(x):
        return F.silu(F.gelu(F.silu(x * 2)))

    forward, backward = graphs_of(function, dtype, monkeypatch, backward=True)
    assert forward == ["mul", "silu", "gelu", "silu"]
    kept = [name for name in backward if name != "convert_element_type"]
    assert kept == ["mul", "silu", "gelu", "silu_backward", "gelu_backward", "silu_backward", "mul"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_a_user_spells_out_stays(dtype, monkeypatch):
    (names,) = graphs_of(lambda x: x / (1 + torch.exp(-x)), dtype, monkeypatch)
    assert names == ["neg", "exp", "add", "div"]


def test_a_value_kept_for_the_backward_pass_keeps_the_call_apart():
    """Only the last value of a call may be read elsewhere."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    meta = {"original_aten": torch.ops.aten.silu.default, "seq_nr": 1, "val": torch.empty(8)}
    made = [x]
    for op, args in (("neg", ()), ("exp", ()), ("add", (1,))):
        overload = getattr(torch.ops.aten, op)
        target = overload.Tensor if op == "add" else overload.default
        made.append(graph.call_function(target, (made[-1], *args)))
    made.append(graph.call_function(torch.ops.aten.div.Tensor, (x, made[-1])))
    for node in made[1:]:
        node.meta = dict(meta)
    graph.output(made[-1])
    kept = torch.fx.Graph()
    result = kept.graph_copy(graph, {})
    kept.output((result, next(n for n in kept.nodes if n.name.startswith("exp"))))

    def names(given):
        recovered = recover_composites.recovered(given)
        recovered.lint()
        return [n.target._opname for n in recovered.nodes if n.op == "call_function"]

    assert names(graph) == ["silu"]
    assert names(kept) == ["neg", "exp", "add", "div"]


def test_a_graph_without_activations_is_not_copied():
    gm = torch.fx.symbolic_trace(nn.Linear(2, 2))
    assert recover_composites.recovered(gm.graph) is gm.graph


def test_an_activation_takes_one_scalar_instruction():
    def instructions(function):
        (graph,) = priced(function, torch.bfloat16)
        return graph.price.totals["activate_instruction_count"]

    assert instructions(F.silu) == instructions(torch.sigmoid)
    assert instructions(lambda x: x / (1 + torch.exp(-x))) > instructions(F.silu)
