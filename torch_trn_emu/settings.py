"""The environment, read once. To add a variable, add a field and its line in `read`.

Sources: [nrt] Neuron SDK, nrt-configurable-parameters; [lnc] logical-neuroncore-config.rst.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .chip import Chip, System, get_chip, get_system
from .errors import Unsupported

__all__ = [
    "ALIAS",
    "CALLERS",
    "DEVICE_TYPE",
    "EXECUTORS",
    "HOSTS",
    "ISAS",
    "NAMES",
    "TRANSPORTS",
    "Settings",
    "read",
    "settings",
]

_ALIASES = ("", "cuda", "neuron")
# The instruction sets of csrc/numerics/isa.h, each with what those before it have.
ISAS = ("plain", "avx2", "avx512", "avx512_bf16", "amx_bf16")
# "auto" is cuda where there is a GPU; "foreign" is the CPU by the paths of a CUDA host, for tests.
HOSTS = ("cpu", "cuda", "auto", "foreign")
# How ranks communicate: in shared memory if they are on one host, over gloo if not.
TRANSPORTS = ("auto", "shm", "gloo")
# Who starts a collective: the host, one by one, or the program of a graph.
CALLERS = ("eager", "graph")
# The host's kernels, or the programs that are priced, run literally (trn/executor.py).
EXECUTORS = ("fast", "machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment asks for, checked against the chip."""

    chip: Chip
    lnc: int  # physical cores per logical core
    visible_cores: tuple[int, ...]  # logical cores that become device indices
    matmul_precision: str | None  # None: the chip's default
    stochastic_rounding: bool
    stochastic_rounding_seed: int
    isa: str | None  # the most that kernels on the host may use; None: what it has
    host: str  # a name of HOSTS: what holds the tensors and computes
    dump: str  # a folder for what the compiler makes of each graph
    profile: str  # a folder: each rank of a distributed run records itself into it
    executor: str  # a name of EXECUTORS: what computes the values of eager operators
    transport: str  # a name of TRANSPORTS: what carries the bytes of collectives
    system: System  # the server, and what connects it to others
    collectives: str  # a name of CALLERS: whose base latency and algorithms apply; "": who calls
    ranks_per_server: int  # as torchrun says; 0: it did not start this process


def _alias(environ: Mapping[str, str]) -> str:
    """What else the device answers to; "" as well for what `read` will refuse."""
    asked = environ.get("TRN_EMU_AS", "")
    return asked if asked in _ALIASES else ""


ALIAS = _alias(os.environ)
# The names under which torch can know the device, and the one that it has in this process.
NAMES = ("trn", "neuron")
DEVICE_TYPE = "neuron" if ALIAS == "neuron" else "trn"


def read(environ: Mapping[str, str]) -> Settings:
    """Read the variables from `environ`; an empty one counts as absent.

    Raises ValueError for a value that cannot be read, ChipLimit for one that the chip does not have
    and Unsupported for a chip that is not emulated. The text names the variable.
    """
    if (asked := environ.get("TRN_EMU_AS", "")) not in _ALIASES:
        raise ValueError(f"TRN_EMU_AS={asked!r}: the alias must be cuda or neuron.")
    chip = _chip(*_agreed(environ, "TRN_EMU_CHIP", "NEURON_PLATFORM_TARGET_OVERRIDE"))
    # [lnc] the runtime's and the compiler's variable must agree.
    name, text = _agreed(environ, "NEURON_RT_VIRTUAL_CORE_SIZE", "NEURON_LOGICAL_NC_CONFIG")
    lnc = chip.check_lnc(_integer(name, text) if text else None)
    system = _system(environ.get("TRN_EMU_SYSTEM", ""), chip)
    # torchrun numbers the ranks of a server: each is to find the core of its number.
    ranks = _integer_in(environ, "LOCAL_WORLD_SIZE")
    cores = system.chips_per_server * chip.logical_cores(lnc)
    chips = system.chips_per_server if environ.get("LOCAL_WORLD_SIZE") else 1
    return Settings(
        chip=chip,
        lnc=lnc,
        visible_cores=_visible_cores(environ, chips * chip.logical_cores(lnc), chip.name),
        matmul_precision=environ.get("TRN_EMU_MATMUL") or None,
        stochastic_rounding=bool(_integer_in(environ, "NEURON_RT_STOCHASTIC_ROUNDING_EN")),
        stochastic_rounding_seed=_integer_in(environ, "NEURON_RT_STOCHASTIC_ROUNDING_SEED"),
        isa=_one_of(environ, "TRN_EMU_ISA", ISAS),
        host=_host(environ.get("TRN_EMU_HOST") or "cpu"),
        dump=environ.get("TRN_EMU_DUMP", ""),
        profile=environ.get("TRN_EMU_PROFILE", ""),
        executor=_one_of(environ, "TRN_EMU_EXECUTOR", EXECUTORS) or EXECUTORS[0],
        transport=_one_of(environ, "TRN_EMU_TRANSPORT", TRANSPORTS) or TRANSPORTS[0],
        system=system,
        collectives=_one_of(environ, "TRN_EMU_COLLECTIVES", CALLERS) or "",
        ranks_per_server=min(ranks, cores),
    )


@cache
def settings() -> Settings:
    """The settings of this process; later changes to the environment have no effect."""
    return read(os.environ)


def _host(name: str) -> str:
    if name not in HOSTS:
        raise ValueError(f"TRN_EMU_HOST={name!r} is unknown; choose from cpu, cuda, auto.")
    return name


def _agreed(environ: Mapping[str, str], first: str, second: str) -> tuple[str, str]:
    """The one of two variables that is set, and its value; "" when neither is."""
    a, b = environ.get(first, ""), environ.get(second, "")
    if a and b and a != b:
        raise ValueError(
            f"{first}={a!r} and {second}={b!r} disagree: set only one, or both to the same value."
        )
    return (first, a) if a else (second, b)


def _one_of(environ: Mapping[str, str], name: str, known: tuple[str, ...]) -> str | None:
    text = environ.get(name) or None
    if text is not None and text not in known:
        raise ValueError(f"{name}={text!r} is unknown; choose from {', '.join(known)}.")
    return text


def _chip(variable: str, name: str) -> Chip:
    try:
        return get_chip(name or "trn3")
    except Unsupported as error:
        raise Unsupported(f"{variable}={name!r}: {error}") from None


def _system(name: str, chip: Chip) -> System:
    try:
        return get_system(name, chip.name)
    except ValueError as error:
        asked = f"TRN_EMU_SYSTEM={name!r}" if name else "torch_trn_emu/chip/systems.py"
        raise ValueError(f"{asked}: {error}") from None


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not an integer.") from None


def _integer_in(environ: Mapping[str, str], name: str) -> int:
    return _integer(name, environ.get(name) or "0")


def _visible_cores(environ: Mapping[str, str], cores: int, chip: str) -> tuple[int, ...]:
    """[nrt] VISIBLE_CORES is a list "0,2" with ranges "0-3"; it takes precedence over NUM_CORES."""
    if text := environ.get(name := "NEURON_RT_VISIBLE_CORES"):
        chosen = tuple(core for part in text.split(",") for core in _range(part, text))
    elif text := environ.get(name := "NEURON_RT_NUM_CORES"):
        chosen = tuple(range(_integer(name, text)))
    elif environ.get("TRN_EMU_AS") == "cuda" and environ.get("CUDA_VISIBLE_DEVICES"):
        return _cuda_visible(environ["CUDA_VISIBLE_DEVICES"], cores)
    else:
        return tuple(range(cores))
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(cores)):
        raise ValueError(
            f"{name}={text!r}: {chip} has the logical cores 0 to {cores - 1}; "
            "list at least one, and each at most once."
        )
    return chosen


def _cuda_visible(text: str, cores: int) -> tuple[int, ...]:
    """The cores that CUDA_VISIBLE_DEVICES names, as CUDA reads it: up to the first that is not."""
    chosen: list[int] = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) >= cores or int(part) in chosen:
            break
        chosen.append(int(part))
    if not chosen:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={text!r} leaves no core, and --as-cuda needs one: name some of "
            f"0 to {cores - 1}, or run the script without --as-cuda."
        )
    return tuple(chosen)


def _range(part: str, text: str) -> range:
    """The cores of "2" or "0-3"; a part may stand among others in `text`."""
    first, dash, last = part.strip().partition("-")
    try:
        begin = int(first)
        end = int(last) if dash else begin
    except ValueError:
        raise ValueError(
            f"NEURON_RT_VISIBLE_CORES={text!r} is not a list of cores such as 0,2 or 0-3."
        ) from None
    return range(begin, end + 1)
