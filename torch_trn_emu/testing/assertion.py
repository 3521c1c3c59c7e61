"""`assert_parity`: a module or function computes on trn what it computes on the host."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..parity.comparison import Comparison, ModuleError, compare
from ..parity.examine import OpError
from ..parity.measure import distance, float_tensors
from ..parity.place import Place, place
from ..parity.run import Model, call_with, loss_of, own_copy
from ..precision import current_precision

__all__ = ["assert_parity"]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


def _sgd(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


def assert_parity(
    module_or_fn: Model,
    *inputs: Any,
    grads: bool = True,
    steps: int = 0,
    precision: str | None = None,
    tolerance: float | None = None,
    optimizer: MakeOptimizer = _sgd,
    seed: int = 0,
) -> Comparison:
    """Run on the host and on trn from the same state; fail where more differs than formats explain.

    inputs     tensors or other values, on any device; a single mapping gives keyword arguments
    grads      compare the gradients of parameters and of inputs that ask for one
    steps      train copies that many steps on the inputs and compare the loss after each
    precision  matmul policy; None is the one in force
    tolerance  relative, for outputs, gradients and losses; None derives it from the formats in
               force: a half ulp of each operand and result, independent from operator to operator
    optimizer  called with the parameters; plain SGD unless given, which adds no error of its own

    Each operator is also held to its own tolerance, from equal inputs. Outputs that are no floating
    tensors must be equal. Returns the comparison.

    Raises AssertionError that names the first operator and module where the two part, the error
    there, and the format that caused it.
    """
    policy = precision or current_precision()
    given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], dict) else inputs
    there = f"trn@{policy}"
    found = compare(module_or_fn, given, "cpu", there, grads=grads, seed=seed)
    failures = [
        *_wrong_operators(found),
        *_wrong_outputs(found, tolerance or found.tolerance("forward")),
        *_wrong_gradients(found, tolerance or found.tolerance()),
    ]
    if steps:
        curves = [
            _losses(module_or_fn, given, where, steps, optimizer, seed)
            for where in (place("cpu"), place(there))
        ]
        failures += _wrong_losses(curves, tolerance or found.tolerance())
    if failures:
        limit = tolerance or found.tolerance()
        raise AssertionError(
            "\n".join((f"cpu and {there} part:", *failures, *_blame(found, limit)))
        )
    return found


def _wrong_operators(found: Comparison) -> list[str]:
    return [
        f"  {op.where}: {op.excess:.3g} times the error that its formats explain"
        for op in found.ops
        if op.excess > 1
    ][:8]


def _wrong_outputs(found: Comparison, limit: float) -> list[str]:
    ours, theirs = found.values
    a, b = float_tensors(ours.output), float_tensors(theirs.output)
    failures = [
        f"  output {i}: relative error {d.relative:.3g}, tolerance {limit:.3g}"
        for i, (x, y) in enumerate(zip(a, b, strict=True))
        if (d := distance(x, y)).relative > limit
    ]
    pairs = zip(tree_leaves(ours.output), tree_leaves(theirs.output), strict=True)
    for i, (expected, actual) in enumerate(pairs):
        if isinstance(expected, torch.Tensor) and not float_tensors(expected):
            wrong = int((expected != actual).sum())
            if wrong:
                failures.append(
                    f"  output {i} ({expected.dtype}): {wrong} of {expected.numel()} values "
                    "differ, and none may. Return what it is computed from, or use fp32."
                )
    return failures


def _wrong_gradients(found: Comparison, limit: float) -> list[str]:
    """A gradient that cancels out is measured against the others: its own norm says nothing."""
    ours, theirs = found.values
    missing = ours.gradients.keys() ^ theirs.gradients.keys()
    failures = [f"  gradient of {name}: in one place only" for name in sorted(missing)]
    elements = sum(d.elements for d in found.gradients.values())
    typical = sum(d.squared_a for d in found.gradients.values()) / elements if elements else 0.0
    for name, d in found.gradients.items():
        scale = math.sqrt(max(d.squared_a, typical * d.elements))
        if math.sqrt(d.squared_error) > limit * scale:
            failures.append(
                f"  gradient of {name}: relative error {d.relative:.3g}, tolerance {limit:.3g}"
            )
    return failures


def _losses(
    model: Model, inputs: Any, where: Place, steps: int, optimizer: MakeOptimizer, seed: int
) -> list[float]:
    trained = own_copy(model, where)
    if not isinstance(trained, torch.nn.Module):
        raise ValueError("steps trains a module; a function has no parameters to train.")
    given, chosen, losses = where.move(inputs), optimizer(trained.parameters()), []
    torch.manual_seed(seed)
    with where.under_policy():
        for _ in range(steps):
            loss = loss_of(call_with(trained, given))
            if loss is None:
                raise ValueError("steps needs an output that gradients flow to.")
            chosen.zero_grad()
            loss.backward()
            chosen.step()
            losses.append(float(loss.detach()))
    return losses


def _wrong_losses(curves: list[list[float]], limit: float) -> list[str]:
    largest = max(map(abs, curves[0]))
    return [
        f"  step {step}: loss {a:.6g} on cpu, {b:.6g} on trn, tolerance {limit:.3g}"
        for step, (a, b) in enumerate(zip(*curves, strict=True), 1)
        if not abs(a - b) <= limit * largest
    ][:3]


def _blame(found: Comparison, limit: float) -> list[str]:
    wrong = next((op for op in found.ops if op.excess > 1), None)
    first = wrong or found.first_divergent
    module = next((m for m in found.modules if m.distance.relative > limit), None)
    return [*(_about(first) if first else _AGREES), *_about_module(module)]


_AGREES = (
    "no operator differs from equal inputs: the model itself does something else on trn, "
    "for example after asking for a tensor's device.",
)


def _about(op: OpError) -> list[str]:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in op.causes.shares.items())
    return [
        f"first operator where they part: {op.where}, policy {op.policy}",
        f"  error there, from equal inputs: max {op.distance.max_abs:.3g}, relative "
        f"{op.distance.relative:.3g}, SQNR {op.distance.sqnr_db:.1f} dB",
        f"  caused by {op.cause} ({shares})",
    ]


def _about_module(module: ModuleError | None) -> list[str]:
    if module is None:
        return []
    name = module.module or "the model"
    return [
        f"first module beyond the tolerance: {name} ({module.kind}), relative error "
        f"{module.distance.relative:.3g}, errors before it included"
    ]
