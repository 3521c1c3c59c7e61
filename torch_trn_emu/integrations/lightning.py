"""Registers the device with Lightning: `Trainer(accelerator="trn")`, `Fabric(accelerator="trn")`.

Checked on lightning 2.6.6, whose connector gives one device of an accelerator that it does not know
the CPU: that is put right when the trainer starts. device_lists.py has the rest.
"""

import importlib
from types import ModuleType
from typing import Any

import torch

from .. import trn
from ..errors import Unimplemented
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
        """One logical core. Lightning's strategies for several are planned."""

        def __init__(self) -> None:
            super().__init__()
            self._device = torch.device(DEVICE_TYPE, 0)

        def setup_device(self, device: torch.device) -> None:
            if device.type == DEVICE_TYPE:
                trn.set_device(device)

        def setup(self, trainer: Any) -> None:
            (self._device,) = trainer._accelerator_connector._parallel_devices
            trn.set_device(self._device)
            trainer.strategy._root_device = self._device

        def get_device_stats(self, device: Any) -> dict[str, Any]:
            """Memory of the core, and all counters."""
            return trn.memory_stats(device) | trn.counters(device)

        def teardown(self) -> None:
            trn.empty_cache()

        @staticmethod
        def parse_devices(devices: Any) -> list[int]:
            """1, "auto", a list of one index or its text. Raises Unimplemented for several."""
            chosen = [0] if devices in ("auto", 1, "1", -1, "-1", None) else _indices(devices)
            if len(chosen) != 1:
                raise Unimplemented(
                    f"Trainer(accelerator={DEVICE_TYPE!r}, devices={devices!r}): Lightning "
                    "supports one device so far (torch_trn_emu/integrations/lightning.py). Use "
                    "devices=1, or torchrun and DistributedDataParallel without Lightning."
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
    if isinstance(devices, int):
        return list(range(devices))
    parts = devices.split(",") if isinstance(devices, str) else devices
    return [int(part) for part in parts if str(part).strip()]
