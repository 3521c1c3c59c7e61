"""A triangle of ones: products with it add up what lies on the partitions before."""

from ..isa import Buffer, Builder
from .limits import P

__all__ = ["triangle"]


def triangle(b: Builder, *, inclusive: bool, dtype: str = "float32") -> tuple[Buffer, Buffer]:
    """[P, P] ones, and those where the row comes before the column, or is it."""
    ones, before = b.sbuf("ones", P, dtype), b.sbuf("before", P, dtype)
    b.emit("memset", ones.rows(P, P), value=1.0)
    whole, base = before.rows(P, P), 0 if inclusive else -1
    b.emit("affine_select", whole, ones.rows(P, P), channel=-1, step=1, base=base, on_false=0.0)
    return ones, before
