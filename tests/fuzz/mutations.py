"""Ways to change a sample: layouts, special values, formats, and arguments that are wrong.

A mutation takes nested arguments and a random generator, and gives changed arguments, or None where
nothing can be changed. To add one, add a row to MUTATIONS.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

Leaf = Callable[[torch.Tensor, random.Random], torch.Tensor | None]

SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0)
FORMATS = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.complex64,
)
ODD_NUMBERS = (-100, -3, -2, -1, 0, 1, 2, 3, 100)


def kept(made: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A leaf that requires a gradient where `like` does."""
    differentiable = made.is_floating_point() or made.is_complex()
    return made.detach().requires_grad_(like.requires_grad and differentiable)


def transposed(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    if t.dim() < 2:
        return None
    a, b = rng.sample(range(t.dim()), 2)
    return t.transpose(a, b).contiguous().transpose(a, b)


def every_second(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    if t.dim() == 0:
        return None
    axis = rng.randrange(t.dim())
    return torch.stack((t, t), axis + 1).flatten(axis, axis + 1).unfold(axis, 1, 2).squeeze(-1)


def offset(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    behind = rng.choice((1, 3, 16))
    room = torch.zeros(behind + t.numel(), dtype=t.dtype)
    return room[behind:].copy_(t.reshape(-1)).view(t.shape)


def expanded(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    axes = [axis for axis in range(t.dim()) if t.shape[axis] > 1]
    if not axes:
        return None
    axis = rng.choice(axes)
    return t.narrow(axis, 0, 1).clone().expand(t.shape)


def negative_bit(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    if t.dtype == torch.bool or not t.dtype.is_signed:
        return None
    return torch._neg_view(torch.neg(t))


def conjugate_bit(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    return t.conj().resolve_conj().conj() if t.is_complex() else None


def channels_last(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.clone(memory_format=formats[t.dim()]) if t.dim() in formats else None


def empty(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    return t.narrow(rng.randrange(t.dim()), 0, 0).clone() if t.dim() > 0 else None


def special_values(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    if not (t.is_floating_point() or t.is_complex()) or t.numel() == 0:
        return None
    limits = torch.finfo(t.dtype)
    values = (*SPECIAL, limits.max, limits.min, limits.tiny, limits.smallest_normal / 4)
    made = t.clone(memory_format=torch.contiguous_format)
    flat = made.view(-1)
    for _ in range(rng.randint(1, 4)):
        flat[rng.randrange(t.numel())] = rng.choice(values)
    return made


def other_format(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    made = rng.choice(FORMATS)
    return t.to(made) if made != t.dtype else None


def other_rank(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    if t.dim() == 0 or rng.random() < 0.5:
        return t.unsqueeze(rng.randint(0, t.dim()))
    axis = rng.randrange(t.dim())
    return t.select(axis, 0).clone() if t.shape[axis] > 0 else None


def other_size(t: torch.Tensor, rng: random.Random) -> torch.Tensor | None:
    axes = [axis for axis in range(t.dim()) if t.shape[axis] > 0]
    if not axes:
        return None
    axis = rng.choice(axes)
    if t.shape[axis] > 1 and rng.random() < 0.5:
        return t.narrow(axis, 0, t.shape[axis] - 1).clone()
    return torch.cat((t, t.narrow(axis, 0, 1)), axis)


def on_one(change: Leaf) -> Callable[[Any, random.Random], Any]:
    """Changes one tensor of the arguments."""

    def mutate(tree: Any, rng: random.Random) -> Any:
        leaves, spec = pytree.tree_flatten(tree)
        at = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor)
            and leaf.layout == torch.strided
            and not leaf.is_nested
            and not leaf.is_quantized
        ]
        rng.shuffle(at)
        for i in at:
            made = change(leaves[i].detach(), rng)
            if made is None:
                continue
            leaves[i] = kept(made, leaves[i])
            return pytree.tree_unflatten(leaves, spec)
        return None

    return mutate


def other_argument(tree: Any, rng: random.Random) -> Any:
    """Another value of a number, flag or text, or nothing in the place of one argument.

    Devices stay: each place of a trial puts its own there.
    """
    leaves, spec = pytree.tree_flatten(tree)
    devices = {i for i, leaf in enumerate(leaves) if str(leaf) in ("cpu", "trn", "trn:0")}
    at = [i for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)]
    at = [i for i in at if i not in devices]
    if not at or rng.random() < 0.15:
        at = [i for i in range(1, len(leaves)) if i not in devices]
        if not at:
            return None
        leaves[rng.choice(at)] = None
        return pytree.tree_unflatten(leaves, spec)
    i = rng.choice(at)
    old = leaves[i]
    if isinstance(old, bool):
        leaves[i] = not old
    elif isinstance(old, int):
        leaves[i] = rng.choice((*ODD_NUMBERS, old + 1, old - 1, -old))
    elif isinstance(old, float):
        leaves[i] = rng.choice((*SPECIAL, *ODD_NUMBERS, -old, 0.5))
    elif isinstance(old, str):
        leaves[i] = rng.choice(("", "none", "mean", "sum", "nonsense"))
    elif isinstance(old, torch.dtype):
        leaves[i] = rng.choice(FORMATS)
    else:
        leaves[i] = rng.choice((None, 0, -1, 0.5))
    return pytree.tree_unflatten(leaves, spec)


MUTATIONS: dict[str, Callable[[Any, random.Random], Any]] = {
    "transposed": on_one(transposed),
    "every second": on_one(every_second),
    "offset": on_one(offset),
    "expanded": on_one(expanded),
    "negative bit": on_one(negative_bit),
    "conjugate bit": on_one(conjugate_bit),
    "channels last": on_one(channels_last),
    "empty": on_one(empty),
    "special values": on_one(special_values),
    "other format": on_one(other_format),
    "other rank": on_one(other_rank),
    "other size": on_one(other_size),
    "other argument": other_argument,
}
