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
GOAL = 0.999


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


@pytest.mark.conformance
@pytest.mark.timeout(0)
def test_everything_agrees():
    """Writes docs/conformance.json, from which docs/conformance.md is made."""
    found = walk(SUMMARY)
    assert unexplained(found) == []
    assert found["share"] >= GOAL
