"""`sensitivity`: what a coarser matmul policy costs each module, and which one each could have.

    found = torch_trn_emu.sensitivity(model, batch, policies=["mxfp8", "mxfp4"])
    print(found.text)
    found.apply(model)

Each module is tried alone, which supposes that their errors are independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import Unsupported
from ..pages import HtmlTable, render
from ..precision import POLICIES, set_precision
from .measure import Distance, distance
from .noise import matmul_kind, operand_formats, product_noise
from .place import Place, place
from .run import call_with, own_copy
from .tables import number, text_table
from .trace import Call, Tracer

__all__ = ["ModuleCost", "Sensitivity", "sensitivity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCost:
    """The model's output when this module alone follows `policy`, against the baseline."""

    module: str
    kind: str
    policy: str
    distance: Distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Ranked costs, the most sensitive module first, and a proposal.

    proposal   policy by module path, whose summed noise stays below the target
    predicted  SQNR of the output in dB if the modules' errors add up as independent ones do
    measured   the output under the proposal, run once, against the baseline
    """

    baseline: str
    target_db: float
    rows: tuple[ModuleCost, ...]
    proposal: Mapping[str, str]
    predicted_db: float
    measured: Distance

    def apply(self, model: torch.nn.Module) -> None:
        """Set the proposed policy on each module of `model`."""
        for path, policy in self.proposal.items():
            set_precision(model.get_submodule(path), policy)

    @property
    def text(self) -> str:
        """Tables for a terminal."""
        return "\n\n".join((self._summary(), *(text_table(h, r) for _, h, r in self._tables())))

    def to_html(self) -> str:
        """A self-contained page without scripts."""
        return render(
            "tables.html",
            title="Sensitivity to the matmul policy",
            lines=self._summary().splitlines(),
            tables=[HtmlTable(*t) for t in self._tables()],
            curves=(),
        )

    def _repr_html_(self) -> str:
        tables = [HtmlTable(*t, most=10) for t in self._tables()]
        return render("notebook.html", lines=self._summary().splitlines(), tables=tables)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; figures that are not finite are None."""
        return {
            "baseline": self.baseline,
            "target_db": self.target_db,
            "rows": [
                {"module": r.module, "kind": r.kind, "policy": r.policy, **r.distance.to_dict()}
                for r in self.rows
            ],
            "proposal": dict(self.proposal),
            "predicted_db": self.predicted_db if math.isfinite(self.predicted_db) else None,
            "measured": self.measured.to_dict(),
        }

    def _summary(self) -> str:
        return (
            f"output against policy {self.baseline}; the proposal keeps an SQNR of "
            f"{self.target_db:g} dB: predicted {number(self.predicted_db, '.1f')} dB, "
            f"measured {number(self.measured.sqnr_db, '.1f')} dB"
        )

    def _tables(self) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
        costs = [
            [
                r.module or "the model",
                r.kind,
                r.policy,
                number(r.distance.sqnr_db, ".1f"),
                number(r.distance.max_abs),
            ]
            for r in self.rows
        ]
        proposal = [[path or "the model", policy] for path, policy in self.proposal.items()]
        return [
            ("Each module alone", ("module", "kind", "policy", "SQNR dB", "max"), costs),
            ("Proposal", ("module", "policy"), proposal),
        ]


def sensitivity(
    model: torch.nn.Module,
    batch: Any,
    policies: Sequence[str] = ("mxfp8", "mxfp4"),
    *,
    baseline: str = "fp32",
    target_db: float = 20.0,
    seed: int = 0,
) -> Sensitivity:
    """Run a copy of `model` forward on trn, one module at a time under each policy.

    batch      a tensor, a tuple of positional or a mapping of keyword arguments
    policies   to try, against `baseline` everywhere else
    target_db  SQNR of the output that the proposal keeps: 20 dB is noise of a tenth (chosen)

    Modules are those that multiply matrices themselves. Policies that a module has are set aside
    in the copy. Runs once for each module and policy.

    Raises ValueError for an unknown policy, Unsupported for a model without matrix products.
    """
    unknown = {*policies, baseline} - set(POLICIES)
    if unknown or not policies:
        raise ValueError(f"unknown policies {sorted(unknown)}; choose from {', '.join(POLICIES)}.")
    sweep = _Sweep(model, batch, baseline, seed)
    expected = sweep.output({})
    rows = [
        ModuleCost(
            module=path,
            kind=type(sweep.model.get_submodule(path)).__name__,
            policy=policy,
            distance=distance(expected, sweep.output({path: policy})),
        )
        for path in sweep.paths
        for policy in policies
    ]
    noise = {(r.module, r.policy): r.distance.relative**2 for r in rows}
    proposal = _propose(sweep.paths, _finer(policies, baseline), noise, 10 ** (-target_db / 10))
    total = sum(noise.get(choice, 0.0) for choice in proposal.items())
    return Sensitivity(
        baseline=baseline,
        target_db=target_db,
        rows=tuple(sorted(rows, key=lambda r: -r.distance.relative)),
        proposal=proposal,
        predicted_db=-10 * math.log10(total) if total else math.inf,
        measured=distance(expected, sweep.output(proposal)),
    )


class _Sweep:
    """A copy of the model on trn, whose products follow the baseline unless told otherwise."""

    def __init__(self, model: torch.nn.Module, batch: Any, baseline: str, seed: int) -> None:
        self._place: Place = place(f"trn@{baseline}")
        self._baseline, self._seed = baseline, seed
        copied = own_copy(model, self._place)
        assert isinstance(copied, torch.nn.Module)
        self.model, self._batch = copied, self._place.move(batch)
        for module in self.model.modules():
            set_precision(module, None)
        self.paths = self._multiplying()
        if not self.paths:
            raise Unsupported(
                "sensitivity: the model multiplies no matrices in float32, bfloat16 or float16, so "
                "no policy changes it. Compare it with torch_trn_emu.compare instead."
            )

    def _multiplying(self) -> list[str]:
        found: dict[str, None] = {}

        def around(call: Call, run: Any) -> Any:
            if matmul_kind(call.func._schema.name.split("::")[-1]):
                found.setdefault(call.module)
            return run()

        with torch.no_grad(), Tracer(self.model, around):
            call_with(self.model, self._batch)
        return list(found)

    def output(self, chosen: Mapping[str, str]) -> Any:
        for path in self.paths:
            set_precision(self.model.get_submodule(path), chosen.get(path, self._baseline))
        torch.manual_seed(self._seed)
        with torch.no_grad(), self._place.under_policy():
            return call_with(self.model, self._batch)


def _finer(policies: Sequence[str], baseline: str) -> list[str]:
    """From the coarsest to the finest, the baseline last."""

    def noise(policy: str) -> float:
        kinds = ("mm", "bmm", "convolution")
        return sum(product_noise(operand_formats(kind, policy, "float32")) for kind in kinds)

    return [*sorted(set(policies) - {baseline}, key=noise, reverse=True), baseline]


def _propose(
    paths: list[str], ladder: list[str], noise: Mapping[tuple[str, str], float], target: float
) -> dict[str, str]:
    """Everything coarse, then the noisiest module one policy finer until the sum is in bounds."""
    step = dict.fromkeys(paths, 0)

    def cost(path: str) -> float:
        return noise.get((path, ladder[step[path]]), 0.0)

    while sum(map(cost, paths)) > target:
        step[max(paths, key=cost)] += 1
    return {path: ladder[i] for path, i in step.items()}
