"""Control flow in graphs: bodies are launches of their own, counted by what ran."""

import re

import pytest
import torch
from comparing import TORCHS_OWN, leaf, results
from torch.compiler import nested_compile_region

import torch_trn_emu
from torch_trn_emu import compiler
from torch_trn_emu.chip import get_chip

while_loop, scan = torch._higher_order_ops.while_loop, torch._higher_order_ops.scan
map_over = torch._higher_order_ops.map

pytestmark = TORCHS_OWN


@pytest.fixture(autouse=True)
def in_float32():
    with torch_trn_emu.precision("fp32"):
        yield


def compiled(function, **given):
    options = {"strict": True}
    return torch.compile(function, backend="trn", fullgraph=True, options=options, **given)


def launched(call, *arguments):
    """The launches of graphs in one call, by their names without the graph's number."""
    torch.trn.reset_counters()
    call(*arguments)
    rows = {row.op: row.calls for row in torch_trn_emu.op_report() if row.op.startswith("trn::")}
    return {re.sub(r"trn::graph_\d+_", "", name): calls for name, calls in rows.items()}


def branch(x):
    y = x * 2
    return torch.cond(y.sum() > 0, lambda x: (x @ x).sin(), lambda x: x - 1, (y,)) + 1


def loop(x, n):
    def test(i, x):
        return i < n

    def body(i, x):
        return i + 1, (x @ x).tanh()

    return while_loop(test, body, (torch.zeros((), dtype=torch.int64, device=x.device), x))[1] + 1


def branch_in_loop(x, n):
    def body(i, x):
        return i + 1, torch.cond(i > 0, lambda x: x @ x, lambda x: x.cos(), (x,))

    start = torch.zeros((), dtype=torch.int64, device=x.device)
    return while_loop(lambda i, x: i < n, body, (start, x))[1]


def summed(x):
    return scan(lambda c, x: (c + x, (c * x).sin()), torch.zeros_like(x[0]), x)[1]


def each(x, w):
    return map_over(lambda a, w: (a @ w).sin(), x, w)


def count(n):
    return torch.tensor(n, device="trn")


def test_the_branch_that_ran_is_the_one_that_is_launched():
    call, x = compiled(branch), torch.eye(64, device="trn")
    call(x)
    assert launched(call, x) == {"inference": 1, "inference_true_graph_0": 1, "inference_part_2": 1}
    other = {"inference": 1, "inference_false_graph_0": 1, "inference_part_2": 1}
    assert launched(call, -x) == other
    of_sums = torch.trn.counters()["matmul_instruction_count"]
    torch.testing.assert_close(call(-x), branch(-x))
    launched(call, x)
    assert torch.trn.counters()["matmul_instruction_count"] > of_sums


def test_a_flag_makes_the_host_wait():
    call, x = compiled(branch), torch.eye(64, device="trn")
    call(x)
    torch.trn.synchronize()
    torch.trn.reset_counters()
    call(x)
    told = torch.trn.counters()
    dispatch = get_chip("trn3").launch.graph_launch_s
    assert told["launch_count"] == 3
    assert told["host_dispatch_time"] == pytest.approx(3 * dispatch)
    # behind the flag nothing is in flight: the second launch finds an idle core
    assert told["core_idle_time"] >= 2 * dispatch


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_a_loop_launches_its_body_and_its_test(passes):
    call, x = compiled(loop), torch.eye(32, device="trn")
    made = launched(call, x, count(passes))
    assert made.pop("inference_while_loop_cond_graph_0") == passes + 1
    assert made.pop("inference_while_loop_body_graph_0", 0) == passes
    assert made == {"inference": 1}  # what follows: before the loop there is nothing to compute
    torch.testing.assert_close(call(x, count(passes)), loop(x, count(passes)))


def test_a_branch_in_a_loop():
    call, x = compiled(branch_in_loop), torch.eye(32, device="trn")
    made = launched(call, x, count(3))
    body = "inference_while_loop_body_graph_0"
    assert made[f"{body}_true_graph_0"] == 2
    assert made[f"{body}_false_graph_0"] == 1


@pytest.mark.parametrize(
    ("function", "length", "of", "others"),
    [(summed, 16, (64,), []), (each, 5, (8, 64), [(64, 64)])],
)
def test_a_loop_of_known_length_is_part_of_its_graph(function, length, of, others):
    """Each pass takes as long as the one before; all are one launch."""
    seconds = {}
    for factor in (1, 2, 4):
        torch._dynamo.reset()
        given = [torch.randn(s).to("trn") for s in ((length * factor, *of), *others)]
        call = compiled(function)
        assert launched(call, *given) == {"inference": 1}
        torch.testing.assert_close(call(*given), function(*given), rtol=2e-5, atol=2e-5)
        seconds[factor] = compiler.summary()[-1].saving.device_s[1]
    assert seconds[4] - seconds[2] == pytest.approx(2 * (seconds[2] - seconds[1]), rel=1e-6)
    assert seconds[2] > seconds[1]


def test_a_branch_by_size_is_part_of_its_graph():
    def function(x):
        return torch.cond(x.shape[0] > 4, lambda x: (x @ x.t()).sum(1), lambda x: x.sum(1), (x,))

    call = compiled(function, dynamic=True)
    few, many = (torch.ones(n, 64, device="trn") for n in (3, 300))
    assert sum(launched(call, few).values()) == 1
    moved = torch.trn.counters()["matmul_instruction_count"]
    assert sum(launched(call, many).values()) == 1
    assert torch.trn.counters()["matmul_instruction_count"] > moved


@pytest.mark.parametrize("function", [branch, summed])
def test_gradients(function):
    x = leaf(8, 8)
    expected = results(function, [x])
    for (_, a), (_, e) in zip(results(compiled(function), [x]), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-5, atol=2e-5)
    rows = [r for r in compiler.report() if r.kind != "break"]
    assert [r.status for r in rows] == ["compiled", "compiled"]
    ran = {row.op for row in torch_trn_emu.op_report() if "graph" in row.op}
    assert any("backward" in op for op in ran)


def test_a_loop_with_gradients_is_priced_by_its_passes():
    """Its backward reads as many saved values as there were passes: a size known when it ran."""
    call, x = compiled(loop), leaf(8, 8)
    expected = results(lambda x: loop(x, count(3)), [x])
    for (_, a), (_, e) in zip(results(lambda x: call(x, count(3)), [x]), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    assert {r.status for r in compiler.report()} == {"compiled"}
    backward = {s.name: s for s in compiler.summary() if "backward" in s.name}
    assert any("while_loop_body" in name for name in backward)


def test_a_region_that_is_compiled_once_is_priced_wherever_it_is_called():
    @nested_compile_region
    def block(x, w):
        return (x @ w).sin()

    x, w = leaf(64, 64), leaf(64, 64)

    def twice(x, w):
        return block(block(x, w), w) + 1

    def plain(x, w):
        return ((x @ w).sin() @ w).sin() + 1

    made, expected = results(compiled(twice), [x, w]), results(plain, [x, w])
    for (_, a), (_, e) in zip(made, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=2e-3, atol=2e-3)
    operators = compiler.summary()[-2].saving.launches[0]
    assert operators >= 5  # two products, two sines, a sum


@pytest.mark.parametrize(("function", "more"), [(branch, ()), (loop, (3,))])
def test_estimates_take_the_first_branch_and_one_pass(function, more):
    """And price what they take as the launches of the device are priced."""
    given = torch.empty(64, 64, device="meta")
    limits = [torch.empty((), dtype=torch.int64, device="meta") for _ in more]
    found = torch_trn_emu.estimate(function, given, *limits, mode="compile")
    torch._dynamo.reset()
    x = torch.eye(64, device="trn")
    call = compiled(function)
    made = launched(call, x, *(count(1) for _ in more))
    assert found.counters["launch_count"] == sum(made.values())
    told = torch.trn.counters()
    assert found.device_us == pytest.approx(told["core_busy_time"] * 1e6, rel=1e-4)
    eager = torch_trn_emu.estimate(function, given, *limits)
    assert any(row.op == "aten::_local_scalar_dense" for row in eager.ops)
