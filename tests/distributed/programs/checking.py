"""Runs the functions check_* of a program on every rank and prints a line for each."""

import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
DEVICE = torch.device("trn", RANK)


def run_checks(names: Mapping[str, Any], *init: Any, **options: Any) -> None:
    torch.accelerator.set_device_index(RANK)
    dist.init_process_group(*init, **options)
    wanted = sys.argv[1:]
    for name, check in names.items():
        if not name.startswith("check_") or (wanted and name not in wanted):
            continue
        try:
            check()
            print("ok", name, flush=True)
        except Exception:
            print("failed", name, traceback.format_exc().replace("\n", " | "), flush=True)
    dist.destroy_process_group()


def given(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The input of `rank`, on the host: every rank can make those of all."""
    generator = torch.Generator().manual_seed(1000 + rank)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if not dtype.is_floating_point and not dtype.is_complex:
        return torch.randint(0, 5, shape, generator=generator).to(dtype)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def same(got: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    got = got.detach().cpu()
    assert got.dtype == expected.dtype, (what, got.dtype, expected.dtype)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    got, expected = got.contiguous(), expected.contiguous()
    bits = [x.reshape(-1).view(torch.uint8) if x.numel() else x for x in (got, expected)]
    assert torch.equal(*bits), (what, got, expected)
