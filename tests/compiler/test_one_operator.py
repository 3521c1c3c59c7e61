"""A graph of one operator takes no longer than the operator does in eager mode."""

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch.testing._internal import common_methods_invocations as methods
from torch.utils import _pytree as pytree

import torch_trn_emu

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

ENTRIES = {
    f"{op.name}.{op.variant_test_name}".rstrip("."): op
    for op in methods.op_db
    if torch.float32 in op.dtypes
}
# What the table of Inductor spells out in several nodes, by kind.
FEW = (
    "addcmul arange clone exponential geometric index_reduce.amin native_batch_norm rot90 softmax"
    " special.i1 tril uniform var_mean nn.functional.grid_sample nn.functional.hardsigmoid"
    " nn.functional.hardtanh nn.functional.huber_loss nn.functional.logsigmoid"
    " nn.functional.rms_norm _softmax_backward_data native_layer_norm nn.functional.layer_norm"
).split()
HANDED_ON = (
    "The operand's gradient is the result's own, of which eager mode gives a view, and which"
    " autograd copies, since the graph holds it as well."
)
SAVED = "The forward graph leaves one more value to the backward one."
MASK = "The forward graph leaves the mask to the backward one."
ONE = (
    "Inductor spells reductions of one element out otherwise, which no pass takes for the operator."
)
ROWS = "In a graph a copy is a region of rows, which cuts 250 elements otherwise."
DRAWN = "From a number other than 0 on it is drawn as integers, which a step converts."
EXCEPTIONS = {
    "randint 7, forward": DRAWN,
    "_softmax_backward_data 1, with gradients": SAVED,
    "nn.functional.layer_norm 2, with gradients": SAVED,
    "nn.functional.rms_norm 2, forward": ONE,
    "nn.functional.rms_norm 2, with gradients": ONE,
    **{f"cat {k}, with gradients": HANDED_ON for k in (5, 6)},
    **{f"t_copy {k}, with gradients": HANDED_ON for k in (1, 2)},
    **{f"transpose_copy {k}, with gradients": HANDED_ON for k in (4, 5)},
    **{f"view_copy {k}, with gradients": HANDED_ON for k in (4, 5)},
    **{f"view_copy 3, {word}": ROWS for word in ("forward", "with gradients")},
    **{f"{name} {k}, with gradients": MASK for name in ("tril", "triu") for k in (2, 3)},
}
# Samples beyond the first whose graphs are more than one node of torch's.
LATER = {
    "native_batch_norm": 1,  # not training
    "nn.functional.adaptive_max_pool1d": 6,  # without places
    "nn.functional.adaptive_max_pool3d": 2,
    "nn.functional.softshrink": 1,
    "nn.functional.multi_margin_loss": 1,
    "nn.functional.dropout": 1,  # not training
}


def reason_of(step: str) -> str | None:
    """The exception that a step is: of one sample, as "cat 5, with gradients", or of all."""
    name, _, word = step.partition(", ")
    every = f"{name.rpartition(' ')[0]}, {word}"
    return next((key for key in (step, every) if key in EXCEPTIONS), None)


def called(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


def on_meta(value: Any, tracked: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to("meta").requires_grad_(tracked and value.requires_grad)


def step(op: Any, sample: Any, gradients: bool, first: Any, args: Any, kwargs: Any) -> Any:
    made = op.op(first, *args, **kwargs)
    return finish(sample, made) if gradients else made


@torch.compiler.disable  # Dynamo would look into all that autograd calls
def finish(sample: Any, made: Any) -> None:
    leaves = pytree.tree_leaves(sample.output_process_fn_grad(made))
    ends = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    if ends:
        torch.autograd.backward(ends, [torch.empty_like(t) for t in ends])


def times(op: Any, sample: Any, gradients: bool) -> tuple[float, float] | None:
    """Of the core, eager and compiled, in microseconds.

    None where `meta` has no kernel, or where the host computes an operator in eager mode.
    """
    found = []
    for mode in ("eager", "compile"):
        torch._dynamo.reset()
        place = functools.partial(on_meta, tracked=gradients)
        given = pytree.tree_map(place, (sample.input, sample.args, sample.kwargs))
        # to set a seed would break the graph
        with mock.patch.object(methods, "wrapper_set_seed", called), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run = functools.partial(step, op, sample, gradients)
                estimated = torch_trn_emu.estimate(run, *given, mode=mode)
            except Exception:
                return None
        if any(row.op == "trn::graph" for row in estimated.ops):  # the compiler has failed
            return found[0], math.inf
        if any(row.status == "not modelled" for row in estimated.ops):
            return None
        found.append(estimated.device_us)
    return found[0], found[1]


def slower(names: Iterable[str], numbers: Sequence[int] = (0,)) -> tuple[dict[str, str], int]:
    """Entries whose graph takes over 2 % longer, and how many steps were compared.

    numbers  of the samples that are taken of each
    """
    found, compared = {}, 0
    for name in names:
        op = ENTRIES[name]
        tracked = op.supports_autograd and torch.float32 in op.supported_backward_dtypes("cpu")
        samples = op.sample_inputs("cpu", torch.float32, requires_grad=tracked)
        for k, sample in enumerate(itertools.islice(samples, max(numbers) + 1)):
            if k not in numbers:
                continue
            for gradients in (False, True) if tracked else (False,):
                both = times(op, sample, gradients)
                compared += both is not None
                if both and both[1] > 1.02 * both[0]:
                    word = "with gradients" if gradients else "forward"
                    found[f"{name} {k}, {word}"] = f"{both[1]:.1f} us, eager {both[0]:.1f}"
    return found, compared


def test_it_is_the_program_of_the_operator() -> None:
    found, compared = slower(FEW)
    assert not {name: why for name, why in found.items() if reason_of(name) is None}
    assert compared >= 1.5 * len(FEW)


def test_it_is_so_of_later_samples() -> None:
    for name, number in LATER.items():
        found, compared = slower([name], (number,))
        assert not found
        assert compared


@pytest.mark.conformance
@pytest.mark.timeout(0)
def test_all_of_pytorchs_samples() -> None:
    found, compared = slower(ENTRIES, range(8))
    assert not {name: why for name, why in found.items() if reason_of(name) is None}
    assert {reason_of(name) for name in found} == set(EXCEPTIONS)
    assert compared >= 4000
