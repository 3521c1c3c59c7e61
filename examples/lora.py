"""PEFT: adapt a frozen GPT-2 with LoRA, store the adapter, merge it.

python examples/lora.py --device trn --steps 30
"""

import argparse
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel


def make_base() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    lora = LoraConfig(r=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    model = get_peft_model(make_base().to(options.device), lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in trained):,} parameters of the adapter")
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    tokens = torch.arange(32, device=options.device).repeat(8, 1)  # to be learnt by heart
    for step in range(options.steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss.item():.4f}")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # safetensors knows no device of this name; a number is the current accelerator's.
        stored = load_file(f"{folder}/adapter_model.safetensors", device=0)
        print(f"{len(stored)} tensors stored, loaded to {next(iter(stored.values())).device}")
        loaded = PeftModel.from_pretrained(make_base().to(options.device), folder)
    merged = loaded.merge_and_unload().eval()
    with torch.no_grad():
        print(f"merged: loss {merged(input_ids=tokens, labels=tokens).loss.item():.4f}")


if __name__ == "__main__":
    main()
