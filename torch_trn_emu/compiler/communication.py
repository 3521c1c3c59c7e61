"""Where a graph's program issues collectives and waits for them.

A collective runs beside the engines. The program issues it as soon as its inputs are ready, goes on
with what does not read the result, and waits before what does. Programs do not overlap across these
places. Checked on torch 2.13.0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch.fx import Graph, Node

from ..calls import Call
from ..errors import Unimplemented
from ..isa import itemsize
from .host_groups import collective_of, group_of
from .nodes import maker_of
from .region import Region

__all__ = ["Exchange", "Stretch", "Waits", "exchange_of", "exchanges", "stretches", "waits"]

_WAIT = "wait_tensor"
# Functional collectives by what they begin with, and whether their results are the full buffer.
_OPERATIONS = MappingProxyType(
    {
        "all_reduce": ("all_reduce", True),
        "all_gather_into_tensor": ("all_gather", True),
        "reduce_scatter_tensor": ("reduce_scatter", False),
        "all_to_all_single": ("all_to_all", False),
        "broadcast": ("broadcast", True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A collective without its data: what it costs follows."""

    operation: str
    bytes: int  # the full buffer
    group: str


def exchange_of(name: str, call: Call, group: str) -> Exchange | None:
    """A call of a functional collective; None for a wait, and for what is none."""
    plain = next((known for known in _OPERATIONS if name.startswith(known)), "")
    if not plain:
        return None
    operation, of_results = _OPERATIONS[plain]
    tensors = call.outputs if of_results else call.tensors
    nbytes = sum(int(t.numel * itemsize(t.dtype)) for t in tensors)
    return Exchange(operation=operation, bytes=nbytes, group=group)


def exchanges(regions: Sequence[Region]) -> tuple[Exchange, ...]:
    """The collectives that regions issue, in order."""
    found = []
    for region in filter(_issues, regions):
        node, (call, *_) = region.nodes[0], region.calls
        made = exchange_of(collective_of(node), call, group_of(node))
        if made is None:
            raise Unimplemented(f"{node.target} has no price: torch_trn_emu/compiler")
        found.append(made)
    return tuple(found)


def _issues(region: Region) -> bool:
    name = collective_of(region.nodes[0])
    return name not in ("", _WAIT)


def _waits(region: Region) -> bool:
    return collective_of(region.nodes[0]) == _WAIT


Waits = dict[Node, frozenset[Node]]


def waits(graph: Graph) -> Waits:
    """Of each node the waits that come before it; nothing for a graph without any."""
    found: Waits = {}
    if not any(collective_of(node) == _WAIT for node in graph.nodes):
        return found
    for node in graph.nodes:
        own = frozenset((node,)) if collective_of(node) == _WAIT else frozenset()
        found[node] = own.union(*(found[n] for n in node.all_input_nodes))
    return found


@dataclass(frozen=True, slots=True)
class Stretch:
    """Regions that run as one program, and what comes then.

    then  None: the next collective is issued; a number: the collective of that number is awaited
    """

    regions: tuple[Region, ...]
    then: tuple[int | None, ...] = ()


def stretches(regions: Sequence[Region]) -> list[Stretch]:
    """Cut the regions where the program issues a collective or waits for one.

    Collectives keep their order, and each is issued as soon as it can be; a wait comes when nothing
    else can run.
    """
    numbers = {r.number: k for k, r in enumerate(filter(_issues, regions))}
    left, issued = list(regions), 0
    pending = {r.number for r in regions}  # what is above and not among them has run before
    found: list[Stretch] = []
    held: list[Region] = []

    def end(step: int | None) -> None:
        nonlocal held
        if found and not held:
            found[-1] = Stretch(found[-1].regions, (*found[-1].then, step))
        else:
            found.append(Stretch(tuple(held), (step,)))
            held = []

    while left:
        ready = [r for r in left if r.above.isdisjoint(pending)]
        nexts = [r for r in ready if _issues(r) and numbers[r.number] == issued]
        others = [r for r in ready if not _issues(r) and not _waits(r)]
        region = (nexts or others or ready)[0]
        left.remove(region)
        pending.remove(region.number)
        if _issues(region):
            issued += 1
            end(None)
        elif not _waits(region):
            held.append(region)
        elif (source := _source_of(region, regions)) is not None:
            end(numbers[source])
    if held or not found:
        found.append(Stretch(tuple(held)))
    return found


def _source_of(wait: Region, regions: Iterable[Region]) -> int | None:
    """The number of the region that issues what is waited for; None for one of another graph."""
    (tensor,) = wait.nodes[0].all_input_nodes
    node = maker_of(tensor)
    return next((r.number for r in regions if node in r.nodes and _issues(r)), None)
