"""The host backend: which one, what it lacks, and that time and counters do not depend on it."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import torch_trn_emu
from torch_trn_emu import host, host_device
from torch_trn_emu.errors import Unsupported
from torch_trn_emu.settings import read

CLEAN = {n: v for n, v in os.environ.items() if not n.startswith(("TRN_EMU_", "NEURON_"))}
needs_gpu = pytest.param("cuda", marks=pytest.mark.skipif(
    bool(host.missing_for_cuda()), reason="there is no CUDA GPU, or no Triton"
))  # fmt: skip

# A step of training through products, a convolution, attention and a norm; prints what it cost.
STEP = """
import json, os, torch
from torch import nn
from torch.nn import functional as F
if os.environ.get("KERNELS") == "triton":
    from torch_trn_emu.triton import register
    register("CPU")
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, padding=1)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
    def forward(self, x):
        x = self.conv(x.mT).mT
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))
model = Net().to("trn")
optimizer = torch.optim.AdamW(model.parameters())
x = torch.randn(2, 20, 32).to("trn")
losses = []
for _ in range(2):
    loss = F.gelu(model(x)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
half = torch.linspace(-3, 3, 512).to("trn").bfloat16().view(1, 4, 8, 16) * 1.1
products = half[0, 0] @ half[0, 1].mT, F.scaled_dot_product_attention(half, half, half)
half = half * 0.9  # after 16-bit products
codes, scales = torch.ops.trn.quantize_mx(model.out.weight)
torch.trn.synchronize()
counters = dict(torch.trn.counters())
print(json.dumps({
    "losses": losses,
    "counters": {str(k): str(v) for k, v in counters.items()},
    "rounded": half.cpu().flatten().view(torch.int16).tolist(),
    "memory": torch.trn.memory_allocated(),
}))
"""


@cache
def run(**environ: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        env=CLEAN | {"TRITON_INTERPRET": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


OTHERS = [
    {"TRN_EMU_HOST": "foreign"},
    {"TRN_EMU_HOST": "foreign", "KERNELS": "triton"},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_time_counters_and_memory_do_not_depend_on_the_host(other):
    here, there = run(), run(**other)
    assert there["counters"] == here["counters"]
    assert there["memory"] == here["memory"]
    assert there["losses"] == pytest.approx(here["losses"], rel=2e-3)


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_stochastic_rounding_draws_the_same_bits_on_every_host(other):
    on = {"NEURON_RT_STOCHASTIC_ROUNDING_EN": "1", "NEURON_RT_STOCHASTIC_ROUNDING_SEED": "5"}
    assert run(**other, **on)["rounded"] == run(**on)["rounded"] != run()["rounded"]


@pytest.mark.parametrize("name", [needs_gpu])
def test_a_cuda_host_has_the_counters_of_a_cpu_host(name):
    here, there = run(), run(TRN_EMU_HOST=name, TRITON_INTERPRET="0")
    assert there["counters"] == here["counters"]
    assert there["losses"] == pytest.approx(here["losses"], rel=2e-2)


def test_the_cpu_is_the_host_unless_asked_otherwise():
    assert read({}).host == "cpu"
    assert read({"TRN_EMU_HOST": "auto"}).host == "auto"
    with pytest.raises(ValueError, match="TRN_EMU_HOST='gpu' is unknown; choose from cpu"):
        read({"TRN_EMU_HOST": "gpu"})
    assert host_device().type == ("cuda" if host.host_name() == "cuda" else "cpu")


@pytest.fixture
def asked(monkeypatch):
    """Sets what TRN_EMU_HOST asks for, and whether there is a GPU."""

    def ask(name: str, gpu: bool, triton: bool = True) -> str:
        chosen = read({"TRN_EMU_HOST": name})
        monkeypatch.setattr(host, "settings", lambda: chosen)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        found = object() if triton else None
        monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: found)
        return host.host_name.__wrapped__()

    return ask


def test_auto_is_cuda_where_there_is_a_gpu_and_triton(asked):
    assert asked("auto", gpu=True) == "cuda"
    assert asked("auto", gpu=False) == "cpu"
    assert asked("auto", gpu=True, triton=False) == "cpu"
    assert asked("cuda", gpu=True) == "cuda"


def test_cuda_without_a_gpu_or_triton_says_what_is_missing(asked):
    with pytest.raises(Unsupported, match="TRN_EMU_HOST=cuda needs a CUDA GPU that torch can use"):
        asked("cuda", gpu=False)
    with pytest.raises(Unsupported, match=r"TRN_EMU_HOST=cuda needs Triton.*triton==3\.7\.1"):
        asked("cuda", gpu=True, triton=False)


def test_one_library_serves_both_hosts():
    root = Path(torch_trn_emu.__file__).parent.parent
    sources = [*root.glob("csrc/**/*.[ch]*"), root / "CMakeLists.txt"]
    assert len(sources) > 50
    wanted = re.compile(r"#include.*cuda|find_package\(CUDA|cudart", re.IGNORECASE)
    assert [path.name for path in sources if wanted.search(path.read_text())] == []
    library = Path(torch_trn_emu._C.__file__).read_bytes()
    assert not re.search(rb"libcuda|libcudart|libtorch_cuda|libc10_cuda", library)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_import_torch_survives_and_the_first_tensor_says_why():
    script = "import torch; print(torch.trn.device_count()); torch.ones(1, device='trn')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=CLEAN | {"TRN_EMU_HOST": "cuda"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert done.stdout == "0\n"
    assert "TRN_EMU_HOST=cuda needs a CUDA GPU" in done.stderr
