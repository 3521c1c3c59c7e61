"""The benchmark runner measures; what it measures is not tested here."""

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).parent.parent / "benchmarks/run.py"


def test_a_row_is_measured():
    command = [sys.executable, str(RUNNER), "--only", "a + b", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "a + b" in done.stdout
