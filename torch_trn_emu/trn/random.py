"""Random state of each logical core; equal seeds give the numbers of the host generator."""

from collections.abc import Iterable, Sequence

import torch

from .. import _C
from .device import Device, _lazy_init, device_count, index_of

__all__ = [
    "default_generators",
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "seed",
    "seed_all",
    "set_rng_state",
    "set_rng_state_all",
]


class _Generators(Sequence[torch.Generator]):
    def __len__(self) -> int:
        return device_count()

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _C.default_generator(index)


default_generators = _Generators()


def _get_generator(device: Device = None) -> torch.Generator:
    _lazy_init()
    generator: torch.Generator = _C.default_generator(index_of(device))
    return generator


def get_rng_state(device: Device = None) -> torch.Tensor:
    """Return the state of the device's generator, a uint8 tensor on the CPU."""
    return _get_generator(device).get_state()


def set_rng_state(state: torch.Tensor, device: Device = None) -> None:
    """Set the state of the device's generator."""
    _get_generator(device).set_state(state)


def get_rng_state_all() -> list[torch.Tensor]:
    """States of all devices."""
    return [get_rng_state(index) for index in range(device_count())]


def set_rng_state_all(states: Iterable[torch.Tensor]) -> None:
    """Set the states of all devices."""
    for index, state in enumerate(states):
        set_rng_state(state, index)


def manual_seed(seed: int) -> None:
    """Seed the current device."""
    _get_generator().manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seed all devices; `torch.manual_seed` calls it."""
    for index in range(device_count()):
        _C.default_generator(index).manual_seed(int(seed))


def seed() -> int:
    """Seed the current device from the host's entropy and return the seed."""
    return _get_generator().seed()


def seed_all() -> None:
    """Seed all devices with one random number."""
    manual_seed_all(seed())


def initial_seed() -> int:
    """Seed of the current device."""
    return _get_generator().initial_seed()
