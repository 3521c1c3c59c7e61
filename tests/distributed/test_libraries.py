"""Libraries that start from the environment of torchrun, as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.distributed_conformance
def test_accelerate_trains_on_two_ranks():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = [str(EXAMPLES / "accelerate_loop.py"), "--epochs", "1"]
    ended = subprocess.run([*torchrun, *script], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    # print of accelerate speaks on the first rank alone, if it knows of the others.
    assert ended.stdout.count("training on trn:0") == 1
    assert ended.stdout.count("epoch 1: loss") == 1
