"""A number put into one element of each row of zeros: made in SBUF where it is read.

Losses of classes have it in their gradient, as `scatter` into `full`. A row's columns are counted
from 0, and compared with the row's index.
"""

from torch.fx import Node

from ..kernels.rows.values import Kind
from .calls import tensor_of
from .region import KNOWN, Value

__all__ = ["columns_counted", "number_put", "zeros_of"]


def zeros_of(node: Node) -> bool:
    """Whether a node makes the zeros of such a `scatter`, which alone reads them."""
    return len(node.users) == 1 and all(
        number_put(user) is not None and user.args[0] is node for user in node.users
    )


def number_put(node: Node) -> float | None:
    """The number that a node puts into one element of each row of zeros, None for others."""
    if getattr(node.target, "_opname", "") != "scatter" or len(node.args) != 4 or node.kwargs:
        return None
    zeros, dim, index, value = node.args
    if not (isinstance(zeros, Node) and isinstance(index, Node) and isinstance(dim, int)):
        return None
    made, at = tensor_of(node), tensor_of(index)
    if made is None or at is None or not isinstance(value, (bool, int, float)):
        return None
    last = dim in (-1, len(made.shape) - 1) and made.shape[:-1] == at.shape[:-1]
    fits = last and at.shape[-1:] == (1,) and made.shape[-1] > 1 and made.numel > made.shape[-1]
    filled = getattr(zeros.target, "_opname", "") in ("full", "full_like") and zeros.args[1] == 0
    if not (fits and filled and len(zeros.users) == 1 and made.torch_dtype in KNOWN):
        return None
    return float(value)


def columns_counted(columns: int) -> tuple[str, Value]:
    """0, 1, 2, ... for the columns of a row: a constant of the program. (name, input)"""
    name = f"numbers below {columns}"
    return name, Value(name, "float32", Kind.ROW, columns)
