"""`compare`: a model in two places, module by module and operator by operator.

    found = torch_trn_emu.compare(model, inputs, a="cpu", b="trn")
    print(found.text)

Each operator is measured alone, each module as the model ran.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..pages import HtmlTable, render
from ..precision import current_precision
from ..settings import DEVICE_TYPE
from .examine import Examiner, OpError
from .measure import Distance, distance
from .place import place
from .run import Model, RunResult, execute
from .tables import number, text_table
from .unaware import OtherComputation, Stream, find_other_computation

__all__ = ["Comparison", "ModuleError", "compare"]

MOST_TOLERATED = 0.5  # relative; beyond it nothing would be compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleError:
    """A module's output in b against a, including the errors of earlier modules."""

    module: str
    kind: str
    calls: int
    distance: Distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs of one model, from the same parameters, inputs and seed.

    ops        each operator alone, from the inputs it had in b, in the order of first calls
    modules    each module's output as the model ran, in the order of first returns
    outputs    of the model; `gradients` by parameter, and "input 0" for inputs that ask for one
    loss       in a and b; None without gradients
    unexamined operators that could not run again, with the reason
    other      the first module that computes something else on b than on the host, if one does:
               it asks for the device, and no format explains what differs
    """

    a: str
    b: str
    policy: str
    ops: tuple[OpError, ...]
    modules: tuple[ModuleError, ...]
    outputs: Distance
    gradients: Mapping[str, Distance]
    loss: tuple[float, float] | None
    values: tuple[RunResult, RunResult]
    unexamined: Mapping[str, str]
    other: OtherComputation | None = None

    @property
    def first_divergent(self) -> OpError | None:
        """The first operator whose own error exceeds what float32 arithmetic explains."""
        return next((op for op in self.ops if op.diverges), None)

    def tolerance(self, *phases: str) -> float:
        """Relative error that the formats in force explain at the end of the phases.

        The errors of the operators add up as independent ones do. Where a derivative jumps, an
        error e in forward takes the other branch for about e of the elements, which is an error of
        sqrt(e) in the gradient. At most 0.5.
        """
        chosen = phases or _PHASES
        squares = sum(op.tolerance_squared for op in self.ops if op.phase in chosen)
        if "backward" in chosen and any(op.jumps for op in self.ops):
            squares += self.tolerance("forward")
        return min(MOST_TOLERATED, math.sqrt(squares))

    @property
    def text(self) -> str:
        """Tables for a terminal."""
        return "\n\n".join((self._summary(), *(text_table(h, r) for _, h, r in self._tables())))

    def to_html(self) -> str:
        """A self-contained page without scripts."""
        tables = [HtmlTable(*t) for t in self._tables()]
        lines = self._summary().splitlines()
        return render(
            "tables.html", title=f"{self.a} against {self.b}", lines=lines, tables=tables, curves=()
        )

    def _repr_html_(self) -> str:
        tables = [HtmlTable(*t, most=10) for t in self._tables()]
        return render("notebook.html", lines=self._summary().splitlines(), tables=tables)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; figures that are not finite are None."""
        first = self.first_divergent
        return {
            "a": self.a,
            "b": self.b,
            "policy": self.policy,
            "outputs": self.outputs.to_dict(),
            "loss": list(self.loss) if self.loss else None,
            "first_divergent": first.to_dict() if first else None,
            "other_computation": self.other.to_dict() if self.other else None,
            "ops": [op.to_dict() for op in self.ops],
            "modules": [
                {"module": m.module, "kind": m.kind, "calls": m.calls, **m.distance.to_dict()}
                for m in self.modules
            ],
            "gradients": {name: d.to_dict() for name, d in self.gradients.items()},
            "unexamined": dict(self.unexamined),
        }

    def _summary(self) -> str:
        first = self.first_divergent
        lines = [f"{self.a} against {self.b}, matmul policy {self.policy}"]
        lines.append("output: " + _figures(self.outputs))
        if self.loss is not None:
            lines.append(f"loss: {self.loss[0]:.6g} and {self.loss[1]:.6g}")
        lines.append(
            f"first divergent operator: {first.where}, {first.cause or 'cause not found'}"
            if first
            else "no operator diverges"
        )
        if self.other is not None:
            lines.append(f"not explained by formats: {self.other.name}: {self.other.text}")
        lines += [f"not examined: {name}: {why}" for name, why in self.unexamined.items()]
        return "\n".join(lines)

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
        figures = ("max", "mean", "cosine", "SQNR dB")
        ops = [
            [op.where, str(op.calls), *_cells(op.distance), op.cause if op.diverges else ""]
            for op in self.ops
            if op.distance.squared_error
        ]
        modules = [
            [f"{m.module or 'the model'} ({m.kind})", str(m.calls), *_cells(m.distance)]
            for m in self.modules
        ]
        gradients = [[name, *_cells(d)] for name, d in self.gradients.items()]
        return [
            ("Modules (errors accumulate)", ("module", "calls", *figures), modules),
            ("Gradients", ("gradient", *figures), gradients),
            ("Operators, each alone", ("operator", "calls", *figures, "cause"), ops),
        ]


_PHASES = ("forward", "backward")


def _cells(found: Distance) -> list[str]:
    return [
        number(found.max_abs),
        number(found.mean_abs),
        number(found.cosine, ".6f"),
        "exact" if not found.squared_error else number(found.sqnr_db, ".1f"),
    ]


def _figures(found: Distance) -> str:
    names = ("max", "mean", "cosine", "SQNR dB")
    return ", ".join(f"{n} {v}" for n, v in zip(names, _cells(found), strict=True))


def compare(
    model: Model, inputs: Any, a: str = "cpu", b: str = "trn", *, grads: bool = True, seed: int = 0
) -> Comparison:
    """Run `model` on two devices or policies and measure where their values diverge.

    model   a module, of which each place gets a copy, or a function of its inputs
    inputs  a tensor, a tuple of positional or a mapping of keyword arguments, on any device
    a, b    "cpu" or "trn", with a matmul policy if wanted: "trn@bf16"
    grads   run backward as well, from `output.loss`, from a single number, or from the mean of
            the squares

    b is where operators are examined: each runs again in a from the same inputs.

    Raises ValueError for an unknown place or policy, for a model on meta, and where the two places
    return different shapes.
    """
    first, second = place(a), place(b)
    examiner = Examiner(first, second)
    ours = execute(model, inputs, first, grads=grads, seed=seed)
    seen = Stream(examiner.around)
    theirs = execute(model, inputs, second, grads=grads, seed=seed, around=seen.around)
    other = None
    if second.device.type == DEVICE_TYPE:
        other = find_other_computation(
            model, inputs, second, grads=grads, seed=seed, ran=theirs, seen=seen
        )
    losses = (ours.loss, theirs.loss)
    return Comparison(
        a=a,
        b=b,
        policy=second.policy or current_precision(),
        ops=examiner.rows,
        modules=_modules(model, ours, theirs),
        outputs=distance(ours.output, theirs.output),
        gradients={
            name: distance(gradient, theirs.gradients[name])
            for name, gradient in ours.gradients.items()
            if name in theirs.gradients
        },
        loss=None if losses[0] is None or losses[1] is None else (losses[0], losses[1]),
        values=(ours, theirs),
        unexamined=examiner.unexamined,
        other=other,
    )


def _modules(model: Model, a: RunResult, b: RunResult) -> tuple[ModuleError, ...]:
    kinds = {
        path: type(module).__name__
        for path, module in (getattr(model, "named_modules", dict)() or ())
    }
    found: dict[str, tuple[int, Distance]] = {}
    for (path, ordinal), expected in a.modules.items():
        actual = b.modules.get((path, ordinal))
        if actual is None or [t.shape for t in actual] != [t.shape for t in expected]:
            continue
        calls, so_far = found.get(path, (0, Distance()))
        found[path] = calls + 1, so_far + distance(expected, actual)
    return tuple(
        ModuleError(module=path, kind=kinds.get(path, ""), calls=calls, distance=d)
        for path, (calls, d) in found.items()
    )
