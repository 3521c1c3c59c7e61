"""A price is called modelled where a sweep holds it between the limits of the chip."""

import torch_trn_emu.cli.coverage as coverage
from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.unbounded import UNBOUNDED

from .bounded import held_by_families, held_by_schema

MODELLED = {name for name, row in OPS.items() if row.status == "modelled"}


def test_rows_that_are_called_modelled_are_held_by_a_sweep() -> None:
    held = set(held_by_schema()) | set(held_by_families())
    assert MODELLED - held == UNBOUNDED


def test_others_have_another_word() -> None:
    said = {row["op"]: row["price"] for row in coverage.coverage()}
    for name in MODELLED:
        assert said[name] == ("computed" if name in UNBOUNDED else "modelled")
