"""Cuts a graph into regions: what one pass over SBUF computes.

A region over rows has a shape [rows, columns]; its values are FULL, one a row (COLUMN) or one a
column (ROW), as in `lowering.rows`. Elementwise operators and reductions over the last or the first
dimensions join the region of an operand, elementwise operators also a matrix product, whose results
they take from PSUM. Everything else is a region of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch.fx import Graph, Node

from ..lowering.call import Call, TensorArg
from ..lowering.elementwise import recipe_of
from ..lowering.pointwise import Step
from ..lowering.rows import Kind, RowStep, column_sum, reduced, step
from .calls import base_of, call_of, is_free, tensor_of

__all__ = ["Region", "Value", "regions_of"]

MOST_STEPS = 28  # FULL values of 512 float32 columns that SBUF holds, two row tiles of each
PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm"))
_REDUCTIONS = {"sum": "add", "mean": "add", "amax": "max", "amin": "min"}
_CASTS = frozenset(("_to_copy", "clone", "lift_fresh_copy"))


@dataclass(frozen=True, slots=True)
class Value:
    """A value at a region's edge: the node that makes it, and how it lies over the region."""

    node: str
    dtype: str
    kind: Kind
    elements: int


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
    full: bool = False  # SBUF has no room for more: what follows is spilled

    @property
    def name(self) -> str:
        return f"{self.number}: " + " ".join(dict.fromkeys(call.name for call in self.calls))


def regions_of(graph: Graph, policy: str) -> list[Region]:
    """The regions of a graph, in an order in which they can run."""
    nodes = [node for node in graph.nodes if not is_free(node)]
    first = _Cutter(policy, frozenset())
    for node in nodes:
        first.take(node)
    apart = frozenset(
        n for r in first.regions if r.kind == "product" for n in first.better_apart(r)
    )
    cutter = _Cutter(policy, apart) if apart else first
    if apart:
        for node in nodes:
            cutter.take(node)
    cutter.merge()
    cutter.finish()
    return _ordered([r for r in cutter.regions if r.nodes])


def _ordered(regions: Sequence[Region]) -> list[Region]:
    done: list[Region] = []
    placed: set[int] = set()
    by_number = {r.number: r for r in regions}

    def place(region: Region) -> None:
        if region.number in placed:
            return
        placed.add(region.number)
        for number in sorted(region.above):
            place(by_number[number])
        done.append(region)

    for region in regions:
        place(region)
    return done


def _operands(node: Node) -> Iterator[Node]:
    """Tensor operands in the order of the call, repeated ones too."""

    def walk(value: Any) -> Iterator[Node]:
        if isinstance(value, Node):
            if hasattr(value.meta.get("val"), "dtype"):
                yield value
        elif isinstance(value, (list, tuple)):
            for element in value:
                yield from walk(element)

    yield from walk(node.args)
    yield from walk(tuple(node.kwargs.values()))


class _Recorder:
    """Takes what a recipe's step emits, as a step over rows."""

    def __init__(self, name: str, kind: Kind) -> None:
        self.name, self.kind = name, kind

    def emit(
        self, opcode: str, to: Any, *reads: Any, engine: Any = None, **attributes: Any
    ) -> None:
        self.made = step(self.name, opcode, *reads, kind=self.kind, engine=engine, **attributes)


class _Cutter:
    """`apart` are nodes that shall not join a product."""

    def __init__(self, policy: str, apart: frozenset[Node]) -> None:
        self.policy, self.apart = policy, apart
        self.regions: list[Region] = []
        self.home: dict[Node, Region] = {}
        self.calls: dict[Node, Call] = {}

    def take(self, node: Node) -> None:
        call = call_of(node, self.policy)
        if call is None:  # control flow: its branches are priced as host work
            call = Call(str(node.target), (), ())
        self.calls[node] = call
        for region in self._candidates(node):
            if self._joins(region, node, call):
                self._put(region, node, call)
                return
        self._put(self._fresh(node, call), node, call)

    # --- which region ---

    def _sources(self, node: Node) -> list[tuple[Node, bool]]:
        return [base_of(n) for n in _operands(node)]

    def _candidates(self, node: Node) -> list[Region]:
        """Regions of the operands, the latest first, that nothing else lies between."""
        homes = {self.home[b].number: self.home[b] for b, _ in self._bases(node)}
        above = set().union(*(r.above for r in homes.values())) if homes else set()
        free = [r for r in homes.values() if r.number not in above]
        return sorted(free, key=lambda r: -r.number)

    def _bases(self, node: Node) -> Iterator[tuple[Node, bool]]:
        for base, in_order in self._sources(node):
            base = _item_of(base)
            if base in self.home:
                yield base, in_order

    def _fresh(self, node: Node, call: Call) -> Region:
        out = call.outputs[0] if call.outputs else TensorArg("float32", (), ())
        kind = "product" if call.name in PRODUCTS else "single"
        region = Region(len(self.regions), kind, max(1, out.numel))
        self.regions.append(region)
        if kind == "product":
            region.columns = out.shape[-1] if out.shape else 1
            region.made[node.name] = Kind.FULL
            region.alias[node.name] = node.name
            return region
        shaped = _rows_shape(call)
        if shaped is None:
            return region
        region.kind, region.elements, region.columns = "rows", *shaped
        if not self._joins(region, node, call):
            region.kind, region.columns = "single", None
        return region

    # --- joining ---

    def _joins(self, region: Region, node: Node, call: Call) -> bool:
        """Add the node's steps to a region if it can run there."""
        if region.kind == "single" or region.full:
            return False
        if region.kind == "product" and node in self.apart:
            return False
        if any(t.torch_dtype not in _KNOWN for t in (*call.tensors, *call.outputs)):
            return False
        columns = region.columns
        attempt = _Attempt(region, node, call, self)
        if not attempt.run():
            region.columns = columns
            return False
        if len(region.steps) + len(attempt.steps) > MOST_STEPS and region.nodes:
            region.columns, region.full = columns, True
            return False
        attempt.commit()
        return True

    def _put(self, region: Region, node: Node, call: Call) -> None:
        region.nodes.append(node)
        region.calls.append(call)
        self.home[node] = region
        before = set(region.above)
        for base, _ in self._bases(node):
            other = self.home[base]
            if other is not region:
                region.above |= {other.number} | other.above
        if region.above != before:
            for below in self.regions:
                if region.number in below.above:
                    below.above |= region.above

    # --- merging ---

    def merge(self) -> None:
        """Put regions over the same rows together where one reads what the other reads or makes."""
        for region in self.regions:
            for other in [r for r in self.regions if r.number < region.number]:
                if self._can_merge(other, region) and self._merge(other, region):
                    break

    def _can_merge(self, a: Region, b: Region) -> bool:
        if not (a.nodes and b.nodes and a.kind == b.kind == "rows"):
            return False
        if a.elements != b.elements or len({a.columns, b.columns} - {None}) > 1:
            return False
        if len(a.steps) + len(b.steps) > MOST_STEPS:
            return False
        shares = set(a.inputs) & set(b.inputs) or any(
            i.node in self._makes(a) for i in b.inputs.values()
        )
        return bool(shares) and not self._between(a, b)

    @staticmethod
    def _makes(region: Region) -> set[str]:
        return {node.name for node in region.nodes}

    def _between(self, a: Region, b: Region) -> bool:
        """Whether a third region must run between the two, or b before a."""
        if b.number in a.above:
            return True
        return any(a.number in r.above and r.number in b.above for r in self.regions if r.nodes)

    def _merge(self, a: Region, b: Region) -> bool:
        """Move everything of b into a."""
        names: dict[str, str] = {}
        for key, value in b.inputs.items():
            made = a.alias.get(key)
            if made is not None and a.made[made] is value.kind:
                names[key] = made
            elif value.node in self._makes(a) or a.made.get(key, value.kind) is not value.kind:
                return False
        a.steps += [replace(s, reads=tuple(names.get(r, r) for r in s.reads)) for s in b.steps]
        for key, value in b.inputs.items():
            if key not in names:
                a.inputs.setdefault(key, value)
        a.made |= {k: v for k, v in b.made.items() if k not in names}
        a.alias |= {k: names.get(v, v) for k, v in b.alias.items()}
        a.columns = a.columns or b.columns
        a.nodes += b.nodes
        a.calls += b.calls
        for node in b.nodes:
            self.home[node] = a
        a.above |= b.above - {a.number}
        b.nodes, b.calls = [], []
        for r in self.regions:
            if b.number in r.above:
                r.above = (r.above - {b.number}) | {a.number}
        for r in self.regions:
            if a.number in r.above:
                r.above |= a.above
        return True

    # --- what a product is worth ---

    def better_apart(self, region: Region) -> list[Node]:
        """The last nodes of a product's region that had better go with those that read them.

        Each value that leaves a region is written and read once; one whose readers are over rows
        would not leave theirs.
        """
        nodes = region.nodes
        costs = [self._crossings(nodes[:k], nodes[k:]) for k in range(1, len(nodes) + 1)]
        best = max(k for k, cost in enumerate(costs, 1) if cost == min(costs))
        return nodes[best:]

    def _crossings(self, kept: list[Node], left: list[Node]) -> int:
        inside, cost = set(kept), 0
        for node in kept:
            users = [u for u in _users(node) if u not in inside]
            cost += bool(users) + any(u.op != "output" for u in users)
        for node in left:
            readers = [u for u in _users(node) if u not in left]
            cost += 2 * any(u.op == "output" or not self._is_over_rows(u) for u in readers)
        return cost

    def _is_over_rows(self, node: Node) -> bool:
        home = self.home.get(node)
        return home is not None and home.kind == "rows"

    # --- edges ---

    def finish(self) -> None:
        """What each region reads from and leaves in HBM."""
        for node, region in self.home.items():
            outside = region.kind == "single" or any(
                self.home.get(user) is not region for user in _users(node)
            )
            if outside and self.calls[node].outputs:
                out = self.calls[node].outputs[0]
                made = region.alias.get(node.name, node.name)
                kind = region.made.get(made, Kind.FULL)
                region.outputs[node.name] = Value(node.name, _dtype(out), kind, out.numel)
            if region.kind in ("single", "product"):
                for operand in _operands(node):
                    base = _item_of(base_of(operand)[0])
                    if self.home.get(base) is not region:
                        t = operand.meta["val"]
                        region.inputs.setdefault(
                            base.name, Value(base.name, str(t.dtype), Kind.FULL, 0)
                        )


def _item_of(node: Node) -> Node:
    """The operator behind `operator.getitem`."""
    while node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        node = base_of(node.args[0])[0]  # type: ignore[arg-type]
    return node


def _users(node: Node) -> Iterator[Node]:
    """Nodes that read a value, views seen through; the graph's output too."""
    for user in node.users:
        if user.op != "output" and (
            getattr(user.target, "is_view", False)
            or getattr(user.target, "__name__", "") == "getitem"
        ):
            yield from _users(user)
        else:
            yield user


def _dtype(t: TensorArg) -> str:
    return t.dtype if t.torch_dtype in _KNOWN else "float32"


_KNOWN = frozenset("float32 bfloat16 float16 int64 int32 int16 int8 uint8 bool float64".split())


def _rows_shape(call: Call) -> tuple[int, int | None] | None:
    """(elements, columns) of a region that begins with this call, None if none can."""
    if not call.outputs or not call.tensors:
        return None
    if call.name in ("var_mean", *_REDUCTIONS):
        source = call.tensors[0]
        return source.numel, None
    return call.out.numel, None


class _Attempt:
    """The steps of one node in a region; nothing of the region changes before `commit`."""

    def __init__(self, region: Region, node: Node, call: Call, cutter: _Cutter) -> None:
        self.region, self.node, self.call, self.cutter = region, node, call, cutter
        self.steps: list[RowStep] = []
        self.made = dict(region.made)
        self.alias: dict[str, str] = {}
        self.inputs: dict[str, Value] = {}

    def commit(self) -> None:
        self.region.steps += self.steps
        self.region.made = self.made
        self.region.alias |= self.alias
        for name, value in self.inputs.items():
            self.region.inputs.setdefault(name, value)

    def run(self) -> bool:
        name = self.call.name
        if name in _REDUCTIONS or name == "var_mean":
            return self.region.kind == "rows" and self._reduction()
        if name in _CASTS:
            return self._cast()
        return self._elementwise()

    # --- operands ---

    def _operand(self, operand: Node) -> str | None:
        """The name of an operand in the region; None if it cannot be read there."""
        base, in_order = base_of(operand)
        t = call_tensor(operand)
        kind = self._kind(t)
        if kind is None:
            return None
        maker = _item_of(base)
        if self.cutter.home.get(maker) is self.region:
            key = base.name
            known = self.region.alias.get(key) or self.alias.get(key)
            return known if known and in_order and self.made[known] is kind else None
        key = base.name if in_order else f"{base.name} turned"
        if key in self.made:
            return key if self.made[key] is kind else None
        self.inputs[key] = Value(maker.name, _dtype(t), kind, t.numel)
        self.made[key] = kind
        return key

    def _kind(self, t: TensorArg) -> Kind | None:
        """How a tensor lies over the region; fixes the columns if that is what it takes."""
        region = self.region
        if t.numel == region.elements:
            return Kind.FULL
        if t.numel == 1:
            return Kind.ROW
        distinct = [n for n, s in zip(t.shape, t.strides, strict=True) if s != 0 or n == 1]
        if prod(distinct) == 1:
            return Kind.ROW
        return self._broadcast(t)

    def _broadcast(self, t: TensorArg) -> Kind | None:
        region, shape = self.region, self.call.out.shape
        if not shape or prod(shape) != region.elements:
            return None
        padded = (1,) * (len(shape) - len(t.shape)) + t.shape
        trailing, leading = _suffix(padded, shape), _prefix(padded, shape)
        if trailing == t.numel and self._fix(t.numel):
            return Kind.ROW
        if leading == t.numel and self._fix(region.elements // t.numel):
            return Kind.COLUMN
        return None

    def _fix(self, columns: int) -> bool:
        if self.region.columns is None:
            self.region.columns = columns
        return self.region.columns == columns

    # --- what a node becomes ---

    def _cast(self) -> bool:
        """Casts ride on the instruction before; copies are left out."""
        operands = list(_operands(self.node))
        if self.call.out.numel != self.region.elements or len(operands) != 1:
            return False
        name = self._operand(operands[0])
        if name is None or self.made[name] is not Kind.FULL or not _same_place(self.call):
            return False
        if name in self.inputs or name in self.region.inputs:
            self._add(self.node.name, "tensor_copy", (name,), Kind.FULL)
            name = self.node.name
        self.alias[self.node.name] = name
        return True

    def _elementwise(self) -> bool:
        operands = [n for n in _operands(self.node) if not call_tensor(n).on_host]
        tensors = [call_tensor(n) for n in operands]
        recipe = recipe_of(self.call, tensors)
        if recipe is None or not recipe:
            return False
        column = self._is_column()
        if self.call.out.numel != self.region.elements and not column:
            return False
        names = []
        for operand in operands:
            name = self._column_operand(operand) if column else self._operand(operand)
            if name is None:
                return False
            names.append(name)
        if self.region.kind == "product" and (column or not self._fits_product(names)):
            return False
        made = self._recipe(recipe, names, column)
        if self.region.nodes and not any(n in self.region.made for n in names):
            return False
        self.alias[self.node.name] = made
        return True

    def _fits_product(self, names: Iterable[str]) -> bool:
        return all(self.made[n] in (Kind.FULL, Kind.ROW) for n in names)

    def _is_column(self) -> bool:
        """One value a row, of values of that kind."""
        region = self.region
        rows = region.elements // region.columns if region.columns else 0
        return region.columns not in (None, 1) and self.call.out.numel == rows

    def _column_operand(self, operand: Node) -> str | None:
        base, in_order = base_of(operand)
        known = self.region.alias.get(base.name)
        if known and in_order and self.made[known] is Kind.COLUMN:
            return known
        return None

    def _recipe(self, recipe: Sequence[Step], names: list[str], column: bool) -> str:
        done: list[str] = []
        for k, one in enumerate(recipe):
            reads = [names[r] if r >= 0 else done[r] for r in one.reads]
            columns = bool(reads) and all(self.made[r] is Kind.COLUMN for r in reads)
            kind = Kind.COLUMN if columns or column else Kind.FULL
            recorder = _Recorder(f"{self.node.name}.{k}", kind)
            one.emit(recorder, None, reads)  # type: ignore[arg-type]
            self.steps.append(recorder.made)
            self.made[recorder.name] = kind
            done.append(recorder.name)
        return done[-1]

    def _add(
        self, name: str, opcode: str, reads: tuple[str, ...], kind: Kind, **attributes: Any
    ) -> str:
        self.steps.append(step(name, opcode, *reads, kind=kind, **attributes))
        self.made[name] = kind
        return name

    def _reduction(self) -> bool:
        source, operand = self.call.tensors[0], next(iter(_operands(self.node)), None)
        if operand is None or source.numel != self.region.elements or source.numel == 0:
            return False
        dims = _reduced(self.call, len(source.shape))
        kept = [d for d in range(len(source.shape)) if d not in dims]
        if not kept or all(source.shape[d] == 1 for d in kept):
            return False  # of everything: across partitions too
        if dims == set(range(len(source.shape) - len(dims), len(source.shape))):
            return self._along_rows(operand, prod(source.shape[d] for d in dims))
        if dims == set(range(len(dims))) and self.call.name == "sum":
            return self._over_rows(operand, prod(source.shape[d] for d in kept))
        return False

    def _along_rows(self, operand: Node, columns: int) -> bool:
        if not self._fix(columns):
            return False
        x, name = self._operand(operand), self.node.name
        if x is None or self.made[x] is not Kind.FULL:
            return False
        if self.call.name == "var_mean":
            return self._moments(x, columns)
        total = reduced(f"{name}.0", x, _REDUCTIONS[self.call.name])
        self.steps.append(total)
        self.made[total.name] = Kind.COLUMN
        self.alias[name] = total.name
        if self.call.name == "mean":
            self.alias[name] = self._scaled(f"{name}.1", total.name, 1.0 / columns)
        return True

    def _scaled(self, name: str, of: str, factor: float) -> str:
        return self._add(name, "tensor_scalar", (of,), Kind.COLUMN, op0="multiply", imm0=factor)

    def _moments(self, x: str, columns: int) -> bool:
        name = self.node.name
        total = reduced(f"{name}.0", x)
        self.steps.append(total)
        self.made[total.name] = Kind.COLUMN
        mean = self._scaled(f"{name}.mean", total.name, 1.0 / columns)
        centred = self._add(f"{name}.1", "tensor_scalar", (x, mean), Kind.FULL, op0="subtract")
        squares = self._add(f"{name}.2", "activation", (centred,), Kind.FULL, op="square")
        spread = reduced(f"{name}.3", squares)
        self.steps.append(spread)
        self.made[spread.name] = Kind.COLUMN
        variance = self._scaled(f"{name}.variance", spread.name, 1.0 / columns)
        self.alias[name] = variance
        for user in self.node.users:
            if getattr(user.target, "__name__", "") == "getitem":
                self.alias[user.name] = mean if user.args[1] == 1 else variance
        return True

    def _over_rows(self, operand: Node, columns: int) -> bool:
        if columns == 1 or not self._fix(columns):
            return False
        x = self._operand(operand)
        if x is None or self.made[x] is not Kind.FULL:
            return False
        made = column_sum(f"{self.node.name}.0", x)
        self.steps.append(made)
        self.made[made.name] = Kind.ROW
        self.alias[self.node.name] = made.name
        return True


def call_tensor(node: Node) -> TensorArg:
    """An operand as the call sees it."""
    found = tensor_of(node.meta["val"])
    assert found is not None
    return found


def _same_place(call: Call) -> bool:
    """Not a copy between host and core."""
    return all(not t.on_host for t in (*call.tensors, *call.outputs))


def _reduced(call: Call, rank: int) -> set[int]:
    named = call.argument(1, ())
    dims = named if isinstance(named, tuple) else (named,)
    chosen = (
        {d % rank for d in dims if isinstance(d, int) and not isinstance(d, bool)}
        if rank
        else set()
    )
    return chosen or set(range(rank))


def _suffix(shape: tuple[int, ...], of: tuple[int, ...]) -> int:
    """Elements of the longest common end, if all before it is 1; else -1."""
    k = len(shape)
    while k and shape[k - 1] == of[k - 1]:
        k -= 1
    return prod(shape[k:]) if all(n == 1 for n in shape[:k]) else -1


def _prefix(shape: tuple[int, ...], of: tuple[int, ...]) -> int:
    """Elements of the longest common beginning, if all after it is 1; else -1."""
    k = 0
    while k < len(shape) and shape[k] == of[k]:
        k += 1
    return prod(shape[:k]) if all(n == 1 for n in shape[k:]) else -1
