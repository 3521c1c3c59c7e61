"""A compiled graph is one launch: of its module, with engine lanes of its programs."""

import html
import json

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu.cli.report import report
from torch_trn_emu.profiler.trace import events


# Inductor of torch 2.13 makes a scripted function when it is first imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
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


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_the_report_gives_each_region_its_share_of_the_critical_path(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64)).to("trn")
    compiled = torch.compile(model, backend="trn")
    x = torch.ones(256, 64, device="trn")
    with torch.no_grad():
        compiled(x)
        with torch_trn_emu.profile() as prof:
            compiled(x)
            compiled(x)
    prof.export_json(tmp_path / "profile.json")
    exported = json.loads((tmp_path / "profile.json").read_text())
    rows = exported["graph_regions"]
    assert len(rows) > 1
    assert {row["launches"] for row in rows} == {2}
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    graphs = [x for x in prof.recording.launches if x.price.row == "graph"]
    started_s = prof.recording.chip.launch.kernel_overhead_s * len(graphs)
    whole_s = sum(x.price.seconds for x in graphs) - started_s
    assert sum(row["device_s"] for row in rows) == pytest.approx(whole_s, rel=1e-6)
    prof.export_html(tmp_path / "profile.html")
    record = exported | {
        "command": ["x"],
        "ended": "well",
        "lnc": 1,
        "matmul": "bf16",
        "values": [],
    }
    report_of_run = next(
        t for t in report(record, 10).tables if t.title == "Regions of compiled graphs"
    )
    assert len(report_of_run.rows) == min(10, len(rows))
    page, summary = (tmp_path / "profile.html").read_text(), prof.summary()
    assert "Regions of compiled graphs" in page
    for row in rows:
        assert row["region"] in html.unescape(page)
        assert f"{row['share']:.1%}" in summary
