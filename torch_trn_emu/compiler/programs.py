"""From regions to engine programs, and from those to a graph's price.

Neighbouring regions that fit into SBUF and PSUM together make one program (`isa.join`): the loads
of one, its weights above all, begin while the other computes. Equal programs are scheduled once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from torch.fx import Node

from ..chip import Chip
from ..isa import Engine, Memory, Program, Role
from ..isa.join import join
from ..lowering.absorbing import absorbed
from ..lowering.attentions import without_sums
from ..lowering.call import Call, Target
from ..lowering.epilogue import Epilogue
from ..lowering.ops import OPS, Product, multiplied, product_of
from ..lowering.products import laid_out
from ..lowering.row_steps import fused
from ..lowering.row_values import Input, Kind, Output, RowStep, Values
from ..lowering.rows import flat_program, row_program
from ..lowering.sharing import shared_out
from ..pricing import Price, price_call, price_programs
from .calls import base_of
from .region import Region
from .roles import is_constant

__all__ = ["Lowered", "Window", "lowered", "price_window", "windows"]

# Operators that write entries of a copy of their first operand.
FILLED = frozenset("scatter scatter_add scatter_reduce index_put index_add index_copy".split())

# A step without names: opcode, attributes, operands and result by number, kind, engine, dtype.
_Step = tuple[str, tuple[tuple[str, Any], ...], tuple[int, ...], int, Kind, Engine | None, str]


@dataclass(frozen=True, slots=True)
class _Shape:
    """A region without names: equal ones have equal programs."""

    elements: int
    columns: int | None
    inputs: tuple[tuple[int, str, Kind], ...]
    steps: tuple[_Step, ...]
    outputs: tuple[tuple[int, str], ...]
    product: Call | None = None
    constant: bool = False  # the product's second factor may lie as the array takes it


@dataclass(frozen=True, slots=True)
class Lowered:
    """A region's program, and which tensor each of its HBM buffers is; or a price without one.

    key  equal ones have equal programs: a call may have several
    """

    key: _Shape | tuple[Call, int]
    program: Program | None
    tensors: Mapping[str, str]
    price: Price | None = None


def lowered(region: Region, target: Target) -> list[Lowered]:
    """The programs of a region, in order."""
    if region.kind == "single":
        return list(_single(region, target))
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    first = region.nodes[0].name if region.kind == "product" else ""
    if first:
        number(first)
    names = [
        n for n in region.made if n in region.inputs and any(n in s.reads for s in region.steps)
    ]
    inputs = tuple((number(n), region.inputs[n].dtype, region.inputs[n].kind) for n in names)
    steps = tuple(
        (s.opcode, tuple(sorted(s.attributes.items())), tuple(map(number, s.reads)), number(s.name),
         s.kind, s.engine, s.dtype)
        for s in region.steps
    )  # fmt: skip
    stored = {region.alias.get(n, n): v for n, v in region.outputs.items()}
    outputs = tuple((number(made), v.dtype) for made, v in stored.items() if made in numbers)
    product = region.calls[0] if first else None
    constant = product is not None and is_constant(base_of(region.nodes[0].all_input_nodes[-1])[0])
    shape = _Shape(region.elements, region.columns, inputs, steps, outputs, product, constant)
    program = _program(shape, target)
    if program is None:
        return []
    tensors = {f"v{number(n)}": region.inputs[n].node for n in names}
    tensors |= {f"out v{number(made)}": v.node for made, v in stored.items() if made in numbers}
    if product is not None:
        tensors |= _operands_of(region)
    return [Lowered(shape, program, tensors)]


def _operands_of(region: Region) -> dict[str, str]:
    """The tensors of a product's two operands, the last ones of its node."""
    a, b = (
        region.nodes[0].all_input_nodes[-2:]
        if len(region.nodes[0].all_input_nodes) > 1
        else (region.nodes[0].all_input_nodes * 2)
    )
    return {"lhs": base_of(a)[0].name, "rhs": base_of(b)[0].name}


@lru_cache(maxsize=4096)
def _program(shape: _Shape, target: Target) -> Program | None:
    inputs = [Input(f"v{n}", dtype, kind) for n, dtype, kind in shape.inputs]
    steps = [
        RowStep(
            f"v{to}",
            opcode,
            tuple(f"v{r}" for r in reads),
            MappingProxyType(dict(attributes)),
            kind,
            engine,
            dtype,
        )
        for opcode, attributes, reads, to, kind, engine, dtype in shape.steps
    ]
    outputs = [Output(f"v{n}", dtype) for n, dtype in shape.outputs]
    steps = absorbed(inputs, steps, [o.name for o in outputs])
    if shape.product is not None:
        steps = shared_out(steps, target.chip)
        product = product_of(shape.product, target)
        product = laid_out(product) if shape.constant else product
        return _product(product, inputs, steps, outputs, target)
    steps = shared_out(fused(steps, [o.name for o in outputs]), target.chip)
    values = Values(inputs, steps, outputs)
    if shape.columns is None:
        return flat_program("rows", shape.elements, values, chip=target.chip, cores=target.cores)
    rows = shape.elements // shape.columns
    cores = target.cores if rows >= target.cores else 1
    return row_program("rows", rows, shape.columns, values, chip=target.chip, cores=cores)


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
    """An operator by its row of OPS; where that takes no program, by its price."""
    call = _in_place(region)
    if not _reads_more(region.nodes[0]):
        call = without_sums(call)
    row = OPS.get(call.name)
    try:
        programs = row.lower(call, target) if row is not None else None
    except Exception:  # price_call gives the reason
        programs = None
    if not isinstance(programs, tuple):
        yield Lowered((call, 0), None, {}, price_call(call, target))
        return
    for k, program in enumerate(programs):
        yield Lowered((call, k), program, _linked(region, program) if len(programs) == 1 else {})


def _reads_more(node: Node) -> bool:
    """Whether anything reads other results than a node's first."""
    return any(len(user.args) < 2 or (user.args[1] != 0 and user.users) for user in node.users)


def _in_place(region: Region) -> Call:
    """The call; in place, where it alone reads what the graph made for it to fill."""
    call, node = region.calls[0], region.nodes[0]
    first = node.args[0] if node.args else None
    base = base_of(first)[0] if isinstance(first, Node) else None
    if call.name not in FILLED or base is None or base.op != "call_function" or len(base.users) > 1:
        return call
    name, dot, overload = call.op.partition(".")
    return replace(call, op=f"{name}_{dot}{overload}")


def _linked(region: Region, program: Program) -> dict[str, str]:
    """Tensors of HBM buffers by their order, where there are as many of both."""
    read = [
        b.name
        for b in program.buffers
        if b.memory is Memory.HBM and b.role in (Role.INPUT, Role.WEIGHT)
    ]
    made = [b.name for b in program.buffers if b.memory is Memory.HBM and b.role is Role.OUTPUT]
    inputs, outputs = list(region.inputs.values()), list(region.outputs.values())
    if len(read) != len(inputs) or len(made) != len(outputs):
        return {}
    return {n: v.node for n, v in zip([*read, *made], [*inputs, *outputs], strict=True)}


# --- windows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """Programs that run as one; their tensors by number where they belong together."""

    parts: tuple[Lowered, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        numbers: dict[str, int] = {}
        return tuple(
            (p.key, tuple((b, numbers.setdefault(t, len(numbers))) for b, t in p.tensors.items()))
            for p in self.parts
        )

    def program(self) -> Program:
        if len(self.parts) == 1:
            program = self.parts[0].program
            assert program is not None
            return program
        numbers: dict[str, int] = {}
        names = [
            {b: f"t{numbers.setdefault(t, len(numbers))}" for b, t in p.tensors.items()}
            for p in self.parts
        ]
        return join("window", [p.program for p in self.parts if p.program], names)


def windows(parts: Sequence[Lowered], chip: Chip) -> list[Window]:
    """Cut the programs of a graph where they do not fit on chip together, or are not linked."""
    found: list[Window] = []
    held: list[Lowered] = []
    used: dict[Memory, int] = {}
    for part in parts:
        needs = _needs(part)
        fits = held and all(
            used[m] + needs[m] <= spec.usable_bytes_per_partition
            for m, spec in ((Memory.SBUF, chip.sbuf), (Memory.PSUM, chip.psum))
        )
        joins = fits and part.tensors and held[-1].tensors and _cores(part) == _cores(held[-1])
        if held and not joins:
            found.append(Window(tuple(held)))
            held = []
        used = {m: needs[m] + (used[m] if held else 0) for m in needs}
        held.append(part)
    if held:
        found.append(Window(tuple(held)))
    return found


def _needs(part: Lowered) -> dict[Memory, int]:
    buffers = part.program.buffers if part.program else ()
    return {
        m: sum(b.bytes_per_partition for b in buffers if b.memory is m)
        for m in (Memory.SBUF, Memory.PSUM)
    }


def _cores(part: Lowered) -> int:
    return part.program.cores if part.program else 0


MOST_PRICED = 16384  # windows whose prices are kept (chosen)
_priced: dict[tuple[Any, ...], Price] = {}


def price_window(window: Window, target: Target) -> Price:
    """What a window takes, as a program of its own."""
    first = window.parts[0]
    if first.price is not None:
        return first.price
    key = (target, window.key)
    if key not in _priced:
        if len(_priced) >= MOST_PRICED:
            del _priced[next(iter(_priced))]  # the oldest
        _priced[key] = price_programs("window", [window.program()], target.chip)
    return _priced[key]
