"""From regions to engine programs, each with the tensors that it reads and makes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from types import MappingProxyType
from typing import Any

from torch.fx import Node

from ..calls import DTYPES, Call, Target
from ..isa import Memory, Program, Role
from ..isa.join import Part
from ..kernels.matmul.epilogue import Epilogue
from ..kernels.rows import flat_program, planes_program, row_program
from ..kernels.rows.arrange import arranged
from ..kernels.rows.balance_engines import shared_out
from ..kernels.rows.fold_constants import absorbed
from ..kernels.rows.joined import read_in_pieces
from ..kernels.rows.keep_short import SHORT, kept_short
from ..kernels.rows.values import Input, Kind, Output, RowStep, Values
from ..ops import OPS, Product, multiplied, product_of
from ..ops.attention import without_sums
from ..ops.classes import class_of
from ..ops.products import laid_out
from ..pricing import Price, price_call
from ..timing import price
from .calls import operands_by_position, viewed
from .nodes import base_of, is_item, maker_of, sizes_of, written_by
from .operand_roles import is_constant
from .own_kernels import price_of_own
from .picked_matrices import of_picked, picked_later, picks_for
from .region import Region, Value
from .written_back import fills_in_place, is_written_back

__all__ = ["Lowered", "lowered", "lowered_call"]

# Elements of a plane up to which planes may lie on partitions (chosen: longer ones fill a tile).
LONGEST_RUN = 2048


@dataclass(frozen=True, slots=True)
class _Shape:
    """A region without names: equal ones have equal programs."""

    elements: int
    columns: int | None
    inputs: tuple[Input, ...]
    steps: tuple[tuple[Any, ...], ...]  # the fields of each
    outputs: tuple[Output, ...]
    product: Call | None = None
    constant: bool = False  # the product's second factor may lie as the array takes it
    short: tuple[tuple[str, str], ...] = ()  # values that the graph has in 16 bits
    picked: int = 0  # matrices of the table that the product's second factors are picked from
    period: int = 0  # rows after which the values of all columns repeat, if nothing is reduced


@dataclass(frozen=True, slots=True)
class Lowered:
    """A region's program, and which tensor each of its HBM buffers is; or a price without one.

    key      equal ones have equal programs: a call may have several
    reads    tensors that buffers without a tensor of their own may read
    makes    tensors that such buffers may write
    ordered  tensors that the program writes in place
    region   the number of the region
    whole    buffers that read a tensor whole, its elements in order
    """

    key: _Shape | tuple[Any, ...]
    program: Program | None
    tensors: Mapping[str, str]
    price: Price | None = None
    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    ordered: frozenset[str] = frozenset()
    region: int = 0
    whole: frozenset[str] = frozenset()

    def at(self, places: Mapping[str, str]) -> "Lowered":
        """With the tensors that some are written into, in place."""

        def of(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(places.get(n, n) for n in names))

        written = {places[n] for n in (*self.makes, *self.tensors.values()) if n in places}
        return replace(
            self,
            tensors={b: places.get(t, t) for b, t in self.tensors.items()},
            reads=of(self.reads),
            makes=of(self.makes),
            ordered=self.ordered | written,
        )

    def part(self) -> Part:
        """The program in the schedule of its graph."""
        assert self.program is not None
        return Part(program=self.program, tensors=self.tensors, reads=self.reads, makes=self.makes)


def lowered(region: Region, target: Target) -> list[Lowered]:
    """The programs of a region, in order."""
    in_place = _in_place_of(region)
    reads = tuple(dict.fromkeys(v.node for v in region.inputs.values()))
    makes = tuple(in_place.get(v.node, v.node) for v in region.outputs.values())
    found = _single(region, target) if region.kind == "single" else _fused(region, target)
    return [
        replace(
            part,
            tensors={b: in_place.get(t, t) for b, t in part.tensors.items()},
            reads=reads + part.reads,
            makes=makes + part.makes,
            ordered=frozenset(in_place.values()),
            region=region.number,
        )
        for part in found
    ]


def lowered_call(call: Call, region: Region, target: Target) -> list[Lowered]:
    """The programs of an operator, as in eager mode, for a graph that is this operator alone."""
    programs = _programs(call, target) or ()
    between = ("between",) if len(programs) > 1 else ()
    return [
        Lowered((call, k), p, {}, None, between if k else (), between, region=region.number)
        for k, p in enumerate(programs)
    ]


def _in_place_of(region: Region) -> dict[str, str]:
    """Nodes that write a tensor in place, and which one."""
    found: dict[str, str] = {}
    for node in region.nodes:
        for given in written_by(node):
            found[node.name] = maker_of(given).name
    return found


def _fused(region: Region, target: Target) -> list[Lowered]:
    """One program of everything in a region over rows, or with a product; none of no elements."""
    if not any(v.elements for v in region.outputs.values()):
        return []
    names: dict[str, str] = {}

    def called(name: str) -> str:
        """A name by number, the same in equal regions."""
        return names.setdefault(name, f"v{len(names)}")

    first, call = region.nodes[0], region.calls[0]
    is_product = region.kind == "product"
    if is_product:
        called(first.name)
    read = {
        n: region.inputs[n]
        for n in region.made
        if n in region.inputs and any(n in s.reads for s in region.steps)
    }
    inputs = tuple(Input(called(n), v.dtype, v.kind) for n, v in read.items())
    steps = tuple(_fields_of(s, called) for s in region.steps)
    stored = {region.alias.get(n, n): v for n, v in region.outputs.items()}
    left = {names[made]: v for made, v in stored.items() if made in names}
    outputs = tuple(Output(name, v.dtype) for name, v in left.items())
    picks = picks_for(first, call, target) if is_product else None
    if is_product:
        constant = is_constant(base_of(first.all_input_nodes[-1])[0])
        more: dict[str, Any] = {"product": call, "constant": constant}
        more["picked"] = picks.matrices if picks else 0
    else:
        more = {"short": _in_16_bits(region, names), "period": _period(region)}
    shape = _Shape(region.elements, region.columns, inputs, steps, outputs, **more)
    program = _program(shape, target)
    if program is None:
        return []
    tensors = {names[n]: v.node for n, v in read.items()}
    tensors |= {f"out {name}": v.node for name, v in left.items()}
    whole = {names[n] for n, v in read.items() if _is_full(v, n)}
    if is_product:
        lhs, rhs = (first.all_input_nodes * 2)[-2:]  # a tensor by itself is there once
        tensors |= {"lhs": maker_of(lhs).name, "rhs": maker_of(rhs).name}
        tensors |= {"rhs": picks.table, "picked": picks.index} if picks else {}
        tensors |= {"out": next(iter(stored.values())).node} if len(stored) == 1 else {}
        whole |= {"lhs"} if _is_whole(first.all_input_nodes[-2:][0]) else set()
    known = {b.name for b in program.buffers}
    tensors = {b: t for b, t in tensors.items() if b in known}
    return [Lowered(shape, program, tensors, whole=frozenset(whole))]


def _fields_of(s: RowStep, called: Callable[[str], str]) -> tuple[Any, ...]:
    reads, attributes = tuple(map(called, s.reads)), tuple(sorted(s.attributes.items()))
    return called(s.name), s.opcode, reads, attributes, s.kind, s.engine, s.dtype


def _is_full(value: Value, name: str) -> bool:
    """Whether a region reads all of a tensor, in order: joining.py names it so then."""
    return value.kind is Kind.FULL and value.node == name


def _is_whole(node: Node) -> bool:
    """Whether it is all of a tensor, its elements in order."""
    base, in_order = base_of(node)
    return in_order and not is_item(base) and prod(sizes_of(base)) == prod(sizes_of(node))


def _in_16_bits(region: Region, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Values over rows that the graph has in a 16-bit format."""
    made = {}
    for node, call in zip(region.nodes, region.calls, strict=True):
        name = region.alias.get(node.name, node.name)
        if call.outputs and call.outputs[0].dtype in SHORT and name in names:
            made[names[name]] = call.outputs[0].dtype
    return tuple(sorted(made.items()))


@lru_cache(maxsize=4096)
def _program(shape: _Shape, target: Target) -> Program | None:
    inputs, outputs = list(shape.inputs), list(shape.outputs)
    steps = [
        RowStep(name, opcode, reads, MappingProxyType(dict(attributes)), *more)
        for name, opcode, reads, attributes, *more in shape.steps
    ]
    stored = [o.name for o in outputs]
    if shape.product is not None:
        steps = shared_out(absorbed(inputs, steps, stored), target.chip)
        product = product_of(shape.product, target)
        product = laid_out(product) if shape.constant else product
        product = of_picked(product, shape.picked) if shape.picked else product
        return _product(product, inputs, steps, outputs, target)
    steps = arranged(inputs, steps, stored, target.chip)
    steps = kept_short(inputs, steps, stored, dict(shape.short))
    steps = read_in_pieces(inputs, steps, stored)
    values = Values(inputs, steps, outputs)
    if shape.columns is None:
        return flat_program("rows", shape.elements, values, chip=target.chip, cores=target.cores)
    rows = shape.elements // shape.columns
    cores = target.cores if rows >= target.cores else 1
    found = row_program("rows", rows, shape.columns, values, chip=target.chip, cores=cores)
    return min(
        (found, *_by_plane(shape, values, target)), key=lambda p: price(p, target.chip).total_s
    )


def _by_plane(shape: _Shape, values: Values, target: Target) -> Iterator[Program]:
    """The same with a plane, such as a channel, on each partition: its values are loaded once."""
    columns, period = shape.columns or 1, shape.period
    if not period or columns > LONGEST_RUN or shape.elements % (columns * period * target.cores):
        return
    images = shape.elements // (columns * period * target.cores)
    options: dict[str, Any] = {"chip": target.chip, "cores": target.cores}
    with suppress(KeyError):  # more than SBUF holds
        yield planes_program("planes", period, images, columns, values, **options)


def _period(region: Region) -> int:
    """After how many rows the values of all columns repeat, 0 if they differ or are reduced."""
    kinds = {v.kind for v in (*region.inputs.values(), *region.outputs.values())}
    periods = {v.period for v in region.inputs.values() if v.kind is Kind.COLUMN}
    if Kind.ROW in kinds or len(periods) != 1 or any(s.kind is Kind.ROW for s in region.steps):
        return 0
    if region.reduces or any(v.kind is Kind.COLUMN for v in region.outputs.values()):
        return 0
    (period,) = periods
    rows = region.elements // (region.columns or region.elements)
    return period if 1 < period < rows else 0


def _product(
    product: Product, inputs: list[Input], steps: list[RowStep], outputs: list[Output],
    target: Target,
) -> Program | None:  # fmt: skip
    """A product whose results are finished on their way from PSUM."""
    plain = not steps and [o.name for o in outputs] == ["v0"]
    epilogue = Epilogue(product="v0", inputs=inputs, steps=steps, outputs=outputs)
    made = multiplied(product, target, None if plain else epilogue)
    return made[0] if made else None


def _single(region: Region, target: Target) -> Iterator[Lowered]:
    """An operator by its row of OPS, or by its class; where that takes no program, by its price."""
    if is_written_back(region.nodes[0]) or picked_later(region.nodes[0], region.calls[0], target):
        return
    if (apart := price_of_own(region.nodes[0], region.calls[0], target)) is not None:
        yield Lowered((region.calls[0], 0), None, {}, apart)
        return
    call = _in_place(region)
    if not _reads_more(region.nodes[0]):
        call = without_sums(call)
    programs = _programs(call, target)
    if programs is None:
        yield Lowered((call, 0), None, {}, price_call(call, target))
        return
    # What lies between the programs of one operator is one tensor: each waits for those before.
    between = (f"{region.nodes[0].name} between",) if len(programs) > 1 else ()
    for k, program in enumerate(programs):
        tensors = {} if between else _linked(region, program)
        yield Lowered((call, k), program, tensors, reads=between if k else (), makes=between)


@lru_cache(maxsize=4096)
def _programs(call: Call, target: Target) -> tuple[Program, ...] | None:
    """What the core runs for a call; None where it has no program: the price says why."""
    odd = {t.torch_dtype for t in (*call.tensors, *call.outputs)} - set(DTYPES)
    if odd or call.is_of_library:
        return None
    for row in (OPS.get(call.name), class_of(call)):
        if row is None:
            continue
        if row.status == "free":
            return ()
        try:
            found = row.lower(viewed(call), target)
        except Exception:  # price_call gives the reason
            continue
        return found if isinstance(found, tuple) else None
    return None


def _reads_more(node: Node) -> bool:
    """Whether anything reads other results than a node's first."""
    return any(len(user.args) < 2 or (user.args[1] != 0 and user.users) for user in node.users)


def _in_place(region: Region) -> Call:
    """The call; in place, where it may write where its operand is."""
    call = region.calls[0]
    if not fills_in_place(region.nodes[0]):
        return call
    name, dot, overload = call.op.partition(".")
    return replace(call, op=f"{name}_{dot}{overload}")


def _linked(region: Region, program: Program) -> dict[str, str]:
    """Tensors of HBM buffers by their labels; else by their order, if as many are read and made."""
    hbm = [b for b in program.buffers if b.memory is Memory.HBM]
    if all(b.name in program.labels for b in hbm):
        return _labelled(region.nodes[0], program)
    read = [b.name for b in hbm if b.role in (Role.INPUT, Role.WEIGHT)]
    made = [b.name for b in hbm if b.role is Role.OUTPUT]
    found: dict[str, str] = {}
    for names, values in ((read, region.inputs), (made, region.outputs)):
        if len(names) == len(values):
            found |= {n: v.node for n, v in zip(names, values.values(), strict=True)}
    return found


def _labelled(node: Node, program: Program) -> dict[str, str]:
    """The tensor of each HBM buffer that is of one: an operand, or what the node makes."""
    given = operands_by_position(node)
    found: dict[str, str] = {}
    for name, label in program.labels.items():
        sources = {view.source for view in label.views}
        if len(sources) != 1:
            continue
        ((kind, *place),) = sources
        operand: Any = given
        for k in place if kind == "argument" else ():
            operand = operand[k]
        if kind == "result":
            found[name] = node.name
        elif isinstance(operand, Node):
            found[name] = maker_of(operand).name
    return found
