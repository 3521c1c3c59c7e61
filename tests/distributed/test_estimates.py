"""An estimate of one rank gives what that rank counts in a run of all: calls, times, exposure."""

import ast
import json
import os
import subprocess
import sys
from functools import cache

import launch
import pytest


def names_in(program: str) -> list[str]:
    """The keys of the dicts that are assigned to CALLS."""
    tree = ast.parse((launch.PROGRAMS / program).read_text())
    kinds = (ast.Assign, ast.AugAssign)
    assigned = [node for node in tree.body if isinstance(node, kinds)]
    return [
        key.value
        for node in assigned
        if "CALLS" in ast.unparse(node).split("=")[0] and isinstance(node.value, ast.Dict)
        for key in node.value.keys
    ]


@cache
def outcomes() -> dict[str, str]:
    return launch.outcomes(launch.run("estimated.py"))


@pytest.mark.parametrize("name", names_in("estimated.py"))
def test_one_rank_is_priced_as_it_runs(name):
    found = outcomes()
    assert found.get(name, found.get("", "did not run")) == ""


SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group({arguments})
assert dist.get_rank() == 0 and dist.get_world_size() == {ranks}
assert os.environ["LOCAL_RANK"] == "0" and dist.get_backend() == "{backend}"
assert int(os.environ["LOCAL_WORLD_SIZE"]) == {local}
mesh = dist.device_mesh.init_device_mesh("{device}", (2, {ranks} // 2), mesh_dim_names=("dp", "tp"))
x = torch.ones(1024, device="{device}")
dist.all_reduce(x)
dist.all_reduce(x, group=mesh.get_group("tp"))
model = torch.nn.Linear(64, 64).to("{device}")
fully_shard(model, mesh=mesh["dp"])
inner = torch.optim.AdamW(model.parameters())


class Several(torch.optim.Optimizer):  # as torchtitan has it
    def step(self):
        inner.step()


outer = Several(model.parameters(), {{}})
for _ in range(2):
    model(torch.ones(8, 64, device="{device}")).sum().backward()
    outer.step()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("ranks", "options", "arguments", "backend", "device"),
    [
        (4, ["--world", "4"], "", "undefined", "trn"),
        (64, ["--world", "64"], '"trn"', "trn", "trn"),
        (
            4,
            ["--world", "4", "--as-cuda"],
            '"nccl", device_id=torch.device("cuda:0")',
            "nccl",
            "cuda",
        ),
        (4, [], '"cpu:gloo,trn:trn"', "cpu:gloo,trn:trn", "trn"),  # told by the environment
    ],
    ids=["default", "trn", "cuda", "environment"],
)
def test_a_script_of_many_ranks_runs_as_one(tmp_path, ranks, options, arguments, backend, device):
    local = min(ranks, 16)  # cores of a server of trn3
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.format(ranks=ranks, arguments=arguments, backend=backend, device=device, local=local)
    )
    told = {} if options else {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "torch_trn_emu", "estimate", *options, "--json", str(script)],
        env={k: v for k, v in os.environ.items() if k != "RANK"} | told,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["counters"]["cc_op_count"] == 2 + 2 * 2  # of FSDP2 two in each step
    assert found["counters"]["cc_op_active_time"] > 5e-4  # six of 91 us and more
    assert [step["launches"] > 0 for step in found["steps"]] == [True, True]
