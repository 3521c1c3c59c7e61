"""Legacy tensor and storage types, `torch.trn.FloatTensor` and `FloatStorage`, as torch.cuda has.

`Tensor.type()` gives their names and takes the types. Checked on torch 2.13.0.
"""

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import torch

from ..settings import ALIAS, DEVICE_TYPE
from ..torch_private import LegacyStorage

__all__ = ["SPARSE", "STORAGES", "TENSORS", "TensorType", "dense_of", "tensor_types"]

_MODULE = f"torch.{DEVICE_TYPE}"
_DTYPES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}
_STORED = _DTYPES | {"ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64}


class TensorType(type):
    """The type of tensors of one dtype and layout on trn; calling it makes a tensor there."""

    dtype: torch.dtype
    layout: torch.layout
    is_cuda = False

    def __instancecheck__(cls, instance: object) -> bool:
        return (
            isinstance(instance, torch.Tensor)
            and getattr(instance, f"is_{DEVICE_TYPE}")
            and instance.dtype == cls.dtype
            and instance.layout == cls.layout
        )

    def __call__(cls, *args: Any, device: Any = DEVICE_TYPE) -> torch.Tensor:
        """As the host's legacy constructor: sizes, data, or a tensor of this type to alias."""
        if len(args) == 1 and isinstance(args[0], torch.Tensor):
            given: torch.Tensor = args[0]
            if not cls.__instancecheck__(given):
                raise TypeError(
                    f"expected {cls.__module__}.{cls.__qualname__}, but got {given.type()}: "
                    "convert it with .type() or .to() first."
                )
            return given.detach()
        kind = torch.sparse if cls.layout == torch.sparse_coo else torch
        made: torch.Tensor = getattr(kind, cls.__qualname__)(*args)
        return made.to(device)


def _tensor_type(
    name: str, dtype: torch.dtype, layout: torch.layout, module: str = _MODULE
) -> TensorType:
    module = module if layout == torch.strided else f"{module}.sparse"
    space = {"dtype": dtype, "layout": layout, "__module__": module, "__qualname__": name}
    # Tensor.type(a type) reads the type's C name, which is the first argument here.
    return TensorType(f"{module}.{name}", (), space)


def _storage_type(name: str, dtype: torch.dtype) -> type:
    base: Any = LegacyStorage
    return type(name, (base,), {"dtype": dtype, "_dtype": dtype, "__module__": _MODULE})


def tensor_types(module: str = _MODULE) -> dict[str, TensorType]:
    """The types under the name that they have in `module`: "FloatTensor", "sparse.FloatTensor"."""
    dense = {
        f"{name}Tensor": _tensor_type(f"{name}Tensor", dtype, torch.strided, module)
        for name, dtype in _DTYPES.items()
    }
    sparse = {
        f"sparse.{name}": _tensor_type(name, kind.dtype, torch.sparse_coo, module)
        for name, kind in dense.items()
        if name != "BoolTensor"
    }
    return dense | sparse


_TYPES = tensor_types()
TENSORS: Mapping[str, TensorType] = MappingProxyType(
    {name: kind for name, kind in _TYPES.items() if "." not in name}
)
STORAGES: Mapping[str, type] = MappingProxyType(
    {f"{name}Storage": _storage_type(f"{name}Storage", dtype) for name, dtype in _STORED.items()}
)
SPARSE = SimpleNamespace(
    **{name.partition(".")[2]: kind for name, kind in _TYPES.items() if "." in name}
)


def dense_of(kind: object) -> torch.dtype | None:
    """The dtype of a dense tensor type of trn, or of its name; None for anything else."""
    if isinstance(kind, str):
        prefix, _, name = kind.rpartition(".")
        kind = TENSORS.get(name) if prefix in (_MODULE, f"torch.{ALIAS}") else None
    if isinstance(kind, TensorType) and kind.layout == torch.strided:
        return kind.dtype
    return None
