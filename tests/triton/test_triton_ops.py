"""The package leaves Triton alone until a kernel runs, and binds kernels to the operators."""

import importlib.util
import inspect
import subprocess
import sys

import pytest
import torch

from torch_trn_emu.errors import Unsupported
from torch_trn_emu.triton import OPS, register


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cpu_host_never_imports_triton():
    script = """
import sys
import torch
import torch_trn_emu, torch_trn_emu.triton
x = torch.ones(4, 64, device="trn")
with torch_trn_emu.precision("mxfp8"):
    torch.mm(x, x.t())
torch.ops.trn.quantize_mx(x)
assert "triton" not in sys.modules, "triton was imported"
"""
    run(script)


def test_a_cpu_host_works_without_triton():
    script = """
import sys
sys.modules["triton"] = None
import torch
x = torch.ones(4, 64, device="trn")
print(torch.ops.trn.mx_mm(x, x.t()).sum().item())
function = torch.compile(lambda x: torch.nn.functional.gelu(x) @ x.t(), backend="trn")
print(function(x - 1).sum().item())
"""
    assert run(script) == "1024.0\n0.0\n"


def test_every_kernel_takes_the_arguments_of_its_operator():
    for name, path in OPS.items():
        module, _, function = path.partition(".")
        found = importlib.import_module(f"torch_trn_emu.triton.{module}")
        schema = getattr(torch.ops.trn, name).default._schema
        taken = inspect.signature(getattr(found, function)).parameters
        positional = [a.name for a in schema.arguments if not a.kwarg_only]
        assert len(taken) == len(schema.arguments), name
        assert set(list(taken)[len(positional) :]) == {
            a.name for a in schema.arguments if a.kwarg_only
        }, name


def test_every_kernel_is_bound_to_the_key_of_a_cuda_host():
    script = """
import torch, torch_trn_emu
from torch_trn_emu.triton import OPS, register
register("CUDA")
bound = torch._C._dispatch_has_kernel_for_dispatch_key
print(sorted(n for n in OPS if not bound(f"trn::{n}", "CUDA")))
"""
    assert run(script) == "[]\n"


def test_kernels_run_behind_the_operators_of_another_key():
    """In a process of its own: they take the place of the C++ kernels there."""
    script = """
import sys
import torch
from torch_trn_emu.triton import register
x = torch.randn(9, 70)
def run():
    product = torch.ops.trn.product(x, x.t(), "mxfp8", "mxfp8", torch.float32)
    return product, *(t.view(torch.uint8) for t in torch.ops.trn.quantize_mx(x, dim=0))
want = run()
register("CPU")
got = run()
assert "torch_trn_emu.triton.matmul" in sys.modules
torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
assert torch.equal(got[1], want[1]) and torch.equal(got[2], want[2])
"""
    run(script)


def test_without_triton_registering_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"triton==3\.7\.1"):
        register("XPU")
