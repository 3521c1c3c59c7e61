"""Differences that are no fault of trn: one row each, with its reason."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Known:
    cases: str  # a pattern over operator/format/aspect
    verdicts: tuple[str, ...]
    text: str


KNOWN = (
    Known(
        cases=r"^linalg\.lstsq",
        verdicts=("BOUND", "DIFFERS"),
        text="LAPACK in MKL depends on the alignment of its operands.",
    ),
    Known(
        cases=r"^(special\.)?(polygamma|round\.decimals).*/float16/",
        verdicts=("BOUND", "DIFFERS"),
        text="Computed in float32 and cast once: the host rounds between its steps.",
    ),
    Known(
        cases=r"^(_native_batch_norm_legit|native_batch_norm|_batch_norm_with_update)/.*/out",
        verdicts=("BOUND", "DIFFERS"),
        text="The host's kernel takes the statistics it writes for contiguous, and gives other"
        " numbers from call to call where they are not.",
    ),
    Known(
        cases=r"^resize_",
        verdicts=("BOUND", "DIFFERS"),
        text="What grows holds whatever memory held before.",
    ),
)


def known(case: Any, verdict: str) -> Known | None:
    dtype = str(case.dtype).removeprefix("torch.")
    text = f"{case.name}/{dtype}/{case.aspect}"
    rows = (row for row in KNOWN if verdict in row.verdicts and re.search(row.cases, text))
    return next(rows, None)
