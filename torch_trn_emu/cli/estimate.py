"""`trn-emu estimate`: prices the first steps of a script, computing on the host only.

The script runs, but operators on trn tensors do not: their results have shape, dtype and place, and
no values, so memory is reserved and never touched. Numbers that the script reads from the device
are meaningless; where the values decide on a shape, the operator runs. A step ends when an
optimizer's `step` does. With `--mode compile` each module that the script calls is compiled, and so
is what the script itself compiles for trn: their graphs are priced, no code is made.
"""

import contextlib
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.estimation import Estimate, Recorder, is_counted, kernel_of_device, tensors_in
from torch_trn_emu.ranges import as_data
from torch_trn_emu.settings import DEVICE_TYPE, settings
from torch_trn_emu.torch_private import (
    FAKE_TENSOR_LOGGER,
    FakeTensor,
    FakeTensorMode,
    HigherOrderOperator,
    TorchDispatchMode,
    disable_modes,
    is_traceable_wrapper_subclass_type,
    tree_leaves,
    tree_map,
)
from torch_trn_emu.torch_private.process_groups import with_one_rank

from .environment import apply
from .output import Report, Table, progress, show
from .script import command_of, run_script
from .tables import bytes_of, count, microseconds, op_table

__all__ = ["ShapesOnly", "execute"]


NOT_COMPUTED = (
    "trn-emu estimate: operators are priced, not computed; values that the script prints below "
    "are not computed"
)


class _Enough(BaseException):
    """Ends the script after the last step; no `except Exception` stops it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step: simulated seconds from the end of the one before, and launches."""

    seconds: float
    launches: int


def execute(options: Namespace) -> int:
    """Price the script; what it prints goes to stderr, since its numbers are not computed."""
    apply(options)
    chosen = settings()
    print(NOT_COMPUTED, file=sys.stderr)
    recorder = Recorder(Target(chosen.chip, chosen.lnc), only=DEVICE_TYPE)
    steps: list[Step] = []
    with (
        contextlib.redirect_stdout(sys.stderr),
        contextlib.suppress(_Enough),
        progress(options.steps, "steps priced") as advance,
        _stopping_after(options.steps, recorder, steps, advance),
        _compiling(recorder) if options.mode == "compile" else contextlib.nullcontext(),
        _one_rank(),
        recorder,
        ShapesOnly(recorder, compiles=options.mode == "compile"),
    ):
        run_script(options)
    found = recorder.result(chosen.chip, chosen.lnc, options.mode)
    show(_report(command_of(options), found, steps, options.rows), as_json=options.json)
    return 0


def _one_rank() -> contextlib.ExitStack:
    """The ranks beside this one do not run: no process group waits for them."""
    stack = contextlib.ExitStack()
    if world_size := int(os.environ.get("WORLD_SIZE") or 0):
        chosen = settings()
        if chosen.ranks_per_server:
            os.environ["LOCAL_WORLD_SIZE"] = str(chosen.ranks_per_server)
        with_one_rank(stack, int(os.environ.get("RANK") or 0), world_size)
    return stack


@contextlib.contextmanager
def _compiling(recorder: Recorder) -> Iterator[None]:
    """Compile each module that is called from outside other modules, and price its graphs.

    torch has no hook that runs before it chooses between a module's code and its compiled code.
    """
    from torch_trn_emu.compiler.replaced import backend_replaced
    from torch_trn_emu.torch_private.dynamo import OptimizedModule

    call = nn.Module.__call__
    compiled: dict[nn.Module, Any] = {}

    def outermost(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with patch.object(nn.Module, "__call__", call):
            known = recorder.in_graph or isinstance(module, OptimizedModule)
            if known or not _on_device(module, (args, kwargs)):
                return call(module, *args, **kwargs)
            if module not in compiled:
                compiled[module] = torch.compile(module, backend="trn")
            return compiled[module](*args, **kwargs)

    with (
        patch.object(nn.Module, "__call__", outermost),
        backend_replaced(recorder.backend, "script"),
    ):
        yield


def _on_device(module: nn.Module, inputs: Any) -> bool:
    tensors = (x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor))
    return any(t.device.type == DEVICE_TYPE for t in (*module.parameters(), *tensors))


@contextlib.contextmanager
def _stopping_after(
    most: int, recorder: Recorder, steps: list[Step], advance: Callable[[], None]
) -> Iterator[None]:
    def note(*_: Any) -> None:
        seconds = max(recorder.host_s, recorder.ready_s) - sum(s.seconds for s in steps)
        launches = recorder.launches - sum(s.launches for s in steps)
        if steps and recorder.launches and not launches:
            return  # an optimizer that consists of others
        steps.append(Step(seconds=seconds, launches=launches))
        advance()
        if len(steps) >= most:
            raise _Enough

    handle = register_optimizer_step_post_hook(note)
    try:
        yield
    finally:
        handle.remove()


class ShapesOnly(TorchDispatchMode):
    """Gives operators on trn tensors results of the right shape whose memory is never written.

    Composite operators (`aten::isclose`) are decomposed as on the device, so that `recorder` notes
    the launches of a run.
    """

    sees_launches = True  # csrc/aten/observers.h
    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder, compiles: bool = False) -> None:
        super().__init__()
        self._recorder, self._compiles = recorder, compiles
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def ignore_compile_internals(self) -> bool:  # type: ignore[override]
        return self._compiles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._control(func, args, given)
        if func.namespace == "prim" or any(issubclass(kind, FakeTensor) for kind in types):
            with disable_modes():  # torch looks at shapes
                return func(*args, **given)
        if any(map(_has_parts, types)):
            return NotImplemented  # a sharded tensor's part comes here
        if self._must_run(func, args, given):
            return func(*args, **given)
        apart = not self._recorder.in_graph or self._recorder.runs_apart(func)
        composite = kernel_of_device(func) if apart else None
        if composite is not None:
            return self._recorder.decompose(self, func, composite, args, given)
        # nonzero and its like, operators without a kernel on meta, wrong operands: these run.
        with contextlib.suppress(Exception), _silent():
            with disable_modes():
                shapes = self._shapes(func, args, given)
            # With whole numbers alone, too; those that come from what has no values may not fit.
            if all(map(is_counted, tensors_in(args, given, shapes))):
                with contextlib.suppress(Exception):
                    return func(*args, **given)
            with disable_modes():
                result = _results(func, args, given, shapes)
            self._recorder.note(func, args, given, result)
            return result
        return func(*args, **given)

    def _control(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        from torch_trn_emu.compiler.control import run_assuming

        with self:
            return run_assuming(func, args, kwargs, torch.Tensor.item)

    def _must_run(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Views cost nothing; reading a value and what lies on the host are the script's own."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_trn = any(t.device.type == DEVICE_TYPE for t in tensors)
        makes = (
            torch.device(kwargs["device"]).type == DEVICE_TYPE if kwargs.get("device") else False
        )
        plain = all(t.layout is torch.strided for t in tensors)
        name = func._schema.name
        free = func.is_view or name in _CHEAP or func.namespace == "c10d"
        return free or not plain or not (on_trn or makes)

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        def fake(value: Any) -> Any:
            is_tensor = isinstance(value, torch.Tensor)
            return self._fake.from_tensor(value, static_shapes=True) if is_tensor else value

        with self._fake:
            return func(*tree_map(fake, args), **tree_map(fake, kwargs))


def _has_parts(kind: type) -> bool:
    """Whether tensors of this type dispatch for the tensors that they consist of."""
    return kind is not torch.Tensor and is_traceable_wrapper_subclass_type(kind)


def _silent() -> Any:
    """What torch logs of an operator without shapes: that operator runs, and says so itself."""
    return patch.object(logging.getLogger(FAKE_TENSOR_LOGGER), "disabled", True)


_CHEAP = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense empty empty_like empty_strided new_empty new_empty_strided resize_"
        " set_ _has_compatible_shallow_copy_type detach is_pinned"
    ).split()
)


def _results(func: Any, args: Any, kwargs: Any, shapes: Any) -> Any:
    """The arguments that the schema returns, and fresh memory for the rest."""
    schema = func._schema
    if not schema.returns:
        return None
    named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    written: dict[str, Any] = {}
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= dict.fromkeys(argument.alias_info.before_set, named.get(argument.name))
    single = not isinstance(shapes, (tuple, list)) or len(schema.returns) == 1
    parts = [shapes] if single else list(shapes)
    made = []
    for declared, part in zip(schema.returns, parts, strict=True):
        alias = declared.alias_info
        aliased = [written[s] for s in (alias.before_set if alias else ()) if s in written]
        made.append(_resized(aliased[0], part) if aliased else tree_map(_reserved, part))
    return made[0] if single else tuple(made)


def _resized(out: Any, shape: Any) -> Any:
    """An `out=` of another size becomes what the operator makes of it."""
    if isinstance(out, torch.Tensor) and out.shape != shape.shape:
        out.resize_(shape.shape)
    return out


def _reserved(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _report(command: list[str], found: Estimate, steps: list[Step], rows: int) -> Report:
    data = {
        "command": command,
        "steps": [asdict(step) for step in steps],
        **{k: v for k, v in asdict(found).items() if k != "counters"},
        "range": as_data(found.range, get_chip(found.chip)),
        "counters": dict(found.counters),
    }
    lines = [
        f"{' '.join(command)} on {found.chip}, {found.lnc} physical core(s) per logical core, "
        f"matmul policy {found.precision}",
        f"{found.time_us:,.1f} us from the first dispatch to the last result; the core is busy for "
        f"{found.device_us:,.1f} us of it",
        f"peak HBM: {bytes_of(found.memory_peak_bytes)}",
        f"{found.range}; {found.basis}",
    ]
    cells = [
        (str(i), microseconds(step.seconds), count(step.launches, "count"))
        for i, step in enumerate(steps, 1)
    ]
    return Report(
        data=json.loads(json.dumps(data)),
        lines=lines,
        tables=[
            Table(title="Steps", head=("step", "us", "launches"), rows=cells),
            op_table([asdict(op) for op in found.ops], rows),
        ],
        ending=_ending(steps, found),
    )


def _ending(steps: list[Step], found: Estimate) -> str:
    if not steps:
        return f"about {found.time_us / 1e3:.3g} ms in total; no optimizer step found"
    return f"about {steps[-1].seconds * 1e3:.3g} ms a step once settled"
