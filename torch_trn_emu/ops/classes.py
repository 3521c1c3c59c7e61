"""Operators without a row: priced by a class from their tensors, labelled `inferred`.

What fits no class is not modelled: it is priced as if its tensors went to the host and back.
"""

import re
from math import ceil

from ..calls import Call, Target
from ..kernels.reduce_rows import reduce_rows
from . import Lowered, Op, copied, flat
from .elementwise import elementwise
from .formulas import steps_of

__all__ = ["class_of"]

_HOST = re.compile(
    r"linalg|fft|stft|solve|svd|eig|cholesky|lu_|_qr|sparse|quantize|ctc|multinomial"
)


def _pointwise(call: Call, target: Target) -> Lowered:
    operands = list(call.tensors)[:6]
    steps = steps_of(lambda x, *others: sum(others, x * 1.0), len(operands))
    return (elementwise(call.name, steps, operands, call.out, target),)


def _reduction(call: Call, target: Target) -> Lowered:
    source = max(call.tensors, key=lambda t: t.numel)
    rows = max(1, call.out.numel)
    columns = ceil(source.numel / rows)
    options = {"chip": target.chip, "cores": target.cores}
    return (reduce_rows(rows, columns, op="add", dtype=source.dtype, **options),)  # type: ignore[arg-type]


def _copy(call: Call, target: Target) -> Lowered:
    source = call.tensors[0] if call.tensors else call.out
    out = call.out
    return copied(flat(source, out.numel), flat(out, out.numel), target)


def class_of(call: Call) -> Op | None:
    """The class that prices a call, or None."""
    if _HOST.search(call.name) or not (call.tensors or call.outputs):
        return None
    out = call.out
    largest = max((t.numel for t in call.tensors), default=0)
    if out.numel >= largest and call.tensors:
        return Op(name="pointwise", engine="vector", lower=_pointwise)
    if out.numel < largest and call.outputs:
        return Op(name="reduction", engine="vector", lower=_reduction)
    return Op(name="copy", engine="dma", lower=_copy)
