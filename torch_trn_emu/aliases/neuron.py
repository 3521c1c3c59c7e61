"""`TRN_EMU_AS=neuron`: the device has the vendor's name, and `import torch_neuronx` works.

The device itself is registered as "neuron" (settings.DEVICE_TYPE); this adds the rest.
"""

import atexit
import importlib.util
import os
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

import torch

from .. import trn
from ..errors import Unimplemented
from .neuron_names import VARIABLES, reason

__all__ = ["compile_backend", "install"]

_PARTS = ("memory", "neuron_dynamo_backend", "profiling", "streams")
_PREFIX = "TORCH_NEURONX_"
_TOLD = "TRN_EMU_AS_TOLD"  # set once said, so that child processes stay silent


class _Submodules(MetaPathFinder):
    """Says what is missing where a script imports a part of torch_neuronx that is not served."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.startswith("torch_neuronx."):
            from . import torch_neuronx

            why = f": {found}" if (found := reason(name)) is not None else ""
            raise ModuleNotFoundError(
                f"{name} is not provided by the emulator's torch_neuronx{why}. It has: "
                f"{', '.join(torch_neuronx.__all__)}.",
                name=name,
            )


def install() -> None:
    """Raises ImportError where the vendor's own torch_neuronx is installed: it would be hidden."""
    if importlib.util.find_spec("torch_neuronx") is not None:
        raise ImportError(
            "torch_neuronx is installed here, and the emulator's would hide it: use --as-neuron in "
            "an environment without the vendor's packages."
        )
    torch.backends.neuron = torch.backends.trn  # type: ignore[attr-defined]
    sys.modules["torch.backends.neuron"] = sys.modules["torch.backends.trn"]
    package = import_module(".torch_neuronx", __package__)
    sys.modules["torch_neuronx"] = package
    for part in _PARTS:
        sys.modules[f"torch_neuronx.{part}"] = getattr(package, part)
    sys.meta_path.insert(0, _Submodules())
    _add_to_device_module(package)
    atexit.register(package.neuron_dynamo_backend.write_metrics)
    _say_what_has_no_effect()


def _add_to_device_module(package: Any) -> None:
    """The names that torch.neuron has beyond those of torch.trn."""
    module: Any = trn
    module.wait_stream = lambda stream: trn.current_stream().wait_stream(stream)
    module.wait_event = lambda event: trn.current_stream().wait_event(event)
    module.record_event = lambda event=None: trn.current_stream().record_event(event)
    module.query = lambda: trn.current_stream().query()
    module._sleep = lambda cycles: None  # nothing in the vendor's release either
    module.get_dynamo_metrics = package.get_dynamo_metrics
    module.reset_dynamo_metrics = package.reset_dynamo_metrics


def _say_what_has_no_effect() -> None:
    """A line on stderr for each of the vendor's variables that is set and has no effect here."""
    if _TOLD in os.environ:
        return
    os.environ[_TOLD] = "1"
    for name, value in sorted(os.environ.items()):
        known = VARIABLES.get(name)
        if value and known is not None and not known.honoured:
            print(f"trn-emu: {name} has no effect: {known}.", file=sys.stderr)
        elif value and known is None and name.startswith(_PREFIX):
            print(f"trn-emu: {name} is unknown and has no effect.", file=sys.stderr)


def compile_backend(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    """`torch.compile(backend="neuron")`, an entry point: the backend "trn" by the vendor's name."""
    from ..torch_private.dynamo import list_backends
    from .torch_neuronx.neuron_dynamo_backend import neuron_backend

    if "trn" not in list_backends(exclude_tags=None):
        raise Unimplemented("torch.compile for trn: torch_trn_emu/compiler. Use eager mode.")
    return neuron_backend(graph, inputs, **options)
