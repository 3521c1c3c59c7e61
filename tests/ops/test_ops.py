"""The programs of the rows that claim values compute on the machine what torch computes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Program, Role, validate
from torch_trn_emu.kernels.copy_runs import copy_runs
from torch_trn_emu.kernels.reduce_leading import reduce_columns
from torch_trn_emu.kernels.reduce_spread import moments_spread, reduce_spread
from torch_trn_emu.kernels.variance import moments_of_columns
from torch_trn_emu.ops import OPS, dense
from torch_trn_emu.ops.elementwise import BINARY, CHOSEN, TERNARY, UNARY
from torch_trn_emu.ops.normalization import ROW_OPS, row_op

from .calls import call_of, lowered, run

CHIP = get_chip("trn3")
TARGET = Target(CHIP, 1)
aten = torch.ops.aten

# Names that torch spells otherwise, or whose recipe stands for one choice of attributes.
# fmt: off
CALLS: dict[str, Callable[..., torch.Tensor]] = {
    "atan": torch.atan, "log_sigmoid_forward": torch.nn.functional.logsigmoid,
    "clamp": lambda x: x.clamp(-1, 1), "clamp_min": lambda x, low=0: x.clamp_min(low),
    "clamp_max": lambda x, high=0: x.clamp_max(high), "pow_scalar": lambda x: x**2,
    "relu6": torch.nn.functional.relu6,
    "fmax": torch.fmax, "fmin": torch.fmin, "lerp": torch.lerp,
    "gelu_backward": lambda g, x: aten.gelu_backward(g, x),
    "native_dropout_backward": lambda g, m: g * m,
    "log_sigmoid_backward": lambda g, x: g * torch.sigmoid(-x),
}
# fmt: on
POSITIVE = set("log log2 log10 log1p sqrt rsqrt reciprocal pow addcdiv xlogy".split())
INSIDE_ONE = {"asin", "acos", "atanh"}
STEEP: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tan": lambda x: 1 / x.cos() ** 2, "atanh": lambda x: 1 / (1 - x * x),
    "asin": lambda x: (1 - x * x).rsqrt(), "acos": lambda x: (1 - x * x).rsqrt(),
    "sinh": torch.cosh, "cosh": torch.cosh,
}  # fmt: skip
INTEGERS = {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"}
GENERATOR = torch.Generator().manual_seed(3)


def _data(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def _reference(name: str) -> Callable[..., torch.Tensor]:
    found = (
        CALLS.get(name) or getattr(torch, name, None) or getattr(torch.nn.functional, name, None)
    )
    return found or getattr(aten, name)  # type: ignore[no-any-return]


def _run(program: Program, tensors: list[torch.Tensor]) -> list[np.ndarray]:
    validate(program, CHIP)
    given_ = [b for b in program.buffers if b.role in (Role.INPUT, Role.WEIGHT)]
    inputs = {b.name: t.numpy() for b, t in zip(given_, tensors, strict=True)}
    return list(Machine(CHIP).run(program, inputs).values())


def _lower(op: str, tensors: list[torch.Tensor], result: torch.Tensor, *rest: object) -> Program:
    given_ = tuple(dense(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors)
    out = dense(tuple(result.shape), str(result.dtype).removeprefix("torch."))
    call = Call(f"aten::{op}", (*given_, *rest), (out,))
    (program,) = OPS[call.name].lower(call, TARGET)  # type: ignore[misc]
    return program  # type: ignore[no-any-return]


ELEMENTWISE = [
    (name, arity)
    for arity, table in ((1, UNARY), (2, BINARY), (3, TERNARY))
    for name in table
    if name not in CHOSEN - {"pow_scalar"}
]


def _agrees(name: str, arity: int, shape: tuple[int, ...]) -> None:
    tensors = [_data(*shape) for _ in range(arity)]
    if name in POSITIVE:
        tensors = [t.abs() + 0.1 for t in tensors]
    if name in INSIDE_ONE:
        tensors = [t.tanh() for t in tensors]
    if name == "where":
        tensors[0] = tensors[0] > 0
    if name in INTEGERS:
        tensors = [(100 * t).int() for t in tensors]
    if name == "xlogy":
        tensors[0].reshape(-1)[0] = 0.0
    expected = _reference(name)(*tensors)
    if name == "pow_scalar":
        program = _lower("pow.Tensor_Scalar", tensors, expected, 2)
    else:
        program = _lower(name, tensors, expected)
    (out,) = _run(program, [t.reshape(-1) for t in tensors])
    # Each step rounds to float32 once, near zero relative to the operands: a few units of them.
    bound = {"rtol": 2e-6, "atol": 4e-6}
    if name in STEEP:  # what is rounded near a pole, or near 1, counts as often as they are steep
        bound = {"rtol": 2e-6, "atol": 4e-7 * STEEP[name](tensors[0]).abs().max().item()}
    np.testing.assert_allclose(out, expected.reshape(-1).numpy(), **bound)


@pytest.mark.parametrize(("name", "arity"), ELEMENTWISE)
def test_elementwise(name: str, arity: int) -> None:
    _agrees(name, arity, (3, 129, 5))


@settings(max_examples=60, deadline=None)
@given(
    row=st.sampled_from(ELEMENTWISE),
    shape=st.lists(st.integers(1, 140), max_size=2).map(tuple),
)
def test_elementwise_of_any_shape(row: tuple[str, int], shape: tuple[int, ...]) -> None:
    _agrees(*row, shape)


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 150), st.integers(1, 40))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, kind=st.sampled_from(["row", "column", "one", "full"]))
def test_operands_repeat(shape: tuple[int, int, int], kind: str) -> None:
    other = {"row": shape[2:], "column": (*shape[:2], 1), "one": (1,), "full": shape}[kind]
    a, b = _data(*shape), _data(*other)
    program = _lower("add.Tensor", [a, b], a + b, 1)
    (out,) = _run(program, [a.reshape(-1), b.expand(shape).reshape(-1)]
                  if _whole(program) else [_fit(a, program, 0), _fit(b, program, 1)])  # fmt: skip
    np.testing.assert_array_equal(out.reshape(shape), (a + b).numpy())


def _whole(program: Program) -> bool:
    sizes = {b.elements for b in program.buffers if b.name in ("in0", "in1", "out")}
    return len(sizes) == 1


def _fit(t: torch.Tensor, program: Program, k: int) -> torch.Tensor:
    buffer = next(b for b in program.buffers if b.name == f"in{k}")
    return t.reshape(buffer.shape)


# Rows of their own, several on a partition, and over several partitions.
LAYOUTS = [(1, 1), (5, 7), (300, 33), (130, 9000), (260, 6), (1536, 8), (1, 12_000), (3, 8192)]


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows_forward(name: str, shape: tuple[int, int]) -> None:
    x = _data(*shape)
    expected = getattr(torch, name)(x.double(), dim=1)
    out = _run(row_op(name, *shape, "float32", chip=CHIP), [x])[0]
    np.testing.assert_allclose(out.reshape(expected.shape), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", LAYOUTS[1:], ids=str)
def test_softmax_gradients(shape: tuple[int, int]) -> None:
    g, x = _data(*shape), _data(*shape)
    for name, forward, backward in (
        ("softmax_backward", torch.softmax, aten._softmax_backward_data),
        ("log_softmax_backward", torch.log_softmax, aten._log_softmax_backward_data),
    ):
        y = forward(x, 1)
        expected = backward(g.double(), y.double(), 1, torch.float64)
        (out,) = _run(row_op(name, *shape, "float32", chip=CHIP), [g, y])
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 2), (130, 6000), *LAYOUTS[4:]], ids=str)
def test_layer_norm_and_its_gradient(shape: tuple[int, int]) -> None:
    x, g, w, b = _data(*shape), _data(*shape), _data(shape[1]), _data(shape[1])
    wide = [t.double() for t in (x, w, b)]
    y, mean, rstd = aten.native_layer_norm(wide[0], shape[1:], wide[1], wide[2], 1e-5)
    program = row_op("layer_norm", *shape, "float32", chip=CHIP)
    out = _run(program, [x, w, b])
    np.testing.assert_allclose(out[0], y, rtol=1e-4, atol=1e-4)
    expected = aten.native_layer_norm_backward(
        g.double(), wide[0], shape[1:], mean, rstd, wide[1], wide[2], [True] * 3
    )
    program = row_op("layer_norm_backward", *shape, "float32", chip=CHIP)
    for got, want in zip(_run(program, [g, x, mean, rstd, w]), expected, strict=True):
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("shape", LAYOUTS[1:], ids=str)
def test_rms_norm(shape: tuple[int, int]) -> None:
    x, w = _data(*shape), _data(shape[1])
    expected = torch.nn.functional.rms_norm(x.double(), shape[1:], w.double(), 1e-5)
    out = _run(row_op("rms_norm", *shape, "float32", chip=CHIP), [x, w])[0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", LAYOUTS[1:], ids=str)
def test_rms_norm_gradient(shape: tuple[int, int]) -> None:
    x, g, w = _data(*shape), _data(*shape), _data(shape[1])
    wide, weight = x.double().requires_grad_(), w.double().requires_grad_()
    torch.nn.functional.rms_norm(wide, shape[1:], weight, 1e-5).backward(g.double())
    rstd = (x.double().square().mean(1, keepdim=True) + 1e-5).rsqrt()
    dx, dw = _run(row_op("rms_norm_backward", *shape, "float32", chip=CHIP), [g, x, rstd, w])
    np.testing.assert_allclose(dx, wide.grad, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(dw[0], weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ROW_OPS)
def test_long_rows_fit(name: str) -> None:
    columns = 12_000 if "row:" in ROW_OPS[name].inputs else 60_000  # weights stay in SBUF
    validate(row_op(name, 256, columns, "float32", chip=CHIP), CHIP)


@settings(max_examples=15, deadline=None)
@given(outer=st.integers(1, 3), rows=st.integers(1, 300), columns=st.integers(1, 700))
def test_reductions_of_columns(outer: int, rows: int, columns: int) -> None:
    x = _data(outer, rows, columns)
    for op, expected in (("add", x.double().sum(1)), ("max", x.amax(1))):
        for make in (reduce_columns, reduce_spread):
            program = make(outer, rows, columns, op=op, chip=CHIP)
            (out,) = _run(program, [x.reshape(-1, columns)])
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    outer=st.integers(1, 3),
    rows=st.integers(2, 40),
    columns=st.sampled_from((1, 127, 130, 700, 70_000)),
    root=st.booleans(),
)
def test_moments_of_columns(outer: int, rows: int, columns: int, root: bool) -> None:
    x = _data(outer, rows, columns if outer == 1 or columns < 1000 else 999)
    columns = x.shape[-1]
    expected = (x.double().std(1) if root else x.double().var(1), x.double().mean(1))
    for make in (moments_of_columns, moments_spread):
        program = make(outer, rows, columns, less=1.0, root=root, chip=CHIP)
        for out, wanted in zip(_run(program, [x.reshape(-1, columns)]), expected, strict=True):
            np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_work_of_spread_reductions() -> None:
    """What is done to the elements first, and to the result last, with columns left over."""
    x = _data(9, 4099)
    before = (("activation", (("op", "square"), ("scale", 1.0))),)
    after = (("activation", (("op", "sqrt"), ("scale", 1.0))),)
    program = reduce_spread(1, 9, 4099, op="add", chip=CHIP, before=before, after=after)
    (out,) = _run(program, [x])
    np.testing.assert_allclose(out[0], x.double().norm(dim=0), rtol=1e-4, atol=1e-5)


def test_runs() -> None:
    x = _data(140, 300)
    (out,) = _run(copy_runs(140 * 150, 150, "float32", "bfloat16"), [x])
    np.testing.assert_array_equal(out, x[:, :150].bfloat16().float())


X, Y = _data(40, 9), _data(40, 9)
ATTRIBUTES: list[tuple[Any, ...]] = [
    (aten.rsub.Tensor, (X, Y), {"alpha": 3}),
    (aten.rsub.Scalar, (X, 2.5, 3)),
    (aten.pow.Scalar, (2.5, X)),
    (aten.div.Scalar, (X, 3.0)),
    (aten.bitwise_not.default, (X > 0,)),
    (aten.native_dropout_backward.default, (X, Y > 0, 2.5)),
    (aten.full.default, ([40, 9], 2.5)),
    (aten.full_like.default, (X, -1)),
    (aten.new_full.default, (X, [7, 300], 3)),
    (aten.ones_like.default, (X,)),
    (aten.new_zeros.default, (X, [5])),
    (aten.fill.Scalar, (X, 1.5)),
    (aten.scalar_tensor.default, (4.5,)),
]


@pytest.mark.parametrize("case", ATTRIBUTES, ids=lambda case: str(case[0]))
def test_numbers_of_a_call(case: tuple[Any, ...]) -> None:
    op, arguments, *named = case
    named = named[0] if named else {}
    expected = op(*arguments, **named)
    call = call_of(op, *arguments, **named)
    assert OPS[call.name].status == "modelled"
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    feeds = {f"in{k}": t for k, t in enumerate(tensors)}
    got = run(lowered(call), feeds)["out"]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=2e-6, atol=1e-6)


def test_whole_numbers() -> None:
    """Halves go to the even side, and what is whole stays."""
    x = torch.tensor([-2.5, -2.0, -1.5, -0.5, -0.2, 0.0, 0.5, 0.7, 1.0, 1.5, 2.5, 1e6])
    for name in ("floor", "ceil", "round", "trunc", "frac"):
        op = getattr(aten, name).default
        got = run(lowered(call_of(op, x)), {"in0": x})["out"]
        np.testing.assert_allclose(got, op(x), err_msg=name, atol=1e-6)


@pytest.mark.parametrize(("shape", "dim"), [((300, 6, 5), 1), ((9000, 3), 0), ((5, 40, 300), 1)])
def test_softmax_along_another_dimension(shape: tuple[int, ...], dim: int) -> None:
    """Blocks on partitions, pieces of a block, and rows as if they lay in memory."""
    x = _data(*shape)
    expected = torch.softmax(x.double(), dim)
    program = _lower("_softmax", [x], expected.float(), dim, False)
    whole = next(b for b in program.buffers if b.name == "x").shape[1] != shape[dim]
    (out,) = _run(program, [x if whole else x.movedim(dim, -1)])
    want = expected if whole else expected.movedim(dim, -1)
    np.testing.assert_allclose(out.reshape(want.shape), want, rtol=1e-5, atol=2e-6)
    assert whole == (shape != (5, 40, 300))


@pytest.mark.parametrize("columns", [40, 700])
def test_norms_without_weights_have_no_step_for_them(columns: int) -> None:
    x, g, w = _data(9, columns), _data(9, columns), _data(columns)
    for weight, bias in ((None, None), (w, None), (None, w)):
        y, mean, rstd = aten.native_layer_norm(x, [columns], weight, bias, 1e-5)
        given = {"x": x} | {n: t for n, t in (("w", weight), ("b", bias)) if t is not None}
        absent = {n for n in "wb" if n not in given}
        program = row_op("layer_norm", 9, columns, "float32", chip=CHIP, absent=absent)
        got = run((program,), given)
        np.testing.assert_allclose(got["out y"].reshape(y.shape), y, rtol=1e-5, atol=1e-5)
    program = row_op(
        "layer_norm_backward", 9, columns, "float32", chip=CHIP, absent={"w", "dw", "db"}
    )
    assert not any("matmul" in i.opcode for i in program.instructions())
    dx = aten.native_layer_norm_backward(
        g, x, [columns], mean, rstd, None, None, [True, False, False]
    )[0]
    got = run((program,), {"g": g, "x": x, "mean": mean, "rstd": rstd})
    np.testing.assert_allclose(got["out dx"].reshape(dx.shape), dx, rtol=1e-4, atol=1e-5)
