"""Which kernel implements which operator. To add one, add a row to `OPS`.

The operators are defined in csrc/aten; their CPU kernels are the C++ ones.
"""

import importlib
import importlib.util
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from torch import library

from ..errors import Unsupported
from ..host import TRITON

__all__ = ["OPS", "register", "require_triton"]

# operator of torch.ops.trn -> module of this package and function in it; arguments by name
OPS = MappingProxyType(
    {
        "quantize_mx": "quantize.quantize_mx",
        "dequantize_mx": "quantize.dequantize_mx",
        "quantize_dequantize_mx": "quantize.quantize_dequantize_mx",
        "mx_mm": "matmul.mx_mm",
        "mx_matmul": "matmul.mx_matmul",
        "product": "matmul.product",
        "round_operand": "matmul.round_operand",
        "stochastic_round": "rounding.stochastic_round",
        "attention": "attention.attention",
        "attention_backward": "attention.attention_backward",
        "gelu_mx": "activations.gelu_mx",
        "gelu_operand": "activations.gelu_operand",
        "silu_mx": "activations.silu_mx",
        "silu_operand": "activations.silu_operand",
        "rms_norm_mx": "norms.rms_norm_mx",
        "rms_norm_operand": "norms.rms_norm_operand",
        "layer_norm_mx": "norms.layer_norm_mx",
        "layer_norm_operand": "norms.layer_norm_operand",
    }
)

_libraries: dict[str, library.Library] = {}


def require_triton() -> None:
    """Raises Unsupported where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise Unsupported(
            "The numerics kernels of a CUDA host need Triton, which is not installed: "
            f"pip install triton=={TRITON}, or torch_trn_emu[cuda]."
        )


def _kernel(path: str) -> Callable[..., Any]:
    """The function at `path`, imported when it is first called."""
    module, _, name = path.partition(".")

    def run(*arguments: Any, **keywords: Any) -> Any:
        found = importlib.import_module(f"{__package__}.{module}")
        return getattr(found, name)(*arguments, **keywords)

    return run


def register(key: str = "CUDA") -> None:
    """Bind the kernels to a dispatch key, once. Over the C++ kernels where the key is "CPU".

    Raises Unsupported where Triton is not installed.
    """
    if key in _libraries:
        return
    require_triton()
    made = _libraries[key] = library.Library("trn", "IMPL")
    for name, path in OPS.items():
        made.impl(name, _kernel(path), key, allow_override=True)
