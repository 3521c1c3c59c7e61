"""`TrainingArguments(bf16=True)` on trn: importing this says that the device has bfloat16.

transformers asks each device that it knows by name, in `is_torch_bf16_gpu_available`, and has no
registry. The answer is replaced where the function was imported. Checked on transformers 5.20.2.
"""

import importlib
import sys
from types import ModuleType

from .. import trn

__all__ = ["register"]

_QUESTION = "is_torch_bf16_gpu_available"
# Where the question is asked, beside the module that defines it.
_IMPORTED_BY = ("transformers.utils", "transformers.training_args")


def register(import_utils: ModuleType) -> None:
    """Answer for trn in `transformers.utils.import_utils` and where its function has gone."""
    for module in (import_utils, *(sys.modules.get(name) for name in _IMPORTED_BY)):
        if module is not None and _QUESTION in vars(module):
            setattr(module, _QUESTION, trn.is_bf16_supported)


def _register_installed() -> None:
    try:
        register(importlib.import_module("transformers.utils.import_utils"))
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise


_register_installed()
