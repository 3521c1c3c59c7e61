"""Each test compiles anew, and reports what it compiled itself."""

import pytest
import torch

from torch_trn_emu import compiler


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiler.reset()
    yield
    torch._dynamo.reset()
