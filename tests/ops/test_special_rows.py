"""Every modelled row on the machine with special values; all of them with `conformance`."""

from functools import partial
from typing import Any

import pytest
import torch

from torch_trn_emu.ops import OPS

from .on_cores import computed
from .special_values import KINDS, NARROW, OTHERWISE, walk

aten = torch.ops.aten
# The host's names of operators under other devices' names, deprecated ones, kernels of few threads.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_row_takes_special_values() -> None:
    found = walk(["odd", "zero"], torch.float32, "trn3", 2)
    assert not found.differ
    assert len(found.rows) >= 300
    assert found.agree >= 700


@pytest.mark.conformance
@pytest.mark.timeout(0)
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("chip", ["trn2", "trn3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_row_takes_all_of_them(dtype: torch.dtype, chip: str, cores: int) -> None:
    found = walk(KINDS, dtype, chip, cores, range(3))
    assert not found.differ
    assert len(found.rows) >= 320
    assert found.agree >= 5000


def test_the_exceptions_name_rows() -> None:
    assert {name for name, _ in OTHERWISE} | set(NARROW) <= set(OPS)


# --- no elements, and integers --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)], ids=str)
def test_no_elements(shape: tuple[int, ...]) -> None:
    """No program, or one that does nothing."""
    x = torch.empty(shape)
    for op, args in (
        (aten.add.Tensor, (x, x)), (aten.exp.default, (x,)), (aten.clone.default, (x,)),
        (aten.cat.default, ([x, x],)), (aten.sort.default, (x,)), (aten.where.self, (x > 0, x, x)),
        (aten.cumsum.default, (x, 0)), (aten.flip.default, (x, [0])), (aten.mul.Tensor, (x, 2.0)),
        (aten._to_copy.default, (x,)), (aten.isnan.default, (x,)), (aten.relu.default, (x,)),
    ):  # fmt: skip
        name = op._schema.name.removeprefix("aten::")
        for cores in (1, 2):
            assert not computed(name, op, *args, most=cores)[1], name


ENDS = {
    torch.int8: (-128, 127, 0, -1, 1),
    torch.uint8: (0, 255, 1, 128),
    torch.int16: (-(2**15), 2**15 - 1, 0, -1, 1),
    torch.int32: (-(2**31), 2**31 - 1, 0, -1, 1),
    torch.int64: (-(2**31), 2**31 - 1, 0, -1, 1),
}
MOVED = {
    "clone": (aten.clone.default,),
    "flip": (aten.flip.default, [0]),
    "roll": (aten.roll.default, [1]),
    "repeat": (aten.repeat.default, [3]), "bitwise_not": (aten.bitwise_not.default,),
    "constant_pad_nd": (aten.constant_pad_nd.default, [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ENDS, ids=str)
def test_integers_at_the_ends_of_their_range(dtype: torch.dtype) -> None:
    """The engines compute in float32, which holds what has 24 bits; moves and bits are exact."""
    x = torch.tensor(ENDS[dtype], dtype=dtype)
    cases = [(name, (op, x, *rest)) for name, (op, *rest) in MOVED.items()]
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        cases.append((name, (getattr(aten, name).Tensor, x, x.flip(0))))
    if dtype not in (torch.int32, torch.int64):
        for name in ("eq", "lt", "ge", "maximum", "minimum"):
            op = getattr(aten, name)
            op = op.default if name.endswith("imum") else op.Tensor
            cases.append((name, (op, x, x.flip(0))))
        cases.append(("sort", (aten.sort.default, x)))
    for name, call in cases:
        _, pairs = computed(name, *call)
        assert pairs
        for got, want in pairs:
            assert torch.equal(got, want), (name, dtype, got, want)


@pytest.mark.parametrize("to", [*ENDS, torch.float32, torch.bfloat16, torch.bool], ids=str)
def test_integers_keep_their_last_bits(to: torch.dtype) -> None:
    """Between integers; what has a fraction loses it, and a number of float32 is rounded."""
    for source, ends in ENDS.items():
        if source == to or (to is torch.int64 and source is torch.uint8):
            continue
        x = torch.tensor([*ends, 5, 100], dtype=source)
        _, pairs = computed("_to_copy", _cast(to), x)
        ((got, want),) = pairs
        assert torch.equal(got, want), (source, got, want)


def _cast(to: torch.dtype) -> Any:
    return partial(aten._to_copy.default, dtype=to)


def test_floats_become_integers_that_hold_them() -> None:
    """Beyond an integer's range the host's conversion is not defined; the engines saturate."""
    x = torch.tensor([1e20, -1e20, torch.inf, -torch.inf, torch.nan, 2.7, -2.7, -0.0, 1e-40])
    for to, low, high in ((torch.int32, -(2**31), 2**31 - 1), (torch.int8, -128, 127)):
        ((got, _),) = computed("_to_copy", _cast(to), x)[1]
        assert got.tolist() == [high, low, high, low, 0, 2, -2, 0, 0]
