"""Cuts a graph into regions: what one pass over SBUF computes.

A region over rows has a shape [rows, columns]; its values are FULL, one a row (COLUMN) or one a
column (ROW), as in `kernels.rows`. Elementwise operators and reductions over the last or the first
dimensions join the region of an operand, elementwise operators also a matrix product, whose results
they take from PSUM. Everything else is a region of its own.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch.fx import Graph, Node

from ..calls import DTYPES, Call, TensorArg
from ..errors import EmulatorBug
from ..kernels.rows.joined import block_of
from ..kernels.rows.values import Kind, step
from ..ops.random import DRAWS
from .calls import call_of, is_free
from .communication import Waits, waits
from .joined_columns import joined_columns, joined_later
from .joining import MOST_ALONE, Attempt
from .nodes import call_tensor, maker_of, operands_of, users_of
from .not_computed import needless
from .one_hot import zeros_of
from .region import (
    KNOWN,
    REDUCTIONS,
    Region,
    Value,
    dtype_of,
    is_by_row,
    is_same,
    is_sum_over_rows,
)
from .sinking import sink

__all__ = ["MOST_STEPS", "PRODUCTS", "regions_of"]

MOST_STEPS = 28  # FULL values of 512 float32 columns that SBUF holds, two row tiles of each
PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm"))


def regions_of(graph: Graph, policy: str, most_alone: int = MOST_ALONE) -> list[Region]:
    """The regions of a graph, in an order in which they can run.

    most_alone  elements of a row that is a region's only one
    """
    left = needless(graph)
    nodes = [n for n in graph.nodes if not (n in left or _is_no_region(n))]
    after = waits(graph)
    first = _Cutter(policy, frozenset(), after, most_alone)
    for node in nodes:
        first.take(node)
    apart = frozenset(
        n for r in first.regions if r.kind == "product" for n in first.better_apart(r)
    )
    cutter = _Cutter(policy, apart, after, most_alone) if apart else first
    if apart:
        for node in nodes:
            cutter.take(node)
    cutter.merge()
    sink(cutter.regions, cutter.home, MOST_STEPS)
    cutter.finish()
    return _ordered([r for r in cutter.regions if r.nodes])


def _is_no_region(node: Node) -> bool:
    return is_free(node) or zeros_of(node) or joined_later(node)


def _ordered(regions: Sequence[Region]) -> list[Region]:
    done: list[Region] = []
    placed: set[int] = set()
    by_number = {r.number: r for r in regions}

    def place(region: Region) -> None:
        if region.number in placed:
            return
        placed.add(region.number)
        for number in sorted(region.above & by_number.keys()):  # others sank into their readers
            place(by_number[number])
        done.append(region)

    for region in regions:
        place(region)
    return done


class _Cutter:
    """`apart` are nodes that shall not join a product; `after` says which waits come before."""

    def __init__(self, policy: str, apart: frozenset[Node], after: Waits, most_alone: int) -> None:
        self.policy, self.apart, self.after = policy, apart, after
        self.most_alone = most_alone
        self.regions: list[Region] = []
        self.home: dict[Node, Region] = {}
        self.calls: dict[Node, Call] = {}

    def take(self, node: Node) -> None:
        call = self.calls[node] = _known_call(node, self.policy)
        for region in self._candidates(node):
            in_time = self._after(region) >= self.after.get(node, frozenset())
            if in_time and self._joins(region, node, call):
                self._put(region, node, call)
                return
        region = self._fresh(node, call)
        if region.kind == "single" and joined_columns(node):
            raise EmulatorBug(f"{node.name}: no region joins its columns")
        self._put(region, node, call)

    # --- which region ---

    def _candidates(self, node: Node) -> list[Region]:
        """Regions of the operands, the latest first, that nothing else lies between."""
        homes = {r.number: r for r in self._sources(node)}
        above = set().union(*(r.above for r in homes.values())) if homes else set()
        free = [r for r in homes.values() if r.number not in above]
        return sorted(free, key=lambda r: -r.number)

    def _after(self, region: Region) -> frozenset[Node]:
        """The waits for collectives that come before a region."""
        return frozenset().union(*(self.after.get(n, frozenset()) for n in region.nodes))

    def _sources(self, node: Node) -> list[Region]:
        """The regions that make the operands."""
        columns = joined_columns(node)
        makers = map(maker_of, columns.sources if columns else operands_of(node))
        return [self.home[maker] for maker in makers if maker in self.home]

    def _fresh(self, node: Node, call: Call) -> Region:
        out = call.outputs[0] if call.outputs else TensorArg("float32", (), ())
        known = all(t.torch_dtype in DTYPES for t in call.tensors)  # not complex numbers
        kind = "product" if call.name in PRODUCTS and known else "single"
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
        if any(t.torch_dtype not in KNOWN for t in (*call.tensors, *call.outputs)):
            return False
        columns = region.columns
        attempt = Attempt(region, node, call, self.home, self.most_alone)
        if not attempt.run():
            region.columns = columns
            return False
        if len(region.steps) + len(attempt.steps) > MOST_STEPS and region.nodes:
            region.columns, region.full = columns, True
            return False
        attempt.commit()
        return True

    def _put(self, region: Region, node: Node, call: Call) -> None:
        columns = joined_columns(node)
        for one in (*(columns.folded[::-1] if columns else ()), node):
            self.calls[one] = call if one is node else _known_call(one, self.policy)
            region.nodes.append(one)
            region.calls.append(self.calls[one])
            self.home[one] = region
        before = set(region.above)
        for other in self._sources(node):
            if other is not region:
                region.above |= {other.number} | other.above
        if region.above != before:
            for below in self.regions:
                if region.number in below.above:
                    below.above |= region.above

    # --- merging ---

    def merge(self) -> None:
        """Put regions over the same rows together where one reads what the other reads or makes."""
        while sum(self._merge_into_another(region) for region in self.regions):
            pass  # a region that has grown may go with others now

    def _merge_into_another(self, region: Region) -> bool:
        for other in [r for r in self.regions if r.number < region.number]:
            makes, reads = (region, other) if region.number in other.above else (other, region)
            if self._can_merge(makes, reads) and self._merge(makes, reads):
                return True
            if self._merge_by_row(makes, reads):
                return True
        return False

    def _merge_by_row(self, makes: Region, reads: Region) -> bool:
        """Merge a region whose elements are one value for each row of the other."""
        if not (makes.nodes and reads.nodes):
            return False
        small, large = sorted((makes, reads), key=lambda r: r.elements)
        if not (large.columns and large.columns > 1 and is_by_row(small, large)):
            return False
        before = small.elements, small.columns, small.steps, small.inputs, small.made
        small.elements, small.columns = large.elements, large.columns
        small.steps = [replace(s, kind=Kind.COLUMN) for s in small.steps]
        small.inputs = {k: replace(v, kind=Kind.COLUMN) for k, v in small.inputs.items()}
        small.made = dict.fromkeys(small.made, Kind.COLUMN)
        if self._can_merge(makes, reads) and self._merge(makes, reads):
            return True
        small.elements, small.columns, small.steps, small.inputs, small.made = before
        return False

    def _can_merge(self, a: Region, b: Region) -> bool:
        if not (a.nodes and b.nodes and a.kind == b.kind == "rows"):
            return False
        if self._after(a) != self._after(b) or (a.draws and b.reduces) or (b.draws and a.reduces):
            return False
        if a.elements != b.elements or len({a.columns, b.columns} - {None}) > 1:
            return False
        if len(a.steps) + len(b.steps) > MOST_STEPS:
            return False
        if (a.columns or b.columns or 0) % block_of((*a.steps, *b.steps)):
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
        shaped = a if a.columns else b
        for key, value in b.inputs.items():
            made = a.alias.get(key)
            if made is not None and is_sum_over_rows(a, made):
                return False
            by_row = value.kind is Kind.FULL and made and a.made[made] is Kind.COLUMN
            if made is not None and (by_row or is_same(a.made[made], value.kind, shaped)):
                names[key] = made
                continue
            known = is_same(a.made.get(key, value.kind), value.kind, shaped)
            if value.node in self._makes(a) or not known:
                return False
        a.steps += [replace(s, reads=tuple(names.get(r, r) for r in s.reads)) for s in b.steps]
        for key, value in b.inputs.items():
            if key not in names:
                a.inputs.setdefault(key, value)
        a.made |= {k: v for k, v in b.made.items() if k not in names and k not in a.made}
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
            users = [u for u in users_of(node) if u not in inside]
            cost += bool(users) + any(u.op != "output" for u in users)
        for node in left:
            readers = [u for u in users_of(node) if u not in left]
            cost += 2 * any(u.op == "output" or not self._is_over_rows(u) for u in readers)
        return cost

    def _is_over_rows(self, node: Node) -> bool:
        home = self.home.get(node)
        return home is not None and home.kind == "rows"

    # --- edges ---

    def finish(self) -> None:
        """What each region reads from and leaves in HBM."""
        for region in self.regions:
            region.outputs |= region.kept
        for node, region in self.home.items():
            outside = region.kind == "single" or any(
                self.home.get(user) is not region for user in users_of(node)
            )
            if outside and self.calls[node].outputs:
                out = self.calls[node].outputs[0]
                made = self._made(region, node, self.calls[node].outputs[0])
                kind = region.made.get(made, Kind.FULL)
                region.outputs[node.name] = Value(node.name, dtype_of(out), kind, out.numel)
            if region.kind in ("single", "product"):
                for operand in operands_of(node):
                    base = maker_of(operand)
                    if self.home.get(base) is not region:
                        t = call_tensor(operand)
                        region.inputs.setdefault(
                            base.name, Value(base.name, dtype_of(t), Kind.FULL, t.numel)
                        )

    @staticmethod
    def _made(region: Region, node: Node, out: TensorArg) -> str:
        """What makes a value that leaves a region: a copy for a cast that rode on its readers, and
        for one value a row that stands for all of its elements.
        """
        made = region.alias.get(node.name, node.name)
        repeats = region.made.get(made) is Kind.COLUMN and out.numel == region.elements
        if (made in region.inputs or repeats) and region.kind != "single":
            region.steps.append(step(node.name, "tensor_copy", made))
            region.alias[node.name] = made = node.name
            region.made[made] = Kind.FULL
        return made


def _known_call(node: Node, policy: str) -> Call:
    """The call of a node; control flow, and what torch has without a schema, is host work."""
    return call_of(node, policy) or Call(str(node.target), (), ())


def _rows_shape(call: Call) -> tuple[int, int | None] | None:
    """(elements, columns) of a region that begins with this call, None if none can."""
    if not call.outputs or not (call.tensors or call.name in DRAWS):
        return None
    if call.name in ("var_mean", *REDUCTIONS):
        source = call.tensors[0]
        return source.numel, None
    return call.out.numel, None
