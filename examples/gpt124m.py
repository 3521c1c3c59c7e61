"""Train a GPT of 124 million parameters, GPT-2's smallest shape, on random tokens for some steps.

python examples/gpt124m.py --steps 20

Prints the loss and the tokens a second. `--tiny` trains a model of a hundredth of the size.
"""

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int = 12
    width: int = 768
    heads: int = 12
    context: int = 1024
    vocabulary: int = 50257


TINY = Shape(layers=2, width=128, heads=4, context=64, vocabulary=1000)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * shape.width, shape.width),
        )

    def forward(self, x: Tensor) -> Tensor:  # [batch, time, width]
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.token.weight
        for weight in (self.token.weight, self.position.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:  # [batch, time] -> [batch, time, vocabulary]
        position = torch.arange(codes.shape[1], device=codes.device)
        return self.head(self.norm(self.blocks(self.token(codes) + self.position(position))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="trn")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = TINY if options.tiny else Shape()
    model = GPT(shape).to(options.device, getattr(torch, options.dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters on {options.device}")

    # One batch again and again: the loss falls if the gradients are right.
    size = (options.batch, shape.context + 1)
    codes = torch.randint(shape.vocabulary, size).to(options.device)
    x, y = codes[:, :-1], codes[:, 1:]
    for step in range(1, options.steps + 1):
        began = time.perf_counter()
        loss = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()  # waits for the device
        rate = y.numel() / (time.perf_counter() - began)
        print(f"step {step}: loss {value:.4f}, {rate:,.0f} tokens/s")


if __name__ == "__main__":
    main()
