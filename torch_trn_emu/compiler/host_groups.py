"""The groups in which the host code of a compiled graph runs its collectives.

It works on tensors in host memory, for which a group of trn has no backend. So it names a second
group over the same ranks, whose backend for the host is that of the first for trn. The backend
takes such tensors from compiled graphs only. Checked on torch 2.13.0.
"""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.fx import GraphModule, Node

from ..settings import DEVICE_TYPE
from ..torch_private import compiled_c10d

__all__ = ["collective_of", "group_of", "groups_of", "open_groups", "to_host_groups"]

_HOST = " in graphs"  # ends the name of the second group


def collective_of(node: Node) -> str:
    """The name of a functional collective or of its wait; "" for other nodes."""
    schema = getattr(node.target, "_schema", None)
    space, _, name = schema.name.partition("::") if schema else ("", "", "")
    return name if space == "_c10d_functional" else ""


def groups_of(gm: GraphModule) -> tuple[str, ...]:
    """The groups whose collectives the graph calls."""
    return tuple(dict.fromkeys(filter(None, map(group_of, gm.graph.nodes))))


def _place_of_group(node: Node) -> int | None:
    """Which argument names a group, if one does."""
    arguments = node.target._schema.arguments if collective_of(node) else ()  # type: ignore[union-attr]
    places = (k for k, a in enumerate(arguments) if a.name == "group_name" and k < len(node.args))
    return next(places, None)


def group_of(node: Node) -> str:
    """The group that a node names; "" if it names none."""
    k = _place_of_group(node)
    return "" if k is None else str(node.args[k])


def to_host_groups(gm: GraphModule) -> None:
    """Let the collectives of a graph that has moved to the host name the second groups."""
    open_groups(groups_of(gm))
    for node in gm.graph.nodes:
        if (k := _place_of_group(node)) is not None:
            node.update_arg(k, f"{node.args[k]}{_HOST}")


# By the first; torch's registry does not keep a group alive.
_second: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def open_groups(names: Iterable[str]) -> None:
    """Make the second group of each, where there is none yet for the group as it is now."""
    for name in names:
        group = compiled_c10d._resolve_process_group(name)
        if group in _second:
            continue
        second = compiled_c10d.ProcessGroup(compiled_c10d.HashStore(), group.rank(), group.size())
        second.bound_device_id = group.bound_device_id
        kind = compiled_c10d.ProcessGroup.BackendType.CUSTOM
        second._set_default_backend(kind)
        backend = group._get_backend(torch.device(DEVICE_TYPE))
        second._register_backend(torch.device("cpu"), kind, backend)
        compiled_c10d._unregister_process_group(name + _HOST)  # of a group that has been destroyed
        compiled_c10d._register_process_group(name + _HOST, second)
        _second[group] = second
