"""Passes over lists of tensors that a step keeps: the values, launches and memory of single ones."""

import random
from contextlib import contextmanager

import pytest
import torch
from torch import optim

from torch_trn_emu import _C

SIZES = [(700, 900), (900, 700), (384,), (7,), (3, 5, 7), (0,), (65, 384), (100_003,)]
OPTIMIZERS = {
    "AdamW": (optim.AdamW, {}),
    "AdamW amsgrad": (optim.AdamW, {"amsgrad": True, "maximize": True}),
    "AdamW capturable": (optim.AdamW, {"capturable": True}),
    "Adam decayed": (optim.Adam, {"weight_decay": 0.1}),
    "SGD": (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "RMSprop": (optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Adagrad": (optim.Adagrad, {"lr_decay": 0.1}),
    "Adadelta": (optim.Adadelta, {}),
    "Adamax": (optim.Adamax, {}),
    "NAdam": (optim.NAdam, {}),
    "RAdam": (optim.RAdam, {}),
    "Rprop": (optim.Rprop, {}),
    "ASGD": (optim.ASGD, {}),
}


@contextmanager
def nothing_kept(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_C, "collect_list_passes", lambda on: None)
        yield


@contextmanager
def collecting():
    _C.collect_list_passes(True)
    try:
        yield
    finally:
        _C.collect_list_passes(False)


def given(seed, shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(name, dtype, groups):
    """Parameters and state after three steps; the launches; memory now and at its peak."""
    kind, options = OPTIMIZERS[name]
    parameters = [torch.nn.Parameter(given(i, s, dtype).to("trn")) for i, s in enumerate(SIZES)]
    parts = [{"params": parameters[g::groups], "lr": 0.01 * (g + 1)} for g in range(groups)]
    optimizer = kind(parts, foreach=True, **options)
    torch.trn.reset_peak_memory_stats()
    before = torch.trn.memory_allocated()
    torch.trn.reset_counters()
    for step in range(3):
        for i, parameter in enumerate(parameters):
            parameter.grad = given(100 * step + i, parameter.shape, dtype).to("trn")
        optimizer.step()
    counters = torch.trn.counters()
    memory = (torch.trn.memory_allocated() - before, torch.trn.max_memory_allocated() - before)
    states = [
        value.cpu()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    return [p.detach().cpu() for p in parameters] + states, counters, memory


CASES = [
    *((name, torch.float32, 1) for name in OPTIMIZERS),
    ("AdamW", torch.float32, 2),
    ("AdamW", torch.bfloat16, 2),
    ("SGD", torch.bfloat16, 1),
]


@pytest.mark.parametrize(("name", "dtype", "groups"), CASES)
def test_steps_are_those_of_single_passes(name, dtype, groups, monkeypatch):
    with nothing_kept(monkeypatch):
        expected = trained(name, dtype, groups)
    kept = _C.list_passes_kept()
    found = trained(name, dtype, groups)
    assert _C.list_passes_kept() > kept
    for x, y in zip(found[0], expected[0], strict=True):
        assert torch.equal(x, y), (groups, x.shape)
    assert found[1] == expected[1]
    assert found[2][0] == expected[2][0]
    # Of a single pass the host's kernel takes a few words for its numbers.
    assert found[2][1] == pytest.approx(expected[2][1], abs=1024)


def lists(seed):
    """Lists of equal sizes, some of whose tensors share memory in another place of the lists."""
    draw = random.Random(seed)
    whole = [given(seed + i, (400, 700)).to("trn") for i in range(3)]
    base = given(seed + 9, 1_200_000).to("trn")
    overlapping = [base[at : at + 280_000].view(400, 700) for at in (0, 280_000, 500_000)]
    shuffled = draw.sample(whole, 3)
    transposed = [given(seed + 5 + i, (700, 400)).to("trn").t() for i in range(3)]
    return {
        "whole": whole,
        "other": [x.abs() + 1 for x in whole],
        "shuffled": shuffled,
        "overlapping": overlapping,
        "transposed": transposed,
        "third": [given(seed + 20 + i, (400, 700)).to("trn") for i in range(3)],
    }


def passes(draw, all_lists):
    """One drawn call of a foreach operator, or of something that reads."""
    name = draw.choice(
        [
            "add",
            "sub",
            "mul",
            "div",
            "lerp",
            "addcmul",
            "maximum",
            "neg",
            "abs",
            "sqrt",
            "clamp_max",
        ]
    )
    to, first, second = (all_lists[draw.choice(list(all_lists))] for _ in range(3))
    number = draw.choice([0.5, -1.5, 2])
    if name in ("neg", "abs", "sqrt"):
        arguments = ()
    elif name == "lerp":
        arguments = (first, draw.choice([0.25, [0.5, 0.75, 0.125]]))
    elif name == "addcmul":
        arguments = (first, second, number)
    elif name in ("maximum", "clamp_max"):
        arguments = (draw.choice([first, number]),)
    else:
        arguments = (draw.choice([first, number, [number, 1.0, 3.0]]),)
    if draw.random() < 0.3:
        made = getattr(torch, f"_foreach_{name}")(to, *arguments)
        all_lists[draw.choice(["third", "fourth"])] = list(made)
    else:
        getattr(torch, f"_foreach_{name}_")(to, *arguments)
    if draw.random() < 0.1:  # something else in between
        to[1].mul_(0.5)
    if draw.random() < 0.1:
        return [first[0].sum().item()]
    return []


def sequence(seed):
    draw = random.Random(seed)
    all_lists = lists(seed)
    seen = []
    for _ in range(12):
        seen += passes(draw, all_lists)
    return seen, all_lists


def same(found, expected):
    assert found[0] == pytest.approx(expected[0], nan_ok=True, rel=0, abs=0)
    for name, tensors in expected[1].items():
        for x, y in zip(found[1][name], tensors, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_passes_over_lists_that_share_memory(seed):
    expected = sequence(seed)  # which prices every call: only known ones are kept
    kept = _C.list_passes_kept()
    with collecting():
        found = sequence(seed)
    assert _C.list_passes_kept() > kept
    same(found, expected)


READS = {
    "cpu": lambda x: x.cpu(),
    "item": lambda x: torch.tensor(x[0, 0].item()),
    "copy": lambda x: torch.empty(x.shape).copy_(x),
    "view": lambda x: x.t()[3].contiguous().cpu(),
    "alias": lambda x: _C.host_alias(x).clone(),
    "clone": lambda x: x.clone().cpu(),
    "storage": lambda x: torch.tensor(list(x.untyped_storage().cpu()[:64])),
    "dlpack": lambda x: torch.from_dlpack(x.cpu()),
    "no longer there": lambda x: x.new_zeros(1).cpu(),
}


@pytest.mark.parametrize("read", READS)
def test_what_reads_in_between_sees_all_that_was_called(read):
    def run():
        tensors = [given(i, (700, 400)).to("trn") for i in range(2)]
        torch._foreach_mul_(tensors, 3.0)
        torch._foreach_add_(tensors, 1.0)
        return READS[read](tensors[0])

    expected = run()
    with collecting():
        found = run()
    assert torch.equal(found, expected)


def test_a_step_that_fails_loses_nothing():
    class Failing(optim.SGD):
        def step(self):
            torch._foreach_mul_(self.param_groups[0]["params"], 2.0)
            raise ValueError("in the middle")

    parameters = [torch.nn.Parameter(torch.ones(400, 700, device="trn"))]
    optimizer = Failing(parameters)
    with torch.no_grad():
        torch._foreach_mul_(parameters, 2.0)
        for _ in range(2):
            with pytest.raises(ValueError, match="in the middle"):
                optimizer.step()
    assert parameters[0].eq(8).all()


def test_errors_come_where_the_call_is():
    tensors = [torch.ones(400, 700, device="trn") for _ in range(2)]
    with collecting():
        torch._foreach_mul_(tensors, 2.0)
        with pytest.raises(RuntimeError, match="must have the same number of tensors"):
            torch._foreach_add_(tensors, tensors[:1])
        with pytest.raises(RuntimeError, match="size"):
            torch._foreach_add_(tensors, [torch.ones(3, device="trn")] * 2)
    assert tensors[0].eq(2).all()


def test_memory_of_results_is_given_back():
    tensors = [torch.ones(400, 700, device="trn")]
    before = torch.trn.memory_allocated()
    made = torch._foreach_sqrt(tensors)
    grown = torch.trn.memory_allocated() - before
    del made
    with collecting():
        made = torch._foreach_sqrt(tensors)
        torch._foreach_add_(made, 1.0)
        assert torch.trn.memory_allocated() == before + grown
        del made
        torch._foreach_sqrt(tensors)
    assert torch.trn.memory_allocated() == before
