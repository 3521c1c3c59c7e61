"""Runs an operator call's programs on the machine, fed with the call's own tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torch_trn_emu.calls import Call, Target, TensorArg
from torch_trn_emu.chip import get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Memory, Program, Role
from torch_trn_emu.ops import OPS

CHIP = get_chip("trn3")
TARGET = Target(CHIP, 1)
GENERATOR = torch.Generator().manual_seed(5)

Arrays = dict[str, np.ndarray]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


def describe(value: Any) -> Any:
    """A call's argument as a lowering sees it."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return TensorArg(dtype, tuple(value.shape), tuple(value.stride()))
    if isinstance(value, (list, tuple)):
        return tuple(map(describe, value))
    return value


def call_of(op: Any, *args: Any, results: Any = None, **kwargs: Any) -> Call:
    """The call in the order of its schema; results are those of the host unless given."""
    values = list(args)
    for argument in op._schema.arguments[len(args) :]:
        values.append(kwargs.get(argument.name, argument.default_value))
    if results is None:
        results = op(*args, **kwargs)
    results = results if isinstance(results, (list, tuple)) else (results,)
    name = f"{op._schema.name}.{op._schema.overload_name}".removesuffix(".")
    return Call(name, describe(values), describe(results))


def lowered(call: Call) -> tuple[Program, ...]:
    row = OPS[call.name]
    assert row.status == "modelled", row
    programs = row.lower(call, TARGET)
    assert isinstance(programs, tuple)
    return programs


def run(
    programs: Sequence[Program],
    feeds: Mapping[str, torch.Tensor],
    links: Sequence[Mapping[str, str]] = (),
) -> Arrays:
    """One program after the other; what one stores feeds those after it, by name.

    links  for each program, what a buffer is fed with where the names differ
    """
    known: Arrays = {name: t.detach().numpy() for name, t in feeds.items()}
    for k, program in enumerate(programs):
        renamed = links[k] if k < len(links) else {}
        inputs = {}
        for b in program.buffers:
            source = renamed.get(b.name, b.name)
            fed = b.role in (Role.INPUT, Role.WEIGHT) or b.name in renamed
            if b.memory is Memory.HBM and fed:
                inputs[b.name] = known[source].reshape(-1)
                assert inputs[b.name].size == b.elements, (b.name, b.shape, known[source].shape)
        known |= Machine(CHIP).run(program, inputs)
    return known


def memory(t: torch.Tensor) -> torch.Tensor:
    """What a strided tensor's elements lie in, from its first to its last."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return torch.as_strided(t, (span,), (1,), t.storage_offset())
