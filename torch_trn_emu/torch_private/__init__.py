"""The private names of torch that the package uses, each with what breaks if torch changes it.

No other module names them, so that a new release of torch is read here first. This module has what
`import torch` loads; `dynamo` and `inductor` have what torch loads when something is compiled.
Operators of `torch.ops` are no private names: their schemas are kept compatible.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch._C import (
    DispatchKey,  # kernels by key: decompositions, estimates on `meta`, FlexAttention
    DispatchKeySet,  # FlexAttention: autocast is left out below it
)
from torch._C._autograd import DeviceType  # the device of the default stream
from torch._C._profiler import _ExperimentalConfig as ExperimentalConfig  # torch_neuronx.profiling
from torch._decomp import global_decomposition_table  # estimate(mode="compile"): composites on meta
from torch._guards import TracingContext  # compiled code is traced again for another policy
from torch._ops import (
    _HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS as KEYS_PASSED_BY,  # of autocast, below
)
from torch._ops import (
    HigherOrderOperator,  # cond, while_loop and FlexAttention launch what their bodies do
    OpOverload,  # every walk over a graph's nodes
    OpOverloadPacket,  # operators of a script under the name cuda
    _higher_order_ops,  # autocast in estimates: they have no kernel for its key
)
from torch._prims_common import suggest_memory_format  # when rms_norm is one launch in an estimate
from torch._subclasses.fake_impls import op_implementations_dict  # compiled graphs: register_fake
from torch._subclasses.fake_tensor import (
    FakeTensor,  # a compiled graph's metadata moves to the host
    FakeTensorMode,  # `trn-emu estimate`: scripts run on shapes; prices by symbolic sizes
    fake_tensor_tls,  # constants on `meta` in traced functions
    unset_fake_temporarily,  # copying a graph's constants to the host
)
from torch.autograd.variable import Variable
from torch.utils._device import DeviceContext  # `with torch.device("cuda")` under the name cuda
from torch.utils._python_dispatch import (
    TorchDispatchMode,  # executor, captured graphs, estimate and parity see each operator
    is_traceable_wrapper_subclass,  # the profiler's hooks on parameters such as DTensor
    is_traceable_wrapper_subclass_type,  # `trn-emu estimate`: the parts of such tensors
)
from torch.utils._python_dispatch import (
    _disable_current_modes as disable_modes,  # estimate: values that are known without data
)
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack as dispatch_modes,  # those of a script under the name cuda
)
from torch.utils._pytree import (
    tree_any,  # nested arguments and results, here and in the next three
    tree_leaves,
    tree_map,
    tree_map_only,
)

__all__ = [
    "COMPILED_BY_BACKENDS",
    "COMPILE_FX",
    "DECOMPOSITIONS",
    "DTENSOR_RANDOM",
    "DYNAMO",
    "FAKE_TENSOR_LOGGER",
    "JAGGED_OPERATORS",
    "PASSED_OVER",
    "RING_ATTENTION",
    "SHARDED_TENSORS",
    "TEST_CASES",
    "TRACED_BODIES",
    "TRACED_TENSORS",
    "AutoDispatchBelowAutograd",
    "DeviceContext",
    "DeviceType",
    "DisableTorchFunction",
    "DispatchKey",
    "DispatchKeySet",
    "ExcludeDispatchKeyGuard",
    "ExperimentalConfig",
    "FakeTensor",
    "FakeTensorMode",
    "ForceDispatchKeyGuard",
    "HigherOrderOperator",
    "ImperativeEngine",
    "KinetoProfile",
    "LegacyStorage",
    "OpOverload",
    "OpOverloadPacket",
    "StorageBase",
    "TorchDispatchMode",
    "TracingContext",
    "autograd_node",
    "compiled_c10d",
    "compiles_autograd",
    "device_of_dlpack",
    "disable_modes",
    "dispatch_key",
    "dispatch_key_for_device",
    "dispatch_mode_count",
    "dispatch_modes",
    "excluded_keys",
    "flex_operators",
    "function_modes",
    "function_modes_set_aside",
    "fused_rms_norm",
    "global_decomposition_table",
    "has_kernel",
    "host_grouped_mm",
    "host_scaled_mm",
    "included_keys",
    "inline_script_calls",
    "is_multithreading_enabled",
    "is_of_python",
    "is_traceable_wrapper_subclass",
    "is_traceable_wrapper_subclass_type",
    "keep_script_name",
    "overrides_functions",
    "register_device_module",
    "register_fake",
    "scaled_dot_product_attention",
    "script_types",
    "sequence_number",
    "set_autograd_engine",
    "set_functions_of_torch_c",
    "set_multithreading_enabled",
    "skip_function_modes",
    "subclasses_are_asked",
    "suggest_memory_format",
    "tree_any",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "unset_fake_temporarily",
    "utilities",
    "validate_device",
    "with_constants_of_meta",
    "with_device_kernels_on_meta",
    "with_optimizers_of_meta",
    "wrap_make_wrapper_subclass",
    "wrap_restore_location",
]

_core: Any = torch._C

# --- modes and dispatch ---

# Names of the alias cuda, and what the emulator does for itself, meet no function mode.
DisableTorchFunction: Any = _core.DisableTorchFunction
AutoDispatchBelowAutograd: Any = _core._AutoDispatchBelowAutograd  # replays of captured graphs
ExcludeDispatchKeyGuard: Any = _core._ExcludeDispatchKeyGuard  # FlexAttention under autocast
ForceDispatchKeyGuard: Any = _core._ForceDispatchKeyGuard  # gradient of varlen attention
included_keys: Callable[[], Any] = _core._dispatch_tls_local_include_set  # the same
excluded_keys: Callable[[], Any] = _core._dispatch_tls_local_exclude_set  # the same
dispatch_key: Callable[[str], Any] = _core._dispatch_key_parse  # the same
# Estimates: which operators the device has a kernel for.
has_kernel: Callable[[str, str], bool] = _core._dispatch_has_kernel_for_dispatch_key


def is_of_python(op: OpOverload, key: str) -> bool:
    """Whether a kernel is a function of Python: it runs on `meta`, where others may read memory."""
    return f"{op.name().replace('::', '/')}/{key}" in torch.library._impls


def register_fake(op: OpOverload, kernel: Callable[..., Any]) -> None:
    """`kernel(mode, op, ...)` makes an operator's fake results; of NotImplemented, torch does."""
    torchs: Any = op_implementations_dict.get(op)

    def run(*args: Any, **kwargs: Any) -> Any:
        made = kernel(*args, **kwargs)
        return torchs(*args, **kwargs) if made is NotImplemented and torchs else made

    op_implementations_dict[op] = run


# --- autograd ---

ImperativeEngine: Any = _core._ImperativeEngine  # backward on the calling thread, here and below
is_multithreading_enabled: Callable[[], bool] = _core._is_multithreading_enabled
set_multithreading_enabled: Callable[[bool], Any] = _core._set_multithreading_enabled
sequence_number: Callable[[], int] = _core._autograd._get_sequence_nr  # precision of modules
autograd_node: Callable[[], Any] = _core._current_autograd_node  # parity: modules in backward


def set_autograd_engine(engine: Any) -> None:
    """The engine of `backward` and `grad`; unread, backward would run on threads of its own."""
    Variable._execution_engine = engine


# --- operators by their functions ---

# rms_norm on trn.
fused_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch._fused_rms_norm
host_grouped_mm: Callable[..., Any] = torch._grouped_mm  # the host's kernel for unrounded operands
host_scaled_mm: Callable[..., Any] = torch._scaled_mm  # the host's kernel for float32 scales
# Dynamo's node for attention: composed, or fused, by the policy.
scaled_dot_product_attention: Callable[..., torch.Tensor] = _core._nn.scaled_dot_product_attention

# --- storages, devices, files ---

StorageBase: Any = _core.StorageBase  # the device of a storage, whatever an alias says
LegacyStorage: Any = getattr(torch.storage, "_LegacyStorage")  # noqa: B009  torch.trn.FloatStorage
register_device_module: Callable[[str, Any], None] = torch._register_device_module  # torch.trn
device_of_dlpack: Callable[..., Any] = _core._torchDeviceToDLDevice  # DLPack through frameworks
KinetoProfile: Any = getattr(torch.profiler, "_KinetoProfile")  # noqa: B009  profilers under `cuda`
compiled_c10d: Any = getattr(_core, "_distributed_c10d", None)  # process groups under `cuda`
utilities: Any = torch._utils  # the device of checkpoints' writers under `cuda`
PASSED_OVER = "torch._dynamo.guards"  # whose files are not a script's: those of `cuda` as well
COMPILED_BY_BACKENDS = "torch._dynamo.output_graph"  # backends of a script under `cuda`
TRACED_TENSORS = "torch._dynamo.variables.tensor"  # what they say of their device under `cuda`
# Files saved on a GPU, here and below.
validate_device: Callable[[Any, str], Any] = torch.serialization._validate_device


# Whose tensors are made where a script has placed them, under the name cuda.
SHARDED_TENSORS = "torch.distributed._shard"
TRACED_BODIES = "torch._dynamo.variables.higher_order_ops"  # of operators under `cuda`

# TorchScript under the name `cuda`, here and below: a device, its type and what compares them.
script_types: Any = (_core.DeviceObjType, _core.StringType, _core.BoolType)
inline_script_calls: Callable[[Any], None] = _core._jit_pass_inline
# Kernels that a script registers for cuda.
dispatch_key_for_device: Callable[[str], str] = _core._dispatch_key_for_device
# What runs code of the script under the name `cuda`, here and below.
dispatch_mode_count: Callable[[], int] = _core._len_torch_dispatch_stack
skip_function_modes: Callable[..., Any] = _core._skip_one_hop_torch_function
subclasses_are_asked: Callable[[], bool] = _core._is_torch_function_enabled
# Hooks under the name `cuda` enter its mode where it is not on.
function_modes: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack


@contextmanager
def function_modes_set_aside() -> Iterator[None]:
    """No function mode is on; those that are entered inside stay below the others."""
    stack: Any = torch.overrides
    modes = [stack._pop_mode() for _ in function_modes()]
    try:
        yield
    finally:
        for mode in reversed(modes):
            stack._push_mode(mode)


def set_functions_of_torch_c(functions: dict[str, Callable[..., Any]]) -> None:
    """Give `torch._C` the functions that a build of torch with CUDA has."""
    for name, function in functions.items():
        setattr(_core, name, function)


def keep_script_name(function: Callable[..., Any], made: Callable[..., Any]) -> None:
    """TorchScript compiles `made` as the operator that it knows `function` as, if it is one."""
    from torch.jit import _builtins

    name = _builtins._find_builtin(function)
    if name is not None:
        _builtins._register_builtin(made, name)


def overrides_functions(value: Any) -> bool:
    """Whether `__torch_function__` of the value's own type is asked, whatever the modes."""
    own = getattr(type(value), "__torch_function__", None)
    if own is None or type(value) in (torch.Tensor, torch.nn.Parameter):
        return False
    return own is not _core._disabled_torch_function_impl


def wrap_restore_location(wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let `wrapper` stand around what `torch.load` makes of its `map_location`."""
    serialization: Any = torch.serialization
    serialization._get_restore_location = wrapper(serialization._get_restore_location)


def wrap_make_wrapper_subclass(wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Let `wrapper` stand around what makes wrapper subclasses of tensors under `cuda`."""
    kind: Any = torch.Tensor
    kind._make_wrapper_subclass = staticmethod(wrapper(kind._make_wrapper_subclass))


def with_optimizers_of_meta(stack: ExitStack) -> None:
    """While `stack` is open optimizers treat `meta` parameters as those of an accelerator.

    A release that renames these lists prices the optimizers of `meta` parameter by parameter.
    """
    kinds = ("foreach_kernels", "fused_kernels", "capturable")
    places = ("torch.optim.", "torch.utils._foreach_utils")
    modules = [module for path, module in sys.modules.items() if path.startswith(places)]
    for module, kind in product(modules, kinds):
        name = f"_get_{kind}_supported_devices"
        if devices := getattr(module, name, None):
            stack.enter_context(mock.patch.object(module, name, partial(_and_meta, devices)))


def _and_meta(devices: Callable[..., list[str]], *args: Any, **kwargs: Any) -> list[str]:
    return [*devices(*args, **kwargs), "meta"]


def with_device_kernels_on_meta(stack: ExitStack, clear: Callable[[], None]) -> None:
    """While `stack` is open the kernels of csrc/aten/on_meta.cpp see every operator.

    clear  called where torch drops the casts of weights that it keeps
    """
    key: Any = DispatchKey.AutocastIPU  # type: ignore[attr-defined]
    if key not in KEYS_PASSED_BY:
        KEYS_PASSED_BY.append(key)
        for operator in _higher_order_ops.values():
            operator.fallthrough(key)
    was_excluded = _core._dispatch_tls_is_dispatch_key_excluded(key)
    stack.callback(_core._dispatch_tls_set_dispatch_key_excluded, key, was_excluded)
    _core._dispatch_tls_set_dispatch_key_excluded(key, False)
    stack.enter_context(_core._IncludeDispatchKeyGuard(key))
    torchs = torch.clear_autocast_cache

    def cleared() -> None:
        torchs()
        clear()

    stack.callback(clear)
    stack.enter_context(mock.patch.object(torch, "clear_autocast_cache", cleared))


def with_constants_of_meta(stack: ExitStack) -> None:
    """While `stack` is open a tensor on `meta` that a traced function makes is a constant of it.

    Those of other devices are: Dynamo fakes what a list of indices or `torch.tensor` gives.
    """
    override = mock.patch.object(fake_tensor_tls, "allow_non_fake_inputs_override", True)
    stack.enter_context(override)


# --- modules by name ---

COMPILE_FX = "torch._inductor.compile_fx"  # torch.compile without a backend
DECOMPOSITIONS = "torch._decomp.decompositions"  # recurrent layers in graphs
DYNAMO = "torch._dynamo"  # whether something is compiled in an estimate
DTENSOR_RANDOM = "torch.distributed.tensor._random"  # random operators of sharded tensors
JAGGED_OPERATORS = "torch.nested._internal.ops"  # their gradients of weights
RING_ATTENTION = "torch.distributed.tensor.experimental._context_parallel._attention"
TEST_CASES = "torch.testing._internal.common_utils"  # test cases of PyTorch under `cuda`
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"  # `trn-emu estimate` logs errors once


def flex_operators() -> Any:
    """What FlexAttention does by device, and what its operators compute."""
    return importlib.import_module("torch._higher_order_ops.flex_attention")


def compiles_autograd() -> bool:
    """Whether compiled autograd runs the backward passes; imports nothing to find out."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return module is not None and module.compiled_autograd_enabled
