"""Steps of a row program put together before they are emitted: fewer instructions.

A graph's operators become a step each. What the vendor's kernels do in one instruction is put
together here: two operations with one value a row or a constant each, one of them and an operation
of two tensors, and the bias of an activation.
`rows/balance_engines.py` then shares them out between the engines.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .fold_constants import COMMUTATIVE
from .order import Order
from .values import Input, Kind, RowStep, Values, step

__all__ = ["bias_of", "by_row", "fused", "with_factors"]


_SCALARS = (Kind.COLUMN, Kind.ONE)
_FULL_OR_COLUMN = (Kind.FULL, Kind.COLUMN)


def fused(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str]
) -> list[RowStep]:
    """Pairs of steps as one, where the first one's value is neither `stored` nor read again."""
    kinds = Values(inputs, steps, ()).kinds
    return list(_fused(kinds, by_row(inputs, steps), stored))


def by_row(inputs: Sequence[Input], steps: Sequence[RowStep]) -> list[RowStep]:
    """The steps with one value a row as a scalar operand: half the time of one that repeats."""
    kinds = Values(inputs, steps, ()).kinds
    return [_by_row(s, kinds) for s in steps]


def _fused(
    kinds: Mapping[str, Kind], steps: Sequence[RowStep], stored: Collection[str]
) -> Iterator[RowStep]:
    reads = Counter(name for s in steps for name in s.reads)
    single = {s.name: s for s in steps if _op_by_row(s, kinds) or s.has_constant}
    taken: set[str] = set()
    second: set[str] = set()
    for s in steps:  # pairs, not chains
        first = single.get(s.reads[0]) if s.reads else None
        alone = first and reads[first.name] == 1 and first.name not in (*stored, *second)
        if first and alone and _takes(s, first, kinds):
            taken.add(first.name)
            second.add(s.name)
    for s in steps:
        if s.name in taken:
            continue
        if not s.reads or s.reads[0] not in taken:
            yield s
        elif s.opcode == "activation":
            yield from _with_bias(s, single[s.reads[0]])
        else:
            yield _pair(single[s.reads[0]], s, kinds)


def _by_row(s: RowStep, kinds: Mapping[str, Kind]) -> RowStep:
    if s.opcode != "tensor_tensor" or s.kind is not Kind.FULL:
        return s
    a, b = s.reads
    attributes = {"op0": s.attributes["op"]}
    if kinds[a] in _SCALARS:
        a, b = b, a
        if s.attributes["op"] not in COMMUTATIVE:
            attributes["reverse0"] = True
    if kinds[b] not in _SCALARS or kinds[a] is not Kind.FULL:
        return s
    return step(s.name, "tensor_scalar", a, b, engine=s.engine, dtype=s.dtype, **attributes)


def _op_by_row(s: RowStep, kinds: Mapping[str, Kind]) -> str:
    """The operation of a tile, or of one value a row, with one value a row; "" for others."""
    op = {"tensor_tensor": "op", "tensor_scalar": "op0"}.get(s.opcode)
    plain = op and set(s.attributes) == {op} and len(s.reads) == 2 and s.kind in _FULL_OR_COLUMN
    plain = plain and not s.dtype
    by_row = plain and kinds[s.reads[1]] is Kind.COLUMN and s.on_vector
    alike = (s.kind, Kind.ROW) if s.kind is Kind.FULL else (s.kind,)
    by_row = by_row and kinds[s.reads[0]] in alike
    return str(s.attributes[op]) if by_row and op else ""


def _takes(s: RowStep, first: RowStep, kinds: Mapping[str, Kind]) -> bool:
    """Whether a step can do the work of the one before it, `first`."""
    before = _op_by_row(first, kinds)
    return s.kind is first.kind and bool(
        _op_by_row(s, kinds)
        or (before and s.has_constant)
        or (before == "subtract" and _takes_bias(s))
    )


def _takes_bias(s: RowStep) -> bool:
    whole = s.kind is Kind.FULL and not s.dtype
    return s.opcode == "activation" and len(s.reads) == 1 and whole


def _pair(first: RowStep, s: RowStep, kinds: Mapping[str, Kind]) -> RowStep:
    """Two operations with one value a row, or with a constant, in one pass."""
    operands = [first.reads[0]]
    attributes: dict[str, Any] = {}
    for k, one in enumerate((first, s)):
        if one.has_constant:
            attributes |= {f"op{k}": one.attributes["op0"], f"imm{k}": one.attributes["imm0"]}
        else:
            attributes[f"op{k}"] = _op_by_row(one, kinds)
            operands.append(one.reads[1])
    return step(s.name, "tensor_scalar", *operands, kind=s.kind, **attributes)


# --- sums of products ---


def with_factors(
    inputs: Sequence[Input], steps: Sequence[RowStep], stored: Collection[str]
) -> list[RowStep]:
    """Operations with one value a row done by the `tensor_tensor` that reads the result.

    Less for the Vector engine to do, but more than if the Scalar engine does the first. Of two that
    an instruction could do the later one: the other engine has done the earlier one by then.
    """
    kinds = Values(inputs, steps, ()).kinds
    phase = Order(Values(inputs, steps, ()), steps).phase
    reads = Counter(name for s in steps for name in s.reads)
    single = {s.name: s for s in steps if _op_by_row(s, kinds) or s.has_constant}
    ready = {
        s.name: s
        for s in steps
        if s.kind is Kind.FULL and _op_by_row(s, kinds)
        and s.name not in stored and reads[s.name] == 1
    }  # fmt: skip
    # One pass does these and the step before them.
    pairs = {n for n, s in ready.items() if s.reads[0] in single and reads[s.reads[0]] == 1}
    found: dict[str, tuple[RowStep, ...]] = {}
    gone: set[str] = set()
    for s in steps:
        some = [n for n in s.reads if n in ready]
        if all(n in pairs for n in some):
            continue
        first = max(some, key=phase)
        made = _scaled(ready[first], s, kinds)
        if made:
            found[s.name] = made
            gone.add(first)
    return [made for s in steps if s.name not in gone for made in found.get(s.name, (s,))]


def _scaled(first: RowStep, s: RowStep, kinds: Mapping[str, Kind]) -> tuple[RowStep, ...]:
    """`(x op0 c) op1 other`, and -c where that is subtracted; () where no instruction does both."""
    full = s.opcode == "tensor_tensor" and s.kind is Kind.FULL and not s.dtype
    if not full or not s.on_vector:
        return ()
    x, c = first.reads
    before, after = _op_by_row(first, kinds), str(s.attributes["op"])
    (other,) = (name for name in s.reads if name != first.name)
    if kinds[other] not in (Kind.FULL, Kind.ROW):
        return ()
    if s.reads[0] == first.name or after in COMMUTATIVE:
        return (step(s.name, "scalar_tensor_tensor", x, c, other, op0=before, op1=after),)
    if (before, after) != ("multiply", "subtract"):
        return ()
    factor = f"{s.name} factor"
    return (
        step(factor, "tensor_scalar", c, kind=Kind.COLUMN, op0="multiply", imm0=-1.0),
        step(s.name, "scalar_tensor_tensor", x, factor, other, op0=before, op1="add"),
    )


def bias_of(s: RowStep) -> str:
    """The name of the step that makes the bias of an activation put together here."""
    return f"{s.name} bias"


def _with_bias(s: RowStep, first: RowStep) -> Iterator[RowStep]:
    """f(scale * (x - c)) as f(scale * x + b): b is -scale * c."""
    x, c = first.reads
    scale, bias = float(s.attributes.get("scale", 1.0)), bias_of(s)
    yield step(bias, "tensor_scalar", c, kind=Kind.COLUMN, op0="multiply", imm0=-scale)
    yield step(s.name, "activation", x, bias, engine=s.engine, **s.attributes)
