"""Code for the vendor's stack: the device is called neuron, and torch_neuronx can be imported."""

import subprocess
import sys

SCRIPT = """
import io
import torch
import torch_neuronx
import torch_trn_emu
from torch import nn

torch.manual_seed(0)
x = torch.randn(4, 8)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
assert torch.neuron.is_available() and torch.neuron.device_count() == 4
assert torch.accelerator.current_accelerator().type == "neuron"
y = model.to("neuron")(x.to("neuron"))
assert y.is_neuron and y.device.type == "neuron" and torch.ones(1).neuron().device == y.device
with torch.autocast("neuron", dtype=torch.bfloat16):
    assert model(x.to("neuron")).dtype == torch.bfloat16
optimizer = torch.optim.AdamW(model.parameters())
y.sum().backward()
optimizer.step()
torch.neuron.synchronize()
with torch.neuron.stream(torch.neuron.Stream()):
    event = torch.neuron.Event()
    event.record()
assert torch.neuron.counters()["launch_count"] > 5
assert torch.backends.neuron.matmul.precision == torch_trn_emu.current_precision()
file = io.BytesIO()
torch.save(model.state_dict(), file)
file.seek(0)
assert torch.load(file)["0.weight"].device.type == "neuron"

assert torch.equal(torch.compile(lambda t: t * 2, backend="neuron")(y.detach()), y * 2)

model.to("cpu")
traced = torch_neuronx.trace(model, x, compiler_args="--model-type=transformer")
out = traced(x)
assert isinstance(traced, torch.jit.ScriptModule) and out.device.type == "cpu"
with torch_trn_emu.precision("fp32"):
    assert torch.equal(traced(x), model(x))
file = io.BytesIO()
torch.jit.save(traced, file)
file.seek(0)
loaded = torch.jit.load(file)
assert torch.equal(loaded(x), out)
torch_neuronx.replace_weights(loaded, {"0.bias": torch.full((8,), 9.0)})
assert not torch.equal(loaded(x), out)
parallel = torch_neuronx.DataParallel(torch_neuronx.dynamic_batch(traced))
many = torch.randn(16, 8)
torch.testing.assert_close(parallel(many), traced(many))
assert all(torch.neuron.max_memory_allocated(i) for i in range(4))
torch_neuronx.async_load(traced)
torch_neuronx.lazy_load(traced)

def refuses(call, kind, text):
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)

refuses(lambda: torch_neuronx.analyze, NotImplementedError, "analyze is not provided")
refuses(lambda: torch_neuronx.trace(model, x, partitioner_config={}), NotImplementedError, "partit")
refuses(lambda: __import__("torch_neuronx.distributed"), ModuleNotFoundError, "It has: DataPar")
refuses(lambda: torch.ones(1, device="neuron:99"), RuntimeError, "neuron: invalid device ordi")
refuses(lambda: torch.ones(1 << 45, device="neuron"), torch.OutOfMemoryError, "neuron:0 is out of")
refuses(lambda: torch.ones(1 << 45, device="neuron"), torch.OutOfMemoryError, "torch.neuron.memory")
host = torch.Generator()
refuses(lambda: torch.rand(1, device="neuron", generator=host), RuntimeError, "a 'neuron'")
refuses(lambda: torch.ones(1, device="trn"), RuntimeError, "device string: trn")
assert torch_trn_emu.compare(model, x, b="trn@mxfp8").first_divergent.op == "aten.addmm.default"
print("done")
"""


def test_the_script_runs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch_trn_emu", "run", "--as-neuron", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_the_vendors_name_is_a_backend_of_compile():
    from torch._dynamo.backends.registry import list_backends

    assert "neuron" in list_backends(exclude_tags=None)
