"""The distinct elements of a tensor: in order, those that differ from the one before are chosen.

How often each occurs is the distance of the chosen; which of them an element is, is how many were
chosen up to it, put where the element was before sorting. On one core.
"""

from math import ceil

from ..calls import Call, Target, TensorArg
from ..calls.labels import constant, labelled, made, relabelled
from ..chip import Chip
from ..isa import Affine, Builder, Program, Role
from ..kernels.entries import Indexed, Term, scatter_entries
from ..kernels.limits import WIDE, P
from ..kernels.runs import run_of, runs
from .masked_select import Masked, choose, coordinates, past_end
from .op import Lowered
from .scans import cumulate_run
from .sorting import flat_sort

__all__ = ["distinct"]


def neighbours(
    name: str, count: int, op: str, dtype: str, out_dtype: str, *, first: float | None = None,
    last: float | None = None,
) -> Program:  # fmt: skip
    """out[i + 1] = in[i + 1] op in[i], after out[0] = `first`; or out[i] the same, before
    out[count - 1] = `last` op in[count - 1].
    """
    b = Builder(f"{name} of {count}")
    source = b.hbm("in", (count,), dtype, Role.INPUT)
    out = b.hbm("out", (count,), out_dtype, Role.OUTPUT)
    shift, q = int(first is not None), max(1, min(WIDE // 2, ceil((count - 1) / P)))
    tiles = [b.sbuf(n, q, d, slots=2) for n, d in (("one", dtype), ("next", dtype),
                                                   ("made", out_dtype))]  # fmt: skip
    for at, rows, wide in runs(b, count - 1, q):
        b.fresh(*tiles)
        one, following, done = (t.rows(rows, wide) for t in tiles)
        b.load(one, run_of(source, at, rows, wide, q))
        b.load(following, run_of(source, at + 1, rows, wide, q))
        b.emit("tensor_tensor", done, following, one, op=op)
        b.store(run_of(out, at + shift, rows, wide, q), done)
    b.fresh(*tiles)
    edge, done = tiles[0].rows(1, 1), tiles[2].rows(1, 1)
    if first is not None:
        b.emit("memset", done, value=first)
    else:
        b.load(edge, run_of(source, Affine(count - 1), 1, 1, 1))
        b.emit("tensor_scalar", done, edge, op0=op, imm0=float(last or 0), reverse0=True)
    b.store(run_of(out, Affine(0 if shift else count - 1), 1, 1, 1), done)
    return b.build()


def distinct(call: Call, target: Target) -> Lowered:
    """_unique2, which sorts first, and unique_consecutive."""
    x, kept, chip = call.tensors[0], call.out.numel, target.chip
    sorts = call.name == "_unique2"
    if not sorts and call.argument(3) is not None:
        raise KeyError("unique_consecutive along a dimension")
    inverse, counts = (call.argument(k, False) is True for k in ((2, 3) if sorts else (1, 2)))
    n = x.numel
    values, order = made("in order", (n,), x.torch_dtype), made("order", (n,), "int32")
    ordered = relabelled(flat_sort(call, target), {"values": values, "index": order})
    values = values if sorts else x
    changes, first = made("changes", (n,), "bool"), made("first", (kept,), "int32")
    flags = neighbours("changes", n, "not_equal", x.dtype, "bool", first=1.0)
    chosen = choose(Masked(count=n, entry=1, kept=kept, dtype=x.dtype))
    nothing = {"out": constant(0.0, (1,), x.torch_dtype)}
    programs = [
        *(ordered if sorts else ()),
        labelled(flags, {"in": values, "out": changes}),
        labelled(chosen, {"in": values, "mask": changes, "out": past_end(call.out)},
                 before=nothing),
    ]  # fmt: skip
    if inverse:
        programs += _ranks(call, changes, order if sorts else None, chip)
    if counts:
        places = Masked(count=n, entry=1, kept=kept, dtype="int32")
        found = coordinates(places, (n,))
        nothing = {"out": constant(0.0, (1,), "int32")}
        programs.append(labelled(found, {"mask": changes, "out": past_end(first)}, before=nothing))
        gaps = neighbours("gaps", kept, "subtract", "int32", "int32", last=n)
        programs.append(labelled(gaps, {"in": first, "out": _result(call, 2)}))
    return tuple(programs)


def _result(call: Call, k: int) -> TensorArg | None:
    return call.outputs[k] if len(call.outputs) > k else None


def _ranks(call: Call, changes: TensorArg, order: TensorArg | None, chip: Chip) -> list[Program]:
    """How many flags are set before and at each element, less one, where it was."""
    n, out = changes.numel, _result(call, 1)
    ranks = made("ranks", (n,), "int32") if order is not None else out
    sums = cumulate_run(n, chip=chip, dtype="bool", out_dtype="int32", start=-1.0)
    programs = [labelled(sums, {"in": changes, "out": ranks})]
    if order is not None:
        spec = Indexed(entries=n, entry=1, count=n, terms=(Term(size=n),))
        put = scatter_entries(spec, dtype="int32", adds=False)
        before = {"out": constant(0.0, (1,), "int32")}  # written whole, in an order that is data
        programs.append(labelled(put, {"in": ranks, "index": order, "out": out}, before=before))
    return programs
