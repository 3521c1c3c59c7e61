"""TorchNeuron's public names under --as-neuron: all are there, and do what is documented."""

import os
import subprocess
import sys

import pytest

from torch_trn_emu.aliases.neuron_names import REFUSED, SERVED, VARIABLES, reason

SCRIPT = """
import glob, importlib, io, logging, sys, warnings
import torch
import torch_neuronx
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch_neuronx import NeuronProfiler as FromPackage
from torch_neuronx.memory import memory_allocated
from torch_neuronx.neuron_dynamo_backend import get_model_name, set_model_name
from torch_neuronx.profiling import NeuronConfig, NeuronProfiler, ProfileMode
from torch_neuronx.streams import Event, Stream
from torch_trn_emu.aliases.neuron_names import REFUSED, SERVED
from torch_trn_emu.errors import Unsupported

folder = sys.argv[1]
for module, names in SERVED.items():
    there = torch.neuron if module == "torch.neuron" else importlib.import_module(module)
    missing = [name for name in names if not hasattr(there, name)]
    assert not missing, (module, missing)
for name, why in REFUSED.items():
    module, _, last = name.rpartition(".")
    try:
        getattr(importlib.import_module(module), last)
    except Unsupported as error:
        assert why in str(error)
    else:
        raise AssertionError(name)

side, event = Stream(), Event()
with torch.neuron.stream(side):
    x = torch.randn(64, 64, device="neuron")
torch.neuron.wait_stream(side)
done = torch.neuron.record_event(event)
torch.neuron.wait_event(done)
torch.neuron.synchronize()
assert torch.neuron.query() and done.query() and torch.neuron._sleep(100) is None
with torch.neuron.StreamContext(side):
    assert torch_neuronx.current_stream() == side
assert memory_allocated() == torch.neuron.memory_allocated() > 0
assert torch.neuron.memory_snapshot()[0]["device"] == 0
assert torch_neuronx.is_neuron_runtime_initialized()

torch_neuronx.clear_op_tracking()
x @ x
assert "aten::mm" in torch_neuronx.get_executed_ops()
assert "aten::normal_" not in torch_neuronx.get_executed_ops()
assert torch_neuronx.get_fallback_ops() == []
torch_neuronx.clear_op_tracking()
assert torch_neuronx.get_executed_ops() == []

model = nn.Sequential(nn.Linear(64, 64), nn.GELU()).to("neuron")
options = {"model_name": "mlp", "fallback_execution": False}
compiled = torch.compile(model, backend="neuron", options=options)
compiled(x).sum().backward()
(forward, *rest) = torch.neuron.get_dynamo_metrics()
assert forward.model_name == "mlp" and forward.graph_name.startswith("mlp_") and len(rest) == 1
assert forward.graph_node_count > 1 and forward.torch_neuronx_compile_us > 0
torch.neuron.reset_dynamo_metrics()
assert torch_neuronx.get_dynamo_metrics() == []
set_model_name("other")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.compile(lambda t: t * 2, backend="neuron", mode="reduce-overhead")(x)
assert any("mode='reduce-overhead'" in str(w.message) for w in caught)
assert torch.neuron.get_dynamo_metrics()[-1].model_name == get_model_name() == "other"
try:
    torch.compile(lambda t: t * 3, backend="neuron", dynamic=True)(x)
except Exception as error:
    assert "dynamic=True" in str(error), error
else:
    raise AssertionError("dynamic=True")
for size in (8, 9, 10):  # shapes that vary run
    torch.compile(lambda t: t * 4, backend="neuron")(torch.ones(size, device="neuron"))

config = NeuronConfig(modes=[ProfileMode.DEVICE, ProfileMode.RUNTIME], profile_output_dir=folder)
with profile(
    activities=[ProfilerActivity.CPU, ProfilerActivity.PrivateUse1],
    experimental_config=config,
    on_trace_ready=NeuronProfiler(config).export_trace,
):
    model(x)
    torch.neuron.synchronize()
assert len(glob.glob(folder + "/*/*/trace.json")) == 1
with FromPackage(pytorch_activities=[ProfilerActivity.CPU], neuron_output_dir=folder) as running:
    model(x)
    assert running.is_active()
assert running.get_pytorch_trace() == folder + "/pytorch_trace.json"
print("done")
"""


def run(script, tmp_path, **environment):
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch_trn_emu", "run", "--as-neuron", str(path)]
    command.append(str(tmp_path / "out"))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | environment
    )


def test_every_name_does_what_is_documented(tmp_path):
    done = run(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


VARIABLES_SCRIPT = """
import torch
double = torch.compile(lambda t: t * 2, backend="neuron")
double(torch.ones(3, device="neuron"))
try:
    torch.compile(lambda t: t * 3, backend="neuron")(torch.ones(3))
except Exception as error:
    assert "Input tensor at index 0 is on cpu device" in str(error), error
else:
    raise AssertionError
"""


def test_variables_are_honoured_or_noted(tmp_path):
    folder = tmp_path / "made"
    done = run(
        VARIABLES_SCRIPT,
        tmp_path,
        TORCH_NEURONX_DYNAMO_DISABLE_CPU_AUTOCOPY="1",
        TORCH_NEURONX_PRESERVE_COMPILATION_ARTIFACTS="1",
        TORCH_NEURONX_DEBUG_DIR=str(folder),
        TORCH_NEURONX_ENABLED_METRIC_TABLES="graph_stats",
        TORCH_NEURONX_METRICS_DIR=str(folder),
        NEURON_LAUNCH_BLOCKING="1",
        TORCH_NEURONX_MADE_UP="1",
    )
    assert done.returncode == 0, done.stderr
    assert "NEURON_LAUNCH_BLOCKING has no effect: values are there" in done.stderr
    assert "TORCH_NEURONX_MADE_UP is unknown" in done.stderr
    assert "METRICS_DIR has no" not in done.stderr
    assert list(folder.glob("*/graph.txt"))
    table = (folder / "metric_table_graph_stats_rank0.csv").read_text().splitlines()
    assert table[0].startswith("graph_id,graph_name,model_name")
    assert len(table) == 2


FALLBACK = """
import torch
from torch_trn_emu.compiler import backend

def broken(*args, **kwargs):
    raise RuntimeError("planted")

backend.compile_fx_inner = broken
x = torch.ones(3, device="neuron")
def raises(**options):
    try:
        torch.compile(lambda t: t * 2, backend="neuron", options=options or None)(x)
    except Exception as error:
        assert "planted" in str(error), error
        return True
    return False

import os
default = os.environ.get("TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION", "1") == "1"
assert raises() is default
assert raises(fallback_execution=False)
assert not raises(fallback_execution=True)
"""


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_a_graph_that_does_not_compile(tmp_path, value):
    environment = {"TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": value} if value else {}
    done = run(FALLBACK, tmp_path, **environment)
    assert done.returncode == 0, done.stderr


def test_the_tables_do_not_overlap():
    for module, names in SERVED.items():
        assert len(names) == len(set(names))
        assert not {f"{module}.{name}" for name in names} & set(REFUSED)
    assert reason("torch_neuronx.nki").startswith("NKI kernels")
    assert all(VARIABLES.values())
