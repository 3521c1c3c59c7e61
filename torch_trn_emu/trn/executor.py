"""TRN_EMU_EXECUTOR=machine: eager operators get their values from their programs, for checking.

A dispatch mode lets the fast kernel make the results as always. Where the programs of the
operator's row of OPS say what their buffers stand for (`isa/view.py`), they then run on the
machine, on all cores of the logical core, and what they compute replaces the results' values. Other
calls keep the fast kernel's values, and `executor_report` says so with the reason; the first one
warns.

The mode is that of the thread which imports torch; backward runs on the thread that calls it.
Checked on torch 2.13.0.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor

from ..calls import Call, Target, TensorArg
from ..errors import ChipLimit, Unimplemented, Unsupported
from ..isa import Program, Source, View
from ..ops import OPS
from ..ops.op import Op
from ..precision import current_precision
from ..settings import DEVICE_TYPE, settings
from ..torch_private import TorchDispatchMode
from .call_memory import CallMemory, Mismatch, is_labelled
from .random import get_rng_state

if TYPE_CHECKING:
    from ..engines.machine import Machine

__all__ = ["ExecutorRow", "MachineExecutor", "executor_report", "install"]

_FROM_HOST = frozenset("copy _copy_from _copy_from_and_resize _to_copy".split())


@dataclass(slots=True, kw_only=True)
class ExecutorRow:
    """What computed an operator's values.

    machine       calls whose values are those of the program
    cores         that the last of them ran on
    instructions  that the machine executed for them
    difference    from the fast kernel, the largest: relative to the largest value of the result
    reason        why other calls kept the fast kernel's values
    """

    op: str
    calls: int = 0
    machine: int = 0
    cores: int = 0
    instructions: int = 0
    difference: float = 0.0
    reason: str = ""


class _NotOnMachine(Exception):
    """A call whose program is not made, or does not compute it."""


class MachineExecutor(TorchDispatchMode):
    """While entered, operators on trn tensors compute on the machine where their rows can."""

    sees_launches = True  # csrc/aten/observers.h

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
        memory = CallMemory()
        given = _tensors(values, ("argument",))
        for source, t in given.items():
            memory.hold(source, t)
        copies = row is not None and row.name in _FROM_HOST
        described = _describe(values if copies else _known(values), "argument")
        result = func(*args, **kwargs)
        if not func._schema.is_mutable and not any(map(_on_trn, _flat(_listed(result)))):
            return result  # a number or a copy for the host: nothing is computed
        counted = self.rows.setdefault(str(func), ExecutorRow(op=str(func)))
        counted.calls += 1
        try:
            results = _describe(_listed(result), "result")
            call = Call(_name(func), described, results, current_precision())
            made = _tensors(_listed(result), ("result",))
            for source, t in made.items():
                memory.hold(source, t)
            self._compute(counted, call, row, memory, {**made, **given})
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

    def _compute(
        self,
        counted: ExecutorRow,
        call: Call,
        row: Op | None,
        memory: CallMemory,
        tensors: Mapping[Source, Any],
    ) -> None:
        """The values of the call's results, and of what it writes in place, by its programs."""
        programs, machine = _programs(call, row), _machine()
        before, drawn = machine.executed, _drawn(programs, tensors)
        try:
            for program in programs:
                memory.run(program, machine, drawn or 0)
        except Mismatch as why:
            raise _NotOnMachine(str(why)) from None
        for source, tensor in tensors.items():
            new = memory.written(source, tensor)
            if new is None:
                continue
            if drawn is None:
                counted.difference = max(counted.difference, _difference(new, tensor))
            tensor.copy_(new)
        kept = [k for k, r in enumerate(call.results) if isinstance(r, TensorArg) and r.numel
                and memory.written(("result", k), tensors[("result", k)]) is None]  # fmt: skip
        if kept:
            counted.reason = f"results {kept} are not in the program."
        counted.machine += 1
        counted.cores = max(counted.cores, *(p.cores for p in programs), 1)
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


def _describe(value: Any, *source: str | int) -> Any:
    """Values as a lowering sees them, with where their elements lie."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided
        dtype = str(value.dtype).removeprefix("torch.") if plain else "sparse"
        strides = tuple(value.stride()) if plain else ()
        views = (View(source, dtype, tuple(value.shape), strides),) if plain else ()
        return TensorArg(dtype, tuple(value.shape), strides, not _on_trn(value), views)
    if isinstance(value, (list, tuple)):
        return tuple(_describe(v, *source, k) for k, v in enumerate(value))
    return value


def _known(value: Any) -> Any:
    """With the numbers that tensors of the host hold: to a program they are immediates."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_known, value))
    if isinstance(value, Tensor) and not value.dim() and value.device.type == "cpu":
        return value.item() if not value.is_complex() else value
    return value


def _tensors(value: Any, source: Source) -> dict[Source, Tensor]:
    """The strided tensors of a call, those in lists too, by where they stand."""
    if isinstance(value, (list, tuple)):
        return {s: t for k, v in enumerate(value) for s, t in _tensors(v, (*source, k)).items()}
    plain = isinstance(value, Tensor) and value.layout == torch.strided
    return {source: value} if plain else {}


# --- programs ------------------------------------------------------------------------------------


@cache
def _machine() -> "Machine":
    from ..engines.machine import Machine

    return Machine(settings().chip)


def _programs(call: Call, row: Op | None) -> tuple[Program, ...]:
    """The programs of a call on all cores, else on one, whose buffers say what they stand for."""
    if row is None:
        raise _NotOnMachine("it has no row in OPS, so no program.")
    only = f"its row models only the cost{f': {row.note}' if row.note else ''}."
    if row.status != "modelled":
        raise _NotOnMachine(only)
    wanted = [k for k, r in enumerate(call.results) if isinstance(r, TensorArg) and r.numel]
    for cores in dict.fromkeys((settings().lnc, 1)):
        try:
            programs = row.lower(call, Target(settings().chip, cores))
        except (KeyError, ChipLimit, Unimplemented, Unsupported) as why:
            raise _NotOnMachine(f"{type(why).__name__}: {why}.") from None
        if not isinstance(programs, tuple):
            raise _NotOnMachine("it transfers data between host and device.")
        if is_labelled(programs, wanted):
            return programs
    raise _NotOnMachine(only)


def _drawn(programs: Sequence[Program], tensors: Mapping[Source, Tensor]) -> int | None:
    """Where the cores' random numbers begin, by the state of the device's generator; None if the
    programs draw none.
    """
    from ..engines import BEHAVIOURS

    if not any(BEHAVIOURS[i.opcode].draws for p in programs for i in p.instructions()):
        return None
    index = next((t.device.index for t in tensors.values() if _on_trn(t)), None)
    return crc32(get_rng_state(index).numpy().tobytes())


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


# --- the process ---------------------------------------------------------------------------------

_installed: list[MachineExecutor] = []


def install() -> None:
    """Enter the mode for as long as the process runs."""
    mode = MachineExecutor()
    mode.__enter__()
    _installed.append(mode)


def executor_report() -> list[ExecutorRow]:
    """Return what computed each operator's values; empty unless TRN_EMU_EXECUTOR=machine."""
    rows = [row for mode in _installed for row in mode.rows.values()]
    return sorted(rows, key=lambda row: row.op)
