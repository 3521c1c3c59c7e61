"""PyTorch's operator samples compiled: every program of a region computes what the host does.

The rest of the samples, and a second round of special values, run with the `conformance` marker.
"""

import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.testing._internal import common_methods_invocations as methods
from torch.utils import _pytree as pytree

from ..ops.special_values import FLUSHED, OTHERWISE, PLACES, RECIPROCAL
from .on_machine import Found, backend_on
from .test_one_operator import ENTRIES, called

# torch 2.13 uses what it deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

# What fuses to regions of many kinds.
FEW = (
    "addmm nn.functional.layer_norm nn.functional.group_norm softmax var_mean nn.functional.glu"
    " nn.functional.hardtanh nn.functional.pad.replicate triu where"
).split()
# Samples beyond the first whose regions are of kinds that others do not have.
LATER = {
    "chunk": 1,  # tangents that lie otherwise than what they belong to
    "grid_sampler_2d": 6,  # elements that no whole number of rows has
    "index_put": 1,  # a row put wherever a mask says
    "logcumsumexp": 0,  # the least finite number, in the gradient
    "native_group_norm": 0,  # a value of a group for each of its channels
    "nn.functional.logsigmoid": 0,
    "nn.functional.pad.replicate_negative": 4,  # one index for all rows
    "nn.functional.silu": 1,  # of no elements
}
# Operators whose own programs make something else of a NaN or an infinity, or find equal ones.
KNOWN = {name for name, kind in OTHERWISE if kind in ("odd", "infinite")} | PLACES
# Entries with a region of several operators that make something else of them (docs/fidelity.md).
OF_SEVERAL = dict.fromkeys(
    "addcdiv cumprod frexp log log10 log2 logit scatter_reduce.prod sinc".split(), RECIPROCAL
) | {
    "addmm": FLUSHED,
    "nn.functional.scaled_dot_product_attention": FLUSHED,
    "int": "the host's conversion of a NaN is not defined",
    "long": "the host's conversion of a NaN is not defined",
}
# Entries whose graphs read memory at places made of NaN by aten::_unsafe_index, which checks none.
PLACED = ("nn.functional.grid_sample", "grid_sampler_2d")
# Entries with samples so near a pole or a zero that one rounding within the region shows.
STEEP = {"tan": "near its poles", "special.log_ndtr": "log1p of what is near -1"}
ODD = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-40])


def spoilt(t: torch.Tensor) -> torch.Tensor:
    """A tensor with NaN, infinities, zeros and a number below the normal ones, here and there."""
    if not t.is_floating_point() or not t.numel():
        return t
    t = t.clone()
    at = torch.arange(0, t.numel(), max(1, t.numel() // 7))
    t[at] = ODD[torch.arange(len(at)) % len(ODD)].to(t.dtype)
    return t


def placed(t: Any, tracked: bool, special: bool) -> Any:
    """On the device with the same strides."""
    if not isinstance(t, torch.Tensor):
        return t
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    memory = t.detach().as_strided((1 + last if t.numel() else 0,), (1,)).clone()
    memory = spoilt(memory) if special else memory
    made = memory.to("trn").as_strided(t.shape, t.stride()).detach()
    return made.requires_grad_(tracked and t.requires_grad)


def compared(op: Any, sample: Any, gradients: bool, special: bool) -> Found:
    """What the machine makes of the graphs of a sample; what cannot be compiled is left out."""
    found = Found()
    torch._dynamo.reset()
    place = functools.partial(placed, tracked=gradients, special=special)
    given = pytree.tree_map(place, (sample.input, sample.args, sample.kwargs))

    def forward(first: Any, args: Any, kwargs: Any) -> Any:
        return op.op(first, *args, **kwargs)

    run = torch.compile(forward, backend=backend_on(found), dynamic=False)
    with mock.patch.object(methods, "wrapper_set_seed", called), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = run(*given)
        if gradients:
            leaves = pytree.tree_leaves(sample.output_process_fn_grad(made))
            ends = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
            torch.autograd.backward(ends, [gradient(t, special) for t in ends])
    return found


def gradient(t: torch.Tensor, special: bool) -> torch.Tensor:
    values = torch.randn(t.numel(), generator=torch.Generator().manual_seed(1)).to(t.dtype)
    values = spoilt(values) if special else values
    return torch.empty_like(t).copy_(values.reshape(t.shape))


def samples_of(op: Any, count: int, tracked: bool) -> Iterator[Any]:
    made = op.sample_inputs("cpu", torch.float32, requires_grad=tracked)
    for sample in itertools.islice(made, count):
        tensors = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
        if all(t.layout is torch.strided for t in tensors if isinstance(t, torch.Tensor)):
            yield sample


def walk(names: list[str], count: int, special: bool) -> tuple[dict[str, str], int]:
    """Results that differ, and how many agree."""
    differ, agree = {}, 0
    for name in names:
        op = ENTRIES[name]
        tracked = op.supports_autograd and torch.float32 in op.supported_backward_dtypes("cpu")
        for k, sample in enumerate(samples_of(op, count, tracked)):
            for gradients in (False, True) if tracked else (False,):
                try:
                    found = compared(op, sample, gradients, special)
                except Exception:
                    if name in FEW:
                        raise
                    continue  # no graph, or not on the device
                agree += found.agree
                word = "with gradients" if gradients else "forward"
                differ |= {
                    f"{name} {k}, {word}": said
                    for operator, said in found.differ
                    if name not in STEEP and not (special and operator in KNOWN)
                }
    return differ, agree


@pytest.mark.parametrize("special", [False, True], ids=["random", "special"])
def test_regions_compute_what_the_host_does(special: bool) -> None:
    differ, agree = walk(FEW, 2, special)
    assert not differ
    assert agree >= 3 * len(FEW)


@pytest.mark.parametrize("name", LATER)
def test_regions_of_later_samples_do(name: str) -> None:
    op = ENTRIES[name]
    *_, sample = samples_of(op, LATER[name] + 1, True)
    graphs = [compared(op, sample, gradients, False) for gradients in (False, True)]
    assert not [said for found in graphs for said in found.differ]
    left = {why.rpartition(": ")[2] for found in graphs for why in found.apart}
    assert left <= {"its row models only the cost"}
    assert sum(found.agree for found in graphs) or not sample.input.numel()


@pytest.mark.conformance
@pytest.mark.timeout(0)
@pytest.mark.parametrize("special", [False, True], ids=["random", "special"])
def test_regions_of_all_samples_do(special: bool) -> None:
    names = [n for n in ENTRIES if not (special and n in PLACED)]
    differ, agree = walk(names, 8, special)
    apart = OF_SEVERAL if special else {}
    assert not {k: said for k, said in differ.items() if k.split()[0] not in apart}
    assert agree >= 5000
