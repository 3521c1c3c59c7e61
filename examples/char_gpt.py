"""Train a character GPT on the Python standard library's own sources, then sample from it.

python examples/char_gpt.py --device trn --steps 800 --compile
"""

import argparse
import math
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Config:
    layers: int = 3
    width: int = 128
    heads: int = 4
    context: int = 64
    batch: int = 16
    steps: int = 800
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    seed: int = 0


class Corpus:
    """Text as character codes, the first nine tenths for training, the rest for validation."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        code = {character: i for i, character in enumerate(self.characters)}
        codes = torch.tensor([code[character] for character in text])
        split = len(codes) * 9 // 10
        self.training, self.validation = codes[:split], codes[split:]

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.characters.index(character) for character in text])

    def decode(self, codes: Tensor) -> str:
        return "".join(self.characters[i] for i in codes.tolist())


def standard_library_text(limit: int = 2_000_000) -> str:
    """The standard library's modules, in the order of their names, up to `limit` characters."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.py")):
        parts.append(path.read_bytes().decode("ascii", "ignore"))
        size += len(parts[-1])
        if size >= limit:
            break
    return "".join(parts)[:limit]


def batches(
    codes: Tensor, config: Config, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows of the text and the same windows one character later."""
    window = torch.arange(config.context)
    while True:
        starts = torch.randint(len(codes) - config.context, (config.batch, 1), generator=generator)
        yield codes[starts + window], codes[starts + window + 1]  # [batch, context]


class Rotary(nn.Module):
    """Rotates pairs of features by angles that grow with the position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: int, context: int) -> None:
        super().__init__()
        frequencies = 10000 ** -torch.linspace(0, 1, size // 2)
        angles = torch.outer(torch.arange(context), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., time, size]
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.rotary = Rotary(config.width // config.heads, config.context)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # [batch, time, width]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rotary(q), self.rotary(k)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, 4 * config.width)
        self.mlp_out = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.attention.out.weight)  # a block begins as the identity
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, config: Config) -> None:
        super().__init__()
        self.context = config.context
        self.token = nn.Embedding(vocabulary, config.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:  # [batch, time] -> [batch, time, vocabulary]
        return self.head(self.norm(self.blocks(self.token(codes))))

    @torch.no_grad()
    def sample(self, codes: Tensor, count: int, temperature: float = 0.8) -> Tensor:
        for _ in range(count):
            logits = self(codes[None, -self.context :])[0, -1] / temperature
            codes = torch.cat((codes, torch.multinomial(logits.softmax(-1), 1)))
        return codes


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def validation_loss(model: nn.Module, corpus: Corpus, config: Config, count: int = 16) -> float:
    model.eval()
    device = next(model.parameters()).device
    source = batches(corpus.validation, config, torch.Generator().manual_seed(config.seed))
    losses = [loss_of(model, *(t.to(device) for t in next(source))) for _ in range(count)]
    model.train()
    return torch.stack(losses).mean().item()


def make_optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def cosine_with_warmup(step: int, steps: int, floor: float = 0.01) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def simulated_shares() -> str:
    """How busy the emulated chip was so far, in simulated time."""
    run = torch.get_device_module("trn").counters()
    elapsed = (run["core_busy_time"] + run["core_idle_time"]) or 1.0
    busy, tensor = (
        100 * run[name] / elapsed for name in ("core_busy_time", "tensor_engine_active_time")
    )
    return f"simulated {elapsed:.2f} s: core {busy:.0f}% busy, Tensor engine {tensor:.0f}%"


def compiled_for(model: nn.Module, device: torch.device) -> nn.Module:
    backend = device.type if device.type in ("trn", "neuron") else "inductor"
    return cast(nn.Module, torch.compile(model, backend=backend))


def train(model: nn.Module, corpus: Corpus, config: Config, *, compiled: bool = False) -> float:
    """Train in place and return the validation loss."""
    device = next(model.parameters()).device
    run = compiled_for(model, device) if compiled else model
    optimizer = make_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_with_warmup(step, config.steps)
    )
    source = batches(corpus.training, config, torch.Generator().manual_seed(config.seed))
    progress = tqdm(range(1, config.steps + 1), desc="training", unit="step", mininterval=0.5)
    began = time.perf_counter()
    for step in progress:
        x, y = (t.to(device, non_blocking=True) for t in next(source))
        loss = loss_of(run, x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == config.steps:
            rate = step * config.batch * config.context / (time.perf_counter() - began)
            text = f"loss {loss.item():.3f}, {rate:,.0f} tokens/s"
            if device.type == "trn":
                text += f"; {simulated_shares()}"
            progress.set_postfix_str(text, refresh=step == config.steps)
    return validation_loss(model, corpus, config)


def build(device: str, corpus: Corpus, config: Config) -> GPT:
    torch.manual_seed(config.seed)
    return GPT(len(corpus.characters), config).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--sample", type=int, default=400, help="characters to sample at the end")
    parser.add_argument("--compile", action="store_true", help="compile the model")
    for name, value in vars(Config()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    device, sample = options.pop("device"), options.pop("sample")
    compiled = options.pop("compile")
    config = Config(**options)

    corpus = Corpus(standard_library_text())
    model = build(device, corpus, config)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters on {device}, {len(corpus.training):,} characters to train on")
    print(f"validation loss before training: {validation_loss(model, corpus, config):.3f}")
    loss = train(model, corpus, config, compiled=compiled)
    print(f"validation loss after training:  {loss:.3f}\n")

    model.eval()
    prompt = corpus.encode("def ").to(device)
    print(corpus.decode(model.sample(prompt, sample)))


if __name__ == "__main__":
    main()
