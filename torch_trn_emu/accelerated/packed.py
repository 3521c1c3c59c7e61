"""Weights of 4 bits in the layout of CUDA's Tensor Cores, and weights of fewer bits than the input.

A packed weight has CUDA's bits, so that checkpoints move between devices. Checked on torch 2.13.0.
"""

import torch
from torch import Tensor

from .products import LINEAR, multiply

__all__ = ["convert_weight_to_int4pack", "mixed_dtypes_linear", "weight_int4pack_mm"]

TILE_N, TILE_K = 8, 16
ZERO = 8  # the code of a weight of zero


def _places(inner_k_tiles: int) -> Tensor:
    """Where the 8 weights of an int32 lie in a tile: [lanes, int32s, weights] -> (n, k) as n K + k.

    Lane t of 32 holds row t / 4; its weights are neighbours along K, 8 apart, of two tiles.
    """
    lane = torch.arange(32)
    first = (lane % 4) * 2
    steps = torch.tensor([0, 1, 8, 9, 16, 17, 24, 25])
    pair = torch.arange(inner_k_tiles // 2) * 2 * TILE_K
    k = first[:, None, None] + pair[None, :, None] + steps
    return (lane // 4)[:, None, None] * (inner_k_tiles * TILE_K) + k


_BITS = (0, 16, 4, 20, 8, 24, 12, 28)  # the shift of each of the 8 weights in its int32


def convert_weight_to_int4pack(self: Tensor, innerKTiles: int) -> Tensor:
    """uint8 [n, k / 2], the even element in the high nibble -> int32 [n / 8, ., 32, .].

    The result has one dimension for tiles of 8 rows, one for `innerKTiles` tiles of 16 along K, the
    32 lanes, and the int32s of a lane.
    """
    if self.dim() != 2 or self.dtype != torch.uint8:
        raise ValueError(f"weights of 4 bits are a uint8 matrix, got {self.dim()}D {self.dtype}")
    if innerKTiles not in (2, 4, 8):
        raise ValueError(f"innerKTiles is 2, 4 or 8, got {innerKTiles}")
    n, k = self.shape[0], self.shape[1] * 2
    if n % TILE_N or k % (innerKTiles * TILE_K):
        raise ValueError(
            f"weights of 4 bits have multiples of {TILE_N} rows and {innerKTiles * TILE_K} "
            f"columns, got {n} and {k}"
        )
    codes = torch.stack([self >> 4, self & 15], dim=-1).reshape(n, k).to(torch.int64)
    depth = innerKTiles * TILE_K
    tiles = codes.reshape(n // TILE_N, TILE_N, k // depth, depth).transpose(1, 2)
    chosen = tiles.reshape(n // TILE_N, k // depth, -1)[..., _places(innerKTiles)]
    packed = (chosen << torch.tensor(_BITS)).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def _unpacked(packed: Tensor) -> Tensor:
    """The codes [n, k] of a packed weight."""
    tiles_n, tiles_k, _, words = packed.shape
    inner = words * 2
    codes = (packed.to(torch.int64)[..., None] >> torch.tensor(_BITS)) & 15
    flat = torch.empty(tiles_n, tiles_k, TILE_N * inner * TILE_K, dtype=torch.int64)
    flat[..., _places(inner).reshape(-1)] = codes.reshape(tiles_n, tiles_k, -1)
    tiles = flat.reshape(tiles_n, tiles_k, TILE_N, inner * TILE_K).transpose(1, 2)
    return tiles.reshape(tiles_n * TILE_N, tiles_k * inner * TILE_K)


def weight_int4pack_mm(
    self: Tensor, mat2: Tensor, qGroupSize: int, qScaleAndZeros: Tensor
) -> Tensor:
    """The product of self [m, k] and a packed weight, whose values are (code - 8) scale + zero.

    qScaleAndZeros  [k / qGroupSize, n, 2]

    Values are rounded to bfloat16.
    """
    if self.dtype != torch.bfloat16 or qScaleAndZeros.dtype != torch.bfloat16:
        raise ValueError(
            f"activations and scales are bfloat16, got {self.dtype} and {qScaleAndZeros.dtype}"
        )
    if mat2.dtype != torch.int32 or mat2.dim() != 4:
        raise ValueError("the weight is what _convert_weight_to_int4pack gave: int32, 4D")
    if qGroupSize not in (32, 64, 128, 256):
        raise ValueError(f"qGroupSize is 32, 64, 128 or 256, got {qGroupSize}")
    codes = _unpacked(mat2)
    n, k = codes.shape
    if self.dim() != 2 or self.shape[1] != k:
        raise ValueError(f"activations have {k} columns, got {tuple(self.shape)}")
    if qScaleAndZeros.shape != (k // qGroupSize, n, 2):
        raise ValueError(
            f"scales and zeros have shape {(k // qGroupSize, n, 2)}, got "
            f"{tuple(qScaleAndZeros.shape)}"
        )
    spread = qScaleAndZeros.float().repeat_interleave(qGroupSize, dim=0)  # [k, n, 2]
    weight = (codes.t() - ZERO).float() * spread[..., 0] + spread[..., 1]
    return multiply(self, weight.to(torch.bfloat16), torch.bfloat16, LINEAR)


def mixed_dtypes_linear(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """The product of input [*, k] and an int8 weight [k, n] with a scale for each column."""
    if weight.dtype != torch.int8:
        raise ValueError(
            f"weights of 8 bits are int8 [k, n], got {weight.dtype}: CUDA's layout of weights of "
            "4 bits is its own; use _convert_weight_to_int4pack"
        )
    wide = (weight.float() * scale.float()).to(input.dtype)
    made = multiply(input.reshape(-1, input.shape[-1]), wide, torch.float32, LINEAR)
    if bias is not None:
        made = made + bias.float()
    if activation not in (None, "none", "relu", "silu"):
        raise ValueError(f"activation is none, relu or silu, got {activation!r}")
    if activation in ("relu", "silu"):
        made = getattr(torch.nn.functional, activation)(made)
    return made.to(input.dtype).reshape(*input.shape[:-1], weight.shape[1])
