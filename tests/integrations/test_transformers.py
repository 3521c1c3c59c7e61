"""Trainer in bfloat16, by each name that the device can have."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, tempfile
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
model = BertForSequenceClassification(config)
rows = [{"input_ids": torch.randint(64, (16,)), "labels": torch.tensor(i % 2)} for i in range(16)]
seen = set()
model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(
    lambda module, inputs, output: seen.add((str(output.dtype), output.device.type))
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, bf16=True, max_steps=2, per_device_train_batch_size=8, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )
    trained = Trainer(model=model, args=arguments, train_dataset=rows).train()
print(json.dumps([sorted(seen), trained.training_loss]))
"""


@pytest.mark.parametrize(
    ("option", "device"), [((), "trn"), (("--as-cuda",), "cuda"), (("--as-neuron",), "neuron")]
)
def test_trainer_in_bfloat16(tmp_path, option, device):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch_trn_emu", "run", *option, str(script)]
    # Trainer takes all GPUs that it sees. A process that was given another name came before.
    environment = os.environ | {"NEURON_RT_NUM_CORES": "1", "ACCELERATE_TORCH_DEVICE": "trn"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    seen, loss = json.loads(done.stdout.splitlines()[-1])
    assert seen == [["torch.bfloat16", device]]
    assert 0 < loss < 2
