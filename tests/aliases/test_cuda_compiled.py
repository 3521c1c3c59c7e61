"""Compiled functions of a script for cuda take the branches that eager ones take."""

from .test_cuda import run_as_cuda

FUNCTIONS = {
    "is_cuda": "x + 100 if x.is_cuda else x",
    "type of the device": "x + 100 if x.device.type == 'cuda' else x",
    "device": "x + 100 if x.device == torch.device('cuda:0') else x",
    "name of the device": "x + 100 if str(x.device).startswith('cuda') else x",
    "device of a parameter": "m(x) + 1 if m.weight.is_cuda else m(x)",
    "device of the host": "x + 1 if x.cpu().is_cuda or x.cpu().device.type != 'cpu' else x",
    "number": "x + x.get_device() + x.device.index",
    "ones": "x + torch.ones(8, device=x.device)",
    "arange": "x + torch.arange(8, device=x.device, dtype=x.dtype)",
    "tensor": "x + torch.tensor([1.0] * 8, device=x.device)",
    "full_like": "x + torch.full_like(x, 2, device=x.device)",
    "new_zeros": "x + x.new_zeros(8, device=x.device)",
    "to": "torch.zeros(8).to(x.device) + x.to(device=x.device, dtype=torch.float64)",
    "cuda": "x.cuda() + torch.ones(8).cuda(0) + torch.ones(8).cuda('cuda')",
    "a device made of it": "x + torch.zeros(8, device=torch.device(x.device.type, x.device.index))",
    "module": "F.layer_norm(m(x), (8,)) + torch.zeros((), device=next(m.parameters()).device)",
}
SCRIPT = """
import torch
import torch.nn.functional as F
from torch.utils._debug_mode import DebugMode

torch.manual_seed(0)
x = torch.randn(4, 8, device="cuda")
m = torch.nn.Linear(8, 8).cuda()
functions = {
%s
}

def in_autocast(x):
    with torch.autocast(x.device.type, torch.bfloat16):
        return m(x)

functions["autocast"] = in_autocast
for name, function in functions.items():
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), function(x)), name
    assert compiled(x).device == x.device, name

def doubled(x):
    return x * 2 + 1

with DebugMode(record_stack_trace=True) as debugged:
    doubled(x)
assert "in doubled, code: return x * 2 + 1" in debugged.debug_string(show_stack_trace=True)

torch.cuda.set_device(1)
assert torch.ones(2).cuda().device.index == torch.ones(2).cuda("cuda").device.index == 1
try:
    x.cuda("cpu")
except RuntimeError as error:
    assert "takes a device of cuda" in str(error)
else:
    raise AssertionError("accepted")
"""


def test_branches_on_the_device(tmp_path):
    lines = "\n".join(f"    {name!r}: lambda x: {text}," for name, text in FUNCTIONS.items())
    ran = run_as_cuda(tmp_path, SCRIPT % lines)
    assert ran.returncode == 0, ran.stderr
