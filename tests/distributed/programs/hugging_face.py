"""Hugging Face Trainer as told: "ddp", "fsdp1" or "fsdp2". Prints device and loss of each rank."""

import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

way = sys.argv[1]
set_seed(0)
config = GPT2Config(vocab_size=16, n_positions=16, n_embd=32, n_layer=2, n_head=2)
tokens = torch.randint(16, (64, 8))
data = [{"input_ids": row, "labels": row} for row in tokens]
sharding = {}
if way != "ddp":
    plan = {"transformer_layer_cls_to_wrap": ["GPT2Block"], "fsdp_version": int(way[-1])}
    sharding = {"fsdp": "full_shard auto_wrap", "fsdp_config": plan}
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=3, per_device_train_batch_size=8, learning_rate=1e-2, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, **sharding,
    )  # fmt: skip
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data)
    found = trainer.train()
kinds = {type(p).__name__ for p in trainer.model_wrapped.parameters()}
print(f"rank {arguments.process_index} of {arguments.world_size} on {arguments.device}: "
      f"{found.training_loss:.4f} {sorted(kinds)} {type(trainer.model_wrapped).__name__}",
      flush=True)  # fmt: skip
