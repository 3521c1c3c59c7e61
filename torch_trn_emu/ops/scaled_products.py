"""Rows of products whose operands are given as codes with scales, and of products of groups.

MX operands come from HBM as the array reads them, four neighbours of K in a row with their scales:
nothing is quantized or transposed on the way. How groups share the rows is data: they are equal
here.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

from ..calls import Call, Target, TensorArg
from ..errors import Unimplemented
from ..isa import Buffer, Builder, Memory, Program, Role
from ..kernels.matmul.blocking import COMPILER, Cut, packing_of, plan_blocks, share_of_core
from ..kernels.matmul.body import Body
from ..kernels.matmul.evacuation import PLAIN
from ..kernels.matmul.operand import Operand
from .op import Lowered, dense
from .products import lower_matmul, lower_scaled

__all__ = [
    "grouped",
    "lower_scaled_mm",
    "matmul_of_codes",
    "of_codes",
    "scaled_grouped",
    "with_packed_weight",
    "with_sparse_weight",
]

_E8M0, _FLOAT4 = "float8_e8m0fnu", "Float4_e2m1fn_x2"


def matmul_of_codes(m: int, k: int, n: int, *, out_dtype: str, target: Target) -> Program:
    """out[m, n] of two MX operands that are codes and scales already."""
    chip, cores = target.chip, target.cores
    flops = 2.0 * m * k * n
    if cores > 1:
        _, m, n = share_of_core(1, m, n, cores)
    b = Builder(f"matmul of codes {m}x{k}x{n}", cores=cores, model_flops=flops)
    packing = packing_of("mxfp8", chip)
    out = b.hbm("out", (1, m, n), out_dtype, Role.OUTPUT)
    held = 4 * COMPILER.result_slots
    plan = plan_blocks(Cut(
        m=m, k=k, n=n, packing=packing, majors=(True, True), dtypes=(packing.dtype,) * 2,
        bytes_per_column=held, chip=chip, schedule=COMPILER,
    ))  # fmt: skip
    operands = []
    for name, free, block, slots, role in (
        ("lhs", m, plan.block_m, plan.lhs_slots, Role.INPUT),
        ("rhs", n, plan.block_n, plan.rhs_slots, Role.WEIGHT),
    ):
        shape = Buffer(name=name, memory=Memory.HBM, dtype=packing.dtype, shape=(1, k, free))
        one = Operand(
            b, shape, k=k, block=block, packing=packing, contraction_major=True, slots=slots
        )
        blocks = ceil(free / block)
        one.ready = tuple(  # type: ignore[assignment]
            b.hbm(f"{name} {what}", (one.parts, *like.shape), like.dtype, role, parts=blocks)
            for what, like in (("codes", one.data), ("scales", one.scales))
        )
        operands.append(one)
    Body(b, operands[0], operands[1], out, plan, COMPILER, PLAIN).product((1, m, k, n))
    return b.build()


def _k(t: TensorArg, dim: int) -> int:
    return t.shape[dim] * (2 if t.torch_dtype.lower() == _FLOAT4.lower() else 1)


def _of_codes(call: Call, m: int, k: int, n: int, target: Target, times: int = 1) -> Lowered:
    """So many products of codes; none without elements."""
    if not times * m * k * n:
        return ()
    dtype = call.out.dtype if "float" in call.out.dtype else "float32"
    return (matmul_of_codes(m, k, n, out_dtype=dtype, target=target),) * times


def of_codes(call: Call, target: Target) -> Lowered:
    """trn::mx_matmul: codes and scales of each operand in turn, with or without a batch."""
    a, b = call.argument(0), call.argument(2)
    if "int8" in (a.dtype, b.dtype) or "Byte" in (a.torch_dtype, b.torch_dtype):
        raise Unimplemented("mx_matmul: the array reads no codes of float6 and int8.")
    batch = a.shape[0] if len(a.shape) == 3 else 1
    return _of_codes(call, a.shape[-2], _k(a, -1), b.shape[-1], target, batch)


def lower_scaled_mm(call: Call, target: Target) -> Lowered:
    """_scaled_mm of both versions: of MX codes, or a product times scales of rows and columns."""
    a, b = call.argument(0), call.argument(1)
    if call.name == "_scaled_mm_v2":
        first, second, bias = call.argument(2)[0], call.argument(5)[0], call.argument(8)
    else:
        first, second, bias = call.argument(2), call.argument(3), call.argument(4)
    if first.dtype == _E8M0:
        return _of_codes(call, a.shape[0], _k(a, 1), b.shape[1], target)
    # blocks of 128 as scales of rows and columns
    first = first if first.numel in (1, a.shape[0]) else dense((a.shape[0],), "Float")
    second = second if second.numel in (1, b.shape[1]) else dense((b.shape[1],), "Float")
    return lower_scaled(
        Call("aten::_scaled_mm", (a, b, first, second, bias), call.results, call.policy), target
    )


def _each(call: Call, groups: int) -> tuple[int, int, int]:
    """The size of one of equal groups: m, k, n."""
    a, b = call.argument(0), call.argument(1)
    m, k, n = a.shape[-2], _k(a, -1), b.shape[-1]
    if len(a.shape) == 2 and len(b.shape) == 3:
        return ceil(m / groups), k, n
    if len(a.shape) == 3 and len(b.shape) == 2:
        return m, k, ceil(n / groups)
    return (m, ceil(k / groups), n) if len(a.shape) == 2 else (m, k, n)


def _groups(call: Call, offs: int) -> int:
    a, b = call.argument(0), call.argument(1)
    for t in (a, b):
        if len(t.shape) == 3:
            return max(1, int(t.shape[0]))
    return max(1, int(call.argument(offs).numel))


def _turned(t: TensorArg, shape: tuple[int, int]) -> TensorArg:
    """A matrix of the dtype and the order in memory of `t`."""
    straight = t.strides[-1] == 1
    return TensorArg(t.torch_dtype, shape, (shape[1], 1) if straight else (1, shape[0]))


def _plain(call: Call, a: TensorArg, b: TensorArg, target: Target, *scales: TensorArg) -> Any:
    """The product of two matrices, by scales if there are any, in the dtype of the call's."""
    out = dense((a.shape[0], b.shape[1]), call.out.torch_dtype)
    name, lower = ("_scaled_mm", lower_scaled) if scales else ("mm", lower_matmul)
    return lower(Call(f"aten::{name}", (a, b, *scales), (out,), call.policy), target)


def grouped(call: Call, target: Target, *, offs: int = 2, scaled: bool = False) -> Lowered:
    """_grouped_mm: a linear product for each group."""
    groups = _groups(call, offs)
    m, k, n = _each(call, groups)
    if not m * k * n:
        return ()
    a, b = _turned(call.argument(0), (m, k)), _turned(call.argument(1), (k, n))
    scales = (dense((m,), "Float"), dense((n,), "Float")) if scaled else ()
    return _plain(call, a, b, target, *scales) * groups  # type: ignore[no-any-return]


def scaled_grouped(scale: int, offs: int) -> Callable[[Call, Target], Lowered]:
    """_scaled_grouped_mm: where its arguments have the first operand's scales, and the offsets."""

    def lower(call: Call, target: Target) -> Lowered:
        given, groups = call.argument(scale), _groups(call, offs)
        if (given[0] if isinstance(given, tuple) else given).dtype == _E8M0:
            return _of_codes(call, *_each(call, groups), target, groups)
        return grouped(call, target, offs=offs, scaled=True)

    return lower


def with_sparse_weight(activation: int) -> Callable[[Call, Target], Lowered]:
    """A product with a 2:4 sparse weight, which the array reads dense: where [k, n] is given."""

    def lower(call: Call, target: Target) -> Any:
        b = call.argument(activation)
        k, n = b.shape
        weight = dense((k, call.out.numel // max(1, n)), b.torch_dtype)
        return _plain(call, TensorArg(b.torch_dtype, (n, k), (k, 1)), weight, target)

    return lower


def with_packed_weight(call: Call, target: Target) -> Any:
    """A linear product with a weight of few bits, which is read as bfloat16."""
    x = call.argument(0)
    k, n = x.shape[-1], call.out.shape[-1]
    a = TensorArg(x.torch_dtype, (x.numel // max(1, k), k), (k, 1))
    return _plain(call, a, dense((k, n), "BFloat16"), target)
