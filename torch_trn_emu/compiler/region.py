"""What a region is."""

from dataclasses import dataclass, field

from torch.fx import Node

from ..calls import Call, TensorArg
from ..kernels.rows.values import Kind, RowStep

__all__ = [
    "KNOWN",
    "REDUCTIONS",
    "Region",
    "Value",
    "dtype_of",
    "is_by_row",
    "is_same",
    "is_sum_over_rows",
]

REDUCTIONS = {"sum": "add", "mean": "add", "amax": "max", "amin": "min"}
KNOWN = frozenset("float32 bfloat16 float16 int64 int32 int16 int8 uint8 bool float64".split())
# Instructions that a program over rows also has for one value a row.
BY_ROW = frozenset(("activation", "tensor_copy", "tensor_scalar", "tensor_tensor"))


@dataclass(frozen=True, slots=True)
class Value:
    """A value at a region's edge: the node that makes it, and how it lies over the region.

    period  of a COLUMN: after so many rows its values repeat
    """

    node: str
    dtype: str
    kind: Kind
    elements: int
    period: int = 0


@dataclass(slots=True, eq=False)
class Region:
    """Nodes that run as one. `columns` is None while nothing has fixed it."""

    number: int
    kind: str  # rows, product or single
    elements: int
    columns: int | None = None
    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    steps: list[RowStep] = field(default_factory=list)
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    made: dict[str, Kind] = field(default_factory=dict)  # step or input by name
    alias: dict[str, str] = field(default_factory=dict)  # node -> the step that made its value
    above: set[int] = field(default_factory=set)
    kept: dict[str, Value] = field(default_factory=dict)  # steps that another region reads
    full: bool = False  # SBUF has no room for more: what follows is spilled

    @property
    def draws(self) -> bool:
        """Whether it makes random numbers. Long rows are computed again once they are reduced."""
        return any(s.opcode == "rng" for s in self.steps)

    @property
    def reduces(self) -> bool:
        return any(s.reduces for s in self.steps)

    @property
    def name(self) -> str:
        return f"{self.number}: " + " ".join(dict.fromkeys(call.name for call in self.calls))


def is_by_row(small: Region, large: Region) -> bool:
    """Whether all of a region's values are one for each row of another, which reads or makes some
    as such.
    """
    if not (small.kind == large.kind == "rows") or small.columns is not None:
        return False
    if small.elements * (large.columns or 0) != large.elements:
        return False
    if any(v.elements != small.elements for v in small.inputs.values()):
        return False
    if any(kind is not Kind.FULL for kind in small.made.values()) or any(
        s.opcode not in BY_ROW for s in small.steps
    ):
        return False
    made, makes = {n.name for n in small.nodes}, {n.name for n in large.nodes}
    links = [v.kind for v in large.inputs.values() if v.node in made]
    links += [large.made[large.alias[k]] for k, v in small.inputs.items()
              if v.node in makes and k in large.alias]  # fmt: skip
    return bool(links) and all(is_same(kind, Kind.COLUMN, large) for kind in links)


def is_same(a: Kind, b: Kind, region: Region) -> bool:
    """Whether values lie alike over a region; of a single row, one value a row is one for all."""
    return a is b or (region.columns == region.elements and {a, b} == {Kind.COLUMN, Kind.ONE})


def is_sum_over_rows(region: Region, name: str) -> bool:
    """Whether a value is a sum of all rows: known when the last one is done, it joins no step."""
    return region.made[name] is Kind.ROW and any(s.name == name for s in region.steps)


def dtype_of(t: TensorArg) -> str:
    return t.dtype if t.torch_dtype in KNOWN else "float32"
