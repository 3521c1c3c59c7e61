"""Layers of the measured models as one of their tensor-parallel ranks runs them, for prices.

Sizes are those of a whole model; `ranks` divides heads and hidden features. What the ranks exchange
is not in here: `workloads.py` adds it. Layers that two published models share are one class.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DecodeLayer", "DoubleBlock", "Head", "SingleBlock", "WanBlock", "rotated"]

DIM = 128  # of a head of the diffusion transformers


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on halves."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def _heads(x: Tensor, heads: int, dim: int) -> Tensor:
    return x.unflatten(-1, (heads, dim)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Mlp(nn.Module):
    """Two products with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # type: ignore[no-any-return]


class Stream(nn.Module):
    """What a stream of tokens (image or text) has of its own in a block of two streams."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * heads * DIM)
        self.q_norm, self.k_norm = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.out, self.mlp = nn.Linear(heads * DIM, width), Mlp(width, hidden)

    def operands(self, x: Tensor, mods: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(_modulated(x, mods[0], mods[1])).chunk(3, -1)
        q, k, v = (_heads(t, self.heads, DIM) for t in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v

    def after(self, x: Tensor, attended: Tensor, mods: tuple[Tensor, ...]) -> Tensor:
        x = x + mods[2] * self.out(attended)
        return x + mods[5] * self.mlp(_modulated(x, mods[3], mods[4]))


class DoubleBlock(nn.Module):
    """A block whose image and text tokens have weights of their own and attend to each other."""

    def __init__(self, width: int, ranks: int) -> None:
        super().__init__()
        heads, hidden = width // DIM // ranks, 4 * width // ranks
        self.image, self.text = Stream(width, heads, hidden), Stream(width, heads, hidden)

    def forward(
        self, x: Tensor, text: Tensor, time: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams = (self.image, self.text)
        mods = [s.modulation(F.silu(time)).unsqueeze(1).chunk(6, -1) for s in streams]
        parts = [s.operands(t, m) for s, t, m in zip(streams, (x, text), mods, strict=True)]
        q, k, v = (torch.cat([b, a], 2) for a, b in zip(*parts, strict=True))
        made = _merged(
            F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        )
        words = text.shape[1]
        return (
            self.image.after(x, made[:, words:], mods[0]),
            self.text.after(text, made[:, :words], mods[1]),
        )


class SingleBlock(nn.Module):
    """A block of one stream: attention and MLP side by side."""

    def __init__(self, width: int, ranks: int) -> None:
        super().__init__()
        self.heads, self.hidden = width // DIM // ranks, 4 * width // ranks
        inner = self.heads * DIM
        self.modulation = nn.Linear(width, 3 * width)
        self.into = nn.Linear(width, 3 * inner + self.hidden)
        self.q_norm, self.k_norm = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.out = nn.Linear(inner + self.hidden, width)

    def forward(self, x: Tensor, time: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(time)).unsqueeze(1).chunk(3, -1)
        inner = self.heads * DIM
        q, k, v, up = self.into(_modulated(x, shift, scale)).split(
            [inner, inner, inner, self.hidden], -1
        )
        q, k, v = (_heads(t, self.heads, DIM) for t in (q, k, v))
        q, k = rotated(self.q_norm(q), cos, sin), rotated(self.k_norm(k), cos, sin)
        made = _merged(F.scaled_dot_product_attention(q, k, v))
        return x + gate * self.out(torch.cat([made, F.gelu(up, approximate="tanh")], -1))  # type: ignore[no-any-return]


class WanBlock(nn.Module):
    """A block of Wan 2.1: attention, attention to the text, MLP."""

    def __init__(self, width: int, hidden: int, ranks: int) -> None:
        super().__init__()
        self.heads = width // DIM // ranks
        inner = self.heads * DIM
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.text_q, self.text_k, self.text_v = (nn.Linear(width, inner) for _ in range(3))
        self.text_out = nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.RMSNorm(inner) for _ in range(4))
        self.cross_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden // ranks)

    def forward(self, x: Tensor, text: Tensor, time: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        mods = time.chunk(6, 1)
        y = _modulated(x, mods[0], mods[1])
        q, k = self.norms[0](self.q(y)), self.norms[1](self.k(y))
        q, k, v = (_heads(t, self.heads, DIM) for t in (q, k, self.v(y)))
        made = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        x = x + mods[2] * self.out(_merged(made))
        q = self.norms[2](self.text_q(self.cross_norm(x)))
        k = self.norms[3](self.text_k(text))
        q, k, v = (_heads(t, self.heads, DIM) for t in (q, k, self.text_v(text)))
        x = x + self.text_out(_merged(F.scaled_dot_product_attention(q, k, v)))
        return x + mods[5] * self.mlp(_modulated(x, mods[3], mods[4]))


class Experts(nn.Module):
    """The chosen experts of each token, gathered: gate and up, SiLU, down."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, places = self.router(tokens).float().softmax(-1).topk(self.chosen, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        where = places.flatten()
        repeated = tokens.repeat_interleave(self.chosen, 0).unsqueeze(1)
        gate, up = torch.bmm(repeated, self.up[where]).chunk(2, -1)
        made = torch.bmm(F.silu(gate) * up, self.down[where]).view(*places.shape, -1)
        return (made * weights.unsqueeze(-1)).sum(1).view_as(x)


class Gated(nn.Module):
    """The MLP of Llama."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class DecodeLayer(nn.Module):
    """One new token of each sequence against this layer's cache: attention, then an MLP or experts.

    heads, shared  query heads and heads of keys and values of one rank
    mlp            the second half; None leaves it out
    kept           sequences, and positions of the cache
    """

    def __init__(
        self, width: int, heads: int, shared: int, dim: int, mlp: nn.Module | None, norms: bool,
        kept: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.shared, self.dim = heads, shared, dim
        self.norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * shared) * dim, bias=False)
        self.q_norm, self.k_norm = (nn.RMSNorm(dim) if norms else nn.Identity() for _ in range(2))
        self.out, self.mlp = nn.Linear(heads * dim, width, bias=False), mlp
        batch, positions = kept
        self.keys, self.values = (
            nn.Buffer(torch.empty(batch, shared, positions, dim)) for _ in range(2)
        )

    def forward(self, x: Tensor, at: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        sizes = [n * self.dim for n in (self.heads, self.shared, self.shared)]
        q, k, v = self.qkv(self.norm(x)).split(sizes, -1)
        q, k, v = (_heads(t, t.shape[-1] // self.dim, self.dim) for t in (q, k, v))
        q, k = rotated(self.q_norm(q), cos, sin), rotated(self.k_norm(k), cos, sin)
        keys, values = self.keys.index_copy_(2, at, k), self.values.index_copy_(2, at, v)
        made = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.out(_merged(made))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Head(nn.Module):
    """The last norm and one rank's share of the vocabulary."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.norm, self.words = nn.RMSNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(self.norm(x)).argmax(-1)  # type: ignore[no-any-return]
