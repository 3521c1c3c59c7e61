"""Places in torch and other libraries that list devices by name, and what each is told of trn.

Where a library has a plugin point, that is used (`_BY_VARIABLE`, integrations/lightning.py). The
rest is here, in one file: a row of PLACES names the place, and its bridge makes the replacement of
what stands there. To add a place, add its row and bridge, and a test in
tests/integrations/test_device_lists.py; that test also searches the installed sources, and what
needs no bridge is listed there with its reason. Checked on torch 2.13.0, accelerate 1.15.0,
transformers 5.20.2, lightning 2.6.6, safetensors 0.8.0.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from threading import local
from types import ModuleType, SimpleNamespace
from typing import Any
from warnings import warn

import torch

from .. import trn
from ..settings import DEVICE_TYPE
from ..torch_private import DisableTorchFunction, device_of_dlpack
from ..trn.distributed import BACKENDS
from ..trn.legacy import dense_of

__all__ = ["PLACES", "Place", "apply"]

Bridge = Callable[[Any, ModuleType], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a library does by lists of device names, and what is done here for trn."""

    module: str
    name: str  # in the module; "Class.method" for methods
    does: str  # what trn lacks without the bridge, for docs/ecosystem.md
    bridge: Bridge  # makes the replacement of what stands there


def apply(place: Place, module: ModuleType) -> None:
    """Put the replacement in place, and where other modules of the library have imported it.

    Does nothing where the installed version has no such name.
    """
    holder: Any = module
    *path, last = place.name.split(".")
    for part in path:
        holder = getattr(holder, part, None)
    there: Any = vars(holder).get(last) if holder is not None else None
    kind = next((k for k in (staticmethod, classmethod) if isinstance(there, k)), None)
    original: Any = there.__func__ if kind is not None else there
    if original is None or getattr(original, "_trn_bridge", False):
        return
    replacement = place.bridge(original, module)
    if replacement is original:
        return
    replacement._trn_bridge = True
    setattr(holder, last, kind(replacement) if kind is not None else replacement)
    package = module.__name__.partition(".")[0]
    for other in [m for name, m in sys.modules.items() if name.partition(".")[0] == package]:
        if not path and vars(other).get(last) is original:
            setattr(other, last, replacement)


def _around(make: Callable[..., Any]) -> Bridge:
    """A bridge from `make(original, *args, **kwargs)`, which runs in place of the original."""

    def bridge(original: Any, module: ModuleType) -> Any:
        @wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return make(original, *args, **kwargs)

        return replacement

    return bridge


def _lists_trn(original: Any, module: ModuleType) -> Any:
    """The function with the device's name added to each constant tuple of device names."""
    code = original.__code__
    constants = tuple(
        (*c, DEVICE_TYPE) if isinstance(c, tuple) and {"cuda", "xpu"} <= set(c) else c
        for c in code.co_consts
    )
    original.__code__ = code.replace(co_consts=constants)
    return original


# torch


@_around
def _dlpack_device(original: Any, self: torch.Tensor) -> tuple[Any, int]:
    with DisableTorchFunction():
        if self.device.type != DEVICE_TYPE:
            return original(self)  # type: ignore[no-any-return]
        kind, index = device_of_dlpack(self.device)
    return torch.utils.dlpack.DLDeviceType(kind), index


@_around
def _columns_of_trn(original: Any, *args: Any, **kwargs: Any) -> Any:
    """A profiler's table by a column of the device: torch's word for it is privateuse1."""
    given = signature(original).bind(*args, **kwargs)
    for name in {"sort_by", "metric"} & given.arguments.keys():
        column = given.arguments[name]
        if isinstance(column, str):
            given.arguments[name] = re.sub(rf"^(self_)?{DEVICE_TYPE}_", r"\1privateuse1_", column)
    return original(*given.args, **given.kwargs)


class _DefaultType(local):
    """Whether a type of this device, not a call of set_default_device, made it the default."""

    chose_device = False


_DEFAULT_TYPE = _DefaultType()


@_around
def _default_tensor_type(original: Any, t: Any) -> None:
    dtype = dense_of(t)
    if dtype is None:
        if _DEFAULT_TYPE.chose_device:
            torch.set_default_device(None)
        _DEFAULT_TYPE.chose_device = False
        original(t)
    else:
        torch.set_default_dtype(dtype)
        torch.set_default_device(DEVICE_TYPE)
        _DEFAULT_TYPE.chose_device = True


@_around
def _sparse_on_trn(original: Any, cls: Any, tensor: torch.Tensor) -> None:
    """Checks a tensor of trn as one of CUDA: dimensions, dtype and shape."""
    if tensor.device.type != DEVICE_TYPE:
        return original(cls, tensor)  # type: ignore[no-any-return]
    asked = ("device", "dim", "is_contiguous", "dtype", "shape")
    return original(  # type: ignore[no-any-return]
        cls, SimpleNamespace(is_cuda=True, **{name: getattr(tensor, name) for name in asked})
    )


def _scaler_on_trn(original: Any, module: ModuleType) -> Any:
    if not torch.cuda.is_available():
        first, *rest = original.__defaults__
        original.__defaults__ = (DEVICE_TYPE if first == "cuda" else first, *rest)
    return original


# Random states in checkpoints


def _keep_states(path: Path) -> None:
    torch.save({"devices": trn.get_rng_state_all()}, path)


def _restore_states(path: Path) -> None:
    if not path.exists():
        warn(
            f"{path.parent} has no random state of {DEVICE_TYPE} ({path.name}): random numbers on "
            "the device, including dropout masks, continue from the current state.",
            stacklevel=4,
        )
        return
    _restore(torch.load(path, weights_only=True)["devices"])


def _restore(states: list[torch.Tensor]) -> None:
    count = trn.device_count()
    if len(states) != count:
        warn(
            f"the checkpoint has random states of {len(states)} {DEVICE_TYPE} devices, and "
            f"{count} are visible: those with the same index are restored.",
            stacklevel=5,
        )
    trn.set_rng_state_all(states[:count])


def _given(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@_around
def _accelerate_saves(original: Any, *args: Any, **kwargs: Any) -> Any:
    given = _given(original, args, kwargs)
    result = original(*args, **kwargs)
    name = f"random_states_{DEVICE_TYPE}_{given['process_index']}.pt"
    _keep_states(Path(given["output_dir"]) / name)
    return result


@_around
def _accelerate_loads(original: Any, *args: Any, **kwargs: Any) -> Any:
    given = _given(original, args, kwargs)
    result = original(*args, **kwargs)
    name = f"random_states_{DEVICE_TYPE}_{given['process_index']}.pt"
    _restore_states(Path(given["input_dir"]) / name)
    return result


def _trainer_file(trainer: Any, folder: str) -> Path:
    index = f"_{trainer.args.process_index}" if trainer.args.world_size > 1 else ""
    return Path(folder) / f"rng_state_{DEVICE_TYPE}{index}.pth"


@_around
def _trainer_saves(original: Any, self: Any, output_dir: str) -> None:
    original(self, output_dir)
    _keep_states(_trainer_file(self, output_dir))


@_around
def _trainer_loads(original: Any, self: Any, checkpoint: str | None) -> None:
    original(self, checkpoint)
    if checkpoint is not None:
        _restore_states(_trainer_file(self, checkpoint))


@_around
def _lightning_collects(original: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    states: dict[str, Any] = original(*args, **kwargs)
    return states | {f"torch.{DEVICE_TYPE}": trn.get_rng_state_all()}


@_around
def _lightning_sets(original: Any, rng_state_dict: dict[str, Any]) -> None:
    original(rng_state_dict)
    if (states := rng_state_dict.get(f"torch.{DEVICE_TYPE}")) is not None:
        _restore(states)


_LIGHTNING_KEY = f"torch.{DEVICE_TYPE} random states"


def _on_trn(connector: Any) -> bool:
    return bool(connector.trainer.strategy.root_device.type == DEVICE_TYPE)


@_around
def _lightning_dumps(original: Any, self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    checkpoint: dict[str, Any] = original(self, *args, **kwargs)
    if _on_trn(self) and not (args[0] if args else kwargs.get("weights_only")):
        states = {"host": torch.get_rng_state(), "devices": trn.get_rng_state_all()}
        checkpoint[_LIGHTNING_KEY] = states
    return checkpoint


@_around
def _lightning_restores(original: Any, self: Any) -> None:
    original(self)
    checkpoint = self._loaded_checkpoint
    if checkpoint and _on_trn(self) and (states := checkpoint.get(_LIGHTNING_KEY)) is not None:
        torch.set_rng_state(states["host"])
        _restore(states["devices"])


@_around
def _lightning_wraps(original: Any, self: Any, model: torch.nn.Module) -> Any:
    """The strategy `ddp`, which wraps the model in a stream of CUDA."""
    if self.root_device.type != DEVICE_TYPE:
        return original(self, model)
    with trn.stream(trn.Stream()):
        return torch.nn.parallel.DistributedDataParallel(
            module=model, device_ids=[self.root_device.index], **self._ddp_kwargs
        )


def _as_a_gpu(original: Any, module: ModuleType) -> Any:
    """The function with the device's name among "cuda" and "gpu"."""
    code = original.__code__
    constants = tuple((*c, DEVICE_TYPE) if c == ("cuda", "gpu") else c for c in code.co_consts)
    original.__code__ = code.replace(co_consts=constants)
    return original


# accelerate


@_around
def _fsdp_plugin(original: Any, self: Any) -> None:
    try:
        original(self)
    except RuntimeError as error:
        if "no available devices" not in str(error):
            raise
        # The last thing that it looks for: where parameters of other ranks get memory.
        device = torch.device(DEVICE_TYPE, trn.current_device())
        self.param_init_fn = lambda module: module.to_empty(device=device, recurse=False)


def _several_ranks(original: Any, module: ModuleType) -> Any:
    @wraps(original)
    def _prepare_backend(self: Any, cpu: bool = False, *args: Any, **kwargs: Any) -> Any:
        backend, kind = original(self, cpu, *args, **kwargs)
        launched = os.environ.get("LOCAL_RANK", "-1") != "-1"
        if kind == module.DistributedType.NO and launched and not cpu:
            # The kind of the vendor's device is treated as any other accelerator's.
            return f"cpu:gloo,{DEVICE_TYPE}:{BACKENDS[0]}", module.DistributedType.MULTI_NEURON
        return backend, kind

    return _prepare_backend


def _core_of_rank(original: Any, module: ModuleType) -> Any:
    @wraps(original)
    def set_device(self: Any) -> None:
        ours = DEVICE_TYPE == "trn" and self.distributed_type == module.DistributedType.MULTI_NEURON
        if not ours or self.device not in (None, torch.device(DEVICE_TYPE)):  # as _BY_VARIABLE says
            original(self)
            return
        self.device = torch.device(DEVICE_TYPE, self.local_process_index % trn.device_count())
        trn.set_device(self.device)

    return set_device


def _max_memory(original: Any, module: ModuleType) -> Any:
    @wraps(original)
    def get_max_memory(max_memory: dict[Any, Any] | None = None) -> dict[Any, Any]:
        if max_memory is None:
            free = {i: trn.mem_get_info(i)[0] for i in range(trn.device_count())}
            return free | original(None)  # type: ignore[no-any-return]
        host = original({k: v for k, v in max_memory.items() if not isinstance(k, int)})
        count, ours = trn.device_count(), {}
        for index in sorted(k for k in max_memory if isinstance(k, int)):
            if not 0 <= index < count:
                warn(f"{DEVICE_TYPE}:{index} does not exist: {count} are visible.", stacklevel=2)
            size = max_memory[index]
            ours[index] = module.convert_file_size_to_int(size) if isinstance(size, str) else size
        both: dict[Any, Any] = ours | host
        return both

    return get_max_memory


@_around
def _synchronizes(original: Any, rng_types: Any, generator: Any = None) -> None:
    """The device's random state is that of a generator, which accelerate synchronizes."""
    original([kind for kind in rng_types if kind != DEVICE_TYPE], generator)
    if DEVICE_TYPE in rng_types:
        original(["generator"], trn.default_generators[trn.current_device()])


@_around
def _empties_cache(original: Any, *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)
    trn.empty_cache()


@_around
def _grad_scaler(original: Any, distributed_type: Any = None, **kwargs: Any) -> Any:
    if getattr(distributed_type, "name", None) == "FSDP":
        return original(distributed_type, **kwargs)
    return torch.amp.GradScaler(DEVICE_TYPE, **kwargs)


def _knows_backend(original: Any, module: ModuleType) -> Any:
    """The enumeration with one more member, which Python has no way to ask for."""
    for name in ("TRN", "NEURON"):
        if name not in original.__members__:
            member = str.__new__(original, name)
            member._name_ = member._value_ = name
            original._member_names_.append(name)
            original._member_map_[name] = original._value2member_map_[name] = member
    return original


@_around
def _profiler_activity(original: Any, self: Any, activity: str) -> Any:
    if activity == DEVICE_TYPE:
        return torch.profiler.ProfilerActivity.PrivateUse1
    return original(self, activity)


# transformers


@_around
def _has_bfloat16(original: Any) -> bool:
    return trn.is_bf16_supported()


@_around
def _available_devices(original: Any) -> frozenset[str]:
    return original() | {DEVICE_TYPE}  # type: ignore[no-any-return]


@_around
def _pipeline(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    given = _given(original, (self, *args), kwargs)
    device, placed = given.get("device"), getattr(given["model"], "hf_device_map", None)
    if device is None and placed is None:
        device = 0
    if type(device) is int and device >= 0 and placed is None:
        kwargs["device"] = torch.device(DEVICE_TYPE, device)
        names = list(signature(original).parameters)
        args = args[: names.index("device") - 1]
    original(self, *args, **kwargs)


def _calls_trn(original: Any, module: ModuleType) -> Any:
    """The function with `torch.cuda.name(...)`, which it calls on any device, as torch.trn's."""
    if not torch.cuda.is_available():
        code = original.__code__
        names = tuple(DEVICE_TYPE if name == "cuda" else name for name in code.co_names)
        original.__code__ = code.replace(co_names=names)
    return original


# safetensors


def _index_of_trn(device: Any) -> Any:
    """A number names the current accelerator for safetensors; a name of trn as that number."""
    text = str(device)
    kind, _, index = text.partition(":")
    return int(index or trn.current_device()) if kind == DEVICE_TYPE else device


def _opens_on_trn(original: Any, module: ModuleType) -> Any:
    def safe_open(filename: Any, framework: str, device: Any = "cpu", **kwargs: Any) -> Any:
        return original(filename, framework, device=_index_of_trn(device), **kwargs)

    safe_open.__doc__ = original.__doc__
    return safe_open


# Lightning


@_around
def _auto_accelerator(original: Any) -> str:
    chosen: str = original()
    return DEVICE_TYPE if chosen == "cpu" else chosen


@_around
def _precision(
    original: Any, self: Any, precision: str, device: str, *args: Any, **kw: Any
) -> None:
    there = device != "cuda" or torch.cuda.is_available()
    original(self, precision, device if there else DEVICE_TYPE, *args, **kw)


@_around
def _fabric_strategy(original: Any, self: Any) -> Any:
    chosen = original(self)
    if self._accelerator_flag == DEVICE_TYPE or self.accelerator.__class__.name() == DEVICE_TYPE:
        chosen._root_device = self._parallel_devices[0]
    return chosen


def _place(module: str, name: str, does: str, bridge: Bridge) -> Place:
    return Place(module=module, name=name, does=does, bridge=bridge)


_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
_FABRIC = ("lightning.fabric", "lightning_fabric")

PLACES = (
    _place("torch", "Tensor.__dlpack_device__", "`torch.from_dlpack(x)`", _dlpack_device),
    _place("torch", "set_default_tensor_type", "`torch.trn.FloatTensor` as the default type",
           _default_tensor_type),
    _place("torch.sparse.semi_structured",
           "SparseSemiStructuredTensor._validate_device_dim_dtype_shape",
           "`torch.sparse.to_sparse_semi_structured`", _sparse_on_trn),
    _place("torch.amp.grad_scaler", "GradScaler.__init__", "`GradScaler()` scales on trn",
           _scaler_on_trn),
    _place("torch.autograd.profiler_util", "EventList.table",
           '`table(sort_by="trn_time_total")`', _columns_of_trn),
    _place("torch.autograd.profiler_util", "EventList.export_stacks",
           '`export_stacks(path, "self_trn_time_total")`', _columns_of_trn),
    _place("accelerate.checkpointing", "save_accelerator_state",
           "`save_state` saves the random states", _accelerate_saves),
    _place("accelerate.checkpointing", "load_accelerator_state",
           "`load_state` restores them", _accelerate_loads),
    _place("accelerate.state", "PartialState._prepare_backend",
           "several ranks, started by `torchrun` or `accelerate launch`", _several_ranks),
    _place("accelerate.state", "PartialState.set_device", "each rank's core", _core_of_rank),
    _place("accelerate.utils.modeling", "get_max_memory", '`device_map="auto"`', _max_memory),
    _place("accelerate.utils.modeling", "get_grad_scaler", "the fp16 scaler", _grad_scaler),
    _place("accelerate.utils.memory", "clear_device_cache", "`free_memory` empties the pool",
           _empties_cache),
    _place("accelerate.utils.random", "synchronize_rng_states",
           '`Accelerator(rng_types=["trn"])`', _synchronizes),
    _place("accelerate.utils.dataclasses", "DynamoBackend", '`dynamo_backend="trn"`',
           _knows_backend),
    _place("accelerate.utils.dataclasses", "ProfileKwargs._get_profiler_activity",
           '`ProfileKwargs(activities=["trn"])`', _profiler_activity),
    _place("accelerate.accelerator", "Accelerator.__init__", '`mixed_precision="fp16"`',
           _lists_trn),
    _place("accelerate.utils.dataclasses", "FullyShardedDataParallelPlugin.__post_init__",
           "`fsdp_config` of version 1", _fsdp_plugin),
    _place("transformers.utils.import_utils", "is_torch_bf16_gpu_available", "`bf16=True`",
           _has_bfloat16),
    _place("transformers.utils", "get_available_devices", "the devices that exist",
           _available_devices),
    _place("transformers.utils.type_validators", "device_validator",
           "`device` of image processors", _lists_trn),
    _place("transformers.pipelines.base", "Pipeline.__init__", "`pipeline(...)`", _pipeline),
    _place("transformers.cache_utils", "Cache.update",
           '`generate(cache_implementation="offloaded")`', _calls_trn),
    _place("transformers.trainer", "Trainer._save_rng_state",
           "checkpoints of Trainer save the random states", _trainer_saves),
    _place("transformers.trainer", "Trainer._load_rng_state",
           "`resume_from_checkpoint` restores them", _trainer_loads),
    _place("safetensors", "safe_open", '`load_file(path, device="trn")`', _opens_on_trn),
    *(
        row
        for package in _LIGHTNING
        for row in (
            _place(f"{package}.plugins.precision.amp", "MixedPrecision.__init__",
                   '`precision="16-mixed"`', _precision),
            _place(f"{package}.trainer.connectors.checkpoint_connector",
                   "_CheckpointConnector.dump_checkpoint",
                   "checkpoints save the random states", _lightning_dumps),
            _place(f"{package}.trainer.connectors.checkpoint_connector",
                   "_CheckpointConnector.restore_training_state",
                   "`ckpt_path` restores them", _lightning_restores),
            _place(f"{package}.strategies.ddp", "DDPStrategy._setup_model",
                   '`Trainer(strategy="ddp", devices=4)`', _lightning_wraps),
            _place(f"{package}.trainer.connectors.accelerator_connector",
                   "_AcceleratorConnector._check_strategy_and_fallback",
                   '`Trainer(strategy="fsdp", devices=4)`', _as_a_gpu),
        )
    ),
    *(
        row
        for package in _FABRIC
        for row in (
            _place(f"{package}.utilities.seed", "_collect_rng_states", "`isolate_rng`",
                   _lightning_collects),
            _place(f"{package}.utilities.seed", "_set_rng_states", "`isolate_rng`",
                   _lightning_sets),
            _place(f"{package}.utilities.device_parser", "_select_auto_accelerator",
                   '`Trainer(accelerator="auto")`', _auto_accelerator),
            _place(f"{package}.connector", "_Connector._choose_auto_accelerator",
                   '`Fabric(accelerator="auto")`', _auto_accelerator),
            _place(f"{package}.connector", "_Connector._choose_strategy",
                   '`Fabric(accelerator="trn")`', _fabric_strategy),
            _place(f"{package}.strategies.ddp", "DDPStrategy.setup_module",
                   '`Fabric(strategy="ddp", devices=4)`', _lightning_wraps),
            _place(f"{package}.plugins.precision.amp", "MixedPrecision.__init__",
                   '`Fabric(precision="16-mixed")`', _precision),
        )
    ),
)  # fmt: skip
