"""Why an operator's result is off: run it again with one source of error removed after another.

as it ran                       - inputs widened to float32   = rounding of the output
inputs widened to float32       - the same under policy fp32  = quantisation of the operands
float32 under policy fp32       - float64 on the device       = accumulation in float32
float64 on the device           - float64 on the host         = another computation

The differences add up to the whole error.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..precision import precision
from ..torch_private import tree_map
from .measure import distance
from .place import place
from .trace import Call

__all__ = ["Causes", "find_causes"]

_NARROW = (torch.bfloat16, torch.float16)
_FLOATS = (*_NARROW, torch.float32)


@dataclass(frozen=True, slots=True)
class Causes:
    """Squared errors by their source; add two to join them."""

    quantisation: float = 0.0
    accumulation: float = 0.0
    rounding: float = 0.0
    computation: float = 0.0

    def __add__(self, other: "Causes") -> "Causes":
        mine, theirs = asdict(self), asdict(other)
        return Causes(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def shares(self) -> dict[str, float]:
        """Of each source in the sum, 0 to 1; empty where nothing was found."""
        parts: dict[str, float] = asdict(self)
        total = sum(parts.values())
        if not total:
            return {}
        if not math.isfinite(total):
            return {name: float(not math.isfinite(part)) for name, part in parts.items()}
        return {name: part / total for name, part in parts.items()}

    @property
    def main(self) -> str:
        """The largest source, or "" where nothing was found."""
        return max(self.shares, key=self.shares.__getitem__) if self.shares else ""


def find_causes(call: Call, result: Any) -> Causes:
    """The sources of the error in `result`, the value of `call` on trn under the policy in force.

    What cannot run wider (an operator without float32 or float64) leaves its part at zero.
    """
    given = (call.args, call.kwargs)
    wide = _attempt(call, _cast(given, torch.float32, _NARROW), result)
    with precision("fp32"):
        unquantised = _attempt(call, _cast(given, torch.float32, _NARROW), wide)
    exact = _attempt(call, _cast(given, torch.float64, _FLOATS), unquantised)
    on_host = _cast(place("cpu").move(given), torch.float64, _FLOATS)
    return Causes(
        quantisation=_squared(wide, unquantised),
        accumulation=_squared(unquantised, exact),
        rounding=_squared(result, wide),
        computation=_squared(exact, _attempt(call, on_host, exact)),
    )


def _attempt(call: Call, arguments: Any, otherwise: Any) -> Any:
    args, kwargs = arguments
    try:
        return call.func(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError):
        return otherwise


def _cast(value: Any, wide: torch.dtype, narrow: tuple[torch.dtype, ...]) -> Any:
    def cast(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.detach().to(wide) if x.dtype in narrow else x.detach().clone()
        return wide if isinstance(x, torch.dtype) and x in narrow else x

    return tree_map(cast, value)


def _squared(a: Any, b: Any) -> float:
    return distance(a, b).squared_error if a is not b else 0.0
