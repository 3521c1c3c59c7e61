"""What other libraries need to find the device. `trn-emu run` sets it all; elsewhere:

accelerate, transformers   ACCELERATE_TORCH_DEVICE=trn in the environment
transformers in bfloat16   import torch_trn_emu.integrations.transformers
lightning                  import torch_trn_emu.integrations.lightning
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ..settings import DEVICE_TYPE, NAMES
from .tensorboard import tensorboard_callback

__all__ = ["prepare", "tensorboard_callback", "when_imported"]


def prepare() -> None:
    """Set the variables and register with libraries as they are imported."""
    if os.environ.get("ACCELERATE_TORCH_DEVICE") in (None, *NAMES):  # a parent's name, maybe
        os.environ["ACCELERATE_TORCH_DEVICE"] = DEVICE_TYPE
    for name, integration in _WHEN_IMPORTED.items():
        when_imported(name, partial(_register, integration))


# Modules of other libraries, and ours that registers with each.
_WHEN_IMPORTED = {
    "lightning.pytorch": "lightning",
    "pytorch_lightning": "lightning",
    "transformers.utils.import_utils": "transformers",
}


def _register(integration: str, package: ModuleType) -> None:
    import_module(f".{integration}", __name__).register(package)


def when_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then` with the module once it has been imported; now, if it has been."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _After(name, then))


class _After(MetaPathFinder):
    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)
        return spec


class _Loader(Loader):
    def __init__(self, real: Loader, then: Callable[[ModuleType], None]) -> None:
        self._real, self._then = real, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._real
        self._real.exec_module(module)
        self._then(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
