"""Rows of matrix products: operands, layouts and formats from a call."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import labelled, made, permuted, spanned
from ..formats import MX_FORMATS, POLICIES
from ..kernels.matmul import matmul
from ..kernels.matmul.blocking import COMPILER, share_of_core
from ..kernels.matmul.epilogue import Epilogue
from ..kernels.matmul.evacuation import Leaving
from ..kernels.reduce_leading import columns_reduced
from ..kernels.rows.values import Input, Kind, Output, RowStep, step
from .elementwise import elementwise
from .formulas import Value, steps_of
from .op import Lowered

__all__ = [
    "Product",
    "compute_format",
    "format_of",
    "laid_out",
    "lower_addbmm",
    "lower_matmul",
    "lower_scaled",
    "multiplied",
    "product_of",
]

_ADDING = frozenset("addmm baddbmm addmv _addmm_activation".split())
_LINEAR = frozenset(
    "mm addmm _addmm_activation linear mv addmv dot vdot addr ger outer _scaled_mm".split()
)


def compute_format(policy: str, dtype: str, kind: str) -> str:
    """The format on the array for a policy; `kind` is linear, attention or convolution."""
    if dtype not in ("float32", "bfloat16", "float16"):
        return "float32" if dtype in ("float64",) else "bfloat16"
    row = POLICIES[policy]
    chosen = {"linear": row.weight, "attention": row.attention}.get(kind, row.convolution)
    if chosen == "as_given":
        return dtype
    if chosen == "bf16":
        return dtype if dtype != "float32" else "bfloat16"
    return chosen


def format_of(call: Call, target: Target, dtype: str, kind: str) -> str:
    """The format in which the chip's array multiplies.

    Operands of two MX formats are multiplied in that of the one that is no weight. An array without
    the formats multiplies in bfloat16, which holds MX values exactly.
    """
    chosen = compute_format(call.policy, dtype, kind)
    if chosen not in MX_FORMATS:
        return chosen
    other = POLICIES[call.policy].other if kind == "linear" else chosen
    native = target.chip.tensor_engine.macs_per_pe_cycle
    return other if chosen in native and other in native else "bfloat16"


def _major(t: TensorArg, straight: str, exchanged: str) -> str:
    """The layout of a matrix by its strides."""
    return exchanged if t.shape[-1] > 1 and t.strides[-1] != 1 else straight


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of a call: its sizes, and what else `matmul` takes."""

    sizes: tuple[int, int, int, int]  # batch, m, k, n
    options: Mapping[str, Any]
    operands: Mapping[str, TensorArg]  # what its buffers stand for
    as_asked: bool = True  # whether operands are multiplied in the formats of the policy


def product_of(call: Call, target: Target) -> Product:
    """The product that a call of the matmul family is, with what the call adds to it."""
    # The device's kernels describe every product they round as `addmm`, mm without an addend.
    adds = call.name in _ADDING or call.arguments[0] is None
    first = 1 if adds else 0
    a, b = call.argument(first), call.argument(first + 1)
    addend = call.argument(0) if adds else call.argument(2) if call.name == "linear" else None
    if call.name == "linear":
        b = permuted(b, (1, 0))
    if len(a.shape) == 1:
        a = replace(a, shape=(1, *a.shape), strides=(a.numel, *a.strides))
    if len(b.shape) == 1:
        b = replace(b, shape=(*b.shape, 1), strides=(*b.strides, 1))
        if addend is not None:
            addend = replace(addend, shape=(*addend.shape, 1), strides=(*addend.strides, 1))
    k, n = b.shape[-2:]
    if len(b.shape) == 2:
        batch, m = 1, a.numel // max(1, k)
    else:
        batch, m = prod(b.shape[:-2]), a.shape[-2]
    dtype = _float(a)
    kind = "linear" if call.name in _LINEAR else "attention"
    options = {
        "compute": format_of(call, target, dtype, kind),
        "lhs_dtype": dtype,
        "rhs_dtype": _float(b),
        "out_dtype": _float(call.out),
        "lhs_layout": _major(a, "mk", "km"),
        "rhs_layout": _major(b, "kn", "nk"),
        "leaving": _leaving(call, addend),
    }
    operands = {"lhs": _as_laid(a, options["lhs_layout"] == "km", len(b.shape) - 2),
                "rhs": _as_laid(b, options["rhs_layout"] == "nk", len(b.shape) - 2),
                "out": call.out}  # fmt: skip
    if addend is not None:
        operands["addend"] = spanned(addend)
    as_asked = _asked(call, dtype, kind) <= {options["compute"]}
    return Product((batch, m, k, n), MappingProxyType(options), operands, as_asked)


def _asked(call: Call, dtype: str, kind: str) -> set[str]:
    """The MX formats of the operands under the policy."""
    chosen = compute_format(call.policy, dtype, kind)
    if chosen not in MX_FORMATS:
        return set()
    return {chosen, POLICIES[call.policy].other if kind == "linear" else chosen}


def _as_laid(t: TensorArg, exchanged: bool, batch: int) -> TensorArg:
    """A factor in the order of its buffer: [batch, all others, last], or the last before others."""
    rank = len(t.shape)
    return permuted(t, (*range(batch), rank - 1, *range(batch, rank - 1))) if exchanged else t


def _shares(product: Product, cores: int) -> tuple[dict[str, int], dict[str, int]]:
    """How cores share the buffers: `outer` and `steps` of `labelled`."""
    batch, m, k, n = product.sizes
    parts = share_of_core(batch, m, n, cores) if cores > 1 else (batch, m, n)
    strides = product.options["leaving"].strides or (0, 0, 0)
    axis = next((i for i, size in enumerate((batch, m, n)) if parts[i] != size), None)
    if axis is None or axis == 0:
        return {}, {"addend": parts[0] * strides[0] if axis == 0 else 0}
    steps = {"addend": parts[axis] * strides[axis]}
    if axis == 1:
        lhs = batch * k if product.options["lhs_layout"] == "km" else batch
        return {"lhs": lhs, "out": batch}, steps
    rhs = batch if product.options["rhs_layout"] == "nk" else batch * k
    return {"rhs": rhs, "out": batch * m}, steps


def laid_out(product: Product) -> Product:
    """The product with a second factor that a compiler laid out beforehand, as constants are.

    Rows of the contraction, in the array's format where that is a 16-bit one. Inferred: the
    vendor's compiler knows the weights of a model for inference when it compiles; launches of
    measured encoders leave no time for turning them.
    """
    options = dict(product.options, rhs_layout="kn")
    if options["compute"] in ("bfloat16", "float16"):
        options["rhs_dtype"] = options["compute"]
    return replace(product, options=MappingProxyType(options))


def multiplied(product: Product, target: Target, epilogue: Epilogue | None = None) -> Lowered:
    """The product's program; none where there is nothing to multiply."""
    batch, m, k, n = product.sizes
    if not batch * m * k * n:
        return ()
    program = matmul(
        m,
        k,
        n,
        chip=target.chip,
        batch=batch,
        cores=target.cores,
        schedule=COMPILER,
        epilogue=epilogue,
        **product.options,
    )
    if not product.as_asked:  # other values than the operator's: the price alone
        return (program,)
    outer, steps = _shares(product, target.cores)
    return (labelled(program, product.operands, outer=outer, steps=steps),)


def lower_matmul(call: Call, target: Target) -> Lowered:
    """A product of two tensors, with what the call adds to it."""
    return multiplied(product_of(call, target), target)


def lower_addbmm(call: Call, target: Target) -> Lowered:
    """The batch's products in float32, their sum, then what is added."""
    addend, a, b = call.tensors[:3]
    batch, m, n = a.shape[0], a.shape[1], b.shape[2]
    if not a.numel:
        return ()
    products, summed = made("products", (batch, m, n), "float32"), made("sum", (m, n), "float32")
    (each,) = lower_matmul(Call("aten::bmm", (a, b), (products,), call.policy), target)
    total = columns_reduced(products, summed, 1, batch, m * n, target, op="add")
    beta, alpha = _factors(call)

    def formula(product: Value, other: Value) -> Value:
        scaled = other * beta
        return product * alpha + scaled

    steps = steps_of(formula, 2)
    added = elementwise("add", steps, [summed, addend], call.out, target)
    return (each, total, added)


def lower_scaled(call: Call, target: Target) -> Lowered:
    """_scaled_mm: a product times a scale for all, or for each row and each column, and a bias."""
    product = product_of(call, target)
    _, m, _, n = product.sizes
    inputs: list[Input] = []
    steps: list[RowStep] = []
    operands, last = {n: product.operands[n] for n in ("lhs", "rhs")}, "product"
    for at, many, kind in ((2, m, Kind.COLUMN), (3, n, Kind.ROW), (4, n, Kind.ROW)):
        scale, name = call.argument(at), f"operand {at}"
        if scale is None:
            continue
        if scale.numel not in (1, many):
            raise KeyError("scales of blocks")
        inputs.append(Input(name, scale.dtype, kind if scale.numel > 1 else Kind.ONE))
        op = "add" if at == 4 else "multiply"
        steps.append(step(f"by {at}", "tensor_tensor", last, name, op=op))
        operands[name] = scale
        last = f"by {at}"
    options = MappingProxyType({**product.options, "out_dtype": "float32"})
    stored = Output(last, product.options["out_dtype"])
    operands[f"out {last}"] = call.out
    epilogue = Epilogue(product="product", inputs=inputs, steps=steps, outputs=[stored])
    return multiplied(Product(product.sizes, options, operands), target, epilogue)


def _float(t: TensorArg) -> str:
    return t.dtype if "float" in t.dtype else "float32"


def _factors(call: Call) -> tuple[float, float]:
    """Beta and alpha, which follow the three tensors (and a dtype, in that overload)."""
    at = 4 if ".dtype" in call.op else 3
    return float(call.argument(at, 1)), float(call.argument(at + 1, 1))


def _leaving(call: Call, addend: TensorArg | None) -> Leaving:
    beta, alpha = _factors(call) if call.name in _ADDING else (1.0, 1.0)
    function = ""
    if call.name == "_addmm_activation":
        function = "gelu" if call.argument(5, False) else "relu"
    if addend is None or beta == 0:
        return Leaving(alpha=alpha, function=function)
    missing = (0,) * (3 - len(addend.shape))
    over = [s if n > 1 else 0 for n, s in zip(addend.shape, addend.strides, strict=True)]
    batch, m, n = (*missing, *over)
    return Leaving(
        alpha=alpha,
        beta=beta,
        strides=(batch, m, n),
        elements=addend.span,
        dtype=addend.dtype,
        function=function,
    )
