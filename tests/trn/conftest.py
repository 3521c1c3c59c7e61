"""Lets the tests here import parity.py, and each start from the same device and seed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)
    yield
    torch.trn.set_device(0)
