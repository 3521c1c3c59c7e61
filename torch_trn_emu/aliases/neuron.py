"""`TRN_EMU_AS=neuron`: the device has the vendor's name, and `import torch_neuronx` works.

The device itself is registered as "neuron" (settings.DEVICE_TYPE); this adds the rest.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

import torch

from ..errors import Unimplemented

__all__ = ["compile_backend", "install"]


class _Submodules(MetaPathFinder):
    """Says what is missing where a script imports a part of torch_neuronx that is not served."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.startswith("torch_neuronx."):
            from . import torch_neuronx

            served = ", ".join(torch_neuronx.__all__)
            raise ModuleNotFoundError(
                f"{name} is not served by the emulator's torch_neuronx, which has: {served}.",
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
    from . import torch_neuronx

    sys.modules["torch_neuronx"] = torch_neuronx
    sys.meta_path.insert(0, _Submodules())


def compile_backend(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    """`torch.compile(backend="neuron")`: the backend "trn" by the vendor's name."""
    from torch._dynamo.backends.registry import list_backends, lookup_backend

    if "trn" not in list_backends(exclude_tags=None):
        raise Unimplemented("torch.compile for trn: torch_trn_emu/compiler. Use eager mode.")
    return lookup_backend("trn")(graph, inputs, **options)
