"""Whether a node can run in a region, and the steps it becomes there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

from torch.fx import Node

from ..calls import Call, TensorArg
from ..errors import Unimplemented
from ..kernels.pointwise import Step
from ..kernels.rows.joined import block_of, joined
from ..kernels.rows.values import Kind, RowStep, column_sum, reduced, step
from ..ops.elementwise import conversion, recipe_of
from ..ops.random import DRAWS
from ..ops.reductions import correction_of, reduced_dims
from .calls import arguments_of, constant_of
from .joined_columns import JoinedColumns, joined_columns
from .nodes import base_of, call_tensor, is_item, maker_of, operands_of
from .one_hot import columns_counted, number_put
from .region import (
    REDUCTIONS,
    Region,
    Value,
    dtype_of,
    is_sum_over_rows,
)

__all__ = ["MOST_ALONE", "MOST_TRIED", "Attempt"]

# Elements of a row that is a region's only one, on one core: there is no other way up to the first,
# and none to try beyond the second (chosen).
MOST_ALONE, MOST_TRIED = 1 << 19, 1 << 22
# Sums over few rows of many columns are regions of their own: their columns lie on the partitions,
# not their rows (chosen).
WIDE_SUMS, MUCH_WIDER = 4096, 16
_SHORT = frozenset(("bfloat16", "float16"))
_CASTS = frozenset(("_to_copy", "clone", "lift_fresh_copy"))


class Attempt:
    """The steps of one node in a region; nothing of the region changes before `commit`."""

    def __init__(
        self,
        region: Region,
        node: Node,
        call: Call,
        home: Mapping[Node, Region],
        most_alone: int = MOST_ALONE,
    ) -> None:
        self.region, self.node, self.call, self.home = region, node, call, home
        self.most_alone = most_alone
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
        if name in REDUCTIONS or name == "var_mean":
            can = self.region.kind == "rows" and not self.region.draws
            return can and self._reduction()
        if name in DRAWS and (self.region.kind != "rows" or self.region.reduces):
            return False
        if name in _CASTS:
            return self._cast()
        if (columns := joined_columns(self.node)) is not None:
            return self._joined(columns)
        if (number := number_put(self.node)) is not None:
            return self._one_hot(number)
        return self._elementwise()

    # --- operands ---

    def _operand(self, operand: Node) -> str | None:
        """The name of an operand in the region; None if it cannot be read there."""
        base, in_order = base_of(operand)
        t = call_tensor(operand)
        kind = self._kind(t)
        if kind is None:
            return None
        maker = maker_of(base)
        if self.home.get(maker) is self.region:
            key = base.name
            known = self.region.alias.get(key) or self.alias.get(key)
            by_row = kind is Kind.FULL or (kind is Kind.ONE and self._is_one_row())
            suits = (kind, Kind.COLUMN) if by_row else (kind,)
            if not known or not in_order or is_sum_over_rows(self.region, known):
                return None
            return known if self.made[known] in suits else None
        key = base.name if in_order else _view_of(base, operand)
        if key in self.made:
            return key if self.made[key] is kind else None
        sizes = [n for n, s in zip(t.shape, t.strides, strict=True) if s and n != 1]
        held = prod(sizes)
        period = held if kind is Kind.COLUMN and len(sizes) == 1 else 0
        self.inputs[key] = Value(maker.name, dtype_of(t), kind, held, period)
        self.made[key] = kind
        return key

    def _kind(self, t: TensorArg) -> Kind | None:
        """How a tensor lies over the region; fixes the columns if that is what it takes."""
        shape = tuple(n if s else 1 for n, s in zip(t.shape, t.strides, strict=True))
        if prod(shape) == self.region.elements:
            return Kind.FULL
        if prod(shape) == 1:
            return Kind.ONE
        return self._broadcast(replace(t, shape=shape))

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
        return self._repeated_column(padded, shape)

    def _repeated_column(self, shape: Sequence[int], out: Sequence[int]) -> Kind | None:
        """Channels, say, of [N, C, H, W]: one value a row of H x W, loaded as if N times there."""
        last = max((k for k, n in enumerate(shape) if n != 1), default=0)
        columns, rows = prod(out[last + 1 :]), prod(out[: last + 1])
        alike = columns > 1 and rows * columns == self.region.elements
        return Kind.COLUMN if alike and self._fix(columns) else None

    def _is_one_row(self) -> bool:
        return self.region.columns == self.region.elements

    def _fix(self, columns: int) -> bool:
        if self.region.columns is None and columns % block_of(self.region.steps) == 0:
            self.region.columns = columns
        return self.region.columns == columns

    # --- what a node becomes ---

    def _cast(self) -> bool:
        """Casts ride on the instruction before or on those that read; copies are left out."""
        operands = list(operands_of(self.node))
        if self.call.out.numel != self.region.elements or len(operands) != 1:
            return False
        name = self._operand(operands[0])
        if name is None or self.made[name] is not Kind.FULL or not _same_place(self.call):
            return False
        steps = conversion(self.call.tensors[0].dtype, self.call.out.dtype)
        if any(map(_takes_bits, steps)):
            return False  # as of other operators, below
        if steps:
            name = self._recipe(steps, [name], column=False)
        elif (name in self.inputs or name in self.region.inputs) and not self._widens():
            self._add(self.node.name, "tensor_copy", (name,), Kind.FULL)
            name = self.node.name
        self.alias[self.node.name] = name
        return True

    def _widens(self) -> bool:
        """Whether the result holds every value of the operand: engines read either as float32."""
        source, out = self.call.tensors[0].torch_dtype, self.call.out.torch_dtype
        return source == out or (source in _SHORT and out == "float32")

    def _elementwise(self) -> bool:
        numbers = {
            n: value
            for n in operands_of(self.node)
            if (value := constant_of(base_of(n)[0])) is not None
        }
        operands = [
            n for n in operands_of(self.node) if not call_tensor(n).on_host and n not in numbers
        ]
        if numbers and not operands:
            return False  # a number made of numbers
        tensors = [call_tensor(n) for n in operands]
        try:
            recipe = recipe_of(self._with(numbers), tensors)
        except (KeyError, Unimplemented):
            return False  # its class prices it
        if not recipe or any(map(_takes_bits, recipe)):
            return False  # values within a region are float32: not the bits of whole numbers
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

    def _one_hot(self, number: float) -> bool:
        """A number in one column of each row, 0 in the others."""
        out, region = self.call.out, self.region
        fits = region.kind == "rows" and out.numel == region.elements
        if not (fits and self._fix(out.shape[-1])):
            return False
        index = self._operand(self.node.args[2])  # type: ignore[arg-type]
        if index is None or self.made[index] is not Kind.COLUMN:
            return False
        counted, value = columns_counted(out.shape[-1])
        self.inputs[counted], self.made[counted] = value, Kind.ROW
        name, here = self.node.name, (counted, index)
        self._add(f"{name}.0", "tensor_scalar", here, Kind.FULL, op0="equal")
        factor = {"op0": "multiply", "imm0": number}
        self._add(f"{name}.1", "tensor_scalar", (f"{name}.0",), Kind.FULL, **factor)
        self.alias[name] = f"{name}.1"
        return True

    def _joined(self, columns: JoinedColumns) -> bool:
        """Columns in another order; rows consist of whole blocks of them."""
        region, block = self.region, self.call.out.shape[-1]
        fits = region.kind == "rows" and self.call.out.numel == region.elements
        if not fits or (region.columns or block) % block:
            return False
        names = [self._operand(n) for n in columns.sources]
        if any(n is None or self.made[n] is not Kind.FULL for n in names):
            return False
        name = self.node.name
        parts = zip((n for n in names if n), columns.pieces, strict=True)
        self.alias[name] = self._push(joined(name, *parts))
        return True

    def _with(self, numbers: Mapping[Node, float]) -> Call:
        """The call with numbers instead of the tensors that hold them."""
        if not numbers:
            return self.call
        given = [numbers.get(a) if isinstance(a, Node) else None for a in arguments_of(self.node)]
        first = self.call.arguments
        if len(given) > len(first):
            raise KeyError(f"{self.call.name} is described without all of its operands")
        known = [first[k] if value is None else value for k, value in enumerate(given)]
        return replace(self.call, arguments=(*known, *first[len(given) :]))

    def _fits_product(self, names: Iterable[str]) -> bool:
        return all(self.made[n] in (Kind.FULL, Kind.ROW, Kind.ONE) for n in names)

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
            reads = tuple(names[r] if r >= 0 else done[r] for r in one.reads)
            # One value a row stays so until something needs every element (`finish` in regions.py).
            columns = bool(reads) and all(self.made[r] is Kind.COLUMN for r in reads)
            kind = Kind.COLUMN if columns or column else Kind.FULL
            dtype = one.dtype if one.dtype != "float32" else ""
            name = f"{self.node.name}.{k}"
            made = RowStep(name, one.opcode, reads, one.attributes, kind, one.engine, dtype)
            done.append(self._push(made))
        return done[-1]

    def _push(self, one: RowStep) -> str:
        self.steps.append(one)
        self.made[one.name] = one.kind
        return one.name

    def _add(
        self, name: str, opcode: str, reads: tuple[str, ...], kind: Kind, **attributes: Any
    ) -> str:
        return self._push(step(name, opcode, *reads, kind=kind, **attributes))

    def _reduction(self) -> bool:
        source, operand = self.call.tensors[0], next(iter(operands_of(self.node)), None)
        if operand is None or source.numel != self.region.elements or source.numel == 0:
            return False
        dims = set(reduced_dims(self.call, source))
        kept = [d for d in range(len(source.shape)) if d not in dims]
        if all(source.shape[d] == 1 for d in kept):  # of everything: one row
            short = 1 < source.numel <= self.most_alone
            return short and self._along_rows(operand, source.numel)
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
        total = self._push(reduced(f"{name}.0", x, REDUCTIONS[self.call.name]))
        mean = self.call.name == "mean"
        self.alias[name] = self._scaled(f"{name}.1", total, 1.0 / columns) if mean else total
        return True

    def _scaled(self, name: str, of: str, factor: float) -> str:
        return self._add(name, "tensor_scalar", (of,), Kind.COLUMN, op0="multiply", imm0=factor)

    def _moments(self, x: str, columns: int) -> bool:
        name = self.node.name
        total = self._push(reduced(f"{name}.0", x))
        mean = self._scaled(f"{name}.mean", total, 1.0 / columns)
        centred = self._add(f"{name}.1", "tensor_scalar", (x, mean), Kind.FULL, op0="subtract")
        squares = self._add(f"{name}.2", "activation", (centred,), Kind.FULL, op="square")
        spread = self._push(reduced(f"{name}.3", squares))
        degrees = columns - correction_of(self.call)
        factor = 1.0 / degrees if degrees > 0 else inf
        variance = self._scaled(f"{name}.variance", spread, factor)
        self.alias[name] = variance
        for user in self.node.users:
            if is_item(user):
                self.alias[user.name] = mean if user.args[1] == 1 else variance
        return True

    def _over_rows(self, operand: Node, columns: int) -> bool:
        rows = self.region.elements // columns
        if columns >= max(WIDE_SUMS, rows * MUCH_WIDER):
            return False
        if columns == 1 or not self._fix(columns):
            return False
        x = self._operand(operand)
        if x is None or self.made[x] is not Kind.FULL:
            return False
        self.alias[self.node.name] = self._push(column_sum(f"{self.node.name}.0", x))
        return True


def _takes_bits(one: Step) -> bool:
    """Whether an instruction reads the bits of its operands, not their values."""
    ops = (one.attributes.get(key) for key in ("op", "op0", "op1"))
    return any(str(op).startswith("bitwise") for op in ops)


def _view_of(base: Node, operand: Node) -> str:
    """A name for what an operand is of a tensor: another part of it is another value."""
    t, first = call_tensor(operand), operand.meta["val"].storage_offset()
    return f"{base.name}, {t.shape} by {t.strides} from {first}"


def _same_place(call: Call) -> bool:
    """Not a copy between host and core."""
    return all(not t.on_host for t in (*call.tensors, *call.outputs))


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
