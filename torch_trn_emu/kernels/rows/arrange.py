"""Steps of a row program as they are emitted: put together, and shared out between the engines."""

from collections.abc import Collection, Sequence

from ...chip import Chip
from .balance_engines import GAIN, busiest_s, shared_out
from .fold_constants import absorbed
from .fuse import by_row, fused, with_factors
from .values import Input, RowStep

__all__ = ["arranged"]


def arranged(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str], chip: Chip
) -> list[RowStep]:
    """The steps, in fewer instructions where the busier engine has no more to do by that."""
    absorbing = absorbed(inputs, steps, stored)
    plain = shared_out(fused(inputs, absorbing, stored), chip)
    fewer = with_factors(inputs, by_row(inputs, absorbing), stored)
    fewer = shared_out(fused(inputs, fewer, stored), chip)
    return fewer if busiest_s(fewer, chip) <= busiest_s(plain, chip) * (1 + GAIN) else plain
