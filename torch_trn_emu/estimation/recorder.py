"""Prices every operator that a function dispatches, with the clock of the device."""

import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import cache, partial
from typing import Any

import torch

from ..accelerated.table import ONE_LAUNCH
from ..calls import Call, Target, TensorArg
from ..chip import Chip
from ..compiler.communication import exchange_of
from ..counters import Clock, clocked, combine, derive
from ..ops.attention import without_sums
from ..precision import chosen_precision, current_precision
from ..pricing import Price, price_call, report_rows
from ..ranges import range_of, regime_of
from ..settings import settings
from ..torch_private import (
    DispatchKey,
    HigherOrderOperator,
    OpOverload,
    TorchDispatchMode,
    TracingContext,
    has_kernel,
)
from .device_operators import fused_attention
from .exchanges import Exchanged, is_awaited
from .known_values import KnownValues
from .meta_results import run_on_meta, tensors_in
from .result import Estimate

__all__ = ["Recorder", "composite_of"]

DEVICE_KEY = "PrivateUse1"
_COMPOSITES = (
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
    DispatchKey.CompositeImplicitAutograd,
)
# Called by this key, its kernel gets a number where it takes a tensor. Checked on torch 2.13.0.
_NOT_BY_KEY = frozenset(("remainder",))
# The device's own kernel launches products: csrc/aten/folding.cpp and recurrent_layers.cpp.
_MADE_OF_PRODUCTS = frozenset(("matmul", "linear", "lstm", "gru", "rnn_tanh", "rnn_relu"))
# Made of what has no kernel on `meta`, or of something else there. Checked on torch 2.13.0.
_OTHERWISE_ON_META = frozenset(
    "cummax cummin linspace logcumsumexp logspace masked_scatter masked_scatter_backward remainder "
    "repeat".split()
)


# Functional collectives that launch nothing, made of what has no kernel on `meta`.
_SENDING = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single")


def _composite_on_meta(func: OpOverload) -> DispatchKey | None:
    sends = func.namespace == "_c10d_functional" and func._opname.startswith(_SENDING)
    return None if sends or func._opname in _OTHERWISE_ON_META else composite_of(func)


@cache
def composite_of(func: OpOverload) -> DispatchKey | None:
    """The kernel of an operator for which the device has none: it runs what torch makes it of."""
    own = has_kernel(func.name(), DEVICE_KEY) and func._opname not in _MADE_OF_PRODUCTS
    if func.is_view or func._opname in _NOT_BY_KEY or own:
        return None
    return next((key for key in _COMPOSITES if has_kernel(func.name(), key.name)), None)


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
        self.exchanged = Exchanged(target)
        self.priced: dict[Hashable, tuple[Price, int]] = {}
        self.graphs: dict[int, Any] = {}  # by id, which another may have once one is freed
        self.in_graph = False
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
        if self.in_graph or self.only:
            return self._run(func, args, kwargs)
        return self.known.run(func, args, kwargs, self._run)

    def _run(self, func: Any, args: Any, kwargs: Any, given: tuple[Any, ...] = ()) -> Any:
        """Runs it, unless its result is given."""
        composite = None if self.in_graph or self.only else _composite_on_meta(func)
        if composite is not None and not given:
            with self:
                made = func._op_dk(composite, *args, **kwargs)
            self.exchange(func, args, kwargs, made)
            return made
        self.memory.hold(tensors_in(args, kwargs))
        if given:
            result = given[0]
        else:
            plain = self.in_graph or self.only
            result = func(*args, **kwargs) if plain else run_on_meta(func, args, kwargs)
        self.note(func, args, kwargs, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator has run, or would have, with this result."""
        self.memory.hold(tensors_in(result))
        if self.only is not None and not self._concerns((args, kwargs, result)):
            return
        if not self.in_graph:
            if any(map(is_awaited, tensors_in(args, kwargs))):
                self._await()
            self.exchange(func, args, kwargs, result)
        if not self.in_graph and not func.is_view and func.namespace in ("aten", "trn"):
            policy = self.policy()
            call = _call(func, args, kwargs, result, policy, real=self.only is not None)
            if not _may_go_back(args):
                call = without_sums(call)
            tensors = (*call.tensors, *call.outputs)
            if not tensors or not all(t.on_host for t in tensors):
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
            self.host_s += self.target.chip.launch.eager_dispatch_s
            self.dispatch_s += self.target.chip.launch.eager_dispatch_s
            self.exchanged.issue(one, max(self.host_s, self.ready_s), in_graph=False)
        elif func._opname == "wait_tensor":
            self._await()

    def _await(self) -> None:
        """The core waits for the latest collective."""
        self.ready_s = self.exchanged.wait(-1, max(self.host_s, self.ready_s))

    def _control(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Control flow: what runs is recorded, and that the host waits for a flag."""
        from ..compiler.control import run_assuming

        with self:
            return run_assuming(func, args, kwargs, self._read)

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

    def run_graph(self, launches: Any, run: Callable[[], Any]) -> Any:
        """The launches of a compiled graph; what it computes with shapes is not recorded again."""
        self.in_graph = True
        try:
            results, flags = run()
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
                self.ready_s = self.exchanged.wait(step, self.ready_s)

    def _launch(self, key: Hashable, price: Price, dispatch_s: float) -> None:
        if price.free:
            return
        self.priced[key] = price, self.priced.get(key, (price, 0))[1] + 1
        self.host_s += dispatch_s
        self.dispatch_s += dispatch_s
        self.idle_s += max(0.0, self.host_s - self.ready_s)
        self.ready_s = max(self.ready_s, self.host_s) + price.seconds
        if price.blocks:
            self.host_s = self.ready_s

    def result(self, chip: Chip, cores: int, mode: str, precision: str | None = None) -> Estimate:
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
            exposed_s=self.exchanged.exposed_s,
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
