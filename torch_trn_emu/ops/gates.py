"""Elementwise operators with several results, or with halves of a tensor as operands.

Halves are read as if each lay in one run: they are as long as all dimensions after the one cut.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..isa import Program
from ..kernels.pointwise import Step, activation, pointwise, tensor_scalar, tensor_tensor
from .elementwise import elementwise
from .op import Lowered, dense

__all__ = ["glu", "glu_backward", "prelu_backward"]

T, S, A = tensor_tensor, tensor_scalar, activation


def _several(
    name: str, steps: Sequence[Step], operands: Sequence[TensorArg], outputs: Sequence[int],
    results: Sequence[TensorArg], target: Target,
) -> Program:  # fmt: skip
    """Operands in0, in1, ...; the steps that are stored are out, out1, ..."""
    dtype = results[0].dtype
    kept = {k % len(steps) for k in outputs}
    typed = [s if k in kept else replace(s, dtype="float32") for k, s in enumerate(steps)]
    program = pointwise(
        name, operands[0].numel, [t.dtype for t in operands], dtype, typed,
        chip=target.chip, cores=target.cores, outputs=outputs,
    )  # fmt: skip
    held = {f"in{k}": t for k, t in enumerate(operands)}
    return labelled(program, held | {f"out{k or ''}": t for k, t in enumerate(results)})


def _halves(t: TensorArg, dim: int) -> tuple[TensorArg, TensorArg]:
    """The first and the second half of a dimension, as contiguous tensors that stand for them."""
    rank = len(t.shape)
    dim %= rank
    shape = tuple(n // 2 if d == dim else n for d, n in enumerate(t.shape))
    one, two = (
        replace(
            dense(shape, t.torch_dtype),
            views=tuple(
                replace(v, shape=shape, offset=v.offset + part * shape[dim] * v.strides[dim])
                for v in t.views
                if v.shape == t.shape
            ),
        )
        for part in (0, 1)
    )
    return one, two


def glu(call: Call, target: Target) -> Lowered:
    """The first half times the sigmoid of the second."""
    out = call.out
    if not out.numel:
        return ()
    halves = _halves(call.tensors[0], call.argument(1, -1))
    return (elementwise("glu", [A("sigmoid", 1), T("multiply", 0, -1)], halves, out, target),)


def glu_backward(call: Call, target: Target) -> Lowered:
    """With s the sigmoid of the second half: g s, and g a s (1 - s)."""
    g, dim = call.tensors[0], call.argument(2, -1)
    if not g.numel:
        return ()
    steps = [
        A("sigmoid", 2), T("multiply", 0, -1), T("multiply", -1, 1),
        S(-3, op0="multiply", imm0=-1.0, op1="add", imm1=1.0), T("multiply", -1, -2),
    ]  # fmt: skip
    given, results = _halves(call.tensors[1], dim), _halves(call.out, dim)
    operands = [replace(dense(g.shape, g.torch_dtype), views=g.views), *given]
    return (_several("glu_backward", steps, operands, (1, -1), results, target),)


def prelu_backward(call: Call, target: Target) -> Lowered:
    """Of x: g where it is above 0, else g w. Of the weight: g x where x is not above 0."""
    g, x, weight = call.tensors[:3]
    if not x.numel:
        return ()
    full = expanded(weight, x.shape)
    steps = [
        S(1, op0="greater", imm0=0.0), S(-1, op0="multiply", imm0=-1.0, op1="add", imm1=1.0),
        T("multiply", -1, 2), T("add", -1, -3), T("multiply", -1, 0),
        T("multiply", -4, 1), T("multiply", -1, 0),
    ]  # fmt: skip
    return (_several("prelu_backward", steps, [g, x, full], (4, -1), call.outputs[:2], target),)
