"""Programs on the machine with NaN, infinities, signed zeros, empty tensors and zero divisors."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.ops.elementwise import BINARY, CHOSEN, TERNARY, UNARY

from .calls import call_of, lowered, run
from .on_cores import computed

aten = torch.ops.aten
INF, NAN = math.inf, math.nan
VALUES = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0)

# Where the chip's functions have another value than torch's, each with its reason.
OTHERWISE = {
    "gelu": {INF: "torch's vectorized kernel gives NaN"},
}
INTEGERS = {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"}
MASKS = {"where": 0, "masked_fill": 1, "native_dropout_backward": 1}


def same(got: Any, expected: torch.Tensor, bound: float = 2e-6) -> bool:
    """NaN where NaN is, infinities of one sign, and all else within rounding."""
    got, want = torch.as_tensor(np.asarray(got)).double().reshape(-1), expected.double().reshape(-1)
    finite = want.isfinite()
    if not torch.equal(got.isnan(), want.isnan()):
        return False
    if not torch.equal(got[~finite & ~want.isnan()], want[~finite & ~want.isnan()]):
        return False
    return torch.allclose(got[finite], want[finite], rtol=bound, atol=2 * bound)


def overload(name: str, arity: int) -> Any:
    """The overload of aten whose arguments begin with `arity` tensors and need no other."""
    packet = getattr(aten, name, None)
    for each in packet.overloads() if packet is not None else ():
        arguments = getattr(packet, each)._schema.arguments
        tensors = [str(a.type) == "Tensor" for a in arguments[:arity]]
        rest = [a.has_default_value() and not a.is_out for a in arguments[arity:]]
        if len(tensors) == arity and all(tensors) and all(rest):
            return getattr(packet, each)
    return None


def grid(arity: int) -> list[torch.Tensor]:
    """Each value with each other, of every operand."""
    rows = list(itertools.product(VALUES, repeat=min(arity, 2)))
    columns = [torch.tensor(c) for c in zip(*rows, strict=True)]
    return [*columns, columns[0].roll(3)][:arity]


CASES = [
    (name, arity)
    for arity, table in ((1, UNARY), (2, BINARY), (3, TERNARY))
    for name in table
    if name not in CHOSEN | INTEGERS | {"clamp"} and overload(name, arity) is not None
]


@pytest.mark.parametrize(("name", "arity"), CASES)
def test_special_values(name: str, arity: int) -> None:
    op, tensors = overload(name, arity), grid(arity)
    if name in MASKS:
        tensors[MASKS[name]] = tensors[MASKS[name]] > 0
    call = call_of(op, *tensors)
    if not call.outputs or not call.outputs[0].shape:
        pytest.skip("the result is one number")
    got = run(lowered(call), {f"in{k}": t for k, t in enumerate(tensors)})["out"]
    expected = op(*tensors)
    expected = expected[0] if isinstance(expected, tuple) else expected
    known = OTHERWISE.get(name, {})
    wrong = [
        (tuple(float(t[k]) for t in tensors), float(np.asarray(got).reshape(-1)[k]), float(e))
        for k, e in enumerate(expected.reshape(-1))
        if float(tensors[0][k]) not in known and not same(np.asarray(got).reshape(-1)[k], e)
    ]
    assert not wrong, wrong[:8]


@pytest.mark.parametrize("name", ["cos", "sin"])
def test_large_angles(name: str) -> None:
    """As exact as those near 0: to a rounding of 1."""
    op, x = getattr(aten, name).default, torch.linspace(-1e5, 1e5, 999)
    got = run(lowered(call_of(op, x)), {"in0": x})["out"]
    np.testing.assert_allclose(got, op(x), rtol=0, atol=2.0**-21)


@pytest.mark.parametrize(
    ("shape", "dim"), [((9, 40), 1), ((2, 5000), 1), ((700, 50), 0), ((4, 30, 20), 1)], ids=str
)
@pytest.mark.parametrize("values", [(INF, -INF), (-INF,), (NAN, INF)], ids=str)
def test_sums_of_exponentials(shape: tuple[int, ...], dim: int, values: tuple[float, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    x.view(-1)[7 :: 31 * len(values)] = values[0]
    x.view(-1)[19 :: 97 * len(values)] = values[-1]
    whole = torch.full(shape, values[0])
    for t in (x, whole):
        for name, rest in (("logcumsumexp", dim), ("logsumexp", [dim])):
            op = getattr(aten, name).default
            for got, want in computed(name, op, t, rest)[1]:
                assert same(got, want, 1e-5), name
