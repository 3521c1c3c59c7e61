"""Sixteen ranks of one host: values, order of time, conserved bytes, and equal counters."""

import os
import subprocess
import sys

from launch import PROGRAMS


def test_sixteen_ranks_count_the_same_twice():
    command = [sys.executable, str(PROGRAMS / "sixteen.py")]
    # Python runs the forked ranks in one group of processes, which ends with this one.
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ)
    assert ended.returncode == 0, ended.stderr[-3000:]
    lines = [line for line in ended.stdout.splitlines() if line.startswith("counters")]
    assert len(lines) == 32
    assert sorted(lines[:16]) == sorted(lines[16:]), "two runs give the same counters"
