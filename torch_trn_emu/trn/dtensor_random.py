"""Random operators of sharded DTensors: replicas draw the same numbers, shards draw their own.

torch's tracker of random state takes a generator's state for the seed and offset of CUDA. Here each
shard draws from its own seed, made of one number that all ranks draw alike. In traced code the
operator becomes one whose name starts with `trn::run_dtensor_rng_op_`, which draws that number when
the graph runs.

To let another random operator be traced, add it to `_TRACED`. Checked on torch 2.13.0.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import library

from .. import _C
from ..settings import DEVICE_TYPE
from ..torch_private import OpOverload, TorchDispatchMode
from ..torch_private.dtensor import (
    are_we_tracing,
    enabled_local_tensor_mode,
    get_rng_states,
    local_value,
    set_rng_states,
)

__all__ = ["track_random_state"]

aten = torch.ops.aten
_TRACED = (
    aten.native_dropout.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
    aten.bernoulli.default,
    aten.bernoulli_.float,
    aten.normal_.default,
    aten.uniform_.default,
)
_library = library.Library("trn", "FRAGMENT")
_operators: dict[OpOverload, OpOverload] = {}  # of `_TRACED`, once DTensor is imported


def track_random_state(module: Any) -> None:
    """Give torch's module of DTensor's random state a tracker for trn, made at first use."""
    base, offsets = module._RNGStateTracker, module.OffsetBasedRNGTracker

    class Tracker(base):  # type: ignore[misc, valid-type]
        def __init__(self, synchronizes: bool) -> None:
            self._device = torch.device(DEVICE_TYPE)
            self._use_distribute_region = True
            if synchronizes:
                _synchronize()

        @contextlib.contextmanager
        def _distribute_region(self, spec: Any, generator: Any = None) -> Iterator[None]:
            if spec.mesh.device_type != DEVICE_TYPE:
                yield
                return
            coordinate = _coordinate(spec.mesh)
            own = _C.default_generator(_C.current_device())
            region: Any
            if are_we_tracing():
                region = _Traced(_shard_of(spec, coordinate), generator)
            elif (local := enabled_local_tensor_mode()) and local._per_rank_rng_states:
                region = _numbers_of_local_ranks(local, spec, own, generator or own)
            else:
                region = _numbers_of(_shard_of(spec, coordinate), own, generator or own)
            with region:
                yield

    def new(cls: Any, device_mesh: Any, run_state_sync: bool = True) -> Any:
        if cls is not offsets or device_mesh.device_type != DEVICE_TYPE:
            return object.__new__(cls)
        alone = are_we_tracing() or enabled_local_tensor_mode()
        return Tracker(run_state_sync and not alone)

    _define_operators()
    offsets.__new__ = staticmethod(new)


def _synchronize() -> None:
    """Give every rank of the world the state of rank 0, as torch does on CUDA."""
    own = _C.default_generator(_C.current_device())
    state = own.get_state().to(torch.device(DEVICE_TYPE, _C.current_device()))
    torch.distributed.broadcast(state, 0)
    own.set_state(state.cpu())


def _coordinate(mesh: Any) -> Any:
    """A rank's place in the mesh. Graphs that torch compiles for all ranks have symbols of it."""
    found = mesh.get_coordinate()
    if found is None or not are_we_tracing():
        return found
    return [mesh._sym_get_coordinate(dim) for dim in range(mesh.ndim)]


def _shard_of(spec: Any, coordinate: Any) -> Any:
    """The number of the shard of a rank in the mesh, which may be a symbol; -1 if every rank holds
    the whole.
    """
    index, count = 0, 1
    coordinate = coordinate or [0] * spec.mesh.ndim
    for size, mine, placement in zip(spec.mesh.shape, coordinate, spec.placements, strict=True):
        if hasattr(placement, "dim"):  # Shard and _StridedShard
            index, count = index * size + mine, count * size
    return index if count > 1 else -1


@contextlib.contextmanager
def _numbers_of(shard: int, own: torch.Generator, given: torch.Generator) -> Iterator[None]:
    """Lets `own`, the default generator, draw a shard's numbers, and `given` advance for them.

    A DTensor's operator draws from the default generator, whichever the program gave it.
    """
    if given.device.type != own.device.type:
        raise RuntimeError(
            f"Expected a generator of {own.device.type}, but found one of {given.device.type}: "
            f"make it by torch.Generator('{own.device.type}')."
        )
    if shard < 0 and given is own:
        yield
        return
    number = _drawn(given) if shard >= 0 else 0
    kept = own.get_state()
    if shard >= 0:
        own.manual_seed(_seed_of(number, shard))
    else:
        own.set_state(given.get_state())
    try:
        yield
    finally:
        if shard < 0:
            given.set_state(own.get_state())
        own.set_state(kept)


@contextlib.contextmanager
def _numbers_of_local_ranks(
    mode: Any, spec: Any, own: torch.Generator, given: torch.Generator
) -> Iterator[None]:
    """As `_numbers_of`, for the ranks that LocalTensorMode simulates in this process.

    The mode keeps the states of all generators for each rank, and sets them before a rank draws.
    """
    states, coordinate = mode._per_rank_rng_states, spec.mesh.get_coordinate()
    shards = {
        rank: _shard_of(spec, [local_value(at, rank) for at in coordinate])
        for rank in sorted(mode.ranks)
    }
    sharded = any(shard >= 0 for shard in shards.values())
    with mode.disable():
        before = mode._any_local_rng_state()
        set_rng_states(*before)
        number = _drawn(given) if sharded else 0
        after = get_rng_states()
        for rank, shard in shards.items():
            if sharded:
                own.manual_seed(_seed_of(number, shard))
            elif given is not own:
                own.set_state(given.get_state())
            states[rank] = get_rng_states()
    try:
        yield
    finally:
        if not sharded and given is not own:
            with mode.disable():
                set_rng_states(*mode._any_local_rng_state())
                given.set_state(own.get_state())
                set_rng_states(*before)
        if sharded or given is not own:
            states.update(dict.fromkeys(shards, after))


def _seed_of(number: int, shard: int) -> int:
    """The seed of a shard, of a number that all ranks have drawn."""
    return (number + shard * 0x9E3779B97F4A7C15) % 2**63


def _drawn(source: torch.Generator) -> int:
    paused = _C.pause_ledger(True)  # a draw of the emulator, not of the program
    # Of this name under every alias: below a dispatch mode none translates.
    device = source.device
    if device.type != "cpu":
        device = torch.device(DEVICE_TYPE, device.index)
    try:
        return int(torch.randint(2**62, (), generator=source, device=device))
    finally:
        _C.pause_ledger(paused)


# --- traced code ----------------------------------------------------------------------------------


class _Traced(TorchDispatchMode):
    """Traces a random operator as one that draws the numbers of a shard."""

    def __init__(self, shard: Any, generator: torch.Generator | None) -> None:
        if generator is not None:
            raise NotImplementedError(
                "A random operator on a DTensor with a generator cannot be compiled: seed the "
                "default generator by torch.manual_seed, or call the operator outside of "
                "torch.compile."
            )
        super().__init__()
        self.shard = shard

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _operators:
            return func(*args, **(kwargs or {}))
        drawn = _operators[func](*args, **(kwargs or {}), shard=self.shard)
        return args[0].copy_(drawn) if func._schema.is_mutable else drawn


def _define_operators() -> None:
    """One for each operator that draws. No overloads: torch's registry fails to remove those."""
    for op in _TRACED:
        if op not in _operators:
            name, _, overload = str(op).removeprefix("aten.").partition(".")
            suffix = "" if overload == "default" else f"__{overload}"
            _operators[op] = _defined(f"run_dtensor_rng_op_{name}{suffix}", op)


def _defined(name: str, op: OpOverload) -> OpOverload:
    """An operator with the arguments of `op` and a shard, whose result is a new tensor."""
    takes, _, gives = str(op._schema).replace("(a!)", "").partition("(")[2].rpartition(") ->")
    takes = takes.replace("float from", "float low")  # Inductor gives no argument of that name
    shard = "SymInt shard" if "*, " in takes else "*, SymInt shard"
    tags = (torch.Tag.nondeterministic_seeded,)
    _library.define(f"{name}({takes}, {shard}) ->{gives}", tags=tags)
    _library.impl(name, partial(_draw, op), "CompositeExplicitAutograd")
    _library.impl(name, partial(_shapes, op), "Meta")
    return getattr(torch.ops.trn, name).default  # type: ignore[no-any-return]


def _draw(op: OpOverload, tensor: torch.Tensor, *args: Any, shard: int, **kwargs: Any) -> Any:
    """On a core, or on the host, whose generator has the core's state while a graph runs."""
    host = tensor.device.type == "cpu"
    own = torch.default_generator if host else _C.default_generator(tensor.device.index)
    with _numbers_of(shard, own, own):
        return _shapes(op, tensor, *args, shard=shard, **kwargs)


def _shapes(op: OpOverload, tensor: torch.Tensor, *args: Any, shard: int, **kwargs: Any) -> Any:
    target = torch.empty_like(tensor) if op._schema.is_mutable else tensor
    return op(target, *args, **kwargs)
