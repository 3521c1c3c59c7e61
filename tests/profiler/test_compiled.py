"""A compiled graph is one launch: of its module, with engine lanes of its programs."""

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu.profiler.trace import events


# Inductor of torch 2.13 makes a scripted function when it is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_compiled_training_step() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh()).to("trn")
    compiled = torch.compile(model, backend="trn")
    x = torch.ones(4, 16, device="trn")
    compiled(x).sum().backward()
    model.zero_grad()
    with torch_trn_emu.profile() as prof:
        compiled(x).sum().backward()
    graphs = [x for x in prof.recording.launches if x.price.row == "graph"]
    assert [(x.module, x.phase) for x in graphs] == [
        ("Sequential", "forward"),
        ("Sequential", "backward"),
    ]
    launch = prof.recording.chip.launch
    assert {x.dispatch_ns for x in graphs} == {round(launch.graph_launch_s * 1e9)}
    slices = [e for e in events(prof.recording) if "executions" in e.get("args", {})]
    assert {x.op for x in graphs} <= {e["args"]["op"] for e in slices}
