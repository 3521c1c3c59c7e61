"""How far two tensors are apart: sums over the elements, which add up over tensors and calls."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..torch_private import tree_leaves

__all__ = ["Distance", "distance", "float_tensors"]


@dataclass(frozen=True, slots=True)
class Distance:
    """Between values `a` (what is expected) and `b`. Add two to join them.

    squared_error, squared_a, squared_b, product  sums over the elements, in float64
    """

    elements: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    squared_error: float = 0.0
    squared_a: float = 0.0
    squared_b: float = 0.0
    product: float = 0.0

    def __add__(self, other: "Distance") -> "Distance":
        mine, theirs = asdict(self), asdict(other)
        joined = {name: mine[name] + theirs[name] for name in mine}
        return Distance(**joined | {"max_abs": max(self.max_abs, other.max_abs)})

    @property
    def mean_abs(self) -> float:
        return self.sum_abs / self.elements if self.elements else 0.0

    @property
    def relative(self) -> float:
        """Norm of the error to the norm of `a`."""
        if not self.squared_error:
            return 0.0
        return math.sqrt(self.squared_error / self.squared_a) if self.squared_a else math.inf

    @property
    def cosine(self) -> float:
        """1 for one direction; two zeros have the same one."""
        norms = math.sqrt(self.squared_a) * math.sqrt(self.squared_b)
        return self.product / norms if norms else float(self.squared_a == self.squared_b)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise; infinite where nothing differs."""
        return (
            -20 * math.log10(self.relative)
            if 0 < self.relative < math.inf
            else (math.inf if self.relative == 0 else -math.inf)
        )

    def to_dict(self) -> dict[str, float | None]:
        """max_abs, mean_abs, relative, cosine, sqnr_db; None for what is not finite."""
        names = ("max_abs", "mean_abs", "relative", "cosine", "sqnr_db")
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def distance(a: Any, b: Any) -> Distance:
    """Between the floating tensors of two structures alike, wherever they are.

    Equal infinities and NaN in the same place count as no error; otherwise such an error is inf.
    Raises ValueError where the structures or shapes differ.
    """
    ours, theirs = float_tensors(a), float_tensors(b)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        raise ValueError(
            f"results differ in shape: {[tuple(t.shape) for t in ours]} "
            f"and {[tuple(t.shape) for t in theirs]}"
        )
    return sum((_distance(x, y) for x, y in zip(ours, theirs, strict=True)), Distance())


def float_tensors(value: Any) -> list[torch.Tensor]:
    """The floating and complex tensors in a structure."""
    leaves = [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
    return [x for x in leaves if x.is_floating_point() or x.is_complex()]


def _distance(a: torch.Tensor, b: torch.Tensor) -> Distance:
    x, y = _host(a), _host(b)
    same = (x == y) | (x.isnan() & y.isnan())
    error = torch.where(same, 0.0, (x - y).abs()).nan_to_num(math.inf, math.inf)
    x, y = x.nan_to_num(0.0, 0.0, 0.0), y.nan_to_num(0.0, 0.0, 0.0)
    return Distance(
        elements=x.numel(),
        max_abs=float(error.max()) if x.numel() else 0.0,
        sum_abs=float(error.sum()),
        squared_error=float(error.square().sum()),
        squared_a=float(x.square().sum()),
        squared_b=float(y.square().sum()),
        product=float((x * y).sum()),
    )


def _host(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().cpu()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_complex():
        plain = torch.view_as_real(plain.resolve_conj())
    return plain.double().flatten()
