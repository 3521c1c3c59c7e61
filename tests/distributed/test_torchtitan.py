"""torchtitan's llama3 debug model, unchanged, on two ranks: `pip install torchtitan==0.2.2` first.

The wheel has neither the tokenizer nor the texts of the debug model: small ones are made.
"""

import json
import re
import subprocess
import sys

import pytest

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("torchtitan")

pytestmark = pytest.mark.distributed_conformance

WORDS = [f"word{i}" for i in range(1000)]
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]
TRAIN = (
    "-m torch_trn_emu run --as-cuda -m torch.distributed.run --nproc-per-node 2 "
    "-m torchtitan.train --metrics.log_freq 1 --model.name llama3 --model.flavor debugmodel "
    "--model.hf_assets_path tokenizer "
    "--training.dataset c4_test --training.steps 4 --training.local_batch_size 2 "
    "--training.seq_len 128 --lr_scheduler.warmup_steps 1"
).split()
WAYS = {
    "fsdp": (),
    "tensor_parallel": ("--parallelism.tensor_parallel_degree", "2"),
    "context_parallel": ("--parallelism.context_parallel_degree", "2"),
    "compiled": ("--compile.enable",),
}


@pytest.fixture
def folder(tmp_path):
    """What torchtitan looks for where it is started."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=WORDS[0]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    made.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    texts = tmp_path / "tests" / "assets" / "c4_test"
    texts.mkdir(parents=True)
    lines = [{"text": " ".join(WORDS[k % 7 :: 31] * 4)} for k in range(64)]
    (texts / "data.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_the_debug_model_trains(folder, way):
    ended = subprocess.run(
        [sys.executable, *TRAIN, *WAYS[way]],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said[-4000:]
    losses = [float(loss) for loss in re.findall(r"step: +\d+ .*?loss: +([\d.]+)", said)]
    assert len(losses) == 2 * 4, said[-4000:]  # each rank says it
    assert losses[-1] < losses[0]
    assert "Training completed" in said
