"""Random numbers on the machine: each is what its definition makes of the bits that the program
drew, and together they have the distribution that the host's have.
"""

from collections.abc import Callable, Mapping
from math import erf, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.calls import Call
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Builder, Role
from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.random import DRAWS

from .calls import CHIP, GENERATOR, call_of, lowered, run

aten = torch.ops.aten
SHAPE = (60, 71)
X = torch.empty(SHAPE)
MEAN = torch.linspace(-2, 2, 71).expand(SHAPE).contiguous()
SPREAD, P = MEAN.abs() + 0.5, (MEAN + 2) / 4
ONE = 2.0**24


def _normal(k: Any, angle: Any) -> Any:
    return np.sqrt(-2 * np.log((k + 1) / ONE)) * np.sin(2 * np.pi * angle / ONE - np.pi)


def _log(k: Any) -> Any:
    return np.log((k + 1) / ONE)


# What a call makes of k = 0 .. 2^24 - 1, one or two of them for a number, in float64.
# fmt: off
CASES: list[tuple[Any, tuple[Any, ...], Callable[..., Any]]] = [
    (aten.uniform.default, (X, -1.5, 2.0), lambda k: 3.5 * k / ONE - 1.5),
    (aten.rand.default, (SHAPE,), lambda k: k / ONE),
    (aten.rand_like.default, (X,), lambda k: k / ONE),
    (aten.normal_functional.default, (X, 0.5, 3.0), lambda k, a: 3 * _normal(k, a) + 0.5),
    (aten.normal_.default, (X, 0.5, 3.0), lambda k, a: 3 * _normal(k, a) + 0.5),
    (aten.normal.float_float, (0.5, 3.0, SHAPE), lambda k, a: 3 * _normal(k, a) + 0.5),
    (aten.normal.Tensor_float, (MEAN, 3.0), lambda k, a: 3 * _normal(k, a) + MEAN.numpy()),
    (aten.normal.float_Tensor, (0.5, SPREAD), lambda k, a: SPREAD.numpy() * _normal(k, a) + 0.5),
    (aten.normal.Tensor_Tensor, (MEAN, SPREAD),
     lambda k, a: SPREAD.numpy() * _normal(k, a) + MEAN.numpy()),
    (aten.randn.default, (SHAPE,), _normal),
    (aten.randn_like.default, (X,), _normal),
    (aten.log_normal.default, (X, 0.2, 0.3), lambda k, a: np.exp(0.3 * _normal(k, a) + 0.2)),
    (aten.exponential.default, (X, 2.0), lambda k: -_log(k) / 2),
    (aten.cauchy.default, (X, 1.0, 2.0), lambda k: 1 - 2 / np.tan(np.pi * (k + 1) / ONE)),
    (aten.geometric.default, (X, 0.3), lambda k: 1 + np.floor(_log(k) / np.log(0.7))),
    (aten.bernoulli.p, (X, 0.3), lambda k: k / ONE < 0.3),
    (aten.bernoulli_.float, (X, 0.3), lambda k: k / ONE < 0.3),
    (aten.bernoulli.default, (P,), lambda k: k / ONE < P.numpy()),
    (aten.bernoulli_.Tensor, (X, P), lambda k: k / ONE < P.numpy()),
    (getattr(aten.random, "from"), (X, -3, 7), lambda k: np.floor(10 * k / ONE) - 3),
    (aten.random.to, (X, 7), lambda k: np.floor(7 * k / ONE)),
    (aten.random.default, (X,), lambda k: k),
    (aten.randint.default, (11, SHAPE), lambda k: np.floor(11 * k / ONE)),
    (aten.randint.low, (-5, 6, SHAPE), lambda k: np.floor(11 * k / ONE) - 5),
    (aten.randint_like.default, (X, 11), lambda k: np.floor(11 * k / ONE)),
    (aten.randint_like.low_dtype, (X, -5, 6), lambda k: np.floor(11 * k / ONE) - 5),
]
# fmt: on
OPERANDS = {
    "Tensor_float": [MEAN],
    "float_Tensor": [SPREAD],
    "Tensor_Tensor": [MEAN, SPREAD],
    "default": [P],
    "Tensor": [P],
}  # fmt: skip


def _drawn(call: Call, per: int) -> list[np.ndarray]:
    """The numbers k that a program of one tile draws, `per` of them for each result.

    The last few elements come first.
    """
    each, rest = divmod(call.out.numel, 128)
    found: list[list[np.ndarray]] = [[] for _ in range(per)]
    b = Builder("bits")
    sizes = [(rows, count) for rows, count in ((1, rest), (128, each)) if count]
    for n, (rows, count) in enumerate(sizes):
        for k in range(per):
            bits = b.sbuf(f"bits {n} {k}", count, "uint32")
            out = b.hbm(f"out {n} {k}", (rows, count), "uint32", Role.OUTPUT)
            b.emit("rng", bits.rows(rows, count), seed=1)
            b.store(out.rows(rows, count), bits.rows(rows, count))
    made = Machine(CHIP).run(b.build(), {})
    for n in range(len(sizes)):
        for k in range(per):
            found[k].append(made[f"out {n} {k}"].reshape(-1))
    return [np.concatenate(f[::-1]).astype(np.float64) // 256 for f in found]


def _on_machine(op: Any, arguments: tuple[Any, ...], results: Any = None) -> tuple[Call, Any]:
    call = call_of(op, *arguments, results=results)
    names = OPERANDS.get(op._overloadname, []) if call.name in ("normal", "bernoulli") else []
    (program,) = lowered(call)
    feeds = {b.name: t for b, t in zip(program.buffers, names, strict=False)
             if b.role is Role.INPUT}  # fmt: skip
    return call, run((program,), feeds)["out"].reshape(call.out.shape)


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]).removeprefix("aten."))
def test_each_number_is_its_definition(case: Any) -> None:
    """Logarithms, roots and sines round to float32: a few units, of numbers up to 10."""
    op, arguments, define = case
    call, got = _on_machine(op, arguments)
    drawn = [k.reshape(SHAPE) for k in _drawn(call, define.__code__.co_argcount)]
    expected = np.asarray(define(*drawn), dtype=np.float64)
    off = np.abs(got - expected)
    if call.name in ("geometric", "random", "randint", "randint_like"):
        assert (off > 0).mean() < 1e-3  # beside a whole number, by a rounding
        assert off.max() <= 1
    else:
        bound = 1e-5 * (1 + np.abs(expected) * (1 + np.abs(expected) * (call.name == "cauchy")))
        assert (off <= bound).all()


Distribution = Callable[[Any], Any]
_phi = np.vectorize(lambda x: 0.5 * (1 + erf(x / sqrt(2))))
DISTRIBUTIONS: Mapping[str, tuple[Any, tuple[Any, ...], Distribution]] = {
    "uniform": (aten.uniform_.default, (-1.5, 2.0), lambda x: np.clip((x + 1.5) / 3.5, 0, 1)),
    "normal": (aten.normal_.default, (0.5, 3.0), lambda x: _phi((x - 0.5) / 3)),
    "log_normal": (aten.log_normal_.default, (0.2, 0.3), lambda x: _phi((np.log(x) - 0.2) / 0.3)),
    "exponential": (aten.exponential_.default, (2.0,), lambda x: 1 - np.exp(-2 * x)),
    "cauchy": (aten.cauchy_.default, (1.0, 2.0), lambda x: 0.5 + np.arctan((x - 1) / 2) / np.pi),
    "geometric": (aten.geometric_.default, (0.3,), lambda x: 1 - 0.7 ** np.floor(x)),
    "bernoulli": (aten.bernoulli_.float, (0.3,), lambda x: np.where(x < 1, 0.7, 1.0)),
    "random": (getattr(aten.random_, "from"), (-3, 7), lambda x: (np.floor(x) + 4) / 10),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_distribution_is_the_hosts(name: str) -> None:
    """Dvoretzky, Kiefer and Wolfowitz: n numbers lie within sqrt(log(2 / d) / 2n) of their
    distribution, but for one sample in 1 / d.
    """
    op, arguments, below = DISTRIBUTIONS[name]
    n = 128 * 300
    bound = sqrt(log(2 / 1e-9) / (2 * n))
    tensor = torch.empty(n)
    host = op(torch.empty(n), *arguments, generator=GENERATOR).numpy()
    _, ours = _on_machine(op, (tensor, *arguments), results=tensor)
    for values in (host, ours.astype(np.float64)):
        points, last = np.unique(values, return_index=False, return_counts=True)
        up_to = np.cumsum(last) / n
        assert np.abs(up_to - below(points)).max() <= bound


def test_bits_go_on_from_tile_to_tile() -> None:
    """A second tile and a second draw have other bits."""
    n = 128 * 4500
    _, got = _on_machine(aten.uniform_.default, (torch.empty(n),), results=torch.empty(n))
    assert len(np.unique(got)) > 0.95 * n


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(DISTRIBUTIONS)),
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape(name: str, shape: list[int], dtype: torch.dtype) -> None:
    op, arguments, _ = DISTRIBUTIONS[name]
    x = torch.empty(shape, dtype=dtype)
    call = call_of(op, x, *arguments, results=x)
    if not x.numel():
        assert lowered(call) == ()
        return
    got = run(lowered(call), {})["out"]
    assert got.size == x.numel()
    assert np.isfinite(got).all()


def test_every_draw_has_a_case() -> None:
    assert {call_of(op, *a, results=X).name for op, a, _ in CASES} == set(DRAWS)
    assert all(OPS[name].status == "modelled" for name in DRAWS)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 3000), p=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_dropout_keeps_what_the_numbers_choose(n: int, p: float) -> None:
    x = torch.randn(n, generator=GENERATOR)
    call = call_of(aten.native_dropout.default, x, p, True)
    made = run(lowered(call), {"in0": x})
    (k,) = _drawn(call, 1)
    kept = k / ONE >= p
    np.testing.assert_array_equal(made["out1"], kept)
    scale = 1 / (1 - p) if p < 1 else 0.0
    np.testing.assert_allclose(made["out"], np.where(kept, x.numpy() * scale, 0), rtol=1e-6)
