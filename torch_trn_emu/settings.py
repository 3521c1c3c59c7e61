"""The environment, read once. To add a variable, add a field and its line in `read`.

Sources: [nrt] Neuron SDK, nrt-configurable-parameters; [lnc] logical-neuroncore-config.rst.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .chip import Chip, get_chip

__all__ = ["Settings", "read", "settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment asks for, checked against the chip."""

    chip: Chip
    lnc: int  # physical cores per logical core
    visible_cores: tuple[int, ...]  # logical cores of the chip that become device indices
    matmul_precision: str | None  # None: the chip's default
    stochastic_rounding: bool
    stochastic_rounding_seed: int


def read(environ: Mapping[str, str]) -> Settings:
    """Read the variables from `environ`.

    Raises ValueError for a value that cannot be read, naming the variable, and ChipLimit for one
    that the chip does not have.
    """
    chip = get_chip(_agreed(environ, "TRN_EMU_CHIP", "NEURON_PLATFORM_TARGET_OVERRIDE") or "trn3")
    # [lnc] the runtime's and the compiler's variable must agree.
    lnc_text = _agreed(environ, "NEURON_RT_VIRTUAL_CORE_SIZE", "NEURON_LOGICAL_NC_CONFIG")
    lnc = chip.check_lnc(
        None if lnc_text is None else _integer("NEURON_LOGICAL_NC_CONFIG", lnc_text)
    )
    rounding = environ.get("NEURON_RT_STOCHASTIC_ROUNDING_EN", "0")
    seed = environ.get("NEURON_RT_STOCHASTIC_ROUNDING_SEED", "0")
    return Settings(
        chip=chip,
        lnc=lnc,
        visible_cores=_visible_cores(environ, chip.logical_cores(lnc), chip.name),
        matmul_precision=environ.get("TRN_EMU_MATMUL") or None,
        stochastic_rounding=bool(_integer("NEURON_RT_STOCHASTIC_ROUNDING_EN", rounding)),
        stochastic_rounding_seed=_integer("NEURON_RT_STOCHASTIC_ROUNDING_SEED", seed),
    )


@cache
def settings() -> Settings:
    """The settings of this process; later changes to the environment have no effect."""
    return read(os.environ)


def _agreed(environ: Mapping[str, str], first: str, second: str) -> str | None:
    a, b = environ.get(first) or None, environ.get(second) or None
    if a is not None and b is not None and a != b:
        raise ValueError(f"{first}={a} and {second}={b} disagree: set one of them, or both alike.")
    return a if a is not None else b


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not an integer.") from None


def _visible_cores(environ: Mapping[str, str], cores: int, chip: str) -> tuple[int, ...]:
    """[nrt] VISIBLE_CORES is a list "0,2" with ranges "0-3"; it takes precedence over NUM_CORES."""
    if text := environ.get("NEURON_RT_VISIBLE_CORES"):
        chosen = tuple(core for part in text.split(",") for core in _range(part, text))
    elif text := environ.get("NEURON_RT_NUM_CORES"):
        chosen = tuple(range(_integer("NEURON_RT_NUM_CORES", text)))
    else:
        return tuple(range(cores))
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(cores)):
        raise ValueError(
            f"NEURON_RT_VISIBLE_CORES / NEURON_RT_NUM_CORES={text!r}: {chip} has the logical cores "
            f"0 to {cores - 1}; name each at most once, and at least one."
        )
    return chosen


def _range(part: str, text: str) -> range:
    first, dash, last = part.strip().partition("-")
    begin = _integer("NEURON_RT_VISIBLE_CORES", first)
    end = _integer("NEURON_RT_VISIBLE_CORES", last) if dash else begin
    return range(begin, end + 1)
