"""Small models of kinds that no library in the tests has, and what to call them with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MODELS"]

WIDTH, HEADS, STATES, EXPERTS = 64, 4, 8, 4


class Scan(nn.Module):
    """A selective state space, as Mamba's, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH)
        self.chosen, self.step = nn.Linear(WIDTH, 2 * STATES + 1), nn.Linear(1, WIDTH)
        self.decay, self.skip = nn.Parameter(torch.ones(WIDTH, STATES)), nn.Parameter(torch.ones(1))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.inner(self.norm(x)).chunk(2, -1)
        u = F.silu(self.conv(u.mT)[..., : x.shape[1]].mT)
        dt, b, c = self.chosen(u).split([1, STATES, STATES], -1)
        dt = F.softplus(self.step(dt))[..., None]
        kept, new = torch.exp(-dt * self.decay.exp()), dt * b[:, :, None] * u[..., None]
        state, outputs = torch.zeros_like(new[:, 0]), []
        for k in range(x.shape[1]):
            state = kept[:, k] * state + new[:, k]
            outputs.append((state * c[:, k, None]).sum(-1))
        return x + self.out((torch.stack(outputs, 1) + u * self.skip) * F.silu(gate))


class UNet(nn.Module):
    """One level of a denoiser."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()

        def block(n: int, m: int) -> nn.Module:
            return nn.Sequential(nn.GroupNorm(4, n), nn.SiLU(), nn.Conv2d(n, m, 3, padding=1))

        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.before, self.middle = block(channels, channels), block(2 * channels, 2 * channels)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.after, self.last = block(3 * channels, channels), block(channels, 3)
        self.time, self.up = nn.Linear(8, 2 * channels), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.before(x)
        low = self.down(x)
        when = self.time(torch.cat([time.sin(), time.cos()], -1))
        low = low + self.middle(low + when[:, :, None, None])
        return self.last(self.after(torch.cat([self.up(low), x], 1)))


class Conformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(),
                          nn.Dropout(0.1), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(2)
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.depth = nn.Conv1d(WIDTH, WIDTH, 15, padding=7, groups=WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feeds[0](x)
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.depth(F.glu(self.wide(self.norms[1](x).mT), 1))
        x = x + self.narrow(F.silu(self.batch_norm(y))).mT
        return self.norms[2](x + 0.5 * self.feeds[1](x))


class Experts(nn.Module):
    """Two of four experts for each token, and the loss that balances them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * WIDTH) / 8)
        self.down = nn.Parameter(torch.randn(EXPERTS, 2 * WIDTH, WIDTH) / 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.softmax(self.gate(x), -1)
        weights, chosen = scores.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        shares = torch.zeros_like(scores).scatter(1, chosen, weights)
        made = F.gelu(torch.einsum("td,edf->etf", x, self.up))
        made = torch.einsum("etf,efd,te->td", made, self.down, shares)
        load = F.one_hot(chosen, EXPERTS).float().mean((0, 1))
        return made, (load * scores.mean(0)).sum()


class Messages(nn.Module):
    """A layer of a graph attention network."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.score = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, 1)
        self.update = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor, source: Tensor, to: Tensor) -> Tensor:
        edges = torch.cat([x[source], x[to]], -1)
        score = F.leaky_relu(self.score(edges)).squeeze(-1)
        top = torch.full_like(x[:, 0], -1e9).scatter_reduce(0, to, score, "amax")
        weight = torch.exp(score - top[to])
        total = torch.zeros_like(x[:, 0]).index_add(0, to, weight)
        message = F.relu(self.message(edges)) * (weight / total[to])[:, None]
        return self.update(torch.zeros_like(x).index_add(0, to, message), x)


class Decoder(nn.Module):
    """A step of a decoder that keeps its keys and values and attends to an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query, self.memory = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, WIDTH))

    def forward(
        self, token: Tensor, keys: Tensor, values: Tensor, at: Tensor, encoded: Tensor
    ) -> tuple[Tensor, ...]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        x = self.table(token)
        q, k, v = map(heads, self.qkv(self.norms[0](x)).chunk(3, -1))
        keys, values = keys.index_copy(2, at, k), values.index_copy(2, at, v)
        seen = (torch.arange(keys.shape[2], device=x.device) <= at)[None, None, None]
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        k, v = map(heads, self.memory(encoded).chunk(2, -1))
        y = F.scaled_dot_product_attention(heads(self.query(self.norms[1](x))), k, v)
        x = x + y.transpose(1, 2).flatten(2)
        x = x + self.feed(self.norms[2](x))
        return F.log_softmax(x @ self.table.weight.T, -1), keys, values


def _numbers(below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape)


def _step() -> tuple[Tensor, ...]:
    kept = torch.randn(2, 2, HEADS, 12, WIDTH // HEADS)
    return _numbers(100, 2, 1), *kept, torch.tensor([3]), torch.randn(2, 7, WIDTH)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "scan": (Scan, lambda: (torch.randn(2, 6, WIDTH),)),
    "u-net": (UNet, lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 4))),
    "conformer": (Conformer, lambda: (torch.randn(2, 10, WIDTH),)),
    "experts": (Experts, lambda: (torch.randn(20, WIDTH),)),
    "messages": (Messages, lambda: (torch.randn(20, WIDTH), *_numbers(20, 2, 50))),
    "decoder": (Decoder, _step),
}
