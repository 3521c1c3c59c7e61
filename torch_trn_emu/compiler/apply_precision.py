"""Puts the precision policy into a graph: aten's matmul family becomes operators with formats.

The operators are those of csrc/aten/compiled_ops.cpp; here are their shapes, and PRECISE, a row for
each aten overload that the policy changes. Checked on torch 2.13.0.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, library
from torch.fx import Graph, Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import _C
from ..accelerated import KERNELS, twin_of
from ..annotation import ANNOTATION
from ..precision import POLICIES
from ..torch_private import OpOverload, scaled_dot_product_attention
from .operand_roles import ATTENTION, CONVOLUTION, role_of

__all__ = [
    "PRECISE",
    "SDPA",
    "apply_precision",
    "attention_calls",
    "multiply_attention",
    "policy_of",
    "register_shapes",
    "to_twins",
]

aten, trn = torch.ops.aten, torch.ops.trn

# Under this name it is the operator also while a mode stands in for torch.nn.functional's.
SDPA = scaled_dot_product_attention
_SDPA = aten.scaled_dot_product_attention
FORMATS: tuple[str, ...] = tuple(_C.operand_format_names())
ROUNDED = (torch.float32, torch.bfloat16, torch.float16)

# --- shapes ---------------------------------------------------------------------------------------


Function = TypeVar("Function", bound=Callable[..., Any])


def register_shapes(name: str) -> Callable[[Function], Function]:
    """Registers a function of fake tensors for an operator of ours."""
    register: Callable[[Function], Function] = library.register_fake(f"trn::{name}")
    return register


@register_shapes("product")
def _product(
    a: Tensor,
    b: Tensor,
    a_format: str,
    b_format: str,
    out_dtype: torch.dtype,
    addend: Tensor | None = None,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor:
    shape = [*a.shape[:-1], *b.shape[b.dim() - 1 :]] if b.dim() > 1 else [*a.shape[:-1]]
    return a.new_empty(shape, dtype=out_dtype)


@register_shapes("round_operand")
def _round_operand(x: Tensor, format: str, dim: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bfloat16)


@register_shapes("convolution")
def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    bias = bias.float() if bias is not None else None
    made: Tensor = aten.convolution(x.float(), w.float(), bias, *window).to(x.dtype)
    return made


@register_shapes("convolution_backward")
def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    made = aten.convolution_backward(g.float(), x.float(), w.float(), *rest)
    return tuple(t.to(x.dtype) if t is not None else None for t in made)


@register_shapes("attention")
def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@register_shapes("attention_backward")
def _attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(
        t.new_empty((t.shape[0], t.shape[2], t.shape[1], t.shape[3])).transpose(1, 2)
        for t in (q, k, v)
    )


# --- rows -----------------------------------------------------------------------------------------

Formats = tuple[str, str]
Replacement = tuple[Any, tuple[Any, ...]]  # operator, arguments


def _value(node: Any) -> Any:
    return node.meta["val"]


def _formats(policy: int, matmul_class: int, weight: int = 1) -> Formats:
    first, second = _C.operand_formats(policy, matmul_class, weight)
    return FORMATS[first], FORMATS[second]


def _products(policy: int, node: Node, a: Node, b: Node) -> Formats | None:
    """The formats of a product, or None where it is computed as given."""
    x, y = _value(a), _value(b)
    if x.dtype not in ROUNDED or x.dtype != y.dtype:
        return None
    formats = _formats(policy, *role_of(node, x.dim()))
    return None if formats == ("as_given", "as_given") else formats


def _multiplied(policy: int, node: Any) -> Replacement | None:
    a, b = node.args
    formats = _products(policy, node, a, b)
    return formats and (trn.product.default, (a, b, *formats, _value(node).dtype))


def _added(policy: int, node: Any) -> Replacement | None:
    addend, a, b = node.args
    formats = _products(policy, node, a, b)
    if formats is None or _value(addend).dtype != _value(a).dtype:
        return None
    beta, alpha = (node.kwargs.get(name, 1) for name in ("beta", "alpha"))
    return trn.product.default, (a, b, *formats, _value(node).dtype, addend, beta, alpha)


def _is_rounded(policy: int, matmul_class: int, *tensors: Node) -> bool:
    dtypes = {_value(t).dtype for t in tensors}
    rounds = _formats(policy, matmul_class) != ("as_given", "as_given")
    return rounds and len(dtypes) == 1 and dtypes <= set(ROUNDED)


def _convolved(policy: int, node: Any) -> Replacement | None:
    rounded = _is_rounded(policy, CONVOLUTION, *node.args[:2])
    return (trn.convolution.default, node.args) if rounded else None


def _convolved_backward(policy: int, node: Any) -> Replacement | None:
    rounded = _is_rounded(policy, CONVOLUTION, *node.args[1:3])
    return (trn.convolution_backward.default, node.args) if rounded else None


def _attended(policy: int, node: Any) -> Replacement | None:
    q, k, v, *rest = node.args
    causal = rest[1] if len(rest) > 1 else node.kwargs.get("is_causal", False)
    given = (q, k, v, causal, *map(node.kwargs.get, ("attn_mask", "scale")))
    return (trn.attention.default, given) if _is_rounded(policy, ATTENTION, q, k, v) else None


def _attended_backward(policy: int, node: Any) -> Replacement | None:
    *tensors, _, causal = node.args  # the gradient, the operands, result and sums
    given = (*tensors, causal, *map(node.kwargs.get, ("attn_mask", "scale")))
    rounded = _is_rounded(policy, ATTENTION, *tensors[1:4])
    return (trn.attention_backward.default, given) if rounded else None


PRECISE: MappingProxyType[Any, Callable[[int, Node], Replacement | None]] = MappingProxyType(
    {
        aten.mm.default: _multiplied,
        aten.bmm.default: _multiplied,
        aten.mv.default: _multiplied,
        aten.dot.default: _multiplied,
        aten.vdot.default: _multiplied,
        aten.addmm.default: _added,
        aten.addmv.default: _added,
        aten.baddbmm.default: _added,
        aten.convolution.default: _convolved,
        aten.convolution_backward.default: _convolved_backward,
        aten._scaled_dot_product_flash_attention_for_cpu.default: _attended,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attended_backward,
    }
)


def policy_of(node: Node, policy: str) -> str:
    """The policy of a node: its module's own (`set_precision`), else the graph's."""
    custom = node.meta.get("custom") or {}
    return str(custom.get(ANNOTATION, policy))


def _attention_of_products(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return SDPA(*args, **kwargs)


def attention_calls(graph: Graph) -> list[Node]:
    """Calls of scaled_dot_product_attention in a graph of Dynamo, by whatever name."""
    names = (SDPA, _SDPA, _SDPA.default)
    return [n for name in names for n in graph.find_nodes(op="call_function", target=name)]


def multiply_attention(graph: Graph, policy: str) -> None:
    """Under `mxfp8_all` the products of attention are rounded one by one, as eager does it.

    Takes a graph of Dynamo, where what a block of code or a module has of its own is known before
    one kernel is chosen for all three steps.
    """
    for node in attention_calls(graph):
        if policy_of(node, policy) == "mxfp8_all":
            node.target = _attention_of_products


def apply_precision(graph: Graph, policy: str) -> None:
    """Replace each operator of PRECISE whose operands the policy rounds.

    Values are those of the eager kernels: the same code multiplies.
    """
    for node in graph.nodes:
        rewrite = PRECISE.get(node.target) if node.op == "call_function" else None
        made = rewrite and rewrite(POLICIES.index(policy_of(node, policy)), node)
        if made:
            node.target, node.args = made
            node.kwargs = {}


def to_twins(graph: Graph) -> None:
    """Operators that the host has no kernel for become those that compute them there."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and (twin := twin_of(node.target)):
            node.target = twin


def _shapes_of(op: OpOverload) -> Callable[..., Any]:
    """A twin's shapes are those of its operator of aten."""
    named = {argument.name: k for k, argument in enumerate(op._schema.arguments)}

    def scaled(*arguments: Any, **keywords: Any) -> Any:  # aten's own checks what CPUs take
        given = dict(zip(named, arguments, strict=False)) | keywords
        a, b = given["self"], given["mat2"]
        return a.new_empty((a.shape[0], b.shape[1]), dtype=given.get("out_dtype") or a.dtype)

    def shapes(*arguments: Any, **keywords: Any) -> Any:
        return op(*arguments, **keywords)

    return scaled if op._opname.startswith("_scaled_mm") else shapes


for _name in KERNELS:
    _op, _, _overload = _name.partition(".")
    _aten = getattr(getattr(aten, _op), _overload or "default")
    if not _aten._schema.is_mutable:
        library.register_fake(f"trn::{_name}")(_shapes_of(_aten))
