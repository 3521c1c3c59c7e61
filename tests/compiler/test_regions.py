"""How a graph is cut, and that the programs of regions compute what the graph says."""

import itertools

import numpy as np
import pytest
import torch
from torch._inductor import inductor_prims
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.graph_price import price_graph
from torch_trn_emu.compiler.regions import regions_of
from torch_trn_emu.compiler.subgraphs import launches_of, pieces_of
from torch_trn_emu.compiler.windows import windows
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Memory, validate

aten = torch.ops.aten
TARGET = Target(get_chip("trn3"), 1)


def traced(function, *shapes):
    """The graph of a function of float32 tensors."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    return make_fx(function, tracing_mode="fake")(*inputs), inputs


def layer_norm(x, w, b):
    var, mean = aten.var_mean.correction(x, [-1], correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + 1e-5) * w + b


def softmax(x):
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def adamw(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v.abs() + 0.001 * g * g
    return p - 1e-5 * p - 0.01 * m / ((v * 1000).sqrt() + 1e-8)


def rms_norm_gradient(g, x, rstd, w):
    """As autograd spells it out: powers, and values of rows that are expanded."""
    h = g * w
    row = (h * x).sum(1, keepdim=True) * -0.5 * rstd.pow(3)
    return h * rstd + (row.expand(64, 48) / 48) * (x.pow(1.0) * 2.0), (g * (x * rstd)).sum(0)


def rms_norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w


FUSED = {
    "rms norm of one row": (rms_norm, (1, 2048), (2048,)),
    "rms norm of one uneven row": (rms_norm, (1, 1, 1499), (1499,)),
    "layer norm of one row": (layer_norm, (1, 160), (160,), (160,)),
    "softmax of one row": (softmax, (1, 2000)),
    "one number of all": (
        lambda x, y: (x - y).pow(2).sum((0, 1), keepdim=True).sqrt() + 1, (8, 64), (8, 64)
    ),
    "all by one number of them": (lambda x: x * x.abs().amax((0, 1), keepdim=True), (8, 64)),
    "gradient of an rms norm": (rms_norm_gradient, (64, 48), (64, 48), (64, 1), (48,)),
    "values of rows before": (lambda s, x: x * (s * 2).tanh() + s.exp(), (64, 1), (64, 48)),
    "layer norm": (layer_norm, (64, 48), (48,), (48,)),
    "softmax": (softmax, (40, 96)),
    "chain": (lambda x, y: (x * y + 1).tanh() * x, (32, 64), (32, 64)),
    "chains that meet": (adamw, (64, 48), (64, 48), (64, 48), (64, 48)),
    "seen through a view": (lambda x: (x * 2).view(8, 256).exp(), (32, 64)),
    "two results": (lambda x, y: (x + y, (x + y).sigmoid()), (32, 64), (32, 64)),
    "column sums": (lambda g, x: (g * x, (g * x).sum(0)), (256, 64), (256, 64)),
    "bias and activation": (
        lambda b, x, w: torch.addmm(b, x, w).tanh(), (128,), (64, 128), (128, 128)
    ),
    "residual": (lambda x, w, r: x @ w + r, (64, 128), (128, 128), (64, 128)),
}  # fmt: skip


def test_engines_read_a_short_input_without_a_copy():
    """A cast that leaves the region is one instruction, one that does not is none."""

    def inside(x):
        return x.float().exp()

    def outside(x):
        wide = x.float()
        return wide.exp(), wide

    opcodes = []
    for function in (inside, outside):
        x = torch.randn(64, 128, dtype=torch.bfloat16)
        gm = make_fx(function, tracing_mode="fake")(x)
        [piece] = pieces_of("cast", gm, "fp32", TARGET)
        [part] = piece.work.parts
        opcodes.append({i.opcode for i in part.program.instructions()} - {"dma_copy"})
        values = Machine(TARGET.chip).run(part.program, {"v0": x.float().numpy()})
        results = [torch.from_numpy(value).reshape(x.shape) for value in values.values()]
        assert any(torch.allclose(r, x.float().exp(), rtol=1e-6) for r in results)
        assert any(torch.equal(r, x.float()) for r in results) == (function is outside)
    exp = {"activation", "exponential"}  # on Scalar or on Vector
    assert [o - exp for o in opcodes] == [set(), {"tensor_copy"}]


@pytest.mark.parametrize("name", FUSED)
def test_what_fuses_is_one_region(name):
    gm, _ = traced(*FUSED[name])
    assert len(regions_of(gm.graph, "fp32")) == 1


APART = {
    "a permuted value": lambda x: (x * 2).t() + 1,
    "rows, then the other rows": lambda x: (x - x.amax(1, keepdim=True)).view(16, 128).sum(1),
    "a sum of rows that they read": lambda x: x / x.sum(0),
    "a sort between": lambda x: (x * 2).sort().values + 1,
}


@pytest.mark.parametrize("name", APART)
def test_what_does_not_lie_alike_stays_apart(name):
    gm, _ = traced(APART[name], (32, 64))
    assert len(regions_of(gm.graph, "fp32")) > 1


def test_a_cycle_between_regions_is_not_made():
    """The sum needs the first region's value both ways: by itself and by another region."""
    gm, _ = traced(lambda x: (x * 2) + (x * 2).sort().values * 3, (32, 64))
    order = {r.number: k for k, r in enumerate(regions_of(gm.graph, "fp32"))}
    for region in regions_of(gm.graph, "fp32"):
        assert all(order[n] < order[region.number] for n in region.above)


def masked(x, m):
    return x.masked_fill(m > 0, 10) * 2


def class_gradient(x, c, s):
    """Of losses of classes: one element of each row, less a share of all."""
    index = (c.abs() * 10).to(torch.int64)
    one = torch.full_like(x, 0).scatter(1, index, -1.0) * s
    return one - one.sum(1, keepdim=True) * x


def group_norm(x, w, b):
    rows = x.view(4, 2, 8 * 64)
    var, mean = aten.var_mean.correction(rows, [2], correction=0, keepdim=True)
    y = ((rows - mean) * torch.rsqrt(var + 1e-5)).view(4, 16, 64)
    return y * w.view(1, 16, 1) + b.view(1, 16, 1)


def numbered(n):
    kind = {"dtype": torch.int64, "device": "cpu", "requires_grad": False}
    return torch.ops.prims.iota.default(n, start=-3, step=2, **kind)


def sunk(x, w, m):
    """All of the first region goes to the one that reads it; a third one comes after both."""
    y = (x.view(4, 2, 512) - m.view(4, 2, 1)) * m.view(4, 2, 1)
    z = y.view(4, 16, 64) * w.view(1, 16, 1)
    return z, z.sum(2) * w


# What a region once computed otherwise, each with the operands that showed it.
ONCE_WRONG = {
    "floor": (lambda x: (x * 3).floor() + 1, (32, 64)),
    "round": (lambda x: (x * 3).round() * x, (32, 64)),
    "one element": (lambda x, s: x * 2 + s, (32, 64), (1,)),
    "one element first": (lambda x, s: s - x * 2, (32, 64), (1,)),
    "a function of one element": (lambda x, s: x + s.exp(), (32, 64), (1,)),
    "a number first": (lambda x: torch.sub(1, x * 2), (32, 64)),
    "a number divided": (lambda x: 2 / (x * x + 1), (32, 64)),
    "masked_fill": (masked, (32, 64), (32, 64)),
    "where with numbers": (lambda x: torch.where(x > 0, 3.0, x) + 1, (32, 64)),
    "alpha with a number": (lambda x: torch.add(x * 2, 2, alpha=3), (32, 64)),
    "truth values": (lambda x: (x * 0.3).bool().float() + x, (32, 64)),
    "whole numbers": (lambda x: (x * 3).int().float() + x, (32, 64)),
    "variance and mean": (
        lambda x: (lambda v, m: (x - m) * v)(*torch.var_mean(x, -1, keepdim=True)), (32, 64)
    ),
    "expanded": (lambda x, b: x * 2 + b.expand(32, 64), (32, 64), (64,)),
    "expanded along rows": (
        lambda x, s: (s.expand(32, 64) / 4) * x + 1, (32, 64), (32, 1)
    ),
    "an expanded result": (
        lambda x, s: (s.expand(32, 64) / 4, x + s.expand(32, 64) / 4), (32, 64), (32, 1)
    ),
    "a class of each row": (class_gradient, (32, 64), (32, 1), (32, 1)),
    "groups, then channels": (group_norm, (4, 16, 64), (16,), (16,)),
    "a region that sinks": (sunk, (4, 16, 64), (16,), (4, 2)),
    "channels": (
        lambda x, w, b: (x * w.view(1, 16, 1) + b.view(1, 16, 1)).tanh(), (4, 16, 64), (16,), (16,)
    ),
    "a sum of rows that they read": (
        lambda x: (lambda e: (e / e.sum(0, keepdim=True), e * 2))(x.exp()), (32, 64)
    ),
    "a multiplication and an addition": (
        lambda a, b, c: inductor_prims.fma(-a, b, c) * a, (32, 64), (64,), (32, 64)
    ),
    "truth values together": (
        lambda x: ((x > 0) | (x < -1) ^ (x > 1)) & ~(x > 0.5), (32, 64)
    ),
    "bits of whole numbers": (
        lambda x: (lambda i: ((i + 3) & 6) ^ (i * 2))((x * 9).int()), (32, 64)
    ),
    "numbers in a row": (lambda x: x * numbered(64) + 1, (32, 64)),
    "powers": (lambda x: (x.pow(1) + x.pow(2)) * x, (32, 64)),
    "a product and one element": (lambda x, w, s: x @ w * s, (64, 128), (128, 128), (1,)),
    "gelu by tanh": (
        lambda g, x: aten.gelu_backward(g, x, approximate="tanh") * 2, (32, 64), (32, 64)
    ),
}  # fmt: skip


# Of 4 images: a channel's value for each image, a group's for each of its 8 channels.
GROUPED = {(16, 64): lambda v: np.tile(v, 4), (8, 64): lambda v: np.repeat(v, 8)}


def repeated(value, size):
    """What [4, 16, 64] takes for each row of 64: one a channel, or one a group of channels."""
    return value if value.size == size else GROUPED[value.size, size](value)


def test_what_sinks_into_a_region_is_read_in_the_order_of_its_steps():
    """In each process the same, whatever strings hash to: equal graphs have equal programs."""
    gm, _ = traced(group_norm, (4, 16, 64), (16,), (16,))
    *_, reader = regions_of(gm.graph, "fp32")
    given = {n.name for n in gm.graph.nodes if n.op == "placeholder"}
    moments = [n for n in reader.inputs if reader.inputs[n].node not in given]
    read = dict.fromkeys(r for s in reader.steps for r in s.reads if r in moments)
    assert len(moments) == 2
    assert moments == list(read)


def computed_by_the_machine(gm, inputs):
    """The graph's placeholders through the programs of its parts, by the values' names."""
    names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    known = {n: t.numpy().reshape(-1) for n, t in zip(names, inputs, strict=True)}
    known["numbers below 64"] = torch.arange(64).numpy()
    [piece] = pieces_of("region", gm, "fp32", TARGET)
    for part in piece.work.parts:
        fed = {b: known[v] for b, v in part.tensors.items() if v in known}
        sizes = {b.name: b.elements for b in part.program.buffers}
        fed = {b: repeated(value, sizes[b]) for b, value in fed.items()}
        made = Machine(TARGET.chip).run(part.program, fed)
        known |= {part.tensors[b]: value.reshape(-1) for b, value in made.items()}
    return known


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_a_region_computes_what_the_graph_says(name):
    gm, inputs = traced(*ONCE_WRONG[name])
    known = computed_by_the_machine(gm, inputs)
    [output] = (n for n in gm.graph.nodes if n.op == "output")
    results = list(torch.utils._pytree.tree_leaves(output.args))
    expected = torch.utils._pytree.tree_leaves(gm(*inputs))
    assert results
    for node, e in zip(results, expected, strict=True):
        got = torch.as_tensor(known[node.name]).reshape(e.shape)
        torch.testing.assert_close(got.to(e.dtype), e, rtol=1e-5, atol=1e-5)


COMPUTED = [n for n in FUSED if n not in ("seen through a view", "bias and activation")]


@pytest.mark.parametrize("name", COMPUTED)
def test_the_machine_computes_a_region(name):
    gm, inputs = traced(*FUSED[name])
    [piece] = pieces_of("region", gm, "fp32", TARGET)
    [part] = piece.work.parts
    validate(part.program, TARGET.chip)
    given = dict(
        zip((n.name for n in gm.graph.nodes if n.op == "placeholder"), inputs, strict=True)
    )
    tensors = {
        b.name: given[part.tensors[b.name]].numpy().reshape(-1)
        for b in part.program.buffers
        if b.memory is Memory.HBM and part.tensors.get(b.name) in given
    }
    made = Machine(TARGET.chip).run(part.program, tensors)
    expected = torch.utils._pytree.tree_leaves(gm(*inputs))
    results = [v for k, v in made.items() if k.startswith("out")]
    assert len(results) == len({id(e) for e in expected})
    for e in expected:
        assert any(
            torch.allclose(
                torch.as_tensor(r).reshape(-1)[: e.numel()], e.reshape(-1), rtol=1e-4, atol=1e-4
            )
            for r in results
            if torch.as_tensor(r).numel() >= e.numel()
        )


@pytest.mark.parametrize(("function", "tensors"), [(softmax, 2), (adamw, 5)])
def test_what_a_region_reads_crosses_hbm_once(function, tensors):
    """Rows of 4096 float32 fit into SBUF of trn1 where tiles are used again."""
    target = Target(get_chip("trn1"), 1)
    x = torch.empty(512, 4096, device="meta")
    given = [torch.empty_like(x) for _ in range(tensors - 1)]
    gm = make_fx(function, tracing_mode="fake")(*given)
    [launch] = launches_of("rows", gm, "fp32", target)
    price = launch.priced.price
    moved = price.totals["hbm_read_bytes"] + price.totals["hbm_write_bytes"]
    assert moved == tensors * x.numel() * 4


def test_windows_fit_on_chip_and_save_time():
    def block(x, w, v, g):
        return layer_norm((x @ w).tanh() @ v + x, g, g)

    gm, _ = traced(block, (512, 256), (256, 1024), (1024, 256), (256,))
    [piece] = pieces_of("block", gm, "mxfp8", TARGET)
    work = piece.work
    cut = windows(work.parts)
    for window in cut:
        validate(window.program(TARGET), TARGET.chip)
    whole = price_graph("block", work, TARGET)
    saving = whole.saving(TARGET)
    assert saving.device_s[1] < saving.device_s[0]
    assert saving.hbm_bytes[1] < saving.hbm_bytes[0]
    assert whole.price.seconds == price_graph("block", work, TARGET).price.seconds


ALONE = {
    "sum of squares": lambda x: x.pow(2).sum(),
    "norm of one row": lambda x: x * torch.rsqrt(x.pow(2).mean() + 1e-5),
    "softmax of one row": lambda x: torch.softmax(x.flatten(), 0),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_a_single_row_takes_no_step(chip, name):
    """Beyond 524,288 elements the faster one of a program and of programs on all cores."""
    target = Target(get_chip(chip), 2 - (chip == "trn1"))
    times = []
    for rows in (96, 127, 128, 129, 160, 192, 256):
        x = torch.empty(rows, 4096, device="meta")
        gm = make_fx(ALONE[name], tracing_mode="fake")(x)
        [launch] = launches_of("one row", gm, "fp32", target)
        times.append((rows, launch.priced.price.seconds))
    for (before, a), (after, b) in itertools.pairwise(times):
        assert a < b < 1.05 * a * after / before, times
