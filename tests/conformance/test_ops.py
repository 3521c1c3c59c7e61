"""PyTorch's own operator, module and optimizer samples give on trn what they give on the host.

walk.py does the work in processes of its own; a crash is a row like any other.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUMMARY = HERE.parent.parent / "docs/conformance.json"
COMPILED_SUMMARY = SUMMARY.with_name("conformance_compiled.json")
GOAL = 0.999
COMPILED_GOAL = 0.9  # the rest has its reasons


def walk(summary: Path, *arguments: str) -> dict:
    command = [sys.executable, str(HERE / "walk.py"), "--summary", str(summary), *arguments]
    subprocess.run(command, check=True)
    return json.loads(summary.read_text())


def unexplained(found: dict) -> list[str]:
    return [
        f"{row['case']}: {row['verdict']}, {row['why']}"
        for row in found["remaining"]
        if row["reason"] is None
    ]


def test_a_sample_of_every_entry_agrees(tmp_path):
    found = walk(tmp_path / "summary.json", "--slice", "--samples", "1")
    assert unexplained(found) == []


def test_formats_of_cuda_are_computed_wider(tmp_path):
    """All combinations of op_db that CUDA's kernels take and the host's do not."""
    found = walk(tmp_path / "summary.json", "--suite", "wider", "--samples", "1")
    assert unexplained(found) == []
    assert found["samples"] >= 290


@pytest.mark.conformance
@pytest.mark.timeout(0)
def test_everything_agrees():
    """Writes docs/conformance.json, from which docs/conformance.md is made."""
    found = walk(SUMMARY)
    assert unexplained(found) == []
    assert found["share"] >= GOAL


# What a change of the compiler or of torch would break first; `make conformance` has all.
FEW = (
    "softmax|addbmm|nn.functional.linear|nn.functional.conv2d|nn.functional.layer_norm|sort"
    "|nn.functional.scaled_dot_product_attention|index_put|nn.functional.cross_entropy|quantile"
)


def test_a_few_compiled_operators_equal_eager(tmp_path, monkeypatch):
    """Under the default policy, and where Inductor allows no fallback of its own."""
    monkeypatch.setenv("TRN_EMU_MATMUL", "mxfp8")
    monkeypatch.setenv("CI", "true")
    match = f"^compiled_op/({FEW})/float32/"
    found = walk(tmp_path / "summary.json", "--compiled", "--match", match, "--samples", "1")
    assert unexplained(found) == []
    assert found["samples"] >= 10


@pytest.mark.conformance
@pytest.mark.timeout(0)
def test_everything_compiled_equals_eager(monkeypatch):
    """Writes docs/conformance_compiled.json."""
    monkeypatch.setenv("TRN_EMU_MATMUL", "mxfp8")
    found = walk(COMPILED_SUMMARY, "--compiled", "--samples", "1")
    assert unexplained(found) == []
    assert found["share"] >= COMPILED_GOAL
