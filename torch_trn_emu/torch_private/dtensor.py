"""Private names of torch.distributed, for modules that DTensor has imported."""

from torch.distributed._functional_collectives import (
    _are_we_tracing as are_we_tracing,  # random operators of DTensors in compiled code
)
from torch.distributed._local_tensor import (
    _get_rng_state as get_rng_states,  # random operators under LocalTensorMode, here and below
)
from torch.distributed._local_tensor import (
    _map_to_rank_local_val as local_value,
)
from torch.distributed._local_tensor import (
    _set_rng_state as set_rng_states,
)
from torch.distributed._local_tensor import (
    enabled_local_tensor_mode,
)

__all__ = [
    "are_we_tracing",
    "enabled_local_tensor_mode",
    "get_rng_states",
    "local_value",
    "set_rng_states",
]
