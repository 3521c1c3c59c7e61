"""`estimate`: what a function would take on a chip, from the shapes of its arguments alone.

    x = torch.empty(4096, 4096, device="meta")
    torch_trn_emu.estimate(torch.mm, x, x, chip="trn3").time_us

Arguments and models on `meta`, or fake tensors: nothing is computed. The operators that the
function calls, in forward and backward, are priced like those that run on the device. Checked on
torch 2.13.0.
"""

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .accelerated.table import ONE_LAUNCH
from .calls import Call, Target, TensorArg
from .chip import Chip, get_chip
from .counters import Clock, clocked, combine, derive
from .known_values import KnownValues
from .ops.attention import without_sums
from .pages import HtmlTable, render
from .precision import chosen_precision, current_precision
from .pricing import OpRow, Price, price_call, report_rows
from .ranges import Range, range_of, regime_of
from .settings import settings
from .torch_private import (
    DispatchKey,
    HigherOrderOperator,
    OpOverload,
    TorchDispatchMode,
    TracingContext,
    has_kernel,
    suggest_memory_format,
    tree_leaves,
    with_optimizers_of_meta,
)

__all__ = ["MODES", "Estimate", "OperatorsOfTheDevice", "Recorder", "composite_of", "estimate"]

MODES = ("eager", "compile")
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
ATTENTION, DROPOUT = functional.scaled_dot_product_attention, functional.dropout
UNFLATTEN = torch.Tensor.unflatten
RMS_NORM = (functional.rms_norm, torch.rms_norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a function takes on one logical core.

    time_us     from the first dispatch to the last result, the host's dispatches included
    device_us   the programs alone, one after the other
    counters    as `torch.trn.counters()` gives them
    ops         a row for each operator, longest first
    precision   the matmul precision policy that was priced
    range       where four of five measurements like it lie, as factors on the time; `basis` says
                what that rests on for this chip
    """

    chip: str
    lnc: int
    mode: str
    precision: str
    time_us: float
    device_us: float
    counters: Mapping[str, float] = field(repr=False)
    ops: tuple[OpRow, ...] = field(repr=False)
    memory_peak_bytes: int
    range: Range
    basis: str

    def __str__(self) -> str:
        count = int(self.counters["launch_count"])
        launches = f"{count:,} launch{'es' * (count != 1)}"
        return (
            f"{self.time_us:,.1f} us on {self.chip} (LNC={self.lnc}, {self.mode}, "
            f"precision {self.precision}): {launches}, "
            f"{self.device_us:,.1f} us of programs, at most {self.memory_peak_bytes / 2**20:,.1f} "
            f"MiB of HBM; {self.range}; {self.basis}"
        )

    def _repr_html_(self) -> str:
        head = ("operator", "calls", "us", "share", "engine", "price")
        rows = [
            (op.op, f"{op.calls:,}", f"{op.device_s * 1e6:,.1f}", f"{op.share:.1%}", op.engine,
             op.status)
            for op in self.ops
        ]  # fmt: skip
        return render("notebook.html", lines=[str(self)], tables=[HtmlTable("", head, rows, 10)])


def estimate(
    fn: Callable[..., Any],
    *args: Any,
    chip: str = "trn3",
    lnc: int | None = None,
    mode: str = "eager",
    **kwargs: Any,
) -> Estimate:
    """Price `fn(*args, **kwargs)`: an operator, a module, or a whole training step.

    chip  a chip, as TRN_EMU_CHIP
    lnc   physical cores of the logical core; None: the chip's default (2 from trn2)
    mode  "eager": each operator is a launch; "compile": as torch.compile(fn, backend="trn") runs
          it, one launch a graph

    The matmul precision is the one that the environment, `torch.backends.trn.matmul.precision` or
    a `precision` block chose, else the chip's default; `Estimate.precision` names it. Flags of
    `torch.cond` and `while_loop` have no values here: the first branch is taken, a loop makes one
    pass.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose from eager, compile")
    described = get_chip(chip)
    cores = described.check_lnc(lnc)
    recorder = Recorder(Target(described, cores))
    precision = recorder.policy()
    with ExitStack() as stack:
        stack.callback(recorder.memory.close)
        with_optimizers_of_meta(stack)
        stack.enter_context(OperatorsOfTheDevice())
        stack.enter_context(recorder)
        stack.callback(recorder.memory.close)  # also if fn raises
        recorder.memory.hold(t for t in tree_leaves((args, kwargs)) if _is_tensor(t))
        if mode == "compile":
            fn = _compiled(fn, recorder, stack)
        result = fn(*args, **kwargs)
    del result
    return recorder.result(described, cores, mode, precision)


_compiling: list["Recorder"] = []  # whose graphs run, innermost last


def _compiled(fn: Callable[..., Any], recorder: "Recorder", stack: ExitStack) -> Callable[..., Any]:
    """`fn` compiled for prices while `stack` is open; equal estimates share their graphs.

    Each shape is compiled for itself, however many there are: beyond its limits Dynamo would run
    the function eagerly.
    """
    from .compiler.estimate import composites_apart
    from .torch_private import dynamo

    stack.enter_context(composites_apart())
    unlimited = 1 << 30
    limits = dynamo.config.patch(recompile_limit=unlimited, accumulated_recompile_limit=unlimited)
    stack.enter_context(limits)
    _compiling.append(recorder)
    stack.callback(_compiling.pop)
    backend = _shared_backend(recorder.policy(), recorder.target)
    return torch.compile(fn, backend=backend, dynamic=False)


@cache
def _shared_backend(policy: str, target: Target) -> Callable[..., Any]:
    """One backend for each policy and target: Dynamo compiles a function again for another."""
    from .compiler.estimate import pricing_backend

    def told(*launched: Any) -> Any:
        return _compiling[-1].run_graph(*launched)

    return pricing_backend(policy, target, told, fused_attention)


def _composite_on_meta(func: OpOverload) -> DispatchKey | None:
    return None if func._opname in _OTHERWISE_ON_META else composite_of(func)


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


class OperatorsOfTheDevice(TorchFunctionMode):
    """Gives `meta` tensors the fused attention, dropout and RMSNorm that trn tensors take.

    `nn.MultiheadAttention` calls them inside of a function that a mode sees as a whole: there the
    names are replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.policy = current_precision()
        by_name = {ATTENTION: self.attention, DROPOUT: _fused_dropout}
        self.instead: dict[Any, Any] = by_name | dict.fromkeys(RMS_NORM, _fused_rms_norm)
        self.instead[torch.tensor] = _tensor
        named: dict[str, Any] = {function.__name__: new for function, new in by_name.items()}
        self.names: Any = mock.patch.multiple(functional, **named)

    def __enter__(self) -> "OperatorsOfTheDevice":
        self.names.start()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.names.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.unflatten:  # Dynamo does not find methods in a table
            return _unflatten(*args, **(kwargs or {}))
        return self.instead.get(func, func)(*args, **(kwargs or {}))

    def attention(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Dynamo cannot trace the question; it traces graphs of one policy.
        tracing = torch.compiler.is_dynamo_compiling()
        if (self.policy if tracing else current_precision()) == "mxfp8_all":
            return ATTENTION(*args, **kwargs)
        return fused_attention(*args, **kwargs)


def _fused_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """The conditions of at::native::dropout."""
    if input.device.type == "meta" and training and 0 < p < 1 and input.numel() and not inplace:
        return torch.native_dropout(input, p, True)[0]
    return DROPOUT(input, p, training, inplace)


def _tensor(data: Any, *, device: Any = None, **named: Any) -> torch.Tensor:
    """Dynamo makes no fake tensor of one that is made on `meta`. Checked on torch 2.13.0."""
    meta = device is not None and torch.device(device).type == "meta"
    if not meta or not torch.compiler.is_dynamo_compiling():
        return torch.tensor(data, device=device, **named)
    if isinstance(data, list) and not data:
        return torch.empty(0, device=device, **named)
    return torch.tensor(data, **named).to(device)


def _unflatten(self: torch.Tensor, dim: Any, sizes: Any) -> torch.Tensor:
    """The method calls `super()`, where Dynamo would end a graph. Checked on torch 2.13.0."""
    if isinstance(dim, str) or not torch.compiler.is_dynamo_compiling():
        return UNFLATTEN(self, dim, sizes)  # type: ignore[no-any-return]
    dim %= self.dim()
    return self.view(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])


class _FusedRmsNorm(torch.autograd.Function):
    """One launch, and one for the gradients, as on the device."""

    @staticmethod
    def forward(ctx: Any, x: Any, shape: Any, weight: Any, eps: Any) -> torch.Tensor:
        out, rstd = torch.ops.trn._fused_rms_norm(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.shape = shape
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        x, weight, rstd = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[2]]
        made = torch.ops.aten._fused_rms_norm_backward(g, x, ctx.shape, rstd, weight, mask)
        return made[0], None, made[1], None


def _fused_rms_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """The conditions of at::native::rms_norm; compiled it is what torch makes of it."""
    by_columns = suggest_memory_format(input) != torch.contiguous_format
    apart = weight is not None and weight.dtype != input.dtype
    if input.device.type != "meta" or by_columns or apart or torch.compiler.is_dynamo_compiling():
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return _FusedRmsNorm.apply(input, list(normalized_shape), weight, eps)  # type: ignore[no-any-return]


def fused_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """What a trn tensor's attention dispatches to under a policy that does not quantize it."""
    fused = _fused_attention(*args, **kwargs)
    return ATTENTION(*args, **kwargs) if fused is None else fused


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """The conditions of csrc/aten/attention_operands.cpp."""
    if query.device.type != "meta" or dropout_p or not _fits_fused(query, key, value, enable_gqa):
        return None
    if attn_mask is not None and attn_mask.requires_grad:
        return None
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    out, _ = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    return out  # type: ignore[no-any-return]


def _fits_fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: bool) -> bool:
    if not q.dim() == k.dim() == v.dim() == 4 or not (q.numel() and k.numel()):
        return False
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        return False
    return q.shape[1] == k.shape[1] or (enable_gqa and q.shape[1] % k.shape[1] == 0)


class Recorder(TorchDispatchMode):
    """Prices every operator as it is dispatched, on a clock like csrc/runtime/ledger.cpp's.

    only  a device type: operators without a tensor there are the host's own
    """

    supports_higher_order_operators = True

    def __init__(self, target: Target, only: str | None = None) -> None:
        super().__init__()
        self.target, self.memory, self.only = target, _Memory(), only
        self.known = KnownValues()
        self.host_s = self.ready_s = self.idle_s = self.dispatch_s = 0.0
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
                return func._op_dk(composite, *args, **kwargs)
        self.memory.hold(t for t in tree_leaves((args, kwargs)) if _is_tensor(t))
        result = given[0] if given else func(*args, **kwargs)
        self.note(func, args, kwargs, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operator has run, or would have, with this result."""
        self.memory.hold(t for t in tree_leaves((args, kwargs, result)) if _is_tensor(t))
        if self.only is not None and not self._concerns((args, kwargs, result)):
            return
        if not self.in_graph and not func.is_view and func.namespace in ("aten", "trn"):
            policy = self.policy()
            call = _call(func, args, kwargs, result, policy, real=self.only is not None)
            if not _may_go_back(args):
                call = without_sums(call)
            tensors = (*call.tensors, *call.outputs)
            if not tensors or not all(t.on_host for t in tensors):
                price = price_call(call, self.target)
                self._launch(call, price, self.target.chip.launch.eager_dispatch_s)

    def _control(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        """Control flow: what runs is recorded, and that the host waits for a flag."""
        from .compiler.control import run_assuming

        with self:
            return run_assuming(func, args, kwargs, self._read)

    def _read(self, flag: torch.Tensor) -> None:
        if not self.in_graph:
            call = Call("aten::_local_scalar_dense", (_plain(flag, real=False),), (None,))
            price = price_call(call, self.target)
            self._launch(call, price, self.target.chip.launch.eager_dispatch_s)

    def _concerns(self, values: Any) -> bool:
        tensors = [t for t in tree_leaves(values) if _is_tensor(t)]
        return any(t.device.type == self.only for t in tensors)

    @property
    def launches(self) -> int:
        return sum(count for _, count in self.priced.values())

    def backend(self, gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        """A backend of torch.compile: each graph is a launch, priced under the policy in force."""
        from .compiler.estimate import pricing_backend

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
            for _ in range(one.count(flags)):
                dispatch_s = one.priced.launches * self.target.chip.launch.graph_launch_s
                self.graphs[id(one.priced)] = one.priced
                self._launch(id(one.priced), one.priced.price, dispatch_s)
        return results

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
        )
        whole = len(priced) > 1 or bool(self.graphs)
        found = range_of(regime_of(totals, launches=clock.launches, whole=whole))
        return Estimate(
            chip=chip.name,
            lnc=cores,
            mode=mode,
            precision=precision or self.policy(),
            time_us=max(self.host_s, self.ready_s) * 1e6,
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
