"""Registers the device with Lightning: `Trainer(accelerator="trn")`, `Fabric(accelerator="trn")`.

Checked on lightning 2.6.6, whose connector gives one device of an accelerator that it does not know
the CPU: that is put right when the trainer starts. device_lists.py has the rest.
"""

import importlib
from types import ModuleType
from typing import Any

import torch

from .. import trn
from ..errors import ChipLimit
from ..settings import DEVICE_TYPE

__all__ = ["register"]


def register(package: ModuleType) -> None:
    """Add the accelerator to a package of Lightning, its PyTorch or Fabric half, if not there."""
    accelerators = importlib.import_module(f"{package.__name__}.accelerators")
    is_fabric = package.__name__.endswith("fabric")
    registry = getattr(accelerators, "ACCELERATOR_REGISTRY" if is_fabric else "AcceleratorRegistry")
    if DEVICE_TYPE not in registry:
        kind = _accelerator(accelerators.Accelerator)
        registry.register(DEVICE_TYPE, kind, description="an emulated logical NeuronCore")


def _accelerator(base: Any) -> Any:
    class TrnAccelerator(base):
        """Logical cores: one, or several for the strategies of several processes."""

        def __init__(self) -> None:
            super().__init__()
            self._device = torch.device(DEVICE_TYPE, 0)

        def setup_device(self, device: torch.device) -> None:
            if device.type == DEVICE_TYPE:
                trn.set_device(device)

        def setup(self, trainer: Any) -> None:
            devices = trainer._accelerator_connector._parallel_devices
            if len(devices) == 1:  # Lightning took the CPU
                trainer.strategy._root_device = devices[0]
            self._device = trainer.strategy.root_device
            trn.set_device(self._device)

        def get_device_stats(self, device: Any) -> dict[str, Any]:
            """Memory of the core, and all counters."""
            return trn.memory_stats(device) | trn.counters(device)

        def teardown(self) -> None:
            trn.empty_cache()

        @staticmethod
        def parse_devices(devices: Any) -> list[int]:
            """Indices: of "auto" the first, of a number so many, of -1 all, or those listed."""
            if devices in ("auto", None):
                return [0]
            if devices in (-1, "-1"):
                return list(range(trn.device_count()))
            chosen = _indices(devices)
            if not chosen or max(chosen) >= trn.device_count():
                raise ChipLimit(
                    f"Trainer(accelerator={DEVICE_TYPE!r}, devices={devices!r}): "
                    f"{trn.device_count()} devices are visible, logical cores of one chip. "
                    "Take fewer, or start the script with torchrun, where ranks have the cores "
                    "of a server."
                )
            return chosen

        @staticmethod
        def get_parallel_devices(devices: list[int]) -> list[torch.device]:
            return [torch.device(DEVICE_TYPE, index) for index in devices]

        @staticmethod
        def auto_device_count() -> int:
            return 1

        @staticmethod
        def is_available() -> bool:
            return trn.is_available()

        @staticmethod
        def name() -> str:
            return DEVICE_TYPE

    return TrnAccelerator


def _indices(devices: Any) -> list[int]:
    if isinstance(devices, int) or (isinstance(devices, str) and devices.strip().isdecimal()):
        return list(range(int(devices)))
    parts = devices.split(",") if isinstance(devices, str) else devices
    return [int(part) for part in parts if str(part).strip()]
