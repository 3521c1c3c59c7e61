"""The roles of a product's operands in a graph: which one is a weight, as csrc/aten says it.

While a gradient is traced, `trn.product_of_role` stands for each product (product_gradients.cpp in
csrc/aten). Here it becomes aten's product again, with its role beside it for `apply_precision`.
Batches of products with a weight are found in Dynamo's graph, where parameters are known. Checked
on torch 2.13.0.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

__all__ = [
    "ATTENTION",
    "CONVOLUTION",
    "LINEAR",
    "find_weights",
    "is_constant",
    "note_constants",
    "role_of",
    "say_roles",
]

aten, trn = torch.ops.aten, torch.ops.trn

LINEAR, ATTENTION, CONVOLUTION = range(3)  # csrc/aten/policy.h, MatmulClass
Role = tuple[int, int]  # the class, and the operand that is a weight: 0, 1, or -1 for neither

_ROLE = "trn_role"  # key in a node's metadata
_CONSTANT = "trn_constant"  # key in a placeholder's metadata
_WEIGHT = "trn_weight"  # key in what AOTAutograd carries to the nodes made of one, backward too


def role_of(node: Node, rank: int) -> Role:
    """The role of a product of operands of this rank."""
    own: Role = node.meta.get(_ROLE) or (ATTENTION if rank == 3 else LINEAR, 1)
    weight: int | None = (node.meta.get("custom") or {}).get(_WEIGHT)
    if weight is None or own[0] != ATTENTION:
        return own
    if _ROLE not in node.meta:
        return LINEAR, weight
    gradient_of = 0 if own[1] == 1 else 1  # product_gradients.cpp: -1 says the second operand's
    return LINEAR, -1 if gradient_of == weight else weight


def say_roles(graph: Graph) -> None:
    """Replace each product that stands for one of a role."""
    nodes: list[Any] = graph.find_nodes(op="call_function", target=trn.product_of_role.default)
    for node in nodes:
        a, b, matmul_class, weight = node.args
        batched = node.meta["val"].dim() == 3
        node.target = aten.bmm.default if batched else aten.mm.default
        node.args = (a, b)
        node.meta[_ROLE] = (matmul_class, weight)


def note_constants(graph: Graph, **compiled: Any) -> None:
    """Note the placeholders of parameters and buffers of a graph for inference.

    compiled  what Inductor says of the graph: `is_inference` and `static_input_idxs`
    """
    if compiled.get("is_inference"):
        placeholders = list(graph.find_nodes(op="placeholder"))
        for k in compiled.get("static_input_idxs") or ():
            placeholders[k].meta[_CONSTANT] = True


def is_constant(node: Node) -> bool:
    """Whether a compiler may lay it out as it likes: nothing writes it between two runs."""
    return bool(node.meta.get(_CONSTANT))


@torch.library.register_vmap("trn::product_of_role")  # type: ignore[untyped-decorator]
def _batched(
    info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, matmul_class: int, weight: int
) -> tuple[Tensor, int]:
    """Products of one role side by side are a batch of that role."""
    count: int = info.batch_size
    x, y = (
        t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip((a, b), in_dims, strict=False)
    )
    if x.dim() == 3:
        return trn.product_of_role(x, y, matmul_class, weight), 0
    made = trn.product_of_role(x.flatten(0, 1), y.flatten(0, 1), matmul_class, weight)
    return made.unflatten(0, (count, -1)), 0


# --- in Dynamo's graph ----------------------------------------------------------------------------

_PRODUCTS = frozenset("bmm baddbmm matmul einsum".split())
_KEEPS = frozenset(
    "t transpose swapaxes permute movedim view reshape expand expand_as flatten unflatten unsqueeze"
    " squeeze contiguous clone detach to type bfloat16 half float getattr getitem index_select"
    " gather unbind select narrow chunk split cat stack"
    " T H mT mH data".split()  # by name since torch 2.14, by getattr before
)


def _name(node: Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def find_weights(graph: Graph) -> None:
    """Note of each batch of products in a graph of Dynamo which operand is a weight.

    Weights are what csrc/aten/product_roles.h says: parameters, and what is made of them by views,
    copies, casts, by choosing matrices and by putting weights together.
    """
    weights: set[Node] = set()
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            if isinstance(node.meta.get("example_value"), torch.nn.Parameter):
                weights.add(node)
        elif node.op in ("call_function", "call_method"):
            _note_product(node, weights)
            if _is_weight(node, weights):
                weights.add(node)


def _is_weight(node: Node, weights: set[Node]) -> bool:
    if _name(node) not in _KEEPS or not node.all_input_nodes:
        return False
    given = node.all_input_nodes
    if _name(node) not in ("cat", "stack"):
        # Rows chosen from a matrix are activations, as those of an embedding are.
        by_index = node.target is operator.getitem and len(given) > 1
        if (by_index or _name(node) in ("index_select", "gather")) and _rank(given[0]) < 3:
            return False
        given = given[:1]
    return all(source in weights for source in given)


def _rank(node: Node) -> int:
    value = node.meta.get("example_value")
    return value.dim() if isinstance(value, Tensor) else 0


def _note_product(node: Node, weights: set[Node]) -> None:
    factors = [n for n in node.args if isinstance(n, Node)][-2:]
    known = [n in weights for n in factors]
    if _name(node) in _PRODUCTS and len(known) == 2 and any(known) and min(map(_rank, factors)) > 2:
        weight = 0 if known == [True, False] else 1
        node.meta["custom"] = (node.meta.get("custom") or {}) | {_WEIGHT: weight}
