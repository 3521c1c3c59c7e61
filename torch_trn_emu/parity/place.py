"""Where a model runs: a device, with a matmul policy if one is named, as in "trn@bf16"."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..precision import POLICIES, precision
from ..settings import DEVICE_TYPE
from ..torch_private import tree_map

__all__ = ["Place", "place"]


@dataclass(frozen=True, slots=True)
class Place:
    device: torch.device
    policy: str | None = None

    def __str__(self) -> str:
        return f"{self.device}@{self.policy}" if self.policy else str(self.device)

    def under_policy(self) -> AbstractContextManager[Any]:
        return precision(self.policy) if self.policy else nullcontext()

    def move(self, value: Any) -> Any:
        """The structure with its tensors on the device, in memory of their own, without gradients.

        A device among the values becomes this one.
        """
        return tree_map(self._moved, value)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(self.device, copy=True)
        if isinstance(value, torch.device) and value.type != self.device.type:
            return self.device
        return value


def place(name: str) -> Place:
    """Read "cpu", "trn:1" or "trn@mxfp8". Raises ValueError for another device or policy."""
    device, _, policy = name.partition("@")
    device = device.replace("trn", DEVICE_TYPE)
    found = torch.device(device)
    if found.type not in ("cpu", DEVICE_TYPE):
        raise ValueError(
            f"place {name!r}: compare on cpu or {DEVICE_TYPE}, with a policy as in trn@bf16."
        )
    if policy and (policy not in POLICIES or found.type == "cpu"):
        raise ValueError(f"place {name!r}: only trn has policies, and they are {POLICIES}.")
    return Place(found, policy or None)
