"""Operators of aten that accelerators have a kernel for and the CPU has none.

Each has a twin in `torch.ops.trn` with aten's schema, whose kernel runs on host tensors; a call on
trn is one launch of the twin (csrc/aten/accelerated.h). To add an operator, add a row to
`table.py`.
"""

from .table import KERNELS, REFUSED, register, twin_of

__all__ = ["KERNELS", "REFUSED", "register", "twin_of"]
