"""The numerics of the engines as Triton kernels, for a host backend that is a CUDA GPU.

`register(key)` binds them to the operators of `torch.ops.trn` for a dispatch key; Triton itself is
imported when the first of them runs. On a CPU host nothing here is needed.
"""

from .ops import OPS, register, require_triton

__all__ = ["OPS", "register", "require_triton"]
