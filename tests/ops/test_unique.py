"""Distinct elements, which of them each element is, and how often they occur."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.isa import Program
from torch_trn_emu.ops import unique

from .calls import GENERATOR, call_of, lowered, run

aten = torch.ops.aten


def _run(program: Program, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return run((program,), {n: torch.from_numpy(np.asarray(x)) for n, x in feeds.items()})


def _parts(programs: list[Program], kept: int, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Flags, and what they choose, by the first two of the programs."""
    flags = _run(programs.pop(0), **{"in": values})["out"]
    chosen = _run(programs.pop(0), **{"in": values, "mask": flags})["out"][:kept]
    return flags, chosen


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 700), most=st.integers(1, 60), wide=st.sampled_from([8192, 6]))
@pytest.mark.parametrize("sorts", [True, False])
def test_distinct(sorts: bool, n: int, most: int, wide: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unique, "WIDE", wide)
        x = torch.randint(-most, most, (n,), generator=GENERATOR).float()
        op = aten._unique2.default if sorts else aten.unique_consecutive.default
        arguments = (x, True, True, True) if sorts else (x, True, True)
        expected, inverse, counts = op(*arguments)
        programs = list(lowered(call_of(op, *arguments)))
        values, order = x.numpy(), np.arange(n)
        if sorts:
            found = _run(programs.pop(0), **{"in": values})
            values, order = found["values"].reshape(-1), found["index"].reshape(-1)
        flags, chosen = _parts(programs, expected.numel(), values)
        np.testing.assert_array_equal(chosen, expected)
        ranks = _run(programs.pop(0), **{"in": flags})["out"]
        if sorts:
            ranks = _run(programs.pop(0), **{"in": ranks, "index": order})["out"]
        np.testing.assert_array_equal(ranks, inverse)
        places, gaps = programs
        starts = _run(places, mask=flags)["out"][: expected.numel()]
        np.testing.assert_array_equal(_run(gaps, **{"in": starts})["out"], counts)


def test_only_what_is_asked_for() -> None:
    x = torch.arange(300.0)
    names = [len(lowered(call_of(aten._unique2.default, x, True, *f)))
             for f in ((False, False), (True, False), (False, True))]  # fmt: skip
    assert names == [3, 5, 5]
