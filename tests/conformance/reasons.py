"""Why a case may differ from the host: one row each, for docs/conformance.md and the tests."""

import re
from dataclasses import dataclass

import torch
from places import Bound


@dataclass(frozen=True, kw_only=True)
class Reason:
    cases: str  # a pattern over suite/name/dtype/aspect
    text: str
    bound: Bound = None  # None: one rounding of the format
    beyond: bool = False  # results may leave the bound
    wide: torch.dtype | None = None  # the bound: twice what the host is off results in this


CHUNKS = (
    "torch has a table of devices for the chunks of linear_cross_entropy. trn, which is not in it, "
    "gets larger ones: float32 sums in another order, then rounded."
)
RECURRENT = (
    "On the CPU torch multiplies the inputs of all steps at once; on accelerators it goes step by "
    "step and adds the biases in a fused cell. Sums are taken in another order, and 16-bit formats "
    "are rounded more often. The bound of 16-bit results is measured sample by sample: one "
    "rounding, and twice what the host itself is off float32, as a share of the tensor's largest."
)

REASONS = (
    Reason(
        cases=r"^op/linalg\.lstsq",
        text="LAPACK in MKL depends on the alignment of its operands: the host itself gives "
        "these results, from one call to the next.",
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked_none/.*/backward$",
        text="Without a reduction, the gradient of chunked linear_cross_entropy is a Python formula"
        " of torch that sums in the input's format on devices outside its table.",
        beyond=True,
    ),
    Reason(
        cases=r"^module/nn\.LinearCrossEntropyLoss/(bfloat16|float16)/",
        text="As linear_cross_entropy.chunked and, without a reduction, chunked_none.",
        beyond=True,
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked.*/(bfloat16|float32)/",
        text=CHUNKS,
    ),
    Reason(
        cases=r"^op/nn\.functional\.linear_cross_entropy\.chunked.*/float16/",
        text=CHUNKS,
        bound=(1e-3, 2**-12, 0),
    ),
    Reason(cases=r"^module/nn\.(RNN|LSTM|GRU)(Cell)?/float32/", text=RECURRENT),
    Reason(
        cases=r"^module/nn\.(RNN|LSTM|GRU)(Cell)?/(bfloat16|float16)/",
        text=RECURRENT,
        wide=torch.float32,
    ),
)


def reason_for(case: str) -> Reason | None:
    """The first row that covers the case."""
    return next((row for row in REASONS if re.search(row.cases, case)), None)
