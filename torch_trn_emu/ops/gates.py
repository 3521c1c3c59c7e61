"""Elementwise operators with several results, or with halves of a tensor as operands.

Halves are read as if each lay in one run: they are as long as all dimensions after the one cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..isa import Program
from ..kernels.pointwise import pointwise
from .elementwise import elementwise
from .formulas import Made, Value, finished, steps_of
from .op import Lowered, dense

__all__ = ["glu", "glu_backward", "prelu_backward"]


def _several(
    name: str, formula: Callable[..., tuple[Value, Value]], operands: Sequence[TensorArg],
    results: Sequence[TensorArg], target: Target,
) -> Program:  # fmt: skip
    """Operands in0, in1, ...; the results of the formula are out, out1, ..."""
    made: Made = []
    values = formula(*(Value(made, k) for k in range(len(operands))))
    steps = finished(made, *values)
    outputs = [~v.at - len(steps) for v in values]
    steps = [s if k - len(steps) in outputs else replace(s, dtype="float32")
             for k, s in enumerate(steps)]  # fmt: skip
    program = pointwise(
        name, operands[0].numel, [t.dtype for t in operands], results[0].dtype, steps,
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
    halves = _halves(call.tensors[0], call.argument(1, -1))
    steps = steps_of(lambda x, gate: x * gate.sigmoid(), 2)
    return (elementwise("glu", steps, halves, out, target),)


def glu_backward(call: Call, target: Target) -> Lowered:
    """With s the sigmoid of the second half: g s, and g a s (1 - s)."""
    g, dim = call.tensors[0], call.argument(2, -1)

    def formula(g: Value, a: Value, gate: Value) -> tuple[Value, Value]:
        s = gate.sigmoid()
        first = g * s
        product = first * a
        return first, (1.0 - s) * product

    given, results = _halves(call.tensors[1], dim), _halves(call.out, dim)
    operands = [replace(dense(g.shape, g.torch_dtype), views=g.views), *given]
    return (_several("glu_backward", formula, operands, results, target),)


def prelu_backward(call: Call, target: Target) -> Lowered:
    """Of x: g where it is above 0, else g w. Of the weight: g x where x is not above 0."""
    g, x, weight = call.tensors[:3]
    operands = [g, x, expanded(weight, x.shape)]

    def formula(g: Value, x: Value, w: Value) -> tuple[Value, Value]:
        above = x > 0.0
        below = 1.0 - above
        of_x = (below * w + above) * g
        return of_x, below * x * g

    return (_several("prelu_backward", formula, operands, call.outputs[:2], target),)
