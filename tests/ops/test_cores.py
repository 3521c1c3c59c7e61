"""Programs on two physical cores: none repeats the other's work, and sums over rows are added."""

import pytest
import torch

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.ops import OPS
from torch_trn_emu.pricing import price_call

from .calls import call_of

aten = torch.ops.aten
ONE, TWO = (Target(get_chip("trn3"), cores) for cores in (1, 2))
ROW = torch.randn(1, 300)

SINGLE = {
    "softmax of one row": call_of(aten._softmax.default, ROW, -1, False),
    "one element": call_of(aten.exp.default, torch.ones(1)),
    "a sum of all": call_of(aten.sum.default, torch.randn(4000)),
    "one row scanned": call_of(aten.cumsum.default, torch.randn(1, 300), 1),
}


@pytest.mark.parametrize("name", SINGLE)
def test_what_one_core_does_counts_once(name: str) -> None:
    alone, both = (price_call(SINGLE[name], target) for target in (ONE, TWO))
    assert dict(alone.totals) == dict(both.totals)


def test_sums_over_rows_of_each_core_are_added() -> None:
    g, x, w = torch.randn(256, 64), torch.randn(256, 64), torch.randn(64)
    mean, rstd = torch.zeros(256, 1), torch.ones(256, 1)
    call = call_of(
        aten.native_layer_norm_backward.default, g, x, [64], mean, rstd, w, w, [True] * 3
    )
    assert len(OPS[call.name].lower(call, ONE)) == 1  # type: ignore[arg-type]
    partial, added = OPS[call.name].lower(call, TWO)  # type: ignore[misc]
    stored = sum(b.elements for b in added.buffers if b.role.value == "output")
    assert (partial.cores, stored * added.cores) == (2, 2 * 64)
