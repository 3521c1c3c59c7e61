"""One new token of a decoder takes about as long as its weights take to be read."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_trn_emu import estimate, precision
from torch_trn_emu.chip import get_chip

WIDTH, HEADS, SHARED, DIM, HIDDEN, CACHE = 2048, 32, 8, 64, 8192, 128


class Layer(nn.Module):
    """A layer of Llama 3.2 1B, with a cache of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * SHARED) * DIM, bias=False)
        self.out = nn.Linear(HEADS * DIM, WIDTH, bias=False)
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        sizes = [n * DIM for n in (HEADS, SHARED, SHARED)]
        split = self.qkv(self.norm(x)).split(sizes, -1)
        q, k, v = (t.unflatten(-1, (-1, DIM)).transpose(1, 2) for t in split)
        keys, values = keys.index_copy_(2, at, k), values.index_copy_(2, at, v)
        made = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.out(made.transpose(1, 2).flatten(2))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))

    def forward(self, x: Tensor, caches: list[tuple[Tensor, Tensor]], at: Tensor) -> Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, *cache, at)
        return x


def _meta(layers: int) -> Layers:
    with torch.device("meta"):
        return Layers(layers).to(torch.bfloat16).eval()


def _us(layers: int) -> float:
    model = _meta(layers)
    with torch.device("meta"):
        shape = (1, SHARED, CACHE, DIM)
        caches = [
            tuple(torch.empty(shape, dtype=torch.bfloat16) for _ in range(2)) for _ in range(layers)
        ]
        x, at = torch.empty(1, 1, WIDTH, dtype=torch.bfloat16), torch.empty(1, dtype=torch.int64)
    torch._dynamo.reset()
    with torch.no_grad(), precision("bf16"):
        return estimate(model, x, caches, at, chip="trn3", lnc=2, mode="compile").device_us


def test_a_layer_takes_little_more_than_its_weights() -> None:
    chip = get_chip("trn3")
    weights = 2 * sum(p.numel() for p in _meta(1).parameters())
    limit_us = 1e6 * weights / (2 * chip.hbm_bytes_per_s_per_core())
    layer_us = (_us(4) - _us(2)) / 2
    assert limit_us < layer_us < 1.4 * limit_us
