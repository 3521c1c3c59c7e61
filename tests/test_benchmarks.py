"""The benchmark runner measures; what it measures is not tested here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RUNNER = BENCHMARKS / "run.py"


def test_a_row_is_measured():
    command = [sys.executable, str(RUNNER), "--only", "a + b", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "a + b" in done.stdout


def test_a_row_is_measured_under_each_instruction_set():
    command = [sys.executable, str(BENCHMARKS / "instruction_sets.py"), "--only", "a + b"]
    done = subprocess.run(
        [*command, "--seconds", "0.1"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "a + b" in done.stdout
    assert "AVX2" in done.stdout or "DEFAULT" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_cuda_benchmark_says_what_is_missing():
    command = [sys.executable, str(BENCHMARKS / "cuda_host.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "needs a CUDA GPU" in done.stderr
