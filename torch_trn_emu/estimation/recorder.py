"""Prices every operator that a function dispatches, with the clock of the device."""

import weakref
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from ..accelerated.table import ONE_LAUNCH
from ..calls import Call, Target, TensorArg, is_of_library
from ..chip import Chip
from ..compiler.communication import exchange_of
from ..compiler.own_kernels import is_own
from ..compiler.records import warn_unknown
from ..counters import Clock, clocked, combine, derive
from ..ops.attention import without_sums
from ..precision import chosen_precision, current_precision
from ..pricing import Price, price_call, report_rows
from ..ranges import range_of, regime_of
from ..settings import settings
from ..torch_private import (
    DispatchKey,
    HigherOrderOperator,
    TorchDispatchMode,
    TracingContext,
    autograd_node,
    function_modes,
    skip_function_modes,
)
from .calls_of_groups import Promises, call_of_group
from .composites import composite_on_meta
from .device_operators import fused_attention
from .exchanges import Exchanged, Exposure, is_awaited
from .known_values import KnownValues
from .meta_results import is_counted, run_on_meta, tensors_in
from .result import Estimate

__all__ = ["Recorder"]

# Namespaces of groups, priced by their calls, and of what does nothing to elements.
_NO_LAUNCH = frozenset(
    (
        *"c10d _c10d_functional _c10d_functional_autograd _dtensor symm_mem".split(),
        *"prim profiler streams".split(),
    )
)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


class _Memory:
    """Bytes of the storages alive, and the most there were."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._finalizers: dict[int, weakref.finalize[..., Any]] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.layout is not torch.strided or tensor.device.type == "cpu":
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            known = self._finalizers.get(key)
            if known is not None and known.alive:
                continue
            nbytes = storage.nbytes()
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            self._finalizers[key] = weakref.finalize(storage, self._release, nbytes)

    def _release(self, nbytes: int) -> None:
        self.now -= nbytes

    def close(self) -> None:
        for finalizer in self._finalizers.values():
            finalizer.detach()


class Recorder(TorchDispatchMode):
    """Prices every operator as it is dispatched, on a clock like csrc/runtime/ledger.cpp's.

    only  a device type: operators without a tensor there are the host's own
    """

    sees_launches = True  # csrc/aten/observers.h
    supports_higher_order_operators = True

    def __init__(self, target: Target, only: str | None = None) -> None:
        super().__init__()
        self.target, self.memory, self.only = target, _Memory(), only
        self.known = KnownValues()
        self.host_s = self.ready_s = self.idle_s = self.dispatch_s = 0.0
        self._worked_s = 0.0  # when the core's last work ends; it may be ready later, after waits
        self.exchanged = Exchanged(target)
        self.exposure, self.promises = Exposure(), Promises(self.exchanged)
        self.priced: dict[Hashable, tuple[Price, int]] = {}
        self.graphs: dict[int, Any] = {}  # by id, which another may have once one is freed
        self.in_graph = self.in_functional = False
        self.emulated = settings().chip.name == target.chip.name

    def policy(self) -> str:
        """The matmul precision in force; on another chip than the process's its own default."""
        if self.emulated:
            return current_precision()
        return chosen_precision() or self.target.chip.default_matmul_precision

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # functions that run in this mode may be compiled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if TracingContext.try_get() is not None:
            return func(*args, **kwargs)  # the compiler looks at shapes
        if isinstance(func, HigherOrderOperator):
            return self._control(func, args, kwargs)
        if func.namespace == "c10d" and not self.in_graph:
            return self._communicate(func, args, kwargs)
        if self.only:
            return self._run(func, args, kwargs)
        return self.known.run(func, args, kwargs, self._run)

    def _run(self, func: Any, args: Any, kwargs: Any, given: tuple[Any, ...] = ()) -> Any:
        """Runs it, unless its result is given."""
        apart = not (self.in_graph or self.only) or self.runs_apart(func)
        composite = composite_on_meta(func) if apart else None
        if composite is not None and not given:
            if not is_of_library(func.name()):
                return self.decompose(self, func, composite, args, kwargs)
            with suppress(NotImplementedError, RuntimeError, TypeError):  # it asks for values
                return self.decompose(self, func, composite, args, kwargs)
        self.memory.hold(tensors_in(args, kwargs))
        if given:
            result = given[0]
        else:
            plain = self.in_graph or self.only
            result = func(*args, **kwargs) if plain else run_on_meta(func, args, kwargs)
        self.note(func, args, kwargs, result)
        return result

    def decompose(
        self, mode: TorchDispatchMode, func: Any, key: DispatchKey, args: Any, kwargs: Any
    ) -> Any:
        """Runs what torch makes an operator of, as `mode` sees it."""
        within, graph = self.in_functional, self.in_graph
        self.in_functional = within or func.namespace == "_c10d_functional"
        self.in_graph = False  # also where a graph calls it
        try:
            kernel = partial(func._op_dk, key)
            with mode:
                if function_modes():  # which would call the operator, not this kernel
                    made = skip_function_modes(kernel, (), args, kwargs)
                else:
                    made = kernel(*args, **kwargs)
        finally:
            self.in_functional, self.in_graph = within, graph
        self.exchange(func, args, kwargs, made)
        return made

    def runs_apart(self, func: Any) -> bool:
        """Whether a graph calls an operator of a library, which launches what it runs."""
        return self.in_graph and is_own(func)

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator has run, or would have, with this result."""
        self.memory.hold(tensors_in(result))
        if self.only is not None and not self._concerns((args, kwargs, result)):
            return
        if not self.in_graph:
            tensors = tensors_in(args, kwargs)
            if any(map(is_awaited, tensors)):
                self._await()
            if not func.is_view:
                self._wait_until(self.promises.end_s(tensors, self.now_s))
                # What takes a future in the backward pass waits for it at the end of that.
                if autograd_node() is None:
                    self._wait_until(self.promises.take_futures_end_s())
            self.exchange(func, args, kwargs, result)
        launches = func.namespace not in _NO_LAUNCH and not func.is_view
        if launches and (not self.in_graph or self.runs_apart(func)):
            policy = self.policy()
            call = _call(func, args, kwargs, result, policy, real=self.only is not None)
            if not _may_go_back(args):
                call = without_sums(call)
            described = (*call.tensors, *call.outputs)
            if not described or not all(t.on_host for t in described):
                if call.is_of_library:
                    warn_unknown(call.op)
                price = price_call(call, self.target)
                self._launch(call, price, self.target.chip.launch.eager_dispatch_s)

    def exchange(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """What the host does for a functional collective, or for the wait for its result."""
        if func.namespace != "_c10d_functional":
            return
        call = _call(func, args, kwargs, result, self.policy(), real=False)
        names = [argument.name for argument in func._schema.arguments]
        group = call.arguments[names.index("group_name")] if "group_name" in names else ""
        one = exchange_of(func._opname, call, str(group))
        if one is not None:
            self._dispatch()
            self.exchanged.issue(one, self.now_s, in_graph=False)
        elif func._opname == "wait_tensor":
            self._await()

    def _communicate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A call of torch.distributed: it takes its time, and whole numbers get their values."""
        call = call_of_group(func, args, kwargs)
        tensors = tensors_in(args, kwargs)
        if call is None or not any(self._on_device(t) for t in tensors):
            return func(*args, **kwargs)
        if self.only and all(map(is_counted, tensors)):
            func(*args, **kwargs)
        elif call.gathered:
            self.known.gather(call.gathered, call.results)
        if self.in_functional:  # it is counted by its own name
            work = self.promises.kept(call)
        else:
            self._dispatch()
            ready_s = self.promises.end_s(tensors, self.now_s)
            work = self.promises.make(call, ready_s, partial(self._waited, call.operation))
        returns_tensors = len(func._schema.returns) == 2
        return (call.returned, work) if returns_tensors else work

    def _on_device(self, tensor: torch.Tensor) -> bool:
        kind = tensor.device.type
        return kind == self.only if self.only else kind != "cpu"

    def _waited(self, operation: str, end_s: float) -> None:
        """The script waits for an operation; another stream than the default one has no clock."""
        if self.only and torch.accelerator.current_stream().stream_id != 0:
            return
        self._wait_until(end_s)
        if operation == "barrier":
            self._hold()
            self.host_s = self.now_s

    def _dispatch(self) -> None:
        self.host_s += self.target.chip.launch.eager_dispatch_s
        self.dispatch_s += self.target.chip.launch.eager_dispatch_s

    @property
    def now_s(self) -> float:
        """When the core is free for what the host starts next."""
        return max(self.host_s, self.ready_s)

    def _wait_until(self, end_s: float) -> None:
        """What is launched next begins no earlier."""
        self.ready_s = max(self.ready_s, end_s)

    def _await(self) -> None:
        """The core waits for the latest functional collective."""
        self._wait_until(self.exchanged.end_of(-1))

    def _hold(self) -> None:
        """Something waits for what was to be waited for."""
        self.exposure.hold(max(self.host_s, self._worked_s), self.ready_s)
        self._worked_s = self.ready_s

    def _control(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Control flow: what runs is recorded, and that the host waits for a flag.

        FlexAttention is one launch, as on the device.
        """
        from ..compiler import flex
        from ..compiler.control import run_assuming

        if flex.is_flex(func):
            return self._flex_attention(func, args)
        with self:
            return run_assuming(func, args, kwargs, self._read)

    def _flex_attention(self, func: HigherOrderOperator, args: Any) -> Any:
        from ..compiler import flex

        self.memory.hold(tensors_in(args))
        twin = self.known.twin
        made, key, price = flex.run_on_meta(func, args, self.policy(), self.target, twin)
        self.memory.hold(tensors_in(made))
        if not self.in_graph:
            self._launch(key, price, self.target.chip.launch.eager_dispatch_s)
        return made

    def _read(self, flag: torch.Tensor) -> None:
        if not self.in_graph:
            call = Call("aten::_local_scalar_dense", (_plain(flag, real=False),), (None,))
            price = price_call(call, self.target)
            self._launch(call, price, self.target.chip.launch.eager_dispatch_s)

    def _concerns(self, values: Any) -> bool:
        return any(t.device.type == self.only for t in tensors_in(values))

    @property
    def launches(self) -> int:
        return sum(count for _, count in self.priced.values())

    def backend(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        """A backend of torch.compile: each graph is a launch, priced under the policy in force."""
        from ..compiler.estimate import pricing_backend

        priced = pricing_backend(self.policy(), self.target, self.run_graph, fused_attention)
        return priced(gm, example_inputs)

    def run_graph(self, run: Callable[[], Any]) -> Any:
        """The launches of a compiled graph; what it computes with shapes is not recorded again."""
        self.in_graph = True
        try:
            launches, results, flags = run()
        finally:
            self.in_graph = False
        for one in launches:
            if one.priced.launches:  # it does not go on with another one
                self.exchanged.begin()
            for _ in range(one.count(flags)):
                dispatch_s = one.priced.launches * self.target.chip.launch.graph_launch_s
                self.graphs[id(one.priced)] = one.priced
                self._launch(id(one.priced), one.priced.price, dispatch_s)
                self._then(one)
        return results

    def _then(self, one: Any) -> None:
        """The collectives that a launch issues, and those it waits for."""
        issued = iter(one.issues)
        for step in one.then:
            if step is None:
                self.exchanged.issue(next(issued), self.ready_s, in_graph=True)
            else:
                self._wait_until(self.exchanged.end_of(step))
                self._hold()

    def _launch(self, key: Hashable, price: Price, dispatch_s: float) -> None:
        if price.free:
            return
        self.priced[key] = price, self.priced.get(key, (price, 0))[1] + 1
        self.host_s += dispatch_s
        self.dispatch_s += dispatch_s
        idle_s = max(0.0, self.host_s - self.ready_s)
        start_s, dispatched_s = self.now_s, self.host_s - dispatch_s
        self._hold()
        self.idle_s += idle_s
        self.ready_s = self._worked_s = start_s + price.seconds
        self.exposure.busy(dispatched_s if idle_s else start_s, self.ready_s, dispatched_s)
        if price.blocks:
            self.host_s = self.ready_s

    def result(self, chip: Chip, cores: int, mode: str, precision: str | None = None) -> Estimate:
        self._hold()
        priced = [(price.op, count, price) for price, count in self.priced.values()]
        totals = combine((price.totals, count) for _, count, price in priced)
        device_s = sum(count * price.seconds for _, count, price in priced)
        clock = Clock(
            launches=sum(count for _, count, _ in priced),
            dispatch_s=self.dispatch_s,
            busy_s=device_s,
            idle_s=self.idle_s,
            collectives=self.exchanged.count,
            collective_s=self.exchanged.active_s,
            exposed_s=self.exposure.seconds,
        )
        whole = len(priced) > 1 or bool(self.graphs)
        found = range_of(regime_of(totals, launches=clock.launches, whole=whole))
        return Estimate(
            chip=chip.name,
            lnc=cores,
            mode=mode,
            precision=precision or self.policy(),
            time_us=max(self.host_s, self.ready_s, self.exchanged.end_s) * 1e6,
            device_us=device_s * 1e6,
            counters=derive(totals | clocked(clock), chip, cores),
            ops=tuple(report_rows(priced)),
            memory_peak_bytes=self.memory.peak,
            range=found,
            basis=found.basis(chip),
        )


def _may_go_back(args: Any) -> bool:
    """As csrc/aten/attention.cpp asks: only a backward pass reads the logarithms of the sums."""
    return torch.is_grad_enabled() and any(_is_tensor(t) and t.requires_grad for t in args[:3])


def _call(func: Any, args: Any, kwargs: Any, result: Any, policy: str, *, real: bool) -> Call:
    """An operator's call in the order of its schema.

    real  tensors lie where they say; otherwise those of the host stand for the device's, numbers
          excepted
    """
    schema = func._schema
    values = list(args)
    for argument in schema.arguments[len(args) :]:
        values.append(kwargs.get(argument.name, argument.default_value))
    name = schema.name.removeprefix("trn::")
    op = f"aten::{name}" if name in ONE_LAUNCH else schema.name
    op += f".{schema.overload_name}" if schema.overload_name else ""
    results = result if isinstance(result, (tuple, list)) else (result,)
    plain = partial(_plain, real=real)
    return Call(op, tuple(map(plain, values)), tuple(map(plain, results)), policy)


def _plain(value: Any, *, real: bool) -> Any:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        on_host = value.device.type == "cpu" and (real or value.dim() == 0)
        if value.layout is not torch.strided:
            return TensorArg("sparse", (), (), on_host)
        return TensorArg(dtype, tuple(value.shape), tuple(value.stride()), on_host)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, real=real) for item in value)
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    return None
