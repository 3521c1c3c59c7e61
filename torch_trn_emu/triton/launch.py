"""How kernels are launched: on a GPU as they are, without one in Triton's interpreter.

The interpreter is Triton's own (`TRITON_INTERPRET=1`, read when a kernel is defined). It takes
milliseconds for each program of a grid, so there the tiles are larger.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton

__all__ = ["INTERPRETED", "cdiv", "launch", "power_of_two", "raw"]

INTERPRETED = bool(triton.knobs.runtime.interpret)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is not below n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def raw(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels take it: bfloat16 as int16, codes and scales as uint8."""
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16)
    return x.view(torch.uint8) if x.element_size() == 1 else x


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:  # numpy's float warnings are not errors of the kernel
        with np.errstate(all="ignore"):
            yield


def launch(kernel: Any, grid: tuple[int], *arguments: Any, **constants: Any) -> None:
    """Run `kernel` over `grid` on the device of its first argument; nothing for an empty grid.

    A grid has one axis, which holds 2^31 - 1 programs: the others hold 65535.
    """
    if 0 not in grid:
        with _on(arguments[0].device):
            kernel[grid](*arguments, **constants)
