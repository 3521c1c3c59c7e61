"""What other libraries need to find the device, set up as each is imported.

accelerate and transformers read ACCELERATE_TORCH_DEVICE, which is set where the user has not; with
Lightning the device is registered; device_lists.py has the places without a plugin point.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from warnings import warn

from ..settings import DEVICE_TYPE, NAMES
from ..trn.registration import startup_error

__all__ = ["prepare", "when_imported"]

_VARIABLE = "ACCELERATE_TORCH_DEVICE"
_LIGHTNING = ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric")
_ASKS_VARIABLE = ("accelerate.state", "transformers.training_args")


def prepare() -> None:
    """Register with libraries as they are imported; say once, where there is no device, why."""
    if (error := startup_error()) is not None:
        for name in (*_ASKS_VARIABLE, *_LIGHTNING):
            when_imported(name, partial(_tell_why_not, error))
        return
    if os.environ.get(_VARIABLE) in NAMES:  # a parent's name, maybe
        os.environ[_VARIABLE] = DEVICE_TYPE
    for name in _ASKS_VARIABLE:
        when_imported(name, _set_variable)
    for name in _LIGHTNING:
        when_imported(name, _register_with_lightning)
    from .device_lists import PLACES, apply

    for place in PLACES:
        if place.module.partition(".")[0] == "torch":  # it may be importing this package just now
            apply(place, sys.modules[place.module])
        else:
            when_imported(place.module, partial(apply, place))


def _set_variable(module: ModuleType) -> None:
    os.environ.setdefault(_VARIABLE, DEVICE_TYPE)


def _register_with_lightning(package: ModuleType) -> None:
    import_module(".lightning", __name__).register(package)


_told: list[Exception] = []


def _tell_why_not(error: Exception, module: ModuleType) -> None:
    if not _told:
        _told.append(error)
        library = module.__name__.partition(".")[0]
        warn(f"{library} will not use {DEVICE_TYPE}: {error}", stacklevel=2)


def when_imported(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then` with the module once it has been imported; now, if it has been."""
    if name in sys.modules:
        then(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.waiting[name].append(then)


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[ModuleType], None]]] = defaultdict(list)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        wanted = self.waiting.pop(name)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, wanted)
        return spec


class _Loader(Loader):
    def __init__(self, real: Loader, wanted: list[Callable[[ModuleType], None]]) -> None:
        self._real, self._wanted = real, wanted

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        for then in self._wanted:
            then(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


_finder = _Finder()
