"""Numbers in a row."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.ops import arange

from .calls import call_of, lowered, run

aten = torch.ops.aten
CASES = [
    (aten.arange.default, (5,)),
    (aten.arange.default, (700,)),
    (aten.arange.start, (3, 900)),
    (aten.arange.start_step, (2.0, 90.0, 0.5)),
    (aten.arange.start_step, (300, 2, -1)),
    (aten.linspace.default, (-1.0, 3.0, 500)),
    (aten.linspace.default, (2.0, 3.0, 1)),
]


@pytest.mark.parametrize("together", [8192, 2], ids=["whole", "tiles"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers(
    case: tuple[Any, tuple[Any, ...]], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arange, "TOGETHER", together)
    op, arguments = case
    got = run(lowered(call_of(op, *arguments)), {})["out"]
    np.testing.assert_allclose(got, op(*arguments), rtol=1e-6, atol=1e-6)
