"""A short, seeded run of the fuzzer; `make fuzz` goes on for hours."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_changed_samples_agree_with_the_host(tmp_path):
    report = tmp_path / "findings.jsonl"
    done = run("--seed", "1", "--cases", "180", "--jobs", "1", "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not report.exists()


@pytest.mark.conformance
def test_a_process_that_dies_is_a_row(tmp_path, monkeypatch):
    """The next process goes on behind it, and a number is the same case again."""
    monkeypatch.syspath_prepend(FUZZ.parent)
    import fuzz

    worker = fuzz.Worker("^abs$")
    first = worker.judge(7)
    assert first["verdict"] in ("EXACT", "NO_SAMPLE")
    worker.process.kill()
    row = worker.judge(8)
    assert row["verdict"] == "CRASH"
    assert "signal 9" in row["why"]
    assert worker.judge(7) == first
    worker.close()


def test_products_under_policies_have_their_definitions(monkeypatch):
    monkeypatch.syspath_prepend(FUZZ.parent)
    import policies
    import sampling

    pairs = itertools.product(policies.PRODUCTS, policies.POLICIES)
    for k, (name, policy) in enumerate(pairs):
        sample = k % 3
        dtype = policies.FORMATS[sample]
        case = sampling.Case(
            seed=1, name=name, dtype=dtype, aspect=policy, sample=sample, mutations=()
        )
        assert sampling.judge(case)[0] in ("EXACT", "NO_SAMPLE"), case
