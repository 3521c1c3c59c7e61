"""Concatenations along the last dimension as part of a region: what is joined, values, time."""

import itertools
from random import Random

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.regions import regions_of
from torch_trn_emu.compiler.subgraphs import launches_of, pieces_of
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import validate

aten = torch.ops.aten
CHIPS = ("trn1", "trn2", "trn3")


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rotated_by_slices(x, cos, sin):
    n = x.shape[-1] // 2
    return (x * cos) + (torch.cat((-x[..., n:], x[..., :n]), dim=-1) * sin)


def norm_and_rotation(x, w, cos, sin):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w
    return rotated(y, cos, sin)


def three_parts(x):
    a, b, c = x.split((16, 40, 8), -1)
    return torch.cat([c, a * 3.0, -b], -1).exp()


def of_two(x, y):
    return torch.cat([x[..., 40:], y[..., 24:40], -(x[..., :24] * 2.0)], -1) - y


def subtracted(x, y):
    return y - torch.cat([-x[..., 32:], x[..., :32]], -1)


def stored_too(x, y):
    turned = torch.cat([-x[..., 32:], x[..., :32]], -1)
    return turned, turned * y, (turned * x).sum(-1)


def twice(x, cos, sin):
    return rotated(rotated(x, cos, sin), sin, cos)


TABLE = ((8, 64), (8, 64))
JOINED = {
    "heads": (rotated, (2, 4, 8, 64), *TABLE),
    "slices": (rotated_by_slices, (2, 4, 8, 64), *TABLE),
    "one token": (rotated, (1, 4, 1, 64), (1, 64), (1, 64)),
    "one row": (rotated, (1, 1, 1, 64), (1, 64), (1, 64)),
    "odd rows": (rotated, (3, 43, 64), (64,), (64,)),
    "long rows in pieces": (rotated, (3, 96, 64), (96, 64), (96, 64)),
    "nothing fixes rows": (rotated, (37, 64), (37, 64), (37, 64)),
    "norm and rotation": (norm_and_rotation, (5, 8, 64), (64,), (64,), (64,)),
    "three parts": (three_parts, (130, 64)),
    "parts of two tensors": (of_two, (20, 64), (20, 64)),
    "a joined value that is subtracted": (subtracted, (20, 64), (20, 64)),
    "a joined value that is stored": (stored_too, (20, 64), (20, 64)),
    "one after the other": (twice, (4, 8, 64), *TABLE),
}  # fmt: skip


def traced(function, *shapes, dtype=torch.float32):
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    return make_fx(function, tracing_mode="fake")(*inputs), inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", JOINED)
def test_the_machine_computes_it(name, chip, dtype):
    gm, inputs = traced(*JOINED[name], dtype=dtype)
    target = Target(get_chip(chip), 1)
    [piece] = pieces_of("region", gm, "fp32", target)
    [part] = piece.work.parts
    validate(part.program, target.chip)
    names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    given = {n: t.float().numpy().reshape(-1) for n, t in zip(names, inputs, strict=True)}
    tensors = {b: given[t] for b, t in part.tensors.items() if t in given}
    made = Machine(target.chip).run(part.program, tensors)
    found = {part.tensors[b]: torch.from_numpy(v).reshape(-1) for b, v in made.items()}
    [output] = gm.graph.find_nodes(op="output")
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    for node, expected in zip(
        torch.utils._pytree.tree_leaves(output.args),
        torch.utils._pytree.tree_leaves(gm(*inputs)),
        strict=True,
    ):
        got = found[node.name][: expected.numel()].reshape(expected.shape).float()
        torch.testing.assert_close(got, expected.float(), rtol=tolerance, atol=tolerance)


def cut(random, rows, columns):
    """A concatenation of random parts of two tensors, some of them empty, times powers of two."""
    count = random.randint(2, 6)
    ends = sorted(random.choices(range(columns + 1), k=count - 1))
    sizes = [b - a for a, b in itertools.pairwise((0, *ends, columns))]
    parts = []
    for size in sizes:
        first = random.randint(0, columns - size)
        parts.append((random.randint(0, 1), first, size, random.choice((1, -1, 2.0, -0.5))))

    def function(x, y):
        made = []
        for of, first, size, factor in parts:
            part = (x, y)[of][..., first : first + size]
            made.append(part if factor == 1 else -part if factor == -1 else part * factor)
        return torch.cat(made, -1) * x

    return function, (rows, columns), (rows, columns)


@pytest.mark.parametrize("seed", range(16))
def test_any_parts_have_their_values(seed):
    random = Random(seed)
    rows = random.choice((1, 5, 64, 130, 300))
    gm, inputs = traced(*cut(random, rows, random.choice((2, 7, 64, 96))))
    target = Target(get_chip("trn3"), 1)
    [piece] = pieces_of("region", gm, "fp32", target)
    [part] = piece.work.parts
    validate(part.program, target.chip)
    names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    given = {n: t.numpy().reshape(-1) for n, t in zip(names, inputs, strict=True)}
    tensors = {b: given[t] for b, t in part.tensors.items() if t in given}
    [made] = Machine(target.chip).run(part.program, tensors).values()
    expected = gm(*inputs)
    got = torch.from_numpy(made).reshape(-1)[: expected.numel()].reshape(expected.shape)
    assert torch.equal(got, expected)


APART = {
    "another dimension": lambda x: torch.cat([-x[:4], x[4:]], 0) * 2,
    "a part that is more than a part": lambda x: torch.cat([x[:, 32:].exp(), x[:, :32]], -1) * 2,
    "longer than its tensors": lambda x: torch.cat([-x, x], -1) * 2,
    "a part that is read elsewhere": lambda x: (
        torch.cat([(y := -x[:, 32:]), x[:, :32]], -1) * 2, y.sort().values
    ),
    "rows that it cannot part": lambda x: (torch.cat([-x[:, 32:], x[:, :32]], -1).view(16, 32)
                                           .sum(-1)),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_others_are_programs_of_their_own(name):
    gm, _ = traced(APART[name], (8, 64))
    regions = regions_of(gm.graph, "fp32")
    [home] = [r for r in regions if any(n.target is aten.cat.default for n in r.nodes)]
    assert len(regions) > 1
    assert home.kind == "single" or name == "rows that it cannot part"


def test_parts_of_one_tensor_are_loaded_one_by_one():
    """Both halves, of which neither is the other."""
    gm, _ = traced(lambda x: x[:, :512].sigmoid() * x[:, 512:], (128, 1024))
    [launch] = launches_of("gate", gm, "fp32", Target(get_chip("trn2"), 1))
    assert launch.priced.price.totals["hbm_read_bytes"] == 4 * 128 * 1024


SHAPES = [(1, 8, 1, 128), (16, 32, 1, 64), (1, 16, 512, 128), (1, 7, 333, 64), (2, 24, 4096, 128)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chip", CHIPS)
def test_a_rotation_takes_one_pass(chip, shape, dtype):
    """No longer than the products and the sum with two operands as long."""
    times = []
    table = shape[-2:]
    for function in (rotated, lambda x, cos, sin: x * cos + (x + 1) * sin):
        x = torch.empty(shape, dtype=dtype, device="meta")
        tables = [torch.empty(table, dtype=dtype, device="meta") for _ in range(2)]
        gm = make_fx(function, tracing_mode="fake")(x, *tables)
        [launch] = launches_of("rotation", gm, "bf16", Target(get_chip(chip), 2 - (chip == "trn1")))
        times.append(launch.priced.price.seconds)
    assert times[0] < 1.2 * times[1] + 1e-6
