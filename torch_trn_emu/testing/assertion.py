"""`assert_parity`: a module or function computes on trn what it computes on the host."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..parity.comparison import Comparison, ModuleError, compare
from ..parity.examine import OpError
from ..parity.measure import distance, float_tensors
from ..parity.place import Place, place
from ..parity.run import Model, call_with, loss_of, own_copy
from ..precision import current_precision
from ..torch_private import tree_leaves

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
    """Run on the CPU and on trn from the same state, and fail if formats do not explain the error.

    inputs     tensors or other values, on any device; a single mapping gives keyword arguments
    grads      compare the gradients of parameters and of inputs that ask for one
    steps      train copies that many steps on the inputs and compare the loss after each
    precision  matmul policy; None is the one in force
    tolerance  relative, for outputs, gradients and losses; None derives it from the formats in
               force: a half ulp of each operand and result, independent from operator to operator
    optimizer  called with the parameters; plain SGD unless given, which adds no error of its own

    Each operator is also held to its own tolerance, from equal inputs, and the model to what it
    computes on trn when its tensors say that they are on the CPU. Outputs that are no floating
    tensors must be equal. Returns the comparison.

    Raises AssertionError that names the first operator or module whose error its formats do not
    explain; where only `tolerance` is exceeded, the format that caused the error.
    """
    __tracebackhide__ = True  # pytest shows the caller's line instead of this function
    policy = precision or current_precision()
    given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], dict) else inputs
    there = f"trn@{policy}"
    found = compare(module_or_fn, given, "cpu", there, grads=grads, seed=seed)
    failures = [
        *_other_computation(found),
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
            "\n".join(
                (
                    f"cpu and {there} diverge:",
                    *failures,
                    *_blame(found, limit, derived=tolerance is None),
                )
            )
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


def _other_computation(found: Comparison) -> list[str]:
    if found.other is None:
        return []
    return [f"  {found.other.name} computes something else on trn, not explained by formats"]


def _blame(found: Comparison, limit: float, *, derived: bool) -> list[str]:
    """Whose error it is: a model that asks for the device, a wrong operator, or the formats."""
    if found.other is not None:
        return [
            "no operator's error explains it: the model itself does something else on trn",
            f"first module not explained by formats: {found.other.name}",
            f"  {found.other.text}",
        ]
    module = next((m for m in found.modules if m.distance.relative > limit), None)
    wrong = next((op for op in found.ops if op.excess > 1), None)
    if wrong is None and not derived:
        wrong = next((op for op in found.ops if op.distance.relative > limit), None)
    if wrong is not None:
        return [*_about(wrong, found), *_about_module(module)]
    if not derived:
        return [*(_about(op, found) if (op := found.first_divergent) else _AGREES)]
    if found.first_divergent is None:
        return [*_AGREES]
    return [
        "no operator exceeds the error that its formats explain, but the result is not explained "
        "by formats: errors within them are amplified",
        *_about_amplifier(found),
    ]


def _about_amplifier(found: Comparison) -> list[str]:
    """The module whose output is off by more than formats explain, or that adds most to it."""
    limit = found.tolerance("forward")
    before: list[tuple[float, ModuleError]] = []
    last = 0.0
    for m in found.modules:
        if last and m.module:
            before.append((last, m))
        last = m.distance.relative
    if not before:
        return []
    beyond = next(((x, m) for x, m in before if m.distance.relative > max(limit, 2 * x)), None)
    x, module = beyond or max(before, key=lambda pair: pair[1].distance.relative / pair[0])
    return [
        f"first module not explained by formats: {_named(module)}: relative error {x:.3g} before "
        f"it and {module.distance.relative:.3g} after it, tolerance {limit:.3g}"
    ]


_AGREES = (
    "no operator differs from equal inputs, and what differs is not explained by formats: the "
    "model itself does something else on trn, for example after asking for a tensor's device.",
)


def _about(op: OpError, found: Comparison) -> list[str]:
    kind = next((m.kind for m in found.modules if m.module == op.module), "")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in op.causes.shares.items())
    explained = op.excess <= 1 or op.causes.main in ("computation", "accumulation", "rounding")
    cause = op.cause if explained and op.cause else "not explained by formats"
    return [
        f"first operator where they diverge: {op.where}, policy {op.policy}",
        *([f"  its module is a {kind}"] if kind else []),
        f"  error there, from equal inputs: max {op.distance.max_abs:.3g}, relative "
        f"{op.distance.relative:.3g}, SQNR {op.distance.sqnr_db:.1f} dB",
        f"  caused by {cause} ({shares})"
        if cause == op.cause
        else f"  {cause}: {op.excess:.3g} times what they predict",
    ]


def _named(module: ModuleError) -> str:
    return f"{module.module or 'the model'} ({module.kind})"


def _about_module(module: ModuleError | None) -> list[str]:
    if module is None:
        return []
    return [
        f"first module beyond the tolerance: {_named(module)}, relative error "
        f"{module.distance.relative:.3g}, errors before it included"
    ]
