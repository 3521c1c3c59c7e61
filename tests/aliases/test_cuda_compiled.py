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

BACKENDS = """
import torch
from functools import partial
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo import register_backend

heard = []

def hear(tensor):
    assert tensor.is_cuda and tensor.device.type == "cuda", tensor.device
    assert torch.zeros(1, device="cuda").is_cuda

def run(gm, *inputs):
    for x in inputs:
        hear(x)
    heard.append("run")
    return gm(*inputs)

def backend(gm, inputs, **options):
    for x in inputs:
        hear(x)
    for node in gm.graph.nodes:
        value = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(value, torch.Tensor):
            assert value.is_cuda, node
    heard.append("made")
    return partial(run, gm)

def boxed(gm, inputs):
    return make_boxed_func(backend(gm, inputs))

class Backend:
    def __call__(self, gm, inputs):
        return backend(gm, inputs)

register_backend(name="of_script")(backend)
backends = {
    "function": backend,
    "object": Backend(),
    "partial": partial(backend, option=1),
    "name": "of_script",
    "aot_autograd": aot_autograd(fw_compiler=boxed),
}
model = torch.nn.Linear(3, 3).cuda()
x = torch.ones(2, 3, device="cuda")
model(x).sum().backward()
expected = model.weight.grad
for name, each in backends.items():
    torch._dynamo.reset()
    heard.clear()
    model.weight.grad = None
    compiled = torch.compile(model, backend=each)
    for _ in range(2):
        made = compiled(x)
    assert torch.equal(made, model(x)), name
    made.sum().backward()
    assert torch.equal(model.weight.grad, expected), name
    backward = ["made", "run"] if name == "aot_autograd" else []
    assert heard == ["made", "run", "run", *backward], (name, heard)
"""


def test_backends_of_a_script_hear_cuda(tmp_path):
    ran = run_as_cuda(tmp_path, BACKENDS)
    assert ran.returncode == 0, ran.stderr


def test_branches_on_the_device(tmp_path):
    lines = "\n".join(f"    {name!r}: lambda x: {text}," for name, text in FUNCTIONS.items())
    ran = run_as_cuda(tmp_path, SCRIPT % lines)
    assert ran.returncode == 0, ran.stderr
