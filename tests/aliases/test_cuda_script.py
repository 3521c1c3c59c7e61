"""TorchScript of a script for cuda takes the branches that eager code takes."""

from .test_cuda import run_as_cuda

SCRIPT = """
import io
import torch
from torch import nn

def scaled(t: torch.Tensor, where: str) -> torch.Tensor:
    return t * 2 if t.device.type == where else t * 3

def branches(t: torch.Tensor) -> torch.Tensor:
    if not t.is_cuda:
        return t * 5
    if t.device != torch.device("cuda:0"):
        return t * 7
    return scaled(t, "cuda")

def made(t: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(4, device="cuda") + torch.ones(4).cuda() + torch.ones(4).to("cuda:0")
    return t + ones + torch.full([4], 2.0, device=torch.device("cuda"))

def calls(t: torch.Tensor) -> torch.Tensor:
    return branches(t) + made(t)

def on_host(t: torch.Tensor) -> torch.Tensor:
    return branches(t.cpu()).cuda() + t

def no_device(t: torch.Tensor) -> torch.Tensor:
    return t.sin()

class Inner(nn.Module):
    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return branches(t)

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.linear = Inner(), nn.Linear(4, 4)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return self.inner(self.linear(t)) + torch.ones(4, device="cuda")

    @torch.jit.export
    def other(self, t: torch.Tensor) -> torch.Tensor:
        return self.inner(t)

@torch.jit.script
class Pair:
    def __init__(self, t: torch.Tensor):
        self.t = t

x = torch.arange(4.0, device="cuda")
for function in (branches, made, calls, on_host, no_device):
    assert torch.equal(torch.jit.script(function)(x), function(x)), function
model = Outer().cuda()
scripted = torch.jit.script(model)
saved = io.BytesIO()
torch.jit.save(scripted, saved)
saved.seek(0)
with torch.no_grad():
    frozen = torch.jit.freeze(torch.jit.script(model.eval()))
    for other in (scripted, torch.jit.load(saved), frozen):
        assert torch.equal(other(x), model(x))
    assert torch.equal(scripted.other(x), model.other(x))
"""


def test_branches_and_devices(tmp_path):
    ran = run_as_cuda(tmp_path, SCRIPT, TRN_EMU_MATMUL="fp32")
    assert ran.returncode == 0, ran.stderr
