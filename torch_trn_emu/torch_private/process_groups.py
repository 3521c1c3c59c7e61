"""What torch.distributed makes process groups with: an estimate has one of their ranks only."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

from torch.distributed import ProcessGroup, distributed_c10d

from . import compiled_c10d

__all__ = ["with_one_rank"]

_c10d: Any = distributed_c10d
_compiled: Any = compiled_c10d


def with_one_rank(stack: ExitStack, rank: int, world_size: int) -> None:
    """While `stack` is open process groups are made without meeting their other ranks.

    Their backends are torch's `fake` ones. A release that renames these functions lets
    `init_process_group` wait for ranks that never come.
    """
    import torch.testing._internal.distributed.fake_pg  # registers the backend

    make = partial(_make, _c10d._new_process_group_helper)
    meet = partial(_meet, rank, world_size)
    for name, instead in (
        ("_new_process_group_helper", make),
        ("_store_based_barrier", lambda *_, **__: None),
        ("rendezvous", meet),
    ):
        stack.enter_context(mock.patch.object(_c10d, name, instead))
    hooks = mock.patch.object(torch.distributed, "_register_builtin_comm_hook", _register_hook)
    stack.enter_context(hooks)


def _register_hook(reducer: Any, kind: Any) -> None:
    """The hook of DDP that C++ has, in Python: C++ takes no future that Python has completed."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hooks = {
        _compiled.BuiltinCommHookType.ALLREDUCE: default_hooks.allreduce_hook,
        _compiled.BuiltinCommHookType.FP16_COMPRESS: default_hooks.fp16_compress_hook,
    }
    _compiled._register_comm_hook(reducer, None, hooks[kind])


def _meet(
    own_rank: int, own_size: int, url: str, rank: int = -1, world_size: int = -1, **_: Any
) -> Iterator[tuple[Any, int, int]]:
    """What the script does not say, the environment does."""
    yield (
        compiled_c10d.HashStore(),
        own_rank if rank == -1 else rank,
        own_size if world_size == -1 else world_size,
    )


def _make(
    made: Any, size: int, rank: int, ranks: Any, backend: Any, *args: Any, **named: Any
) -> Any:
    """A group of the devices that were asked for; scripts hear of the backend they named."""
    asked = _c10d.BackendConfig(_c10d.Backend(backend))
    fake = ",".join(f"{device}:fake" for device in asked.get_device_backend_map())
    named |= {"backend_options": None, "device_id": None}
    group, store = made(size, rank, ranks, fake, *args, **named)
    if isinstance(group, ProcessGroup):
        group._set_default_backend(ProcessGroup.BackendType.CUSTOM)
        known = _c10d._world.pg_map.get(group)
        if known is not None:
            _c10d._world.pg_map[group] = (backend, known[1])
    return group, store
