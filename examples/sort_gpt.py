"""A GPT learns to sort digits, as small teaching codes do it: a Trainer with callbacks and AMP.

python examples/sort_gpt.py --device trn --iterations 300
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler


class Sorting(Dataset[tuple[Tensor, Tensor]]):
    """Inputs and targets of next-token prediction: digits, then the same digits sorted."""

    def __init__(self, size: int, length: int, digits: int) -> None:
        self.problems = torch.randint(digits, (size, length))
        self.length = length

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        problem = self.problems[index]
        sequence = torch.cat((problem, problem.sort().values))
        target = sequence[1:].clone()
        target[: self.length - 1] = -1  # not to be predicted
        return sequence[:-1], target


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # [batch, time, width]
        q, k, v = self.attention(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    def __init__(self, digits: int, context: int, width: int = 48, heads: int = 3) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(digits, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(3))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, digits, bias=False))

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.token(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int) -> Tensor:
        for _ in range(count):
            logits, _ = self(tokens)
            tokens = torch.cat((tokens, logits[:, -1:].argmax(-1)), dim=1)
        return tokens


@dataclass
class Settings:
    device: str
    iterations: int
    batch: int = 64
    learning_rate: float = 2e-3
    clip: float = 1.0


class Trainer:
    def __init__(self, settings: Settings, model: GPT, data: Sorting) -> None:
        self.settings, self.data = settings, data
        self.model = model.to(settings.device)
        self.callbacks: dict[str, list[Callable[[Trainer], None]]] = defaultdict(list)
        self.iteration, self.loss = 0, torch.zeros(())

    def run(self) -> None:
        s = self.settings
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=s.learning_rate)
        sampler = RandomSampler(self.data, replacement=True, num_samples=s.iterations * s.batch)
        loader = DataLoader(self.data, s.batch, sampler=sampler, pin_memory=True)
        for self.iteration, batch in enumerate(loader, 1):
            x, y = (t.to(s.device, non_blocking=True) for t in batch)
            with torch.autocast(s.device, dtype=torch.bfloat16):
                _, self.loss = self.model(x, y)
            self.model.zero_grad(set_to_none=True)
            self.loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
            optimizer.step()
            for callback in self.callbacks["batch_end"]:
                callback(self)


def report(trainer: Trainer) -> None:
    if trainer.iteration % 100 == 0 or trainer.iteration == trainer.settings.iterations:
        print(f"iteration {trainer.iteration}: loss {trainer.loss.item():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--iterations", type=int, default=300)
    options = parser.parse_args()

    torch.manual_seed(0)
    length, digits = 6, 3
    data = Sorting(10_000, length, digits)
    trainer = Trainer(Settings(**vars(options)), GPT(digits, 2 * length), data)
    trainer.callbacks["batch_end"].append(report)
    trainer.run()

    problems = torch.randint(digits, (100, length), device=options.device)
    solved = trainer.model.eval().generate(problems, length)[:, length:]
    right = (solved == problems.sort(dim=1).values).all(dim=1).sum()
    print(f"sorted {right.item()} of 100")


if __name__ == "__main__":
    main()
