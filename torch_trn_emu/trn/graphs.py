"""Captured graphs: `torch.accelerator.Graph` on trn, and `graph` as in torch.cuda.

A capture runs each operator to know what it gives, then puts back what was written: as on CUDA,
nothing has happened until `replay`. A replay runs the operators again into the same tensors and is
one launch, whose time is that of its kernels without the dispatches. Checked on torch 2.13.0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .. import _C
from ..errors import Unsupported
from ..settings import ALIAS, DEVICE_TYPE, settings
from ..torch_private import (
    AutoDispatchBelowAutograd,
    DisableTorchFunction,
    TorchDispatchMode,
    compiled_c10d,
    tree_leaves,
)
from .device import current_device, synchronize
from .streams import StreamContext

__all__ = [
    "CUDAGraph",
    "Graph",
    "graph",
    "graph_pool_handle",
    "install",
    "is_current_stream_capturing",
]

_HANDLES = count(1)
_COLLECTIVES = ("c10d", "_c10d_functional")  # some do not declare what they write
_READS_ON_HOST = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::nonzero")


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator of a capture and the tensors that hold its results."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor, ...]


@dataclass(slots=True)
class _Capture:
    device: int
    steps: list[_Step] = field(default_factory=list)
    saved: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    row: Any = None  # of the ledger, where replays are counted
    mode: "_Recorder | None" = None
    random: Tensor | None = None
    steps_watched: Any = None  # a handle


def _on_trn(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == DEVICE_TYPE


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if _on_trn(leaf)]


class _Recorder(TorchDispatchMode):
    """Keeps every operator that touches trn, and what it overwrites."""

    def __init__(self, capture: _Capture) -> None:
        super().__init__()
        self.capture = capture
        self.drawn: dict[int, Tensor] = {}  # states of generators after the last draw

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Of a DTensor, or a collective's result before its wait, what they call comes here.
        if any(t.__torch_dispatch__ is not Tensor.__torch_dispatch__ for t in types):
            return NotImplemented
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        self._refuse_reads(func, args, kwargs, given)
        if func._schema.is_mutable or func.namespace in _COLLECTIVES:
            for tensor in _written(func, args, kwargs):
                self._save(tensor)
        if torch.Tag.nondeterministic_seeded in func.tags:
            results = self._draw(func, args, kwargs)
        else:
            results = func(*args, **kwargs)
        made = _tensors(results)
        if (given or made) and not _is_free(func, given, made):
            self.capture.steps.append(_Step(func, args, kwargs, tuple(made)))
        return results

    def _refuse_reads(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        name = func._schema.name
        leaves = name == "aten::copy_" and _on_trn(args[1]) and not _on_trn(args[0])
        target = kwargs.get("device") if name == "aten::_to_copy" else None
        leaves |= bool(given) and target is not None and target.type != DEVICE_TYPE
        if given and (name in _READS_ON_HOST or leaves):
            raise RuntimeError(
                f"{name} waits for values of the device, which a captured graph cannot: operation "
                "not permitted when stream is capturing. Call it before or after the capture."
            )

    def _draw(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that draws. A replay goes on from where the one before it stopped."""
        from .random import default_generators

        generator = kwargs.get("generator")
        key = 0 if generator is None else id(generator)
        generator = default_generators[self.capture.device] if generator is None else generator
        before = self.drawn.get(key, None if key else self.capture.random)
        if before is not None and not torch.equal(generator.get_state(), before):
            raise RuntimeError(
                f"{func._schema.name} draws from a state that was set while the graph is captured: "
                "operation not permitted when stream is capturing, for a replay would not set it. "
                "Set states and seeds before the capture; checkpoint with preserve_rng_state=False."
            )
        results = func(*args, **kwargs)
        self.drawn[key] = generator.get_state()
        return results

    def _save(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.capture.saved:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            with uncounted():
                self.capture.saved[storage.data_ptr()] = (whole, whole.clone())


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if func.namespace == "c10d":
        return _tensors(args, kwargs)
    found = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[k] if k < len(args) else kwargs.get(argument.name))
    return found


def _is_free(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether all results are views of what was given: they need no second run."""
    if func._schema.is_mutable or func.namespace in _COLLECTIVES or not made:
        return False
    known = {t.untyped_storage().data_ptr() for t in given}
    return all(t.untyped_storage().data_ptr() in known for t in made)


@contextmanager
def uncounted() -> Iterator[None]:
    """What the emulator does for itself is no launch."""
    previous = _C.pause_ledger(True)
    try:
        with DisableTorchFunction():  # under another name too, tensors are on trn
            yield
    finally:
        _C.pause_ledger(previous)


def _row(number: int, device: int, listed: list[tuple[str, int, int]]) -> Any:
    """A row of the ledger for replays: the kernels one after the other, started once."""
    from ..pricing import Price, combined, prices, remember

    launch = settings().chip.launch
    found = [price for price in prices(number for _, _, number in listed) if price is not None]
    price: Price = combined(f"trn::graph_{number}", found, settings().chip)
    return _C.add_graph_row(
        device=device,
        name=price.op,
        signature=f"({len(listed)} kernels)",
        key=(1 << 62) + number,
        device_ns=round(price.seconds * 1e9),
        dispatch_ns=round(launch.graph_launch_s * 1e9),
        price_row=remember(price),
        blocks=False,
    )


def _refuse_steps_on_host(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    """A step that is counted on the host would be the same in each replay; torch refuses it too."""
    for group in optimizer.param_groups:
        if group.get("capturable") is False and not group.get("fused"):
            name = "CUDA" if ALIAS == "cuda" else DEVICE_TYPE
            raise RuntimeError(
                f"Attempting {name} graph capture of step() for an instance of "
                f"{type(optimizer).__name__} but param_groups' capturable is False: replays would "
                "repeat this step's number. Pass capturable=True to the optimizer."
            )


# --- what csrc/runtime/graph.cpp calls ------------------------------------------------------------

_captures: dict[int, _Capture] = {}
_open: list[int] = []


def _begin(number: int) -> None:
    if _open:
        raise RuntimeError("another graph is being captured: end that capture first")
    from .random import get_rng_state

    capture = _Capture(current_device(), random=get_rng_state())
    capture.steps_watched = register_optimizer_step_pre_hook(_refuse_steps_on_host)
    capture.mode = _Recorder(capture)
    _captures[number] = capture
    _open.append(number)
    capture.mode.__enter__()
    _C.list_launches(True)


def _end(number: int) -> None:
    capture = _captures[number]
    capture.row = _row(number, capture.device, _close(number, capture))


def _close(number: int, capture: _Capture) -> list[tuple[str, int, int]]:
    """Put back what the capture wrote. Returns its launches."""
    from .random import set_rng_state

    assert capture.mode is not None
    capture.mode.__exit__(None, None, None)
    capture.steps_watched.remove()
    _open.remove(number)
    listed = _C.list_launches(False)
    with uncounted():
        for whole, kept in capture.saved.values():
            whole.copy_(kept)
    capture.saved.clear()
    if capture.random is not None:
        set_rng_state(capture.random)
    capture.mode = None
    return listed


def _replay(number: int) -> None:
    capture = _captures[number]
    with uncounted(), torch.no_grad(), AutoDispatchBelowAutograd():
        for step in capture.steps:
            _run(step)
    _C.launch_graph(capture.device, capture.row, 1)


def _run(step: _Step) -> None:
    results = step.op(*step.args, **step.kwargs)
    if step.op.namespace in _COLLECTIVES:
        _wait(results)
    for fresh, kept in zip(_tensors(results), step.results, strict=True):
        if fresh is not kept and fresh.data_ptr() != kept.data_ptr():
            kept.copy_(fresh)


def _wait(results: Any) -> None:
    """Wait for a collective: the capture saw no wait, or one for the tensor that it had then."""
    for leaf in tree_leaves(results):
        if isinstance(leaf, Tensor):
            torch.ops._c10d_functional.wait_tensor(leaf)
        if isinstance(leaf, torch.ScriptObject):
            work = compiled_c10d.Work.unbox(leaf)
            if work is not None:  # of a call that waited itself
                work.wait()


def _reset(number: int) -> None:
    capture = _captures.pop(number, None)
    if capture is not None and number in _open:  # the graph is dropped before its capture ends
        _close(number, capture)


def _dump(number: int, path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("digraph trn {\n")
        for k, step in enumerate(_captures[number].steps):
            file.write(f'  n{k} [label="{step.op}"];\n')
            if k:
                file.write(f"  n{k - 1} -> n{k};\n")
        file.write("}\n")


def install() -> None:
    """Make `torch.accelerator.Graph` work on trn."""
    _C.set_graph_hooks(begin=_begin, end=_end, replay=_replay, reset=_reset, dump=_dump)


# --- torch.cuda's names ---------------------------------------------------------------------------


class Graph(torch.accelerator.Graph):
    """A captured graph, as `torch.cuda.CUDAGraph`: `capture_begin`, `capture_end`, `replay`."""

    def capture_begin(
        self,
        pool: tuple[int, int] | None = None,
        capture_error_mode: str = "global",
        check_input_liveness: bool = False,
    ) -> None:
        """Begin the capture. Pools are one; every mode refuses reads of values on the host."""
        if check_input_liveness:
            raise Unsupported("check_input_liveness: a captured graph keeps its inputs alive here.")
        if pool is not None:
            self.graph_pool = pool
        super().capture_begin()

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Accepted without effect: replays draw from the generators that the capture used."""


CUDAGraph = Graph  # torch.cuda's name


def graph_pool_handle() -> tuple[int, int]:
    """A name for a memory pool that graphs may share. Pools are one here."""
    return (1, next(_HANDLES))


def is_current_stream_capturing() -> bool:
    """Whether a graph is being captured on this thread's stream."""
    return bool(_open)


@contextmanager
def graph(
    trn_graph: torch.accelerator.Graph,
    pool: tuple[int, int] | None = None,
    stream: Any = None,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    """Capture what the block launches into `trn_graph`, as `torch.cuda.graph` does."""
    if pool is not None:
        trn_graph.graph_pool = pool
    synchronize()
    with StreamContext(stream):
        trn_graph.capture_begin()
        try:
            yield
        finally:
            trn_graph.capture_end()
