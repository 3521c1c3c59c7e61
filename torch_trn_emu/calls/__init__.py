"""One operator call without its data: what a lowering sees. Dtypes are the chip's names.

int64 and float64 are stored by the chip's framework as int32 and float32 (TorchNeuron, eager mode),
so that is what they cost.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import Any

from ..chip import Chip
from ..isa import View

__all__ = ["DTYPES", "NARROWED", "Call", "Target", "TensorArg", "is_of_library", "read_call"]

# torch's name of a scalar type in C++ and in Python: what it is on the chip.
DTYPES = MappingProxyType(
    {
        "Float": "float32",
        "BFloat16": "bfloat16",
        "Half": "float16",
        "Double": "float32",
        "Long": "int32",
        "UInt64": "uint32",
        "Int": "int32",
        "UInt32": "uint32",
        "Short": "int16",
        "UInt16": "uint16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "Float8_e4m3fn": "float8_e4m3fn",
        "Float8_e5m2": "float8_e5m2",
        "Float8_e8m0fnu": "float8_e8m0fnu",
        "Float4_e2m1fn_x2": "uint8",  # two codes in a byte
        "float32": "float32",
        "bfloat16": "bfloat16",
        "float16": "float16",
        "float64": "float32",
        "int64": "int32",
        "uint64": "uint32",
        "int32": "int32",
        "uint32": "uint32",
        "int16": "int16",
        "uint16": "uint16",
        "int8": "int8",
        "uint8": "uint8",
        "bool": "bool",
        "float8_e4m3fn": "float8_e4m3fn",
        "float8_e5m2": "float8_e5m2",
        "float8_e8m0fnu": "float8_e8m0fnu",
        "float4_e2m1fn_x2": "uint8",
    }
)
NARROWED = frozenset(("Double", "Long", "UInt64", "float64", "int64", "uint64"))

# torch's own namespaces that price or launch their operators otherwise, or not at all.
_TORCHS = re.compile(
    r"(aten|prims?|trn|_?c10d\w*|inductor\w*|streams|profiler|fsdp|_dtensor|symm_mem|onnx\w*|cplib|"
    r"rngprims|flex_lib|debug\w*|export)::"
)


def is_of_library(op: str) -> bool:
    """Whether an operator is another library's: its kernels alone know what it computes."""
    return "::" in op and _TORCHS.match(op) is None


@dataclass(frozen=True, slots=True)
class TensorArg:
    """A tensor: torch's dtype name, shape, strides in elements, and whether it is on the host.

    views  the memory that it stands for, element by element in order. Only the machine asks: a
           tensor that is described for its price has none
    """

    torch_dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    on_host: bool = False
    views: tuple[View, ...] = field(default=(), compare=False, repr=False)

    @property
    def dtype(self) -> str:
        """The chip's dtype; a KeyError for what the chip has none for (complex, sparse, ...)."""
        return DTYPES[self.torch_dtype]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the memory that it lies in, from the first to the last."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((n - 1) * s for n, s in steps) if self.numel else 0

    @property
    def contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass(frozen=True)
class Call:
    """`op` with its arguments in the order of its schema; lists are tuples, tensors TensorArgs."""

    op: str  # "aten::add.Tensor"
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]
    policy: str = "fp32"  # matmul precision in force

    @cached_property
    def name(self) -> str:
        """The operator without namespace, overload and the underscore of the in-place form.

        A library's keeps its namespace: it is not the operator of aten that has its name.
        """
        plain = self.op.split(".")[0]
        if self.is_of_library:
            return plain
        plain = plain.split("::")[-1]
        return plain.rstrip("_") if not plain.startswith("__") else plain

    @cached_property
    def is_of_library(self) -> bool:
        return is_of_library(self.op)

    @cached_property
    def tensors(self) -> tuple[TensorArg, ...]:
        """Tensor arguments in order, those in lists too; `out` arguments are left out."""
        found = tuple(_tensors(self.arguments))
        overload = self.op.partition(".")[2]
        outs = len(self.outputs) if "out" in overload.split("_") else 0
        return found[: len(found) - outs] if outs and outs < len(found) else found

    @cached_property
    def outputs(self) -> tuple[TensorArg, ...]:
        return tuple(_tensors(self.results))

    @cached_property
    def out(self) -> TensorArg:
        """The first result; when none is known, the first argument."""
        return (self.outputs or self.tensors)[0]

    def argument(self, position: int, default: Any = None) -> Any:
        """The argument at `position` of the schema, or `default` where it is absent or None."""
        value = self.arguments[position] if position < len(self.arguments) else None
        return default if value is None else value

    @property
    def narrowed(self) -> tuple[str, ...]:
        """Dtypes among the tensors that the chip does not have."""
        tensors = (t for t in (*self.tensors, *self.outputs) if t.shape or not t.on_host)
        names = {t.torch_dtype for t in tensors}
        return tuple(sorted(names & NARROWED))


def _tensors(values: tuple[Any, ...]) -> Iterator[TensorArg]:
    for value in values:
        if isinstance(value, TensorArg):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


@dataclass(frozen=True, slots=True)
class Target:
    """The cores that run a call: `cores` physical ones of a chip, one logical core."""

    chip: Chip
    cores: int

    def __hash__(self) -> int:  # a chip holds mappings; its name tells it apart
        return hash((self.chip.name, self.cores))


def read_call(op: str, arguments: str, results: str, policy: str) -> Call:
    """A call from the JSON that csrc/runtime/ledger.cpp writes."""
    return Call(op, _read(json.loads(arguments)), _read(json.loads(results)), policy)


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_read, value))
    if isinstance(value, dict):
        return TensorArg(value["t"], tuple(value["s"]), tuple(value["d"]), bool(value["c"]))
    return value
