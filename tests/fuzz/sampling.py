"""One number stands for one case: an operator, a format, a sample of op_db, changes to it.

A trial is a function of the device. It is run on the host and on trn, which must agree: values,
strides, formats, and the class of an error.
"""

import functools
import itertools
import random
import sys
import unittest
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import policies
import torch
from mutations import MUTATIONS
from torch.testing._internal import common_methods_invocations as methods
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from cases import HOST, UNINITIALISED, Ops
from known import known
from places import Verdict, compare, outcome
from wider import combinations

import torch_trn_emu

SAMPLES = 24  # a case takes one of the first so many of its operator and format
ASPECTS = ("forward", "forward", "backward", "out", "inplace")
TRIED = "trn"

ENTRIES = {
    op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op
    for op in methods.op_db
}
FORMATS_OF = {
    name: sorted(op.supported_dtypes(HOST), key=str) for name, op in ENTRIES.items()
}  # none: an accelerator's alone


@dataclass(frozen=True, kw_only=True)
class Case:
    seed: int
    name: str
    dtype: torch.dtype
    aspect: str
    sample: int
    mutations: tuple[tuple[str, int], ...]  # with the seed of each

    def __str__(self) -> str:
        changes = ", ".join(name for name, _ in self.mutations) or "unchanged"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}/{dtype}/{self.aspect}, sample {self.sample}, {changes}"


def case_of(seed: int, names: list[str]) -> Case:
    rng = random.Random(seed)
    name = rng.choice(names)
    op = ENTRIES[name]
    dtype = rng.choice(FORMATS_OF[name] or [torch.float32])
    aspect = rng.choice(ASPECTS)
    if aspect == "backward" and not (
        op.supports_autograd and dtype in op.supported_backward_dtypes(HOST)
    ):
        aspect = "forward"
    if (aspect == "out" and not op.supports_out) or (
        aspect == "inplace" and op.inplace_variant is None
    ):
        aspect = "forward"
    count = rng.choice((0, 1, 1, 1, 2, 2, 3))
    changes = tuple((rng.choice(list(MUTATIONS)), rng.getrandbits(32)) for _ in range(count))
    if name in policies.PRODUCTS and dtype in policies.FORMATS and rng.random() < 0.5:
        aspect = rng.choice(policies.POLICIES)
        changes = tuple(change for change in changes if change[0] != "special values")
    return Case(
        seed=seed,
        name=name,
        dtype=dtype,
        aspect=aspect,
        sample=rng.randrange(SAMPLES),
        mutations=changes,
    )


def sample_of(case: Case) -> Any:
    """The sample with its changes, or None where there is none."""
    for seeded in (torch.manual_seed, random.seed, np.random.seed):
        seeded(case.seed % 2**32)
    op = ENTRIES[case.name]
    grad = case.aspect == "backward"
    samples = op.sample_inputs(HOST, case.dtype, requires_grad=grad)
    last = deque(itertools.islice(samples, case.sample + 1), maxlen=1)
    sample = last.pop() if last else None
    if sample is None or (case.aspect == "inplace" and sample.broadcasts_input):
        return None
    tree = (sample.input, list(sample.args), dict(sample.kwargs))
    for name, seed in case.mutations:
        tree = MUTATIONS[name](tree, random.Random(seed)) or tree
    process = sample.output_process_fn_grad
    made = type(sample)(tree[0], args=tuple(tree[1]), kwargs=tree[2])
    made.output_process_fn_grad = process
    return made


def trial_of(case: Case) -> Callable[[str], Any] | None:
    sample = sample_of(case)
    if sample is None:
        return None
    if case.aspect in policies.POLICIES:
        return functools.partial(under_policy, case, sample)
    return functools.partial(getattr(Ops, case.aspect), ENTRIES[case.name], sample)


def under_policy(case: Case, sample: Any, device: str) -> Any:
    with torch_trn_emu.precision(case.aspect):
        return Ops.forward(ENTRIES[case.name], sample, device)


def judge_policy(case: Case, got: Any) -> tuple[str, str]:
    """A product by its definition: operands rounded, exact products, sums in float32."""
    if not isinstance(got, torch.Tensor) or got.dtype not in policies.FORMATS:
        return Verdict.EXACT.name, ""  # formats that no policy rounds
    off = policies.off_by(ENTRIES[case.name], sample_of(case), case.name, case.aspect, got)
    if off <= 1:
        return Verdict.EXACT.name, ""
    return Verdict.DIFFERS.name, f"the error is {off:.3g} times the bound"


def brief(error: Exception | None) -> str:
    if error is None:
        return "no error"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def told(leaf: Any) -> str:
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    layout = "" if leaf.is_contiguous() else f", strides {tuple(leaf.stride())}"
    dtype = str(leaf.dtype).removeprefix("torch.")
    return f"{dtype}{list(leaf.shape)}{layout}"


def arguments_of(case: Case) -> str:
    """The call in words: formats, shapes and strides."""
    sample = sample_of(case)
    given = (sample.input, *sample.args) if sample is not None else ()
    texts = [str(pytree.tree_map(told, argument)) for argument in given]
    if sample is not None:
        texts += [f"{k}={pytree.tree_map(told, v)}" for k, v in sample.kwargs.items()]
    return f"({', '.join(texts)})".replace("'", "")


LACKS = (
    "not implemented for",
    "Could not run",
    "Unsupported dtype",
    "MKL FFT doesn't support",
    "on CPU does not support",
)


def host_lacks(case: Case, host_error: Exception | None, error: Exception | None) -> bool:
    """A format, or a kernel, that trn has and the host has not."""
    says_so = any(text in str(host_error) for text in LACKS)
    return says_so and (error is None or any(combinations(ENTRIES[case.name])))


def as_codes(tree: Any) -> Any:
    """8-bit floating-point tensors as their codes, since few operators take them."""

    def codes(leaf: torch.Tensor) -> Any:
        if leaf.itemsize > 1 or not leaf.is_floating_point():
            return leaf
        return leaf.dtype, leaf.detach().view(torch.uint8)

    return pytree.tree_map_only(torch.Tensor, codes, tree)


def judge(case: Case, told_place: Callable[[str], None] = lambda place: None) -> tuple[str, str]:
    """A verdict's name and, unless both places agree, why."""
    try:
        trial = trial_of(case)
    except Exception as error:  # op_db could not make the sample
        return Verdict.NO_SAMPLE.name, brief(error)
    if trial is None:
        return Verdict.NO_SAMPLE.name, ""
    told_place(HOST)
    expected, host_error = outcome(trial, HOST)
    told_place(TRIED)
    actual, error = outcome(trial, TRIED)
    if isinstance(host_error, unittest.SkipTest):
        return Verdict.NO_SAMPLE.name, ""
    if type(host_error) is not type(error):
        if host_lacks(case, host_error, error):
            return Verdict.NO_SAMPLE.name, ""
        why = f"{brief(host_error)} on the host, {brief(error)} on trn"
        return Verdict.ERROR_DIFFERS.name, why
    if error is not None:
        return Verdict.EXACT.name, ""
    if case.aspect in policies.POLICIES:
        return judge_policy(case, actual)
    values = case.name.split(".")[0] not in UNINITIALISED
    try:
        verdict, why = compare(as_codes(expected), as_codes(actual), values=values)
    except NotImplementedError as unread:  # complex32 with both bits set
        return Verdict.NO_SAMPLE.name, brief(unread)
    return verdict.name, why


def acceptable(case: Case, verdict: str, why: str) -> bool:
    return verdict in ("EXACT", "NO_SAMPLE") or known(case, verdict, why) is not None


def smaller(case: Case, verdict: str) -> Case:
    """The case with the fewest changes that still comes out as `verdict`, for no known reason."""
    for change in case.mutations:
        fewer = replace(case, mutations=tuple(m for m in case.mutations if m != change))
        found, why = judge(fewer)
        if found == verdict and not acceptable(fewer, found, why):
            return smaller(fewer, verdict)
    return case
