"""Private names of torch.distributed, for modules that DTensor has imported."""

from torch.distributed._functional_collectives import (
    _are_we_tracing as are_we_tracing,  # random operators of DTensors in compiled code
)

__all__ = ["are_we_tracing"]
