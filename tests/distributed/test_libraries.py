"""Libraries and other names for the device, under torchrun as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch import PROGRAMS

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]

pytestmark = pytest.mark.distributed_conformance


def output(*command: str) -> str:
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_accelerate_trains_on_two_ranks():
    said = output(*TORCHRUN, str(EXAMPLES / "accelerate_loop.py"), "--epochs", "1")
    # print of accelerate speaks on the first rank alone, if it knows of the others.
    assert said.count("training on trn:0") == 1
    assert said.count("epoch 1: loss") == 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_shards_and_resumes(precision):
    said = output(*TORCHRUN, str(PROGRAMS / "accelerate_fsdp2.py"), precision)
    for rank in range(2):
        assert f"rank {rank} of 2 on trn:{rank}: ['DTensor'] resumed" in said


def test_the_trainer_of_hugging_face_loses_alike_however_it_is_parallel():
    wrappers = {"ddp": "DistributedDataParallel", "fsdp1": "FullyShardedDataParallel",
                "fsdp2": "FSDPGPT2LMHeadModel"}  # fmt: skip
    losses = set()
    for way, wrapper in wrappers.items():
        said = output(*TORCHRUN, str(PROGRAMS / "hugging_face.py"), way)
        found = re.findall(r"rank (\d) of 2 on trn:(\d): (\S+) .* (\w+)$", said, re.M)
        assert sorted(f[:2] for f in found) == [("0", "0"), ("1", "1")], said
        assert {f[3] for f in found} == {wrapper}
        losses |= {f[2] for f in found}
    assert len(losses) == 1, losses


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_lightning_starts_its_own_ranks(strategy):
    said = output(str(PROGRAMS / "lightning_ranks.py"), strategy)
    assert "rank 0 of 2 on trn:0" in said
    assert "rank 1 of 2 on trn:1" in said


@pytest.mark.parametrize(
    ("alias", "backend"), [("neuron", "neuron"), ("neuron", "xla"), ("cuda", "nccl")]
)
def test_scripts_of_other_names(alias, backend):
    said = output("-m", "torch_trn_emu", "run", f"--as-{alias}", *TORCHRUN,
                  str(PROGRAMS / "names.py"), alias, backend)  # fmt: skip
    assert said.count(f"done {backend}") == 2
