"""Runs an operator's programs on the machine by the labels of their buffers, on several cores."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from torch_trn_emu.calls import Call, Target, TensorArg
from torch_trn_emu.chip import Chip, get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import View
from torch_trn_emu.ops import OPS
from torch_trn_emu.trn.call_memory import CallMemory, is_labelled

CHIP = get_chip("trn3")
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def described(value: Any, *source: str | int) -> Any:
    """A call's argument as a lowering sees it, with where its elements lie."""
    if isinstance(value, torch.Tensor):
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        view = View(source, dtype, shape, tuple(value.stride()))
        return TensorArg(dtype, shape, view.strides, views=(view,))
    if isinstance(value, (list, tuple)):
        return tuple(described(v, *source, k) for k, v in enumerate(value))
    return value


def held(value: Any, *source: str | int) -> dict[Any, torch.Tensor]:
    if isinstance(value, (list, tuple)):
        return {s: t for k, v in enumerate(value) for s, t in held(v, *source, k).items()}
    return {source: value} if isinstance(value, torch.Tensor) else {}


def computed(
    name: str,
    op: Any,
    *args: Any,
    spelled: Callable[[list[Any]], list[Any]] | None = None,
    host: Callable[..., Any] | None = None,
    chip: Chip = CHIP,
    most: int = 2,
) -> tuple[int, Pairs]:
    """The cores that computed a call of row `name`, and (machine's, host's) values of all results.

    The cores that the labels allow: `most`, else 1; 0 if the row's programs have none. `spelled`
    gives the arguments of the row from those of `op`, an operator alike that the host has; `host`
    computes what `op` does on other devices only. Results that the row does not make are left out.
    """
    kwargs = op.keywords if isinstance(op, partial) else {}
    op = op.func if isinstance(op, partial) else op
    rest = op._schema.arguments[len(args) :]
    values = [*args, *(kwargs.get(a.name, a.default_value) for a in rest)]
    spoken = spelled(values) if spelled else values
    memory, given = CallMemory(), held(spoken, "argument")
    for source, t in given.items():
        memory.hold(source, t)
    arguments = described(spoken, "argument")
    results = (host or op)(*args, **kwargs)
    results = results if isinstance(results, (list, tuple)) else (results,)
    made = held(tuple(results), "result")
    for source, t in made.items():
        memory.hold(source, t)
    overload = op._schema.overload_name
    call = Call(f"aten::{name}{'.' if overload else ''}{overload}", arguments,
                described(tuple(results), "result"))  # fmt: skip
    wanted = [k for k, r in enumerate(call.results) if isinstance(r, TensorArg) and r.numel]
    for cores in dict.fromkeys((most, 1)):
        programs = OPS[name].lower(call, Target(chip, cores))
        assert isinstance(programs, tuple), f"{name} transfers data between host and device"
        if is_labelled(programs, wanted):
            break
    else:
        return 0, []
    for program in programs:
        memory.run(program, Machine(chip))
    mutated = {s: t for s, t in given.items() if memory.regions[s].written.any()}
    found = {s: (memory.written(s, t), t) for s, t in {**made, **mutated}.items() if t.numel()}
    touched = {s for s, r in memory.regions.items() if r.written.any()}
    assert all(found[s][0] is not None for s in touched & found.keys()), f"{name}: partly written"
    return cores, [pair for s, pair in found.items() if s in touched]
