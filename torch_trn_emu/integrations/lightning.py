"""`Trainer(accelerator="trn")`: importing this registers the device with Lightning.

Checked on lightning 2.6.6, whose connector gives one device of an accelerator that it does not know
the CPU, and mixed precision the type "cuda": both are put right when the trainer starts.
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
    """Add the accelerator to `lightning.pytorch` or `pytorch_lightning`, if it is not there."""
    accelerators = importlib.import_module(f"{package.__name__}.accelerators")
    registry = accelerators.AcceleratorRegistry
    if DEVICE_TYPE not in registry:
        kind = _accelerator(accelerators.Accelerator)
        registry.register(DEVICE_TYPE, kind, description="an emulated logical NeuronCore")


def _accelerator(base: Any) -> Any:
    class TrnAccelerator(base):
        """One logical core. Several need collectives, which are planned."""

        def __init__(self) -> None:
            super().__init__()
            self._device = torch.device(DEVICE_TYPE, 0)

        def setup_device(self, device: torch.device) -> None:
            trn.init()

        def setup(self, trainer: Any) -> None:
            (self._device,) = trainer._accelerator_connector._parallel_devices
            trn.set_device(self._device)
            trainer.strategy._root_device = self._device
            if getattr(trainer.precision_plugin, "device", None) == "cuda":
                trainer.precision_plugin.device = DEVICE_TYPE

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
                    f"Trainer(accelerator={DEVICE_TYPE!r}, devices={devices!r}): several devices "
                    "need collectives: torch_trn_emu/trn/distributed.py. Use devices=1."
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


def _register_installed() -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            register(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise


_register_installed()
