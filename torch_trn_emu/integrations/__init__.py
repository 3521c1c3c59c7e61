"""What other libraries need to find the device, set up as each is imported.

accelerate and transformers read ACCELERATE_TORCH_DEVICE, which is set where the user has not; with
Lightning the device is registered; device_lists.py has the places without a plugin point.
"""

import os
import sys
from functools import partial
from importlib import import_module
from types import ModuleType
from warnings import warn

from ..importing import when_imported
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
