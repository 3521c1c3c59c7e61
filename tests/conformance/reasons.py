"""Why a case may differ from the host: one row each, for docs/conformance.md and the tests."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reason:
    cases: str  # a pattern over suite/name/dtype/aspect
    bound: bool = True  # results stay within the bound; otherwise they differ by more
    text: str


REASONS = (
    Reason(
        cases=r"^op/linalg\.lstsq",
        text="LAPACK in MKL depends on the alignment of its operands: the host itself gives "
        "these results, from one call to the next.",
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked",
        text="torch has a table of devices for the size of the chunks. trn, which is not in it, "
        "gets larger ones: float32 sums in another order.",
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked(_none)?/(bfloat16|float16)/backward$",
        bound=False,
        text="As above. Without a reduction the gradient is a Python formula of torch that sums "
        "in the input's format on devices outside the table.",
    ),
)


def reason_for(case: str, verdict: str) -> str | None:
    """The text of the first row that covers the case and its verdict."""
    for row in REASONS:
        if re.search(row.cases, case) and (verdict == "BOUND" or not row.bound):
            return row.text
    return None
