"""Which rows of OPS a sweep holds between the limits of the chip, by calls made from schemas."""

from collections.abc import Iterator
from typing import Any

import torch

import torch_trn_emu
from torch_trn_emu.calls import Call
from torch_trn_emu.chip import get_chip
from torch_trn_emu.ops import OPS

from .families import FAMILIES, empty

__all__ = ["held_by_families", "held_by_schema"]

ROWS = (1000, 4097)  # of 1,024 elements
MOST, START_US = 5.0, 23.0  # times the limit, beside the start and the filling of pipelines
_DTYPES = (torch.float32, torch.int64, torch.bool)
_VALUES = {"number": 0.5, "float": 0.5, "int": 1, "bool": True, "Optional[Tensor]": None}


def _arguments(schema: Any, shape: tuple[int, int], dtype: torch.dtype) -> list[Any] | None:
    """Tensors of one shape and what else the schema asks for; None for what is not guessed."""
    made: list[Any] = []
    for argument in schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value():
            break
        if kind == "Tensor":
            made.append(empty(*shape, dtype=dtype))
        elif kind == "List[Tensor]":
            made.append([empty(*shape, dtype=dtype)])
        elif kind in _VALUES and not argument.kwarg_only:
            made.append(_VALUES[kind])
        else:
            return None
    return made


def _times_of_limit(name: str, function: Any, dtype: torch.dtype) -> list[float]:
    """By size; raises where the call is not one launch of the row."""
    found, chip = [], get_chip("trn2")
    for rows in ROWS:
        arguments = _arguments(function._schema, (rows, 1024), dtype)
        if arguments is None:
            raise ValueError(name)
        results = function(*arguments)
        made = torch_trn_emu.estimate(function, *arguments, chip="trn2")
        (row,) = made.ops
        if Call(row.op, (), ()).name != name or row.status != "modelled":
            raise ValueError(name)
        tensors = [
            t for t in torch.utils._pytree.tree_leaves((arguments, results))
            if isinstance(t, torch.Tensor)
        ]  # fmt: skip
        moved = sum(t.numel() * t.element_size() for t in set(tensors))
        limit_us = moved / (chip.hbm_bytes_per_s_per_core() * chip.check_lnc(None)) * 1e6
        if made.device_us < limit_us:
            return [-1.0]
        found.append((made.device_us - START_US) / limit_us)
    return found


def _held(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet else ():
        for dtype in _DTYPES:
            function = getattr(packet, overload)
            try:
                with torch.no_grad():
                    found = _times_of_limit(name, function, dtype)
            except Exception:  # the arguments do not suit it: another overload or dtype may
                continue
            return -1.0 not in found and max(found) <= MOST
    return False


def held_by_schema() -> Iterator[str]:
    """Rows whose calls, made from their schemas, take between one and five times the limit."""
    for name, row in OPS.items():
        guessed = not name.startswith("_scaled_dot_product")  # heads are not in a schema
        if guessed and row.status == "modelled" and _held(name):
            yield name


def held_by_families() -> Iterator[str]:
    """Rows that the families launch alone; test_limits.py holds those, with its exceptions."""
    for family in FAMILIES:
        function, arguments = FAMILIES[family](64)
        ops = torch_trn_emu.estimate(function, *arguments).ops
        if len(ops) == 1 and ops[0].status == "modelled":
            yield Call(ops[0].op, (), ()).name
