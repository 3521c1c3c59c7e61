"""The launches of a graph: one, or with control flow one for each piece between two decisions.

A piece is priced as a graph. Where a branch or a loop depends on data, the piece before it ends:
the host reads the flag and launches a body, which is a graph of its own. A loop whose length is
known when it is compiled stays in its piece, as often as it runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..calls import Call, Target
from ..counters import combine
from ..pricing import Price, not_modelled
from ..torch_private import tree_leaves
from .calls import is_true, tensor_of
from .communication import Exchange, exchanges, stretches
from .compose_attention import attention_composed
from .control import Body, Flag, Flags, bodies_of, inlined, put_flags
from .flex import Mark, mark_of, marked_price
from .graph_price import GraphPrice, Work, price_graph
from .graphs import graphs_of
from .joining import MOST_ALONE, MOST_TRIED
from .not_computed import mark_strided
from .operand_roles import note_constants, say_roles
from .programs import Lowered, lowered, lowered_call
from .records import warn_unpriced
from .recover_composites import recovered
from .region import REDUCTIONS, Region
from .regions import regions_of
from .whole_calls import call_of_graph
from .written_back import places_of

__all__ = ["Launch", "Piece", "launches_of", "pieces_of", "prepare", "unpriced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program of a graph, and how often a run launches it.

    when   as often as one of these flags is read; (): once
    times  that many times over
    then   what its program does next: None issues a collective, a number waits for that one
    issues the collectives that it issues then
    """

    priced: GraphPrice
    when: tuple[Flag, ...] = ()
    times: int = 1
    then: tuple[int | None, ...] = ()
    issues: tuple[Exchange, ...] = ()

    @property
    def once(self) -> bool:
        return not self.when and self.times == 1

    def count(self, flags: Flags) -> int:
        """Launches in a run that read `flags`."""
        return self.times * (sum(flags[flag] for flag in self.when) if self.when else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one launch computes, before it is priced."""

    name: str
    gm: GraphModule  # that it is a piece of
    work: Work
    whole: Work | None  # as the one operator that it is
    reads_flag: bool
    when: tuple[Flag, ...]
    times: int
    then: tuple[int | None, ...] = ()
    issues: tuple[Exchange, ...] = ()
    continues: bool = False

    def launch(self, target: Target) -> Launch:
        works = (self.work, self.whole) if self.whole else (self.work,)
        priced = min(
            (price_graph(self.name, w, target, reads_flag=self.reads_flag) for w in works),
            key=lambda priced: priced.price.seconds,
        )
        if self.continues:
            priced = replace(priced, price=_continued(priced.price, target), continues=True)
        return Launch(
            priced=priced, when=self.when, times=self.times, then=self.then, issues=self.issues
        )


def prepare(gm: GraphModule, **compiled: Any) -> None:
    """Say in a graph of AOTAutograd what pieces of it read: flags, constants, roles of operands.

    compiled  what Inductor says of the graph
    """
    put_flags(gm)
    note_constants(gm.graph, **compiled)
    for part in graphs_of(gm):
        say_roles(part.graph)


def pieces_of(name: str, gm: GraphModule, policy: str, target: Target) -> Iterator[Piece]:
    """The pieces of a graph and its bodies, in the order in which they run."""
    yield from _Cut(policy, target).pieces(name, inlined(gm, is_true), Body("", gm), 1)


def launches_of(name: str, gm: GraphModule, policy: str, target: Target) -> tuple[Launch, ...]:
    return tuple(piece.launch(target) for piece in pieces_of(name, gm, policy, target))


def unpriced(name: str, gm: GraphModule, target: Target, reason: str) -> Launch:
    """The launch of a graph without engine programs, priced as an operator that is not modelled."""
    outputs: Any = gm.graph.output_node().args[0]
    results = [n for n in tree_leaves(outputs) if isinstance(n, Node)]
    tensors = []
    for nodes in (gm.graph.find_nodes(op="placeholder"), results):
        try:
            known = [tensor_of(n) for n in nodes]
        except Exception:  # sizes that depend on data
            known = []
        tensors.append(tuple(t for t in known if t is not None))
    given, made = tensors
    call = Call("trn::graph", given, made)
    price = replace(not_modelled(call, target, reason), row="graph")
    warn_unpriced(name, reason)
    return Launch(
        priced=GraphPrice(name=name, price=price, regions=(), windows=0, spilled_bytes=0, calls=())
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    policy: str
    target: Target

    def pieces(self, name: str, gm: GraphModule, body: Body, times: int) -> Iterator[Piece]:
        """Cut a body where its flags are read."""
        number = 1

        def piece(held: Sequence[Region], reads_flag: bool) -> Iterator[Piece]:
            nonlocal number
            parts, issued = stretches(held), iter(exchanges(held))
            for k, part in enumerate(parts):
                yield Piece(
                    name=f"{name} part {number}" if number > 1 else name,
                    gm=gm,
                    work=self._work(gm, part.regions),
                    whole=self._whole(part.regions),
                    reads_flag=reads_flag and k + 1 == len(parts),
                    when=body.when,
                    times=times,
                    then=part.then,
                    issues=tuple(next(issued) for step in part.then if step is None),
                    continues=k > 0,
                )
                number += 1

        held: list[Region] = []
        whole = attention_composed(recovered(gm.graph), gm, self.policy)
        mark_strided(whole)
        for region in self._regions(gm, whole):
            inner = bodies_of(gm, region.nodes[0])
            if not _decides(inner):
                held.append(region)
                continue
            reads_flag = inner[0].follows
            if held or reads_flag:
                yield from piece(held, reads_flag)
                held = []
            for one in inner:
                runs = times * _passes(one) if one.elements is not None else 1
                one = one if one.when else replace(one, when=body.when)
                yield from self.pieces(f"{name} {one.name}", one.gm, one, runs)
        if held or number == 1 or body.ends:
            yield from piece(held, body.ends)

    def _regions(self, gm: GraphModule, whole: Graph) -> list[Region]:
        """The regions; rows that are the only ones are reduced on one core where that is faster."""
        cut = regions_of(whole, self.policy)
        if not any(_is_long_alone(call) for region in cut for call in region.calls):
            return cut
        joined = regions_of(whole, self.policy, MOST_TRIED)
        if any(bodies_of(gm, region.nodes[0]) for region in (*cut, *joined)):
            return cut
        return min((cut, joined), key=lambda regions: self._seconds(gm, regions))

    def _seconds(self, gm: GraphModule, regions: Sequence[Region]) -> float:
        return price_graph("cut", self._work(gm, regions), self.target).price.seconds

    def _work(self, gm: GraphModule, regions: Sequence[Region]) -> Work:
        work = Work(list(regions), [], [])
        places = places_of(n for region in regions for n in region.nodes)
        flex: set[int] = set()
        for region in regions:
            inner = bodies_of(gm, region.nodes[0])
            mark = mark_of(region.nodes[0])
            if mark is not None:
                if mark[0] not in flex:
                    flex.add(mark[0])
                    self._add_flex_attention(work, gm, region, mark)
            elif inner:
                self._add_loop(work, region, inner[0])
            else:
                work.parts += [part.at(places) for part in lowered(region, self.target)]
                work.calls += region.calls
        return work

    def _whole(self, regions: Sequence[Region]) -> Work | None:
        """The program that an operator is in eager mode, where nothing is fused with it."""
        call = call_of_graph(regions)
        if call is None:
            return None
        first = regions[0]
        nodes = [node for region in regions for node in region.nodes]
        region = Region(first.number, "single", first.elements, nodes=nodes, calls=[call])
        parts = lowered_call(call, region, self.target)
        return Work([region], parts, [call]) if parts else None

    def _add_flex_attention(self, work: Work, gm: GraphModule, region: Region, mark: Mark) -> None:
        """A call of FlexAttention, by the blocks that its mask keeps."""
        given = gm.graph.find_nodes(op="placeholder")
        backward = any(node.name.startswith("tangents") for node in given)
        call, price = marked_price(mark, self.policy, backward, self.target)
        work.parts.append(Lowered((call, 0), None, {}, price, region=region.number))
        work.calls.append(call)

    def _add_loop(self, work: Work, region: Region, body: Body) -> None:
        """All passes of a loop whose length is known."""
        (piece,) = self.pieces(body.name, body.gm, body, 1)
        priced, passes = piece.launch(self.target).priced, _passes(body)
        looped = _looped(priced.price, passes, self.target)
        part = Lowered((region.calls[0], 0), None, {}, looped, region=region.number)
        work.parts.append(part)
        work.calls += priced.calls * passes


def _is_long_alone(call: Call) -> bool:
    """Whether a call reduces all of a tensor, which has many elements, but not too many."""
    single = call.name in REDUCTIONS and len(call.tensors) == 1 and len(call.outputs) == 1
    return single and call.out.numel == 1 and MOST_ALONE < call.tensors[0].numel <= MOST_TRIED


def _decides(bodies: Sequence[Body]) -> bool:
    """Whether the host has to read something before it knows what runs."""
    return any(
        body.when or any(_decides(bodies_of(body.gm, node)) for node in body.gm.graph.nodes)
        for body in bodies
    )


def _passes(body: Body) -> int:
    given = tensor_of(body.elements)
    assert given is not None
    return given.shape[0]


def _continued(price: Price, target: Target) -> Price:
    """Of a program that has started: that is paid once."""
    return _paid_once(price, dict(price.totals), bool(price.totals["event_count"]), target)


def _looped(price: Price, passes: int, target: Target) -> Price:
    """Passes one after the other in one launch: what starting costs is paid once."""
    totals = combine([(price.totals, passes)])
    return replace(_paid_once(price, totals, max(0, passes - 1), target), status="modelled")


def _paid_once(price: Price, totals: dict[str, float], starts: int, target: Target) -> Price:
    """Less so many starts."""
    totals["total_time"] -= starts * target.chip.launch.kernel_overhead_s
    return replace(price, seconds=totals["total_time"], totals=MappingProxyType(totals))
