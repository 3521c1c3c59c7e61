"""What a second process finds, what a dump holds, what is rounded once, what a summary says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.compiler.apply_precision import apply_precision
from torch_trn_emu.compiler.round_once import round_once

PROGRAM = '''
import torch, json
from torch._dynamo.utils import counters
import torch_trn_emu
from torch_trn_emu.profiler.timeline import timeline
from torch_trn_emu.profiler.trace import events
torch.manual_seed(0)
nn = torch.nn
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1)).to("trn")
x = torch.randn(16, 32).to("trn")
compiled = torch.compile(model, backend="trn")

def shown():
    """What a profile of one more step shows: the page's timeline, the engine lanes of the trace."""
    with torch_trn_emu.profile() as prof:
        compiled(x).square().sum().backward()
    found = [e for e in events(prof.recording) if "executions" in e.get("args", {})]
    lanes = [[e["tid"], e["name"], e["ts"], e["dur"], e["args"]] for e in found]
    drawn = timeline(prof.recording)
    rank = {number: k for k, number in enumerate(sorted(drawn["prices"]))}  # of this process
    drawn["prices"] = [drawn["prices"][number] for number in rank]
    drawn["kinds"] = [(rank[number], *rest) for number, *rest in drawn["kinds"]]
    return {"timeline": drawn, "lanes": lanes}

torch.trn.reset_counters()
loss = compiled(x).square().sum()
loss.backward()
print(json.dumps({
    "loss": loss.item(),
    "hits": counters["aot_autograd"]["autograd_cache_hit"],
    "counters": torch.trn.counters(),
    "graphs": [r.status for r in torch_trn_emu.compiler.report()],
    "summary": [str(s) for s in torch_trn_emu.compiler.summary()],
    "shown": shown(),
}))
'''


def run(folder: Path, program: str = PROGRAM, **environment: str) -> dict:
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRN_EMU_MATMUL": "mxfp8"} | environment
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


EQUAL = ("loss", "counters", "graphs", "summary", "shown")


def engines_of_graphs(found: dict) -> set[int]:
    """The lanes in which compiled graphs are drawn."""
    return {lane for lane, *_, about in found["shown"]["lanes"] if "graph_" in about["op"]}


def test_a_second_process_takes_code_and_price_from_the_cache(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert (first["hits"], second["hits"]) == (0, 1)
    for key in EQUAL:
        assert first[key] == second[key], key
    assert engines_of_graphs(first)
    assert first["graphs"] == ["compiled", "compiled"]
    assert len(first["summary"]) == 2


FAILS = """
from torch_trn_emu.compiler import backend

def fails(*given):
    raise KeyError("no such thing")

backend.pieces_of = fails
"""


def test_a_second_process_says_too_that_a_graph_has_no_program(tmp_path):
    first, second = (run(tmp_path, PROGRAM.replace("torch.manual_seed", head + "torch.manual_seed"))
                     for head in (FAILS, ""))  # fmt: skip
    assert (first["hits"], second["hits"]) == (0, 1)
    assert first["graphs"] == second["graphs"] == ["note", "compiled"] * 2
    assert all("not modelled: KeyError" in text for text in second["summary"])
    for key in EQUAL:
        assert first[key] == second[key], key
    assert not engines_of_graphs(second)


@pytest.mark.conformance  # a minute of compiling in eight processes
def test_each_chip_number_of_cores_and_policy_has_lanes_of_its_own(tmp_path):
    kinds = [
        {},
        {"NEURON_LOGICAL_NC_CONFIG": "1"},
        {"TRN_EMU_CHIP": "trn2"},
        {"TRN_EMU_MATMUL": "fp32"},
    ]
    first = [run(tmp_path, **kind) for kind in kinds]
    again = [run(tmp_path, **kind) for kind in kinds]
    assert [r["hits"] for r in first + again] == [0] * len(kinds) + [1] * len(kinds)
    for one, other in zip(first, again, strict=True):
        assert engines_of_graphs(one)
        for key in EQUAL:
            assert one[key] == other[key], key
    lanes = [json.dumps(r["shown"]["lanes"]) for r in first]
    assert len(set(lanes)) == len(kinds)


@pytest.mark.conformance  # a minute of compiling in four processes
def test_a_graph_of_any_size_is_priced_anew_by_the_process_that_finds_it(tmp_path):
    dynamic = PROGRAM.replace('backend="trn")', 'backend="trn", dynamic=True)')
    larger = dynamic.replace("16, 32", "700, 32")
    first, again, other = (run(tmp_path / "one", p) for p in (dynamic, dynamic, larger))
    assert [r["hits"] for r in (first, again, other)] == [0, 1, 1]
    for key in EQUAL:
        assert first[key] == again[key], key
    alone = run(tmp_path / "other", larger)
    assert alone["hits"] == 0
    for key in ("counters", "graphs", "summary", "shown"):
        assert alone[key] == other[key], key
    assert other["counters"]["hbm_read_bytes"] > first["counters"]["hbm_read_bytes"]


def test_a_dump_holds_a_folder_for_each_graph(tmp_path):
    folder = tmp_path / "dump"
    run(tmp_path / "cache", TRN_EMU_DUMP=str(folder))
    graphs = sorted(folder.iterdir())
    assert [g.name for g in graphs] == ["graph_0_backward", "graph_0_forward"]
    forward = {p.name: p.read_text() for p in graphs[1].iterdir()}
    assert "addmm" in forward["graph.txt"]
    assert "module" in forward["regions.txt"]
    assert "nc_matmul_mx" in forward["program.txt"]
    assert "added_us" in forward["schedule.txt"]
    assert json.loads(forward["counters.json"])["hbm_read_bytes"] > 0
    assert forward["graph.svg"].count("<rect") >= 2


def test_an_operand_of_several_products_is_rounded_once():
    def function(x, a, b, c):
        return x @ a, x @ b, x.t() @ c

    torch.manual_seed(0)
    inputs = [torch.randn(s) for s in ((64, 96), (96, 32), (96, 16), (64, 8))]
    gm = make_fx(function, tracing_mode="fake")(*inputs)
    apply_precision(gm.graph, "mxfp8")
    gm.recompile()
    expected = gm(*inputs)
    assert round_once(gm.graph) == 1  # x along its rows twice, along its columns once
    gm.recompile()
    roundings = [n for n in gm.graph.nodes if n.target is torch.ops.trn.round_operand.default]
    assert len(roundings) == 1
    for one, other in zip(gm(*inputs), expected, strict=True):
        assert torch.equal(one, other)


def test_a_weight_read_as_it_is_and_transposed_is_rounded_along_its_axis():
    def function(x, w, y):
        return x @ w.t(), w @ y  # both contract along the columns of w

    torch.manual_seed(0)
    inputs = [torch.randn(s) for s in ((8, 64), (32, 64), (64, 4))]
    gm = make_fx(function, tracing_mode="fake")(*inputs)
    apply_precision(gm.graph, "mxfp8")
    gm.recompile()
    expected = gm(*inputs)
    assert round_once(gm.graph) == 1
    gm.recompile()
    for one, other in zip(gm(*inputs), expected, strict=True):
        assert torch.equal(one, other)
