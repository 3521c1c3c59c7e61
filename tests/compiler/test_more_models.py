"""Models of kinds that no library in the tests has: prices, and their regions on the machine.

All of them run with the `conformance` marker, one by default.
"""

from typing import Any

import pytest
import torch
from comparing import TORCHS_OWN
from torch import nn

import torch_trn_emu

from .more_models import MODELS
from .on_machine import Found, backend_on
from .test_on_machine import KNOWN, spoilt

pytestmark = TORCHS_OWN
NAMES = [n if n == "experts" else pytest.param(n, marks=pytest.mark.conformance) for n in MODELS]
MODES = ["inference", "training"]


def called(model: nn.Module, given: tuple[Any, ...], mode: str) -> Any:
    with torch.set_grad_enabled(mode == "training"):
        return model(*given)


def ended(made: Any) -> None:
    """A backward pass from the results that have a gradient."""
    ends = [t for t in torch.utils._pytree.tree_leaves(made) if t.requires_grad]
    torch.autograd.backward(ends, [torch.ones_like(t) for t in ends])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_takes_no_longer_than_its_operators(name: str, mode: str) -> None:
    make, inputs = MODELS[name]
    model = make().to("meta").train(mode == "training")
    given = tuple(t.to("meta") for t in inputs())

    def step(*given: Any) -> Any:
        made = called(model, given, mode)
        return ended(made) if mode == "training" else made

    found = []
    for how in ("eager", "compile"):
        torch._dynamo.reset()
        model.zero_grad()
        estimated = torch_trn_emu.estimate(step, *given, mode=how)
        assert all(row.status != "not modelled" for row in estimated.ops)
        found.append(estimated.device_us)
    assert 0 < found[1] <= 1.02 * found[0]


def on_machine(name: str, mode: str, special: bool) -> Found:
    """What the machine makes of a model's regions; of the first of its samples, special values."""
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, found = make().to("trn").train(mode == "training"), Found()
    given = tuple(inputs())
    for t in given if special else ():
        if t.is_floating_point():
            t[:1] = spoilt(t[:1].flatten()).reshape(t[:1].shape)
    compiled = torch.compile(model, backend=backend_on(found), dynamic=False)
    made = called(compiled, tuple(t.to("trn") for t in given), mode)  # type: ignore[arg-type]
    if mode == "training":
        ended(made)
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_regions_compute_what_the_host_does(name: str, mode: str) -> None:
    found = on_machine(name, mode, special=False)
    assert not found.differ
    assert found.agree > 10
    left = {why.rpartition(": ")[2] for why in found.apart}
    assert left <= {"its row models only the cost", "it draws random numbers"}


@pytest.mark.conformance
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_regions_take_special_values(name: str, mode: str) -> None:
    found = on_machine(name, mode, special=True)
    assert not [said for operator, said in found.differ if operator not in KNOWN]
    assert found.agree > 10
