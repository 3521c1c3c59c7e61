"""What follows no policy is listed in docs/precision.md: a walk over operators that multiply."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

import torch_trn_emu

PAGE = Path(__file__).parents[2] / "docs" / "precision.md"
SAMPLES = 5
MULTIPLIES = re.compile(
    r"^(linalg\.|fft\.|sparse\.|addr$|outer$|kron$|cdist|cross$|stft$|lu_solve|lu$|logdet|svd"
    r"|cholesky|triangular_solve|qr$|geqrf|ormqr|matrix_exp|inner|tensordot|einsum|cov$|corrcoef"
    r"|pinverse|nn\.functional\.(linear|bilinear|conv|pdist|pairwise_distance|cosine|scaled_dot))"
    r"|mm$|mv$|dot$|matmul"
)
NOTHING_IS_MULTIPLIED = {"linalg.diagonal", "linalg.vander", "linalg.vector_norm", "fft.fftshift",
                         "fft.ifftshift"}  # fmt: skip
# Listed, but the last bits of LAPACK's result depend on where the operands lie: they change anyway.
UNREPEATABLE = {"linalg.lstsq"}
ENTRIES = {op.name: op for op in reversed(op_db) if torch.float32 in op.dtypes}


def listed() -> set[str]:
    """Names in the first column of the table."""
    text = PAGE.read_text().split("## Operators that ignore the policy")[1]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


def moved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("trn")
    return torch.device("trn") if str(value) == "cpu" else value


def results(op: Any, call: Any, policy: str) -> list[Tensor]:
    torch.manual_seed(0)
    with torch_trn_emu.precision(policy):
        made = tree_leaves(op(call[0], *call[1], **call[2]))
    tensors = [x.cpu() for x in made if isinstance(x, Tensor)]
    return [x.to_dense() if x.layout != torch.strided else x for x in tensors]


def follows(op: Any, policy: str) -> bool:
    """Whether the policy changes a bit of what the operator gives for one of its samples."""
    for sample in itertools.islice(op.sample_inputs("cpu", torch.float32), SAMPLES):
        call = tree_map(moved, (sample.input, sample.args, sample.kwargs))
        try:
            given = results(op, call, "fp32")
        except Exception:  # a sample that no device takes
            continue
        rounded = results(op, call, policy)
        if not all(
            torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(given, rounded, strict=True)
        ):
            return True
    return False


@pytest.mark.filterwarnings("ignore")
def test_what_is_listed_has_the_same_values_under_every_policy():
    assert UNREPEATABLE <= listed() <= set(ENTRIES)
    names = listed() - UNREPEATABLE
    found = [name for name in sorted(names) if follows(ENTRIES[name], "bf16")]
    assert not found, f"these follow the policy: {found}"


@pytest.mark.filterwarnings("ignore")
def test_what_multiplies_follows_the_policy_or_is_listed():
    names = {name for name in ENTRIES if MULTIPLIES.search(name)}
    names -= listed() | NOTHING_IS_MULTIPLIED
    found = [name for name in sorted(names) if not follows(ENTRIES[name], "bf16")]
    assert not found, f"these follow no policy: {found}"
