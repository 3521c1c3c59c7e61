"""Hugging Face: train a small GPT-2 with Trainer, store it as safetensors, generate with a cache.

python examples/hf_trainer.py --steps 60
"""

import argparse
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

DIGITS, EQUALS, END = 10, 10, 11  # tokens: 0 to 9, then these


class Reversals(Dataset[dict[str, Tensor]]):
    """A few digits, an equals sign, and the digits again from the back."""

    def __init__(self, count: int, length: int) -> None:
        self.digits = torch.randint(DIGITS, (count, length))

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        digits = self.digits[index]
        tokens = torch.cat((digits, torch.tensor([EQUALS]), digits.flip(0), torch.tensor([END])))
        labels = tokens.masked_fill(torch.arange(len(tokens)) <= len(digits), -100)
        return {"input_ids": tokens, "labels": labels}


def make_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=END + 1,
            n_positions=32,
            n_embd=64,
            n_layer=2,
            n_head=4,
            bos_token_id=EQUALS,
            eos_token_id=END,
            pad_token_id=END,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--length", type=int, default=6)
    options = parser.parse_args()

    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            logging_steps=max(1, options.steps // 4),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        data = Reversals(4096, options.length)
        trainer = Trainer(make_model(), arguments, train_dataset=data)
        print(f"training on {arguments.device}")
        trainer.train()
        trainer.save_model(folder)  # model.safetensors
        model = GPT2LMHeadModel.from_pretrained(folder, device_map=arguments.device).eval()

    tokens = data[0]["input_ids"][: options.length + 1].to(model.device)
    output = model.generate(
        tokens[None],
        attention_mask=torch.ones_like(tokens[None]),
        max_new_tokens=options.length + 1,
        do_sample=False,
        use_cache=True,
    )
    print(f"{tokens[:-1].tolist()} reversed: {output[0, len(tokens) :].tolist()}")


if __name__ == "__main__":
    main()
