"""A batch of products loads the matrices that are picked from a table for it alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_trn_emu


def _alone(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    return torch.bmm(x, table[index])


def _read_again(x: Tensor, table: Tensor, index: Tensor) -> Any:
    chosen = table[index]
    return torch.bmm(x, chosen), chosen + 1


@pytest.mark.parametrize(
    ("function", "policy", "stores"),
    [(_alone, "bf16", False), (_read_again, "bf16", True), (_alone, "mxfp8_all", True)],
)
def test_what_is_picked_is_stored_only_for_others(
    function: Callable[..., Any], policy: str, stores: bool
) -> None:
    x, table = (
        torch.empty(*s, dtype=torch.bfloat16, device="meta") for s in ((16, 1, 512), (32, 512, 256))
    )  # more than stays in SBUF
    index = torch.empty(16, dtype=torch.int64, device="meta")
    with torch.no_grad(), torch_trn_emu.precision(policy):
        found = torch_trn_emu.estimate(function, x, table, index, chip="trn3", mode="compile")
    picked = 16 * 512 * 256 * 2
    assert (found.counters["hbm_write_bytes"] >= picked) is stores
    assert found.counters["hbm_read_bytes"] >= picked
