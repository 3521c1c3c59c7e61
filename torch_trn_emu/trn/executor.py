"""TRN_EMU_EXECUTOR=machine: eager operators get their values from their programs, for checking.

A dispatch mode lets the fast kernel make the results as always. Where the operator's row of OPS can
bind the call (`lowering/binding.py`), the row's programs then run on the machine, and what they
compute replaces the results' values. What cannot be bound keeps the fast kernel's values, and
`executor_report` says so with the reason; the first one warns.

The mode is that of the thread which imports torch; backward runs on the thread that calls it.
Checked on torch 2.13.0.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ChipLimit, Unimplemented, Unsupported
from ..lowering.binding import Binding, Feed, Programs
from ..lowering.call import Call, Target, TensorArg
from ..lowering.op import Op
from ..lowering.ops import OPS
from ..precision import current_precision
from ..settings import DEVICE_TYPE, settings

if TYPE_CHECKING:
    from ..engines.machine import Machine
    from ..isa import Buffer

__all__ = ["ExecutorRow", "MachineExecutor", "executor_report", "install"]

_FLOATS = frozenset(("float32", "bfloat16", "float16", "bool"))


@dataclass(slots=True, kw_only=True)
class ExecutorRow:
    """What computed an operator's values.

    machine       calls whose values are those of the program
    instructions  that the machine executed for them
    difference    from the fast kernel, the largest: relative to the largest value of the result
    reason        why other calls kept the fast kernel's values
    """

    op: str
    calls: int = 0
    machine: int = 0
    instructions: int = 0
    difference: float = 0.0
    reason: str = ""


class _NotOnMachine(Exception):
    """A call whose program is not made, or does not compute it."""


class MachineExecutor(TorchDispatchMode):
    """While entered, operators on trn tensors compute on the machine where their rows can."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, ExecutorRow] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        row = OPS.get(Call(func._schema.name, (), ()).name)
        values = _in_order(func, args, kwargs)
        tensors = [v for v in _flat(values) if isinstance(v, Tensor)]
        if (row is not None and row.status == "free") or (
            tensors and not any(map(_on_trn, tensors))
        ):
            return func(*args, **kwargs)
        held = _held(values) if row is not None and row.bind is not None else ()
        described = _describe(values)
        result = func(*args, **kwargs)
        if not func._schema.is_mutable and not any(map(_on_trn, _flat(_listed(result)))):
            return result  # a number or a copy for the host: nothing is computed
        counted = self.rows.setdefault(str(func), ExecutorRow(op=str(func)))
        counted.calls += 1
        try:
            call = Call(_name(func), described, _describe(_listed(result)), current_precision())
            self._replace(counted, call, row, held, values, _listed(result))
        except _NotOnMachine as why:
            self._keep(counted, str(why))
        return result

    def _keep(self, counted: ExecutorRow, reason: str) -> None:
        if not any(row.reason for row in self.rows.values()):
            warnings.warn(
                f"TRN_EMU_EXECUTOR=machine: {counted.op} keeps the fast kernel's values: {reason} "
                "More follow without a warning: torch_trn_emu.executor_report() has them all.",
                stacklevel=2,
            )
        counted.reason = reason

    def _replace(
        self,
        counted: ExecutorRow,
        call: Call,
        row: Op | None,
        held: Sequence[Any],
        values: Sequence[Any],
        results: Sequence[Any],
    ) -> None:
        programs, binding = _bound(call, row)
        machine, buffers = _machine(), _in_hbm(programs)
        before = machine.executed
        known = {n: _fed(feed, buffers[n], call, held) for n, feed in binding.feeds.items()}
        for k, program in enumerate(programs):
            links = binding.links[k] if k < len(binding.links) else {}
            names = {
                n: links.get(n, n)
                for n, b in _in_hbm((program,)).items()
                if b.role.value != "output" or n in links or n in binding.feeds
            }
            made = machine.run(program, {n: known[x] for n, x in names.items() if x in known})
            known |= made | {f"{k} {n}": x for n, x in made.items()}
        for taken, result in zip(binding.results, results, strict=False):
            if taken is not None and isinstance(result, Tensor):
                _put(counted, taken.view(torch.from_numpy(known[taken.buffer])), [result])
        for name, at in binding.written.items():
            _put(counted, torch.from_numpy(known[name]), _flat([values[at]]))
        counted.machine += 1
        counted.instructions += machine.executed - before


# --- calls ---------------------------------------------------------------------------------------


def _name(func: Any) -> str:
    return f"{func._schema.name}.{func._schema.overload_name}".removesuffix(".")


def _in_order(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the schema."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(a.name, a.default_value) for a in rest))


def _listed(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [x for v in values for x in (v if isinstance(v, (tuple, list)) else (v,))]


def _on_trn(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == DEVICE_TYPE


def _describe(value: Any) -> Any:
    """Values as a lowering sees them."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided
        dtype = str(value.dtype).removeprefix("torch.") if plain else "sparse"
        strides = tuple(value.stride()) if plain else ()
        return TensorArg(dtype, tuple(value.shape), strides, not _on_trn(value))
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe, value))
    return value


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor's memory on the host before the call, which may write it in place."""

    memory: Tensor
    logical: Tensor


def _held(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_held, value))
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.numel():
        return value
    span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    memory = value.detach().as_strided((span,), (1,)).cpu().clone()
    return _Held(memory, memory.as_strided(value.shape, value.stride()))


# --- programs ------------------------------------------------------------------------------------


@cache
def _machine() -> "Machine":
    from ..engines.machine import Machine

    return Machine(settings().chip)


def _bound(call: Call, row: Op | None) -> tuple[Programs, Binding]:
    """The programs of a call on one core, none if it is empty, and where its tensors lie."""
    if row is None:
        raise _NotOnMachine("it has no row, so no program of its own.")
    if row.bind is None:
        raise _NotOnMachine(f"its row has the cost only{f': {row.note}' if row.note else ''}.")
    try:
        programs = row.lower(call, Target(settings().chip, 1))
        if not isinstance(programs, tuple):
            raise _NotOnMachine("it moves data over the host's link.")
        if not programs:
            return (), Binding(feeds={}, results=())
        binding = row.bind(call, programs)
    except (KeyError, ChipLimit, Unimplemented, Unsupported) as why:
        raise _NotOnMachine(f"{type(why).__name__}: {why}.") from None
    buffers = _in_hbm(programs)
    made = [r for r in call.results if isinstance(r, TensorArg) or r is None]
    for taken, result in zip(binding.results, made, strict=False):
        if taken is not None and isinstance(result, TensorArg):
            _same_dtype(buffers[taken.buffer], result, wide=taken.rounds)
    for name, at in binding.written.items():
        listed = call.arguments[at]
        for t in listed if isinstance(listed, tuple) else (listed,):
            _same_dtype(buffers[name], t)
    return programs, binding


def _in_hbm(programs: Programs) -> dict[str, "Buffer"]:
    """By name, and by the program's number and name."""
    named = [(k, b) for k, p in enumerate(programs) for b in p.buffers if b.memory.value == "hbm"]
    numbered = {f"{k} {b.name}": b for k, b in named} if len(programs) > 1 else {}
    return {b.name: b for _, b in named} | numbered


def _same_dtype(
    buffer: "Buffer", t: TensorArg, *, integers: bool = False, wide: bool = False
) -> None:
    """Refuse what the buffer does not hold as it is; `wide` takes float32 for 16 bits."""
    known = t.torch_dtype in _FLOATS or integers
    widened = wide and buffer.dtype == "float32" and t.torch_dtype != "bool"
    if not known or (buffer.dtype != t.dtype and not widened):
        raise _NotOnMachine(f"{t.torch_dtype} is {buffer.dtype} in the program's {buffer.name}.")


def _fed(feed: Feed, buffer: "Buffer", call: Call, held: Sequence[Any]) -> Any:
    """What the machine's input buffer holds."""
    if not feed.argument:
        return torch.full((buffer.elements,), feed.constant).numpy()
    value: Any = held
    described: Any = call.arguments
    for at in feed.argument:
        value, described = value[at], described[at]
    if isinstance(value, tuple):
        for t in described:
            _same_dtype(buffer, t, wide=True)
        given = feed.view(torch.cat([held.logical.reshape(-1) for held in value]))
    else:
        _same_dtype(buffer, described, integers=feed.integers, wide=True)
        given = value.memory if feed.memory else feed.view(value.logical)
    if given.numel() != buffer.elements:
        raise _NotOnMachine(f"{given.numel()} elements for {buffer.elements} of {buffer.name}.")
    wide = given if feed.integers or given.dtype == torch.bool else given.float()
    return wide.contiguous().numpy()


def _difference(value: Tensor, fast: Tensor) -> float:
    """The largest difference, relative to the fast kernel's largest value; infinite where one has
    an infinity or a NaN that the other has not.
    """
    here, there = value.double(), fast.detach().cpu().double()
    both = here.isfinite() & there.isfinite()
    alike = both | (here == there) | (here.isnan() & there.isnan())
    if not bool(alike.all()):
        return float("inf")
    if not bool(both.any()):
        return 0.0
    top = float(there[both].abs().max()) or 1.0
    return float((here - there)[both].abs().max()) / top


def _put(counted: ExecutorRow, made: Tensor, tensors: Sequence[Tensor]) -> None:
    """The machine's values into tensors that lie one after the other."""
    pieces = made.reshape(-1).split([t.numel() for t in tensors])
    for piece, tensor in zip(pieces, tensors, strict=True):
        value = piece.reshape(tensor.shape).to(tensor.dtype)
        counted.difference = max(counted.difference, _difference(value, tensor))
        tensor.copy_(value)


# --- the process ---------------------------------------------------------------------------------

_installed: list[MachineExecutor] = []


def install() -> None:
    """Enter the mode for as long as the process runs."""
    mode = MachineExecutor()
    mode.__enter__()
    _installed.append(mode)


def executor_report() -> list[ExecutorRow]:
    """What computed the values of each operator so far; empty unless TRN_EMU_EXECUTOR=machine."""
    rows = [row for mode in _installed for row in mode.rows.values()]
    return sorted(rows, key=lambda row: row.op)
