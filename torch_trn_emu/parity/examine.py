"""Each operator alone: its result against the one that the other place computes from its inputs.

An error here is of this operator; it does not carry along what operators before it have done.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import _C
from ..precision import current_precision
from ..settings import DEVICE_TYPE
from ..torch_private import tree_leaves, tree_map
from .causes import Causes, find_causes
from .measure import Distance, distance, float_tensors
from .noise import LABELS, SAFETY, matmul_kind, operand_formats, product_noise, unit_roundoff
from .place import Place, place
from .trace import Call

__all__ = ["Examiner", "OpError"]

_SKIPPED = frozenset(
    "empty empty_like empty_strided new_empty new_empty_strided empty_permuted resize_ set_"
    " _to_copy copy_ clone detach lift_fresh alias _has_compatible_shallow_copy_type".split()
)
_JUMPING = frozenset(
    "threshold_backward hardtanh_backward leaky_relu_backward hardswish_backward sgn sign"
    " hardsigmoid_backward max_pool2d_with_indices_backward max_pool3d_with_indices_backward"
    " adaptive_max_pool2d_backward value_selecting_reduction_backward where".split()
)


@dataclass(slots=True, kw_only=True)
class OpError:
    """All calls of one operator in one module, forward or backward.

    distance    of the results to the reference's, from the same inputs
    causes      of what differs
    formats     of the operands of a product, by what the policy in force made them
    policy      in force at the first call
    diverges    more than the float arithmetic of the dtype explains
    excess      the largest error of a call, to what the formats in force explain; above 1 is wrong
    reference   where the other result is from
    """

    op: str
    module: str
    phase: str
    policy: str
    reference: str
    formats: tuple[str, ...] = ()
    calls: int = 0
    distance: Distance = field(default_factory=Distance)
    causes: Causes = field(default_factory=Causes)
    diverges: bool = False
    excess: float = 0.0
    tolerance_squared: float = 0.0  # relative, added up over the calls

    @property
    def format_label(self) -> str:
        """Of the operands, "MXFP4 E2M1 and MXFP8 E4M3"; "" where the operator multiplies none."""
        names = sorted({LABELS.get(name, name) for name in self.formats})
        return " and ".join(names)

    @property
    def cause(self) -> str:
        """What the largest part of the error is from; "" where none was looked for."""
        return {
            "quantisation": f"quantisation to {self.format_label}",
            "accumulation": "accumulation in float32",
            "rounding": "rounding of the result",
            "computation": "another computation",
        }.get(self.causes.main, "")

    @property
    def jumps(self) -> bool:
        """Whether this is a derivative with a jump, as that of ReLU."""
        return self.op.split(".")[1] in _JUMPING

    @property
    def where(self) -> str:
        return f"{self.op} in {self.module or 'the model'} ({self.phase})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; figures that are not finite are None."""
        return {
            "op": self.op,
            "module": self.module,
            "phase": self.phase,
            "calls": self.calls,
            "policy": self.policy,
            "formats": list(self.formats),
            "diverges": self.diverges,
            "excess": self.excess if math.isfinite(self.excess) else None,
            "cause": self.causes.main,
            "shares": self.causes.shares,
            "reference": self.reference,
            **self.distance.to_dict(),
        }


class Examiner:
    """`around` of a Tracer in place b: fills `rows`, in the order of first calls."""

    def __init__(self, reference: Place, here: Place) -> None:
        self._reference, self._here = reference, here
        self._rows: dict[tuple[str, str, str], OpError] = {}
        self.unexamined: dict[str, str] = {}  # operator: why it has no reference

    @property
    def rows(self) -> tuple[OpError, ...]:
        return tuple(self._rows.values())

    def around(self, call: Call, run: Any) -> Any:
        if self._passes(call):
            return run()
        given = (call.args, call.kwargs)
        before = tree_map(_own, given) if call.func._schema.is_mutable else given
        result = run()
        if any(t.device.type == self._here.device.type for t in float_tensors(result)):
            args, kwargs = before
            self._judge(_again(call, args, kwargs), result)
        return result

    def _passes(self, call: Call) -> bool:
        name = call.func._schema.name.split("::")[-1]
        random = torch.Tag.nondeterministic_seeded in call.func.tags
        return call.func.is_view or random or name in _SKIPPED or name.startswith("_foreach")

    def _judge(self, call: Call, result: Any) -> None:
        expected, reference = self._expected(call)
        if expected is None:
            return
        try:
            found = distance(expected, result)
        except ValueError as error:
            self.unexamined[call.name] = str(error)
            return
        row = self._row(call, reference)
        plain, in_force, relative = _tolerances(call, row.formats, found, result)
        size = math.sqrt(found.squared_error)
        row.calls += 1
        row.distance += found
        row.tolerance_squared += relative**2
        row.excess = max(row.excess, size / in_force)
        if size > plain:
            row.diverges = True
            if self._here.device.type == DEVICE_TYPE:
                causes = find_causes(call, result)
                row.causes += causes
                if row.formats:  # no format explains what is wrong without quantisation, too
                    beside = math.sqrt(causes.accumulation + causes.computation)
                    row.excess = max(row.excess, beside / plain)

    def _expected(self, call: Call) -> tuple[Any, str]:
        """The reference's result; where it has no kernel, that of trn under policy fp32."""
        reasons = []
        for where in dict.fromkeys((self._reference, place("trn@fp32"))):
            args, kwargs = where.move((call.args, call.kwargs))
            try:
                with where.under_policy():
                    return call.func(*args, **kwargs), str(where)
            except (RuntimeError, TypeError) as error:
                reasons.append(f"{where}: {str(error).splitlines()[0]}")
        self.unexamined[call.name] = "; ".join(reasons)
        return None, ""

    def _row(self, call: Call, reference: str) -> OpError:
        key = (call.module, call.phase, call.name)
        if key not in self._rows:
            policy = current_precision() if self._here.device.type == DEVICE_TYPE else "fp32"
            self._rows[key] = OpError(
                op=call.name,
                module=call.module,
                phase=call.phase,
                policy=policy,
                reference=reference,
                formats=_formats(call, policy),
            )
        return self._rows[key]


def _again(call: Call, args: Any, kwargs: Any) -> Call:
    return Call(
        func=call.func,
        args=args,
        kwargs=kwargs,
        module=call.module,
        phase=call.phase,
        ordinal=call.ordinal,
        returned=call.returned,
    )


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _operator(call: Call) -> str:
    return str(call.func._schema.name).split("::")[-1]


def _formats(call: Call, policy: str) -> tuple[str, ...]:
    operands = float_tensors(call.args)
    if not operands:
        return ()
    dtype = str(operands[0].dtype).removeprefix("torch.")
    name = _operator(call)
    factors = operands[1:3] if name.startswith(("add", "_addmm", "baddbmm")) else operands[:2]
    if matmul_kind(name) not in ("linear", "attention") or len(factors) < 2:
        return operand_formats(name, policy, dtype)
    matmul_class, weight = _C.role_of(*factors)  # at the call, while its role is in force
    kind = ("linear", "attention")[matmul_class] if "scaled_dot" not in name else "attention"
    return operand_formats(name, policy, dtype, kind=kind, weight=weight)


def _tolerances(
    call: Call, formats: tuple[str, ...], found: Distance, result: Any
) -> tuple[float, float, float]:
    """Of one call: the error that float arithmetic explains, the one that the formats in force
    explain (both as norms), and the latter relative to the result.
    """
    size = math.sqrt(found.squared_a)
    out = max((unit_roundoff(str(t.dtype).removeprefix("torch."))) for t in float_tensors(result))
    terms = math.sqrt(_terms(call, result)) * 2.0**-24
    scale = _product_scale(call, size) if formats else size
    noise = product_noise(formats) * (4 if "scaled_dot" in call.name else 1)
    floor = 1e-37
    plain = SAFETY * math.hypot(out * size, terms * scale) + floor
    in_force = SAFETY * math.hypot(out * size, (terms + noise) * scale) + floor
    return plain, in_force, SAFETY * math.hypot(out, terms, noise)


def _terms(call: Call, result: Any) -> float:
    """About how many terms one element of the result sums up."""
    tensors = [x for x in tree_leaves((call.args, call.kwargs)) if isinstance(x, torch.Tensor)]
    if matmul_kind(_operator(call)):
        return float(max((size for t in tensors for size in t.shape), default=1))
    outputs = sum(t.numel() for t in float_tensors(result)) or 1
    return max(1.0, sum(t.numel() for t in tensors) / outputs)


def _product_scale(call: Call, size: float) -> float:
    """Root of the sum of (a_i b_i)^2: the product of the squared operands, where it is one."""
    if "scaled_dot" in call.name or call.func._schema.is_mutable:
        return size

    def square(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.double().square()
        return value

    args, kwargs = tree_map(square, place("cpu").move((call.args, call.kwargs)))
    try:
        squares = float_tensors(call.func(*args, **kwargs))
    except (RuntimeError, TypeError):
        return size
    return max(size, math.sqrt(sum(float(t.abs().sum()) for t in squares)))
