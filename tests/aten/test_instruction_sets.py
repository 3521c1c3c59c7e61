"""The same bits under every instruction set but the one with a bfloat16 dot product, which adds
two products at a time: products of every layout and policy, gradients, quantisation, cells.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "instruction_set_results.py"
NEEDS = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}


@cache
def host_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def results(isa: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | {"TRN_EMU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("isa", NEEDS)
def test_results_have_the_bits_of_plain_code(isa):
    if not NEEDS[isa] <= host_flags():
        pytest.skip(f"this host has no {isa}")
    plain, found = results("plain"), results(isa)
    assert found.keys() == plain.keys()
    assert [name for name in plain if found[name] != plain[name]] == []
