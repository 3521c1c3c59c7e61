"""`TRN_EMU_AS=cuda`: a script that says cuda runs on trn.

Three mechanisms. A torch function mode translates devices in calls of torch, and what tensors say
about their device. Functions of torch.cuda become those of torch.trn, and what has no counterpart
refuses. A few constructors that take a device type as text get it translated.

This is the one place that replaces attributes of torch: the user asked for it by name. A mode holds
in one thread, so each thread that Python starts enters it first. Checked on torch 2.13.0.
"""

import _thread
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .. import trn
from ..errors import Unsupported
from ..host import host_device
from ..importing import when_imported
from ..torch_private import (
    SHARDED_TENSORS,
    TEST_CASES,
    DeviceContext,
    DisableTorchFunction,
    StorageBase,
    compiles_autograd,
    function_modes,
    keep_script_name,
    overrides_functions,
    set_autograd_engine,
    validate_device,
    wrap_make_wrapper_subclass,
    wrap_restore_location,
)
from ..trn.backward import OneThread
from ..trn.device import _is_in_bad_fork as is_in_bad_fork
from ..trn.device import emulated_name
from ..trn.legacy import TensorType, tensor_types
from . import cuda_distributed
from .cuda_callbacks import calls_script, let_hear, map_default_device, map_traced_bodies
from .cuda_compiled import map_backends_of_scripts, map_traced_tensors, pass_over_frames
from .cuda_copies import map_copies
from .cuda_internals import exchange_device, map_internals
from .cuda_library import map_library
from .cuda_names import COMPILING, FALSE, MODULES, PARTS, REFUSED, SAME, SPECIAL
from .cuda_nccl import map_nccl
from .cuda_profiler import map_profilers
from .cuda_refusals import CUDART, compiling, refusing, refusing_class
from .cuda_script import map_scripts
from .cuda_types import map_types

__all__ = ["CudaIsTrn", "install", "to_trn"]

_CUDA = re.compile(r"cuda(:\d+)?")
_TRN = re.compile(r"trn(:\d+)?")
_TOLD = "TRN_EMU_AS_TOLD"  # set once said, so that child processes stay silent
_LOOKUP = threading.Lock()

# Of torch.cuda without a public namesake in torch.trn: what they give here.
_PRIVATE: dict[str, Callable[..., Any]] = {
    "_lazy_init": trn.init,
    "_lazy_call": lambda function, **kwargs: function(),
    "_is_in_bad_fork": is_in_bad_fork,
    "_sleep": trn.streams._sleep,
    "_exchange_device": exchange_device,
    "_maybe_exchange_device": exchange_device,
    "_record_memory_history": trn.memory._record_memory_history,
    "_snapshot": trn.memory._snapshot,
    "_dump_snapshot": trn.memory._dump_snapshot,
}


def to_trn(value: Any) -> Any:
    """A cuda device, or its name, as that of trn; lists of them too. The rest as it is."""
    if isinstance(value, torch.device):
        return _device("trn", value.index) if value.type == "cuda" else value
    if isinstance(value, str):
        return "trn" + value[4:] if _CUDA.fullmatch(value) else value
    if type(value) in (list, tuple):
        return type(value)(map(to_trn, value))
    return value


def _device(kind: str, index: int | None) -> torch.device:
    with DisableTorchFunction():
        return torch.device(kind) if index is None else torch.device(kind, index)


def to_cuda(value: Any) -> Any:
    """A trn device, or its name, as that of cuda. The rest as it is."""
    if isinstance(value, torch.device):
        return _device("cuda", value.index) if value.type == "trn" else value
    if isinstance(value, str):
        return "cuda" + value[3:] if _TRN.fullmatch(value) else value
    return value


class CudaIsTrn(TorchFunctionMode):
    """Translates cuda to trn on the way in, and trn to cuda in what a tensor says of its device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (special := _SPECIAL.get(func)) is not None:
            return special(*args, **kwargs)
        if func is torch.device:  # the script's own object keeps the script's name
            made = func(*args, **kwargs)
            by_number = args and isinstance(args[0], int)
            return to_cuda(made) if by_number and not cuda_distributed.asked_by_torch(1) else made
        named = {name: to_trn(value) for name, value in kwargs.items()}
        if not torch.compiler.is_dynamo_compiling() and calls_script(func, types, args, named):
            return let_hear(_InsideTorch, func, types, tuple(map(to_trn, args)), named)
        return func(*map(to_trn, args), **named)


def _cuda(
    self: torch.Tensor,
    device: Any = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
) -> torch.Tensor:
    if isinstance(device, int):
        target = _device("trn", device)
    else:  # without a number: the current one, which `to` finds
        target = _device("trn", None) if device is None else to_trn(torch.device(device))
    if target.type != "trn":
        raise RuntimeError(f"Tensor.cuda() takes a device of cuda, not {target}")
    return self.to(target, non_blocking=non_blocking, memory_format=memory_format)


def _says_device(self: torch.Tensor) -> torch.device:
    real: torch.device = torch.Tensor.device.__get__(self)
    if real.type != "trn" or cuda_distributed.asked_by_torch(2):
        return real
    return _device("cuda", real.index)


def _is_cuda(self: torch.Tensor) -> bool:
    found: torch.device = torch.Tensor.device.__get__(self)
    return found.type in ("trn", "cuda")  # of cuda, where the mode is on twice


def _type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dtype is None:
        return self.type().replace("torch.trn.", "torch.cuda.")
    name = f"{dtype.__module__}.{dtype.__qualname__}" if isinstance(dtype, TensorType) else dtype
    if isinstance(name, str) and name.startswith("torch.cuda."):
        dtype = "torch.trn." + name.removeprefix("torch.cuda.")
    return self.type(dtype, *args, **kwargs)


def _storage_type(self: torch.Tensor) -> Any:
    kind = self.storage_type()
    of_trn = kind is not None and kind.__module__ == "torch.trn"
    return getattr(torch.cuda, kind.__name__) if of_trn else kind


def _repr(self: torch.Tensor, **kwargs: Any) -> str:
    return _NAMED.sub(r"device='cuda\1'", self.__repr__(**kwargs))


_NAMED = re.compile(r"device='trn(:\d+)?'")
_SPECIAL: dict[Any, Callable[..., Any]] = {
    torch.Tensor.cuda: _cuda,
    torch.Tensor.device.__get__: _says_device,
    torch.Tensor.is_cuda.__get__: _is_cuda,  # type: ignore[attr-defined]
    torch.Tensor.type: _type,
    torch.Tensor.storage_type: _storage_type,
    torch.Tensor.__repr__: _repr,
}


def _translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, told trn where it is told cuda."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(to_trn, args), **{k: to_trn(v) for k, v in kwargs.items()})

    return call


def _class_told_trn(kind: Any, module: str) -> Any:
    """A class of `module` that takes a device: its instances are the original's."""

    class Meta(type(kind)):  # type: ignore[misc]
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            named = {k: to_trn(v) for k, v in kwargs.items()}
            return kind(*map(to_trn, args), **named)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, kind)

    return Meta(kind.__name__, (kind,), {"__module__": module, "__doc__": kind.__doc__})


def _place_of(name: str) -> list[Any]:
    """The modules of torch.cuda that have the name."""
    path, _, last = name.rpartition(".")
    cuda: Any = torch.cuda
    if path:
        return [attrgetter(path)(cuda)]
    modules = [cuda, *(getattr(cuda, part) for part in PARTS)]
    return [module for module in modules if hasattr(module, last)]


def _put(name: str, value: Any) -> None:
    for module in _place_of(name):
        setattr(module, name.rpartition(".")[2], value)


def _map_functions() -> tuple[int, int]:
    """Numbers of names of torch.cuda that were mapped and that refuse."""
    for module in MODULES:
        import_module(f"torch.cuda.{module}")
    for name in SAME:
        value = attrgetter(name)(trn)
        if inspect.isclass(value):
            value = _class_told_trn(value, "torch.cuda")
        elif callable(value):
            value = _translated(value)
        _put(name, value)
    for name, value in _PRIVATE.items():
        _put(name, _translated(value))
    for name in (*FALSE, "amp.common.amp_definitely_not_available"):
        _put(name, lambda *args: False)
    for name, kind in tensor_types("torch.cuda").items():
        _put(name, kind)
    for why, names in REFUSED.items():
        for name in names:
            there = attrgetter(name)(torch.cuda)
            _put(name, (refusing_class if inspect.isclass(there) else refusing)(name, why))
    for name in COMPILING:
        _put(name, compiling(attrgetter(name)(torch.cuda)))
    _put("cudart", lambda: CUDART)
    return len(SAME) + len(SPECIAL), sum(map(len, REFUSED.values()))


def _map_constructors() -> None:
    for kind in (torch.amp.autocast_mode.autocast, torch.amp.GradScaler, DeviceContext):
        kind.__init__ = _translated_init(kind.__init__)  # type: ignore[method-assign]
    modules: dict[Any, tuple[str, ...]] = {
        torch: (
            "get_autocast_dtype",
            "is_autocast_enabled",
            "range",
            "set_autocast_dtype",
            "set_autocast_enabled",
            "set_default_device",
        ),
        torch.amp: ("is_autocast_available",),
        torch.amp.autocast_mode: ("is_autocast_available",),
        torch.nested: ("nested_tensor",),  # as `range`, not seen by function modes
        torch.random: ("fork_rng",),
    }
    for module, names in modules.items():
        for name in names:
            _replace(module, name, _translated(getattr(module, name)))
    enabled, enable = torch.is_autocast_enabled, torch.set_autocast_enabled
    _replace(torch, "is_autocast_enabled", lambda device_type="cuda": enabled(device_type))
    _replace(
        torch,
        "set_autocast_enabled",
        lambda *args: enable(*(args if len(args) > 1 else ("cuda", *args))),
    )
    _replace(torch.overrides, "has_torch_function", _asks_no_alias)
    torch.get_autocast_gpu_dtype = lambda: torch.get_autocast_dtype("cuda")
    torch.set_autocast_gpu_dtype = lambda dtype: torch.set_autocast_dtype("cuda", dtype)
    torch.compile = _compile(torch.compile)
    torch.backends.cudnn.is_acceptable = lambda tensor: False  # asked for every tensor that is_cuda
    map_types(to_trn, to_cuda)
    torch.Generator = _class_told_trn(torch.Generator, "torch")  # type: ignore[misc]
    wrap_make_wrapper_subclass(_translated)
    when_imported(TEST_CASES, _count_mode)
    pass_over_frames()
    torch.jit.load = _translated(torch.jit.load)
    asked = torch.get_default_device
    torch.get_default_device = lambda: to_cuda(asked())
    torch.accelerator.current_accelerator = _as_scripts_hear(torch.accelerator.current_accelerator)


_has_torch_function = torch.overrides.has_torch_function


def _asks_no_alias(relevant_args: Iterable[Any]) -> bool:
    """`torch.overrides.has_torch_function`, for which the alias is no override.

    Transformer layers ask it whether they may take their fast path.
    """
    if torch.compiler.is_compiling():
        return bool(_has_torch_function(relevant_args))
    values = tuple(relevant_args)
    found = bool(_has_torch_function(values))
    if found and all(isinstance(mode, CudaIsTrn) for mode in function_modes()):
        return any(map(overrides_functions, values))
    return found


def _count_mode(module: Any) -> None:
    """Test cases of PyTorch compare the number of function modes with that before `setUp`, or 0."""
    module.TestCase._prev_torch_function_mode_stack_len = 1


def _as_scripts_hear(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives a device: of cuda to scripts and libraries, the real one to torch."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        asking = sys._getframe(1).f_globals.get("__name__", "")
        by_torch = asking.startswith("torch.") and not asking.startswith("torch.testing.")
        return made if by_torch else to_cuda(made)

    return call


def _replace(module: Any, name: str, made: Callable[..., Any]) -> None:
    """The function's place in eager code; TorchScript goes on compiling torch's own operator."""
    keep_script_name(getattr(module, name), made)
    setattr(module, name, made)


def _translated_init(init: Callable[..., None]) -> Callable[..., None]:
    parameters = list(inspect.signature(init).parameters.values())
    default = parameters[1].default  # of the device type

    @wraps(init)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        if not args and default == "cuda":
            kwargs.setdefault(parameters[1].name, default)
        init(self, *map(to_trn, args), **{k: to_trn(v) for k, v in kwargs.items()})

    return call


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor, which is what a script for cuda means, becomes the backend of trn."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("backend") in (None, "inductor"):
            kwargs["backend"] = "trn"
            # slow, and torch.compile imports it as well
            from ..torch_private.dynamo import lookup_backend

            with _LOOKUP:  # torch loads the entry point once for each thread that asks first
                lookup_backend("trn")
        return function(*args, **kwargs)

    return call


class _InsideTorch(CudaIsTrn):
    """The mode where torch calls the script back: torch and the emulator hear the real device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asking = sys._getframe(1)
        if asking.f_code is let_hear.__code__:  # a function that comes back to each mode
            return func(*args, **(kwargs or {}))
        name = asking.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "torch_trn_emu")) or name.startswith(SHARDED_TENSORS):
            return super().__torch_function__(func, types, args, kwargs)
        if calls_script(func, types, args, kwargs or {}):
            return let_hear(_InsideTorch, func, types, args, kwargs or {})
        with DisableTorchFunction():
            return func(*args, **(kwargs or {}))


def _mode() -> AbstractContextManager[Any]:
    modes = function_modes()
    return nullcontext() if modes and isinstance(modes[-1], _InsideTorch) else _InsideTorch()


class _Engine(OneThread):
    """`Tensor.backward` runs without the mode that dispatched it; hooks and `backward` need it.

    Compiled autograd would trace the mode.
    """

    def run_backward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or compiles_autograd():
            return super().run_backward(*args, **kwargs)
        with _mode():
            return super().run_backward(*args, **kwargs)


def _map_saved_tensors_hooks() -> None:
    """Operators that save a tensor run without the mode; the script's hooks need it."""
    hooks: Any = torch.autograd.graph.saved_tensors_hooks
    init = hooks.__init__

    def mapped(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @wraps(hook)
        def call(value: Any) -> Any:
            with _mode():
                return hook(value)

        return call

    @wraps(init)
    def call(self: Any, pack_hook: Any, unpack_hook: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            init(self, pack_hook, unpack_hook)
        else:
            init(self, mapped(pack_hook), mapped(unpack_hook))

    hooks.__init__ = call


def _map_accelerator() -> None:
    """Functions of torch.accelerator take a device of cuda."""
    for module in (torch.accelerator, torch.accelerator.memory):
        for name in {*torch.accelerator.__all__} - {"current_accelerator"}:
            function = getattr(module, name, None)
            if inspect.isfunction(function):
                setattr(module, name, _translated(function))
    kind = torch.accelerator.device_index
    kind.__init__ = _translated_init(kind.__init__)  # type: ignore[method-assign]


def _map_threads() -> None:
    """Threads of `threading`, of pools and of data loaders translate as the main one does."""
    start, start_plain = threading.Thread.start, _thread.start_new_thread

    @wraps(start)
    def start_mapped(thread: threading.Thread) -> None:
        run = thread.run

        def mapped() -> None:
            del thread.run  # it holds the thread, which would hold it
            with CudaIsTrn():
                run()

        thread.run = mapped  # type: ignore[method-assign]
        start(thread)

    @wraps(start_plain)
    def start_plain_mapped(function: Callable[..., Any], *args: Any) -> int:
        def mapped(*given: Any, **named: Any) -> None:
            with CudaIsTrn():
                function(*given, **named)

        return start_plain(mapped, *args)

    threading.Thread.start = start_mapped  # type: ignore[assignment]
    _thread.start_new_thread = start_plain_mapped


def _map_storages() -> None:
    """Storages say cuda of their device, take it, and are saved as a GPU machine saves them."""
    kind: Any = torch.UntypedStorage
    real = StorageBase.device
    make = kind.__new__

    def device(self: Any) -> torch.device:
        """Of cuda, but for torch's own functions that a mode has called: they hear the real one."""
        found: torch.device = real.__get__(self)
        hears_cuda = any(isinstance(mode, CudaIsTrn) for mode in function_modes())
        return to_cuda(found) if hears_cuda else found

    kind.device = property(device)

    def new(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        named = {} if device is None else {"device": to_trn(device)}
        return make(cls, *args, **named, **kwargs)

    kind.__new__ = staticmethod(new)
    torch.serialization.register_package(9, _tag, _load)
    wrap_restore_location(_restoring)


def _restoring(where: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(where)
    def restore_location(map_location: Any) -> Any:
        """Files saved without the alias say trn: what a script maps has the name of cuda."""
        if isinstance(map_location, dict):
            map_location = {to_cuda(k): v for k, v in map_location.items()}
        found = where(map_location)
        return lambda storage, location: found(storage, to_cuda(location))

    return restore_location


def _tag(storage: Any) -> str | None:
    device: torch.device = storage.device
    return f"cuda:{device.index}" if device.type == "cuda" else None


def _load(storage: Any, location: str) -> Any:
    """Moves to a core what a file has of a GPU. Raises RuntimeError for one that is not there."""
    if not _CUDA.fullmatch(location := to_cuda(location)):
        return None
    validate_device(location, "cuda")
    return storage.to(device=_device("trn", torch.device(location).index or 0))


def install() -> None:
    """Map, and say so on stderr once. Raises Unsupported where the emulator's host is a GPU."""
    if host_device().type == "cuda":
        raise Unsupported(
            "TRN_EMU_AS=cuda hides torch.cuda, which a host with a GPU computes with. Set "
            "TRN_EMU_HOST=cpu as well."
        )
    mapped, refused = _map_functions()
    _map_constructors()
    _map_storages()
    map_copies()
    map_nccl()
    cuda_distributed.install(_translated, _mode)
    _map_threads()
    map_profilers()
    map_internals()
    map_library(_mode, to_trn)
    map_scripts(to_trn)
    _map_accelerator()
    _map_saved_tensors_hooks()
    map_default_device()
    map_traced_tensors(to_cuda, CudaIsTrn)
    map_traced_bodies(CudaIsTrn)
    map_backends_of_scripts(_mode)
    set_autograd_engine(_Engine())
    CudaIsTrn().__enter__()  # for good
    if _TOLD not in os.environ:
        os.environ[_TOLD] = "1"
        print(
            f"trn-emu: cuda is mapped to trn ({emulated_name()}): devices and their "
            "names, Tensor.cuda, is_cuda and device, autocast, GradScaler, Generator, torch.load "
            f"and {mapped} names of torch.cuda; {refused} others raise an error that says why.",
            file=sys.stderr,
        )
