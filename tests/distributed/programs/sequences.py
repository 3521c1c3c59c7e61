"""Calls of all kinds and sizes in a drawn order, by ranks that are now and then late.

A transport that reuses its memory from call to call must not do so before the last reader is done.
"""

import random
import time

import torch
import torch.distributed as dist
from checking import DEVICE, RANK, WORLD, run_checks, same

ALL = range(WORLD)
# Around the bounds of pieces, of what each rank reduces alone, and of many pieces.
SIZES = [0, 1, 3, 17, 1000, 8191, 8193, 32769, 65536, 100_003, 262_145, 1_000_001]
CALLS = 120
NAP_S = 0.01


def numbers(rank: int, elements: int, call: int) -> torch.Tensor:
    """Small enough for sums of them to be exact in every dtype used here."""
    return ((torch.arange(elements) * 7 + rank * 13 + call) % 31).float()


def all_reduce(elements: int, call: int, _draw: random.Random) -> None:
    x = numbers(RANK, elements, call).to(DEVICE)
    dist.all_reduce(x)
    same(x, sum(numbers(r, elements, call) for r in ALL))


def all_reduce_of_bytes(elements: int, call: int, _draw: random.Random) -> None:
    x = numbers(RANK, elements, call).to(torch.uint8).to(DEVICE)
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    expected = torch.stack([numbers(r, elements, call) for r in ALL]).amax(0)
    same(x, expected.to(torch.uint8))


def all_gather(elements: int, call: int, draw: random.Random) -> None:
    each = elements // WORLD
    whole = torch.empty(each * WORLD, device=DEVICE)
    mine = numbers(RANK, each, call).to(DEVICE)
    if draw.random() < 0.5:  # in place
        part = whole[RANK * each : (RANK + 1) * each]
        mine = part.copy_(mine)
    dist.all_gather_single(whole, mine)
    same(whole, torch.cat([numbers(r, each, call) for r in ALL]))


def reduce_scatter(elements: int, call: int, draw: random.Random) -> None:
    each = elements // WORLD
    part = slice(RANK * each, (RANK + 1) * each)
    x = numbers(RANK, each * WORLD, call).to(DEVICE)
    mine = x[part] if draw.random() < 0.5 else torch.empty(each, device=DEVICE)
    dist.reduce_scatter_single(mine, x)
    same(mine, sum(numbers(r, each * WORLD, call) for r in ALL)[part])


def all_to_all(_elements: int, call: int, draw: random.Random) -> None:
    sent = [[draw.choice([0, 1, 5, 3000, 70_000]) for _ in ALL] for _ in ALL]
    received = [sent[r][RANK] for r in ALL]
    out = torch.empty(sum(received), device=DEVICE)
    dist.all_to_all_single(
        out, numbers(RANK, sum(sent[RANK]), call).to(DEVICE), received, sent[RANK]
    )
    parts = [numbers(r, sum(sent[r]), call).split(sent[r])[RANK] for r in ALL]
    same(out, torch.cat(parts))


def broadcast(elements: int, call: int, draw: random.Random) -> None:
    root = draw.randrange(WORLD)
    x = numbers(RANK, elements, call).to(DEVICE)
    dist.broadcast(x, root)
    same(x, numbers(root, elements, call))


def reduce(elements: int, call: int, draw: random.Random) -> None:
    root = draw.randrange(WORLD)
    x = numbers(RANK, elements, call).to(DEVICE)
    dist.reduce(x, root)
    if root == RANK:
        same(x, sum(numbers(r, elements, call) for r in ALL))


def message(elements: int, call: int, draw: random.Random) -> None:
    sender = draw.randrange(WORLD)
    receiver = (sender + 1) % WORLD
    if sender == RANK:
        dist.send(numbers(RANK, elements, call).to(DEVICE), receiver)
    elif receiver == RANK:
        x = torch.empty(elements, device=DEVICE)
        dist.recv(x, sender)
        same(x, numbers(sender, elements, call))


def barrier(_elements: int, _call: int, _draw: random.Random) -> None:
    dist.barrier()


KINDS = [
    all_reduce, all_reduce_of_bytes, all_gather, reduce_scatter, all_to_all, broadcast, reduce,
    message, barrier,
]  # fmt: skip


def check_calls_in_a_drawn_order():
    draw = random.Random(7)  # the same on all ranks
    late = random.Random(RANK)
    for call in range(CALLS):
        draw.choice(KINDS)(draw.choice(SIZES), call, draw)
        if late.random() < 0.1:
            time.sleep(NAP_S)


if __name__ == "__main__":
    run_checks(dict(globals()))
