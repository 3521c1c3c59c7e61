"""A graph's nodes as operator calls without data: what rows and pricing read.

Symbolic sizes take the values that `with_sizes` says, else those of the traced call.
Checked on torch 2.13.0.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..calls import Call, TensorArg
from ..isa import Source, View
from ..torch_private import HigherOrderOperator, tree_leaves
from .apply_precision import policy_of

__all__ = [
    "STRIDED",
    "arguments_of",
    "by_position",
    "call_of",
    "constant_of",
    "is_free",
    "is_true",
    "operands_by_position",
    "plain",
    "tensor_of",
    "viewed",
    "with_sizes",
]

aten, prims = torch.ops.aten, torch.ops.prims

# What decompositions leave, by the aten operator that costs the same.
_SAME_AS = MappingProxyType(
    {
        "prims::convert_element_type": "aten::_to_copy",
        "prims::device_put": "aten::_to_copy",
        "prims::iota": "aten::arange.start_step",
        "prims::inductor_random": "aten::rand",
        "prims::inductor_randint": "aten::randint",
        "prims::rev": "aten::flip",
        "prims::fma": "aten::addcmul",
        "prims::xor_sum": "aten::sum",
    }
)
# Their arguments in the order of that operator, where it is another one; and others than theirs.
_ORDER = MappingProxyType({"prims::fma": (2, 0, 1)})
_OTHERS = MappingProxyType(
    {"prims::iota": lambda n, start, step, *_: (start, start + n * step, step)}
)
_ON_A_SHARD = "trn::run_dtensor_rng_op_"  # how traced random operators of DTensors start
_FREE = frozenset(
    "inductor_seeds inductor_seed inductor_lookup_seed inductor_force_stride_order "
    "inductor_reserve_rng_state expand permute getitem flag".split()
)
# What makes a tensor of one value, and which of the arguments that is.
_NUMBERS = MappingProxyType({aten.scalar_tensor.default: 0, aten.full.default: 1})
STRIDED = "read by strides"  # in a node's meta: a copy that no program makes (not_computed.py)
_SIZES: ContextVar[Mapping[Any, int]] = ContextVar("values of a graph's symbols")


@contextlib.contextmanager
def with_sizes(values: Mapping[Any, int]) -> Iterator[None]:
    """Read graphs with these values of their symbols."""
    token = _SIZES.set(values)
    try:
        yield
    finally:
        _SIZES.reset(token)


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value
    chosen = value.node.expr.subs(_SIZES.get({}))
    if chosen.is_number:
        return int(chosen)
    return int(torch.fx.experimental.symbolic_shapes.guarding_hint_or_throw(value))


def is_true(condition: Any) -> bool:
    """A condition of sizes."""
    if isinstance(condition, bool):
        return condition
    return bool(condition.node.expr.subs(_SIZES.get({})))


def tensor_of(value: Any) -> TensorArg | None:
    """Dtype, shape and strides of a tensor, or of what a node makes; None for what is no tensor."""
    if isinstance(value, Node):
        value = value.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if value.layout is not torch.strided:
        return TensorArg("sparse", (), ())
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorArg(
        dtype, tuple(map(_size, value.shape)), tuple(map(_size, value.stride())), _on_host(value)
    )


def plain(value: Any) -> Any:
    """An argument or result as a call has it; None for what says nothing about time."""
    if isinstance(value, Node):
        value = value.meta.get("val")
    if isinstance(value, Tensor):
        return tensor_of(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, torch.SymInt):
        return _size(value)
    return None


def _schema(node: Node) -> Any:
    return getattr(node.target, "_schema", None)


def is_free(node: Node) -> bool:
    """Whether a node launches nothing: arguments, views, arithmetic of sizes or on the host."""
    schema = _schema(node)
    if node.meta.get(STRIDED):
        return True
    if node.op != "call_function" or schema is None:
        return not isinstance(node.target, HigherOrderOperator)
    if getattr(node.target, "is_view", False) or schema.name.split("::")[1] in _FREE:
        return True
    value = node.meta.get("val")
    if not node.all_input_nodes and (made := tensor_of(node)) is not None and made.numel == 1:
        return True  # a constant: an immediate of the instructions that read it
    values = [v for v in tree_leaves(value) if isinstance(v, Tensor)]
    read = tree_leaves([n.meta.get("val") for n in node.all_input_nodes])
    if not values:
        return not schema.is_mutable  # what returns nothing may write what it is given
    return all(_on_host(v) for v in (*values, *read) if isinstance(v, Tensor))


def constant_of(node: Node) -> float | None:
    """The number that a node makes a tensor of no dimensions from; None for any other node."""
    made = _NUMBERS.get(node.target)  # type: ignore[call-overload]
    if made is None or not isinstance(node.meta.get("val"), Tensor):
        return None
    value = node.args[made]
    is_number = isinstance(value, (bool, int, float)) and node.meta["val"].numel() == 1
    return value if is_number else None


def _on_host(value: Tensor) -> bool:
    """Numbers that the host keeps in tensors, such as an optimizer's step."""
    return value.device.type == "cpu" and value.dim() == 0


def arguments_of(node: Node) -> tuple[Any, ...]:
    """The positional arguments in the order of the operator that the call names."""
    schema = _schema(node)
    order = _ORDER.get(schema.name) if schema else None
    return tuple(node.args[k] for k in order) if order else node.args


def operands_by_position(node: Node) -> list[Any]:
    """The arguments in the order of the call, those that are named and defaults too."""
    return by_position(_schema(node), arguments_of(node), node.kwargs)


def by_position(schema: Any, given: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    values = [*given]
    for argument in schema.arguments[len(values) :]:
        default = argument.default_value if argument.has_default_value() else None
        values.append(named.get(argument.name, default))
    return values


def viewed(call: Call) -> Call:
    """The call with the memory that each tensor stands for: buffers of its programs get labels."""
    return replace(
        call,
        arguments=_viewed(call.arguments, ("argument",)),
        results=_viewed(call.results, ("result",)),
    )


def _viewed(values: tuple[Any, ...], source: Source) -> tuple[Any, ...]:
    return tuple(_with_view(value, (*source, k)) for k, value in enumerate(values))


def _with_view(value: Any, source: Source) -> Any:
    if isinstance(value, tuple):
        return _viewed(value, source)
    if isinstance(value, TensorArg):
        view = View(source, value.torch_dtype, value.shape, value.strides)
        return replace(value, views=(view,))
    return value


def call_of(node: Node, policy: str) -> Call | None:
    """The call that a node is, or None where there is no operator behind it."""
    schema = _schema(node)
    if schema is None:
        return None
    others = _OTHERS.get(schema.name, lambda *values: values)
    values = others(*operands_by_position(node))
    name = _SAME_AS.get(schema.name, schema.name)
    overload = schema.overload_name if name == schema.name else ""
    if name.startswith(_ON_A_SHARD):
        name, _, overload = name.replace(_ON_A_SHARD, "aten::").partition("__")
    result = node.meta.get("val")
    results = result if isinstance(result, (tuple, list)) else (result,)
    return Call(
        f"{name}.{overload}" if overload else name,
        tuple(map(plain, values)),
        tuple(map(plain, results)),
        policy_of(node, policy),
    )
