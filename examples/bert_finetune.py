"""Fine-tune a small, randomly initialised BERT to tell which module a line of source is from.

python examples/bert_finetune.py --device trn --steps 150
"""

import argparse
import random
import re
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

MODULES = ("argparse", "mailbox", "socket", "turtle")
SPECIAL = ("[PAD]", "[CLS]", "[UNK]")
Example = tuple[list[str], int]


def examples() -> list[Example]:
    """(words of three neighbouring lines, index of their module), shuffled."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found: list[Example] = []
    for label, module in enumerate(MODULES):
        lines = (folder / f"{module}.py").read_text(encoding="utf-8").splitlines()
        chunks = ("\n".join(lines[i : i + 3]) for i in range(0, len(lines), 3))
        found += [(words, label) for chunk in chunks if (words := re.findall(r"\w+", chunk))]
    random.Random(0).shuffle(found)
    return found


class Tokenizer:
    """Words to numbers; what the training examples do not hold is [UNK]."""

    def __init__(self, training: list[Example]) -> None:
        words = sorted({word for words, _ in training for word in words})
        self.numbers = {word: number for number, word in enumerate((*SPECIAL, *words))}

    def encode(self, words: list[str], limit: int = 32) -> Tensor:
        unknown = self.numbers["[UNK]"]
        numbers = [self.numbers.get(word, unknown) for word in words[: limit - 1]]
        return torch.tensor([self.numbers["[CLS]"], *numbers])

    def collate(self, batch: list[Example]) -> dict[str, Tensor]:
        input_ids = pad_sequence([self.encode(words) for words, _ in batch], batch_first=True)
        labels = torch.tensor([label for _, label in batch])
        mask = (input_ids != self.numbers["[PAD]"]).long()
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def make_model(vocabulary: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        num_labels=len(MODULES),
    )
    return BertForSequenceClassification(config)


def endless(loader: DataLoader[Example]) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


@torch.no_grad()
def accuracy(model: BertForSequenceClassification, loader: DataLoader[Example]) -> float:
    model.eval()
    hits = []
    for batch in loader:
        labels = batch.pop("labels")
        logits = model(**{name: t.to(model.device) for name, t in batch.items()}).logits
        hits.append(logits.argmax(-1).cpu() == labels)
    model.train()
    return torch.cat(hits).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()

    torch.manual_seed(0)
    found = examples()
    split = len(found) * 4 // 5
    tokenizer = Tokenizer(found[:split])
    training = DataLoader(found[:split], 32, shuffle=True, collate_fn=tokenizer.collate)
    held_out = DataLoader(found[split:], 128, collate_fn=tokenizer.collate)

    model = make_model(len(tokenizer.numbers)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    schedule = get_linear_schedule_with_warmup(optimizer, options.steps // 10, options.steps)
    print(f"accuracy before training: {accuracy(model, held_out):.2%}")
    for step, batch in enumerate(islice(endless(training), options.steps), 1):
        loss = model(**{name: t.to(model.device) for name, t in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == options.steps:
            print(f"step {step}: loss {loss.item():.4f}")
    print(f"accuracy after training:  {accuracy(model, held_out):.2%}")


if __name__ == "__main__":
    main()
