"""Estimates from shapes agree with what the device counts, and compute nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu import estimate
from torch_trn_emu.chip import get_chip
from torch_trn_emu.errors import ChipLimit

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


def _model(device: str) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.LayerNorm(128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    ).to(device)


def _step(model: torch.nn.Module, x: torch.Tensor) -> None:
    model(x).square().sum().backward()


def test_an_operator() -> None:
    x = torch.empty(1024, 1024, device="meta")
    made = estimate(torch.ops.aten.mm.default, x, x, chip="trn2")
    (row,) = made.ops
    assert (row.op, row.calls, row.status) == ("aten::mm", 1, "modelled")
    assert made.counters["model_flops"] == 2 * 1024**3
    assert made.time_us == pytest.approx(55 + made.device_us)
    assert made.memory_peak_bytes == 2 * x.nbytes
    assert made.range.regime == "large product"
    assert "extrapolated" not in made.basis
    on_trn3 = estimate(torch.ops.aten.mm.default, x, x, chip="trn3")
    assert on_trn3.basis.startswith(("measured on Trn3: ", "extrapolated from trn2"))


def test_a_step_costs_what_the_device_counts() -> None:
    model, x = _model("trn"), torch.randn(32, 64, device="trn")
    _step(model, x)
    for parameter in model.parameters():
        parameter.grad = None
    torch.trn.reset_counters()
    _step(model, x)
    counted = torch.trn.counters()
    with torch.device("meta"):
        made = estimate(_step, _model("meta"), torch.empty(32, 64), chip="trn3")
    assert made.counters["model_flops"] == counted["model_flops"]
    assert made.device_us == pytest.approx(counted["total_time"] * 1e6, rel=0.05)


def test_attention_is_the_devices() -> None:
    q = torch.empty(2, 4, 256, 64, device="meta", requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    made = estimate(lambda: attention(q, q, q, is_causal=True).sum().backward())
    names = {row.op for row in made.ops}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names


def test_memory_follows_lifetimes() -> None:
    x = torch.empty(1024, 1024, device="meta")

    def chain(y: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            y = y + 1
        return y

    made = estimate(chain, x)
    assert made.memory_peak_bytes == 3 * x.nbytes


def test_memory_counts_a_models_parameters() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(1000, 1000, bias=False)
        made = estimate(model, torch.empty(1, 1000))
    assert made.memory_peak_bytes == 4 * (1000 * 1000 + 2 * 1000)


def test_chips_and_cores() -> None:
    x = torch.empty(4096, 4096, device="meta", dtype=torch.bfloat16)
    times = [estimate(torch.mm, x, x, chip=chip).device_us for chip in ("trn1", "trn2", "trn3")]
    assert times == sorted(times, reverse=True)
    assert estimate(torch.mm, x, x, lnc=1).device_us > estimate(torch.mm, x, x, lnc=2).device_us
    with pytest.raises(ChipLimit):
        estimate(torch.mm, x, x, chip="trn1", lnc=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step_is_one_launch_a_graph() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 8))
    model, x = model.to("meta"), torch.empty(512, 256, device="meta")

    def step() -> None:
        model(x).square().sum().backward()

    eager, compiled = estimate(step), estimate(step, mode="compile")
    assert compiled.mode == "compile"
    assert compiled.counters["launch_count"] < eager.counters["launch_count"] / 2
    assert compiled.time_us < eager.time_us
    assert compiled.counters["hbm_read_bytes"] < eager.counters["hbm_read_bytes"]
    graphs = [row.op.split() for row in compiled.ops if row.op.startswith("graph ")]
    assert sorted(words[-1] for words in graphs) == ["backward", "forward"]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_compiled_function_is_priced_though_its_result_is_on_meta() -> None:
    x, w = torch.empty(512, 256, device="meta"), torch.empty(256, 1024, device="meta")
    eager, compiled = (estimate(torch.mm, x, w, mode=mode) for mode in ("eager", "compile"))
    assert compiled.device_us == pytest.approx(eager.device_us, rel=0.01)
    assert compiled.counters["hbm_write_bytes"] == 512 * 1024 * 4


def test_estimates_are_the_same_every_time() -> None:
    x = torch.empty(300, 70, device="meta")
    first, second = (estimate(torch.softmax, x, -1) for _ in range(2))
    assert first == second
    assert torch_trn_emu.estimate is estimate


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_multihead_attention_is_the_fused_one(mode: str) -> None:
    """Also where torch calls it inside of a function of its own."""
    layer = torch.nn.TransformerEncoderLayer(
        256, 4, 1024, dropout=0, batch_first=True, device="meta"
    )
    x = torch.empty(2, 512, 256, device="meta")
    calls = {row.op for row in torch_trn_emu.estimate(layer, x).ops}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in calls
    assert not calls & {"aten::bmm", "aten::_safe_softmax", "aten::_softmax"}
    taken = torch_trn_emu.estimate(layer, x, mode=mode)
    assert taken.time_us <= torch_trn_emu.estimate(layer, x).time_us


def test_an_estimate_prints_what_it_says() -> None:
    x = torch.empty(256, 256, device="meta")
    found = torch_trn_emu.estimate(torch.mm, x, x)
    text = str(found)
    assert f"{found.time_us:,.1f} us on trn3 (LNC=2, eager, precision fp32): 1 launch," in text
    assert found.basis in text
    assert "counters" not in repr(found)
    assert "aten::mm" in found._repr_html_()


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_dropout_is_the_fused_one(mode: str) -> None:
    """As on the device: an operator that draws and scales, with a gradient of its own."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.1))
    took = {}
    for device in ("trn", "meta"):
        x = torch.empty(32, 64, device=device, requires_grad=True)
        step = model.to(device)
        step.zero_grad()
        if device == "meta":
            found = torch_trn_emu.estimate(
                lambda x, step=step: step(x).sum().backward(), x, mode=mode
            )
            took[device] = found.counters["core_busy_time"]
        else:

            def called(x, step=step):
                return step(x).sum()

            if mode == "compile":
                called = torch.compile(called, backend="trn")
            called(x).backward()
            step.zero_grad()
            x.grad = None
            torch.trn.reset_counters()
            called(x).backward()
            took[device] = torch.trn.counters()["core_busy_time"]
    assert took["meta"] == pytest.approx(took["trn"], rel=0.1 if mode == "compile" else 0.01)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x[:, 2:].sum().backward(),
        lambda x: x[1].square().sum().backward(),
        lambda x: x.masked_fill(x.detach() > 0, 0.0).sum().backward(),
        lambda x: torch.nn.functional.pad(x, (1, 1)).sum().backward(),
        lambda x: x.logsumexp(1).sum().backward(),
        lambda x: torch.cat([torch.zeros_like(x), torch.ones_like(x)]),
        lambda x: torch.nn.functional.huber_loss(x, x.detach()).backward(),
        lambda x: torch.select_scatter(x, x[:, 0], 1, 1).sum().backward(),
    ],
    ids=["slice", "select", "masked_fill", "pad", "logsumexp", "factories", "huber", "scatter"],
)
def test_composites_are_what_they_call(operation) -> None:
    """What has no kernel of the device is launched as what torch makes it of."""
    took = {}
    for device in ("trn", "meta"):
        x = torch.empty(48, 64, device=device, requires_grad=True)
        if device == "meta":
            took[device] = dict(estimate(operation, x).counters)
        else:
            torch.trn.reset_counters()
            operation(x)
            took[device] = torch.trn.counters()
    for name in ("launch_count", "core_busy_time"):
        assert took["meta"][name] == pytest.approx(took["trn"][name], rel=0.01), name


def test_every_compiled_estimate_is_compiled_and_equal_ones_share_their_graph() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1).sigmoid()

    for rows in range(1, 13):  # beyond Dynamo's limit of eight
        found = estimate(step, torch.empty(rows, 64, device="meta"), mode="compile")
        assert found.counters["launch_count"] == 1
    assert estimate(step, torch.empty(12, 64, device="meta"), mode="compile") == found


def test_methods_that_dynamo_does_not_trace_end_no_graph() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        cache = torch.tensor([], dtype=x.dtype, device=x.device)
        kept = torch.cat([cache, x.flatten()]) * torch.tensor([2.0], device=x.device)
        return kept.view(8, 64).unflatten(-1, (4, 16)).transpose(0, 1).unflatten(2, (-1, 2))

    found = estimate(step, torch.empty(8, 64, device="meta"), mode="compile")
    assert found.counters["launch_count"] <= 2  # the constant's copy may be one of its own
    (graph,) = (row for row in found.ops if row.op.startswith("graph "))
    assert graph.calls == 1


def test_the_precision_chosen_holds_on_every_chip_and_is_named() -> None:
    a = torch.empty(512, 512, device="meta")
    for chip in ("trn1", "trn2", "trn3"):
        with torch_trn_emu.precision("bf16"):
            short = estimate(torch.mm, a, a, chip=chip)
        with torch_trn_emu.precision("fp32"):
            full = estimate(torch.mm, a, a, chip=chip)
            compiled = estimate(lambda x: x @ x, a, chip=chip, mode="compile")
        assert (short.precision, full.precision, compiled.precision) == ("bf16", "fp32", "fp32")
        assert short.device_us < full.device_us
        assert "precision fp32" in str(full)


def test_graphs_that_are_freed_keep_their_launches_apart():
    """They are told apart by id, which a later graph may get again."""
    from types import SimpleNamespace

    from torch_trn_emu.calls import Target
    from torch_trn_emu.estimation import Recorder

    recorder = Recorder(Target(get_chip("trn3"), 2))
    for k in range(20):
        price = SimpleNamespace(free=False, seconds=k, blocks=False)
        made = SimpleNamespace(price=price, launches=1)
        one = SimpleNamespace(priced=made, count=lambda flags: 1, then=(), issues=())
        recorder.run_graph(partial(tuple, ([one], (), ())))
        del made, one
    assert len(recorder.priced) == 20


def _optimizer_step(kind: type[torch.optim.Optimizer], device: str) -> Callable[[], object]:
    layer = torch.nn.Linear(8, 8, bias=False, device=device)
    layer.weight.grad = torch.ones_like(layer.weight)
    made: Any = kind
    return made(layer.parameters()).step  # type: ignore[no-any-return]


# They read values of parameters, call a closure, or take sparse gradients only.
NOT_ON_META = {"Adafactor", "ASGD", "LBFGS", "Optimizer", "SparseAdam"}
OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind.__name__ not in NOT_ON_META
]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_optimizers_launch_what_they_launch_on_the_device(kind) -> None:
    step = _optimizer_step(kind, "trn")
    torch.trn.reset_counters()
    step()
    counted = torch.trn.counters()
    made = estimate(_optimizer_step(kind, "meta"))
    assert sum(row.calls for row in made.ops) == counted["launch_count"]
    assert made.device_us == pytest.approx(counted["total_time"] * 1e6, rel=0.01)


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm without biases": (nn.LSTM, {"bias": False}),
    "lstm projected": (nn.LSTM, {"proj_size": 8, "batch_first": True}),
    "gru": (nn.GRU, {}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "gru of two layers": (nn.GRU, {"num_layers": 2, "bidirectional": True, "dropout": 0.3}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_those_of_the_device(name, packed):
    kind, named = RECURRENT[name]

    def step(model, x):
        model.zero_grad()
        given = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 3, 1])) if packed else x
        out = model(given)[0]
        (out.data if packed else out).sum().backward()

    shape = (4, 5, 12) if named.get("batch_first") and not packed else (5, 4, 12)
    priced = estimate(
        step, kind(12, 16, device="meta", **named), torch.empty(shape, device="meta")
    ).counters
    model, x = kind(12, 16, device="trn", **named), torch.empty(shape, device="trn")
    before = torch.trn.counters()
    step(model, x)
    after = torch.trn.counters()
    ran = {key: after[key] - before[key] for key in ("launch_count", "core_busy_time")}
    # Packing copies lengths and indices, some of which the host has where all is on meta.
    assert abs(priced["launch_count"] - ran["launch_count"]) <= 4 * packed
    within = 0.06 if packed else 0.01
    assert priced["core_busy_time"] == pytest.approx(ran["core_busy_time"], rel=within)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_are_those_of_the_device(kind):
    def step(model, x):
        state = model(x)
        out = model(x, state)
        (out[0] if isinstance(out, tuple) else out).backward(x)

    priced = estimate(step, kind(12, 12, device="meta"), torch.empty(3, 12, device="meta")).counters
    model, x = kind(12, 12, device="trn"), torch.empty(3, 12, device="trn")
    before = torch.trn.counters()
    step(model, x)
    after = torch.trn.counters()
    for key in ("launch_count", "core_busy_time"):
        assert priced[key] == pytest.approx(after[key] - before[key], rel=0.01)
