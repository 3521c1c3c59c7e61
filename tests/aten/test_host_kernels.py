"""Kernels that trn reaches by another name than the CPU: all are listed, and refuse the same."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import acceptance
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import torch_trn_emu

PAGE = Path(__file__).parents[2] / "docs" / "host_kernels.md"


@cache
def listed() -> set[str]:
    """Names in the first column of the table."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


class Names(TorchDispatchMode):
    """The operators dispatched below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


def dispatched(fn: Callable[..., Any], args: Any, kwargs: Any) -> set[str] | None:
    """What a call and its backward dispatch; None where it does not run."""
    with Names() as names:
        try:
            results = tree_leaves(fn(*args, **kwargs))
            sums = [r.sum() for r in results if isinstance(r, Tensor) and r.requires_grad]
            leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            leaves = [x for x in leaves if x.requires_grad]
            if sums and not any(s.is_complex() for s in sums):
                torch.autograd.grad(sums, leaves, allow_unused=True)
        except Exception:  # samples that only some devices take
            return None
    return names.seen


def on_trn(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("trn").requires_grad_(value.requires_grad)
    return torch.device("trn") if str(value) == "cpu" else value


def only_on_trn(fn: Callable[..., Any], args: Any, kwargs: Any) -> set[str]:
    there = dispatched(fn, args, kwargs)
    here = dispatched(fn, *tree_map(on_trn, (args, kwargs)))
    return (here or set()) - there if there is not None else set()


@pytest.mark.filterwarnings("ignore")  # samples of deprecated names and of sparse layouts
@pytest.mark.parametrize(
    "requires_grad", [False, pytest.param(True, marks=pytest.mark.conformance)]
)
def test_operators_dispatch_what_they_do_on_the_cpu_or_what_is_listed(requires_grad):
    found: dict[str, set[str]] = {}
    with torch_trn_emu.precision("fp32"):
        for op in op_db:
            if torch.float32 not in op.dtypes or "linalg" in op.name:
                continue
            grad = requires_grad and op.supports_autograd
            # Without a gradient torch chooses other kernels for neural networks only.
            if not requires_grad and op.supports_autograd and "nn.functional" not in op.name:
                continue
            samples = op.sample_inputs("cpu", torch.float32, requires_grad=grad)
            for sample in itertools.islice(samples, 1):
                call = (op.op, (sample.input, *sample.args), sample.kwargs)
                for name in only_on_trn(*call) - listed():
                    found.setdefault(name, set()).add(op.name)
    assert found == {}


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LSTM": (lambda: nn.LSTM(4, 5, 2, bidirectional=True), (3, 2, 4)),
    "LSTM with projection": (lambda: nn.LSTM(4, 5, proj_size=3), (3, 2, 4)),
    "GRU": (lambda: nn.GRU(4, 5), (3, 2, 4)),
    "RNN": (lambda: nn.RNN(4, 5), (3, 2, 4)),
    "LSTMCell": (lambda: nn.LSTMCell(4, 5), (2, 4)),
    "GRUCell": (lambda: nn.GRUCell(4, 5), (2, 4)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), (2, 3, 4, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(8), (2, 3, 8)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (2, 3, 8)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(3, 4, 3), (2, 3, 4, 4, 4)),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (2, 3, 8),
    ),
}
# what the operands of fused kernels are made with
PLAIN = {"cat", "mm", "select", "slice", "split", "t", "unbind", "view"}


@pytest.mark.filterwarnings("ignore")  # torch's nested tensors of encoder layers
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules_dispatch_what_they_do_on_the_cpu_or_what_is_listed(name, trains):
    make, shape = MODULES[name]
    module, x = make().train(trains), torch.randn(shape, requires_grad=trains)
    with torch.set_grad_enabled(trains):
        there = dispatched(module, (x,), {})
        here = dispatched(module.to("trn"), (on_trn(x),), {})
    assert here - there <= listed() | PLAIN


def test_every_row_names_tests_that_exist():
    tests = {path.name for path in Path(__file__).parents[1].rglob("test_*.py")}
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE.read_text()))
    assert named
    assert named <= tests


# --- recurrent cells ------------------------------------------------------------------------------

CELLS = {"lstm": (torch.lstm_cell, 4), "gru": (torch.gru_cell, 3), "tanh": (torch.rnn_tanh_cell, 1)}


@pytest.mark.parametrize("policy", ["fp32", "mxfp8"])
@pytest.mark.parametrize("name", CELLS)
def test_recurrent_cells_refuse_what_the_cpu_refuses(name, policy):
    fn, gates = CELLS[name]
    inputs = ((2, 3), (3,), (1, 3), (2, 2, 3), (2, 4), ())
    states = ((2, 4), (4,), (1, 4), (3, 4), (2, 5), (2, 2, 4))
    weights = (gates * 4, 5)
    calls = []
    for x, h, rows in itertools.product(inputs, states, weights):
        for bias in ((rows,), (1,), None):
            state = torch.ones(h)
            biases = (torch.ones(bias),) * 2 if bias else ()
            matrices = (torch.ones(rows, 3), torch.ones(rows, 4))
            given = (state, state) if name == "lstm" else state
            calls.append(
                (f"{x} {h} {rows} {bias}", fn, (torch.ones(x), given, *matrices, *biases), {})
            )
    with torch_trn_emu.precision(policy):
        assert acceptance.differences(calls) == []


def altered(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The operand with another rank, size or dtype."""
    yield "without a dimension", x[0]
    yield "with a dimension", x[None]
    for dim in range(x.dim()):
        yield f"short in {dim}", x.narrow(dim, 0, x.size(dim) - 1)
        yield f"one in {dim}", x.narrow(dim, 0, 1)
        yield f"twice in {dim}", torch.cat([x, x], dim)
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        yield f"{dtype}", x.to(dtype)


def recurrent_calls(kind: str, gates: int) -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """A cell and layers of all steps and of packed ones, as functions of their operands."""
    weights = [torch.ones(gates * 5, 4), torch.ones(gates * 5, 5), *[torch.ones(gates * 5)] * 2]
    states = [torch.ones(1, 2, 5)] * (2 if kind == "lstm" else 1)
    count = len(states)
    cell, layer = CELLS[kind][0], getattr(torch, kind)

    def state(given: Sequence[Tensor]) -> Any:
        return list(given) if kind == "lstm" else given[0]

    flags = (True, 1, 0.0, False, False)
    return {
        "cell": (
            lambda x, *rest: cell(x, state(rest[:count]), *rest[count:]),
            [torch.ones(2, 4), *(each[0] for each in states), *weights],
        ),
        "layer": (
            lambda x, *rest: layer(x, state(rest[:count]), rest[count:], *flags, False),
            [torch.ones(3, 2, 4), *states, *weights],
        ),
        "packed": (
            lambda x, *rest: layer(
                x, torch.tensor([2, 2, 1]), state(rest[:count]), rest[count:], *flags
            ),
            [torch.ones(5, 4), *states, *weights],
        ),
    }


@pytest.mark.parametrize("form", ["cell", "layer", "packed"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_operands_of_other_sizes_and_dtypes_are_refused(kind, form):
    """Functions of torch check less than modules do; on some of these the CPU crashes."""
    fn, operands = recurrent_calls(kind, CELLS[kind][1])[form]
    taken = set()
    for i, operand in enumerate(operands):
        for name, other in altered(operand):
            if other.shape == operand.shape and other.dtype == operand.dtype:
                continue
            args = acceptance.on_trn([*operands[:i], other, *operands[i + 1 :]])
            if not isinstance(acceptance.outcome(fn, *args), type):
                taken.add(f"{name} of {i}")
    other_steps = {f"{how} in 0 of 0" for how in ("short", "one", "twice")}
    one_row_or_element = ("without a dimension", "with a dimension", "one in 0")
    last = len(operands) - 1
    biases = {f"{how} of {i}" for how in one_row_or_element for i in (last - 1, last)}
    assert taken == biases | (other_steps if form == "layer" else set())


# --- lists ----------------------------------------------------------------------------------------

LISTS = {
    "add": torch._foreach_add,
    "mul_": torch._foreach_mul_,
    "copy_": torch._foreach_copy_,
    "addcmul": lambda a, b: torch._foreach_addcmul(a, b, a, 1.0),
    "scalars": lambda a, b: torch._foreach_add(a, [1.0] * len(b)),
    "a tensor of scalars": lambda a, b: torch._foreach_addcmul(a, a, a, torch.ones(len(b))),
}


def lists(*lengths: int) -> list[list[Tensor]]:
    return [[torch.ones(40_000) for _ in range(n)] for n in lengths]


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_other_lengths_are_refused_however_they_are_divided(name):
    """The host's threads share a list; a part of it has the length of a shorter list."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        calls = [
            (f"{a} {b}", LISTS[name], tuple(lists(a, b)), {})
            for a, b in itertools.product(range(6), repeat=2)
        ]
        assert acceptance.differences(calls) == []
    finally:
        torch.set_num_threads(threads)
