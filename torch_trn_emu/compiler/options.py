"""Modes and options of `torch.compile(backend="trn")`. A mode is a row of MODES.

Checked on torch 2.13.0.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..host import host_name

__all__ = ["MODES", "OWN_OPTIONS", "Options", "read_options"]

# What each mode sets in Inductor's configuration.
MODES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": {},
        # less host work around each call: the generated code does not check its inputs' sizes
        "reduce-overhead": {"size_asserts": False, "alignment_asserts": False},
        # Inductor measures candidates for what the policy leaves to the host's own kernels
        "max-autotune": {"max_autotune": True},
        "max-autotune-no-cudagraphs": {"max_autotune": True},  # the same: there are none here
    }
)

OWN_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "strict": "raise an error instead of running a graph eagerly",
        "program": "generate an engine program for each graph; without one, it takes no time",
        "fuse_producers": "activations and norms round their result as an operand of a matrix "
        "multiply; default: only if the host is a GPU",
        "dump": "directory for dumps of each graph, as TRN_EMU_DUMP",
    }
)

# The host code's settings unless an option says otherwise. docs/performance.md has their effect.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "cpp.vec_isa_ok": True,  # trust /proc/cpuinfo: no trial builds for each instruction set
        "graph_partition": False,  # serves CUDA graphs
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    strict: bool = False
    program: bool = True
    fuse_producers: bool = False
    dump: str = ""
    inductor: Mapping[str, Any]  # patches of Inductor's configuration


def read_options(mode: str | None, options: Mapping[str, Any] | None) -> Options:
    """Check `mode` and `options`: our own, and any option of Inductor by its dotted name.

    Raises ValueError for an unknown name, TypeError for a value of the wrong type.
    """
    mode = mode or "default"
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of backend 'trn'; choose from {', '.join(MODES)}")
    given = dict(options or {})
    own = {name: given.pop(name) for name in tuple(given) if name in OWN_OPTIONS}
    for name, value in own.items():
        wanted = str if name == "dump" else bool
        if not isinstance(value, wanted):
            raise TypeError(f"option {name!r} of backend 'trn' is a {wanted.__name__}: {value!r}")
    own.setdefault("fuse_producers", host_name() == "cuda")  # memory bounds it there
    return Options(**own, inductor={**_DEFAULTS, **MODES[mode], **_of_inductor(given)})


def _of_inductor(given: dict[str, Any]) -> dict[str, Any]:
    from ..torch_private.inductor import config

    current = config.get_config_copy()
    patches = {}
    for name, value in given.items():
        key = name.replace("-", "_")
        if key not in current:
            near = difflib.get_close_matches(key, [*current, *OWN_OPTIONS], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"backend 'trn' has no option {name!r}{hint}")
        default = current[key]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise TypeError(f"option {name!r} of backend 'trn' is a bool: {value!r}")
        patches[key] = value
    return patches
