"""Compiled graphs on the machine: each program of a region against the host's values of its nodes.

Every program reads the host's values of the tensors that it names, so that a difference is its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.calls import operands_by_position, viewed
from torch_trn_emu.compiler.decompositions import decompositions, traced_whole
from torch_trn_emu.compiler.nodes import base_of, operands_of
from torch_trn_emu.compiler.programs import Lowered
from torch_trn_emu.compiler.region import Region
from torch_trn_emu.compiler.subgraphs import Piece, pieces_of, prepare
from torch_trn_emu.compiler.tangent_layouts import layout_of_tangents
from torch_trn_emu.engines import BEHAVIOURS
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.errors import ChipLimit, Unimplemented, Unsupported
from torch_trn_emu.isa import Memory, Role
from torch_trn_emu.kernels.rows.values import Kind
from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.products import product_of
from torch_trn_emu.parity.noise import SAFETY, unit_roundoff
from torch_trn_emu.torch_private.inductor import compile_fx, functorch_config
from torch_trn_emu.trn.call_memory import CallMemory, Mismatch, is_labelled

TARGET = Target(get_chip("trn3"), 1)
_INPUTS = (Role.INPUT, Role.WEIGHT)


@dataclass
class Found:
    """Results of the machine that agree with the host's, others, and regions it did not compute."""

    agree: int = 0
    differ: list[tuple[str, str]] = field(default_factory=list)  # the only operator, and what
    apart: list[str] = field(default_factory=list)


class _Values(Interpreter):
    """The values of a graph's nodes by name, as they are when they are made."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.known: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        if n.target is torch.ops.aten.log_sigmoid_backward.default:  # put together without buffer
            g, x = (self.env[a] for a in n.args[:2])
            made = g * torch.sigmoid(-x)
        else:
            made = super().run_node(n)
        self.known[n.name] = torch.utils._pytree.tree_map_only(Tensor, _kept, made)
        if isinstance(made, Tensor) and isinstance(n.meta.get("val"), Tensor):
            self.known[n.name] = _laid(self.known[n.name], n.meta["val"].stride())
        return made


def _kept(t: Tensor) -> Tensor:
    """A copy on the host with the same strides; elements that repeat do so there."""
    memory = t.detach().as_strided((_span(t),), (1,))
    return memory.cpu().clone().as_strided(t.shape, t.stride())


def _laid(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """With the strides that the compiler knows: kernels of the host may choose others."""
    if t.stride() == strides or 0 in strides:
        return t
    memory = torch.zeros(1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True)))
    return memory.to(t.dtype).as_strided(t.shape, strides).copy_(t)


def backend_on(found: Found, policy: str = "fp32") -> Callable[..., Any]:
    """A backend of torch.compile: graphs run on the device, and their regions on the machine."""

    def inner(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
        prepare(gm, **kwargs)
        pieces = list(pieces_of("graph", gm, policy, TARGET))

        def run(inputs: list[Any]) -> Any:
            before = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
            results = Interpreter(gm).run(*inputs)
            for piece in pieces:
                compare(piece, before, found)
            return results

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        patches = {"enable_autograd_cache": False, **layout_of_tangents(gm)}
        with functorch_config.patch(patches), traced_whole():
            return compile_fx(
                gm, example_inputs, inner_compile=inner, decompositions=decompositions()
            )

    return backend


def compare(piece: Piece, inputs: Sequence[Any], found: Found) -> None:
    """Run each part of a piece on the machine and note how its results compare."""
    regions = {r.number: r for r in piece.work.regions}
    if not regions:
        return
    graph = next(iter(regions.values())).nodes[0].graph
    values = _Values(GraphModule(piece.gm, graph))
    values.run(*inputs)
    parts: dict[int, list[Lowered]] = {}
    for part in piece.work.parts:
        parts.setdefault(part.region, []).append(part)
    for number, of_region in parts.items():
        region = regions[number]
        scale = _scale(region, values.known)
        try:
            made = list(_computed(region, of_region, values.known))
        except _Apart as why:
            found.apart.append(f"{region.name}: {why}")
            continue
        for name, got, want in made:
            said = difference(got, want, scale)
            if said:
                operators = {call.name for call in region.calls}
                only = operators.pop() if len(operators) == 1 else ""
                found.differ.append((only, f"{region.kind} {region.name}, {name}: {said}"))
            else:
                found.agree += 1


class _Apart(Exception):
    """A region that the machine does not compute."""


def _computed(
    region: Region, parts: Sequence[Lowered], known: dict[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    programs = [p.program for p in parts]
    if any(p is None for p in programs):
        raise _Apart("it has a price only")
    if any(BEHAVIOURS[i.opcode].draws for p in programs for i in p.instructions()):
        raise _Apart("it draws random numbers")
    if region.kind == "single":
        yield from _of_operator(region.nodes[0], region, programs, known)
    else:
        (part,) = parts
        yield from _of_region(region, part, known)


# --- an operator by the labels of its buffers -----------------------------------------------------


def _of_operator(
    node: Node, region: Region, programs: Sequence[Any], known: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    wanted = [k for k, t in enumerate(region.calls[0].results) if getattr(t, "numel", 0)]
    if not _has_row(region.calls[0]) or not is_labelled(programs, wanted):
        raise _Apart("its row models only the cost")
    memory = CallMemory()
    for source, t in _sources(_value(operands_by_position(node), known), "argument"):
        memory.hold(source, t)
    made = known[node.name]
    results = dict(_sources(made if isinstance(made, (tuple, list)) else (made,), "result"))
    for source, t in results.items():
        memory.hold(source, t)
        memory.regions[source].values.zero_()
    try:
        for program in programs:
            memory.run(program, Machine(TARGET.chip))
    except Mismatch as why:
        raise _Apart(str(why)) from None
    for source, t in results.items():
        new = memory.written(source, t)
        if new is not None:
            yield f"{node.name} {source[1]}", new, t


def _has_row(call: Call) -> bool:
    """Whether its row makes the program, not the class of operators that are priced alike."""
    row = OPS.get(call.name)
    if row is None or row.status != "modelled":
        return False
    try:
        return isinstance(row.lower(viewed(call), TARGET), tuple)
    except (KeyError, ChipLimit, Unimplemented, Unsupported):
        return False


def _value(value: Any, known: Mapping[str, Any]) -> Any:
    """Arguments with the host's values instead of nodes."""
    if isinstance(value, Node):
        return known[value.name]
    if isinstance(value, (list, tuple)):
        return tuple(_value(v, known) for v in value)
    return value


def _sources(value: Any, *source: str | int) -> Iterator[tuple[Any, Tensor]]:
    if isinstance(value, (list, tuple)):
        for k, v in enumerate(value):
            yield from _sources(v, *source, k)
    elif isinstance(value, Tensor):
        yield source, value


# --- regions over rows, and products with what follows them ---------------------------------------


def _of_region(
    region: Region, part: Lowered, known: dict[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    program = part.program
    assert program is not None
    operands = _operands(region)
    feeds = {}
    for b in program.buffers:
        if b.memory is not Memory.HBM or b.role not in _INPUTS:
            continue
        fed = _product_operand(region, part, b.name, known)
        if fed is None:
            key = _key_of(region, part, b.name)
            fed = _lying(region, key, operands, b.elements, known)
        if region.columns is None:  # rows that reach past the end
            fed = _filled(fed, b.elements)
        if fed.numel() != b.elements:
            raise _Apart(f"{b.name} holds {b.elements} elements, not {fed.numel()}")
        feeds[b.name] = fed.float().numpy() if fed.is_floating_point() else fed.numpy()
    made = Machine(TARGET.chip).run(program, feeds)
    for b in program.buffers:
        if b.memory is Memory.HBM and b.role is Role.OUTPUT:
            name = part.tensors[b.name]
            got = torch.from_numpy(made[b.name]).reshape(-1)
            if region.columns is None:
                got = got[: region.elements]
            want = known.setdefault(name, got)  # a value between nodes, which another region reads
            want = want if isinstance(want, Tensor) else want[0]
            yield name, _put(got, want), want


def _filled(t: Tensor, elements: int) -> Tensor:
    """With zeros after its elements, in the last row of a program that has no rows of its own."""
    return torch.cat([t.reshape(-1), t.new_zeros(max(0, elements - t.numel()))])


def _inputs(region: Region) -> list[str]:
    """The inputs that a region's steps read, in the order of `_fused` in programs.py."""
    return [
        n for n in region.made if n in region.inputs and any(n in s.reads for s in region.steps)
    ]


def _key_of(region: Region, part: Lowered, buffer: str) -> str:
    """The input of a region that a buffer v3 is: numbers are given in the order of `_fused`."""
    first = [region.nodes[0].name] if region.kind == "product" else []
    return [*first, *_inputs(region)][int(buffer.removeprefix("v"))]


def _operands(region: Region) -> dict[str, tuple[Node, Node]]:
    """What an input of a region is: the operand, and the node that reads it."""
    from torch_trn_emu.compiler.joining import _view_of

    found: dict[str, tuple[Node, Node]] = {}
    for node in region.nodes:
        for operand in operands_of(node):
            base, in_order = base_of(operand)
            found.setdefault(base.name if in_order else _view_of(base, operand), (operand, node))
    return found


def _lying(
    region: Region,
    key: str,
    operands: Mapping[str, tuple[Node, Node]],
    elements: int,
    known: Mapping[str, Any],
) -> Tensor:
    """An input's elements as they lie over the rows of a region."""
    value = region.inputs[key]
    if key.startswith("numbers below"):
        return torch.arange(elements)
    if key not in operands:  # a step's value, which another region reads
        flat = known[value.node].reshape(-1)
        repeats = value.kind is Kind.COLUMN and not elements % max(1, flat.numel())
        return flat.repeat_interleave(elements // flat.numel()) if repeats else flat
    operand, reader = operands[key]
    t = known[operand.name]
    repeats = [not s and n > 1 for n, s in zip(t.shape, t.stride(), strict=True)]
    once = t[tuple(0 if r else slice(None) for r in repeats)]
    flat = once.reshape(-1)
    if flat.numel() == elements:
        return flat
    if value.kind is Kind.COLUMN and region.columns:
        whole = torch.broadcast_to(t, known[reader.name].shape)
        return whole.reshape(-1, region.columns)[:, 0][:elements]
    return flat


def _product_operand(
    region: Region, part: Lowered, buffer: str, known: Mapping[str, Any]
) -> Tensor | None:
    """A factor or the addend of a region's product, in the order of its buffer."""
    if region.kind != "product":
        return None
    node = region.nodes[0]
    product = product_of(viewed(region.calls[0]), TARGET)
    held = product.operands.get(buffer)
    if held is None:
        return None
    ((_, place),) = {v.source for v in held.views}
    t = known[operands_by_position(node)[place].name]
    memory = t.as_strided((_span(t),), (1,))
    views = [memory.as_strided(v.shape, v.strides, v.offset) for v in held.views]
    turned = product.options["rhs_layout"] == "nk" and getattr(part.key, "constant", False)
    if buffer == "rhs" and turned:  # as `laid_out` has it
        views = [v.mT for v in views]
    return torch.cat([v.reshape(-1) for v in views])


def _span(t: Tensor) -> int:
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return 1 + last if t.numel() else 0


def _put(got: Tensor, want: Tensor) -> Tensor:
    """Stored elements as the tensor; a region stores one value for those that repeat."""
    if got.numel() == want.numel():
        return got.reshape(want.shape)
    sizes = [1 if not s and n > 1 else n for n, s in zip(want.shape, want.stride(), strict=True)]
    if got.numel() != prod(sizes):
        raise _Apart(f"{got.numel()} elements are stored of {want.numel()}")
    return got.reshape(sizes).expand(want.shape)


def _scale(region: Region, known: Mapping[str, Any]) -> float:
    """The largest number that a region computes with: what cancels errs by a share of that."""
    if region.kind == "product":
        a, b = (known[n.name].double().abs() for n in list(operands_of(region.nodes[0]))[-2:])
        return _largest(a @ b)
    read = [n for node in region.nodes for n in (*operands_of(node), node)]
    return max((_largest(t) for n in read for t in torch.utils._pytree.tree_leaves(known[n.name])),
               default=0.0)  # fmt: skip


def _largest(value: Any) -> float:
    """Of the finite ones."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def difference(got: Tensor, want: Tensor, scale: float) -> str:
    """What is not alike beyond the rounding of sums in another order; "" for nothing.

    scale  what a rounding is a share of
    """
    want = want.detach().cpu()
    if not want.is_floating_point():
        same = got.to(torch.int64) == want.to(torch.int64)
        return "" if bool(same.all()) else f"{int((~same).sum())} of {want.numel()} differ"
    here, there = got.double(), want.double()
    finite = there.isfinite()
    odd = ~finite & ~((here == there) | (here.isnan() & there.isnan())) | finite & ~here.isfinite()
    if bool(odd.any()):
        k = int(odd.reshape(-1).nonzero()[0])
        return f"{here.reshape(-1)[k]} for {there.reshape(-1)[k]}"
    narrow = str(want.dtype).removeprefix("torch.")
    bound = SAFETY * math.sqrt(max(200, want.numel())) * 2.0**-24
    bound += 2 * unit_roundoff(narrow) if narrow in ("bfloat16", "float16") else 0.0
    off = _largest((here - there)[finite])
    return f"off by {off:.3g} of {scale:.3g}" if off > bound * scale else ""
