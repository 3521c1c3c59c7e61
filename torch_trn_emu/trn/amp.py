"""What `torch.autocast("trn")` may lower to."""

import torch

__all__ = ["get_amp_supported_dtype", "is_bf16_supported"]


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Formats that autocast accepts. Its default is torch's, float16, as on CUDA."""
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """bfloat16 is native on every generation."""
    return True
