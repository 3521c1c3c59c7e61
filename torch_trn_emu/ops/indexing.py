"""Rows of gathers and scatters: which entries of which table a call's indices mean.

A reader describes a call as `indexing.Indexed`. What it cannot describe raises KeyError, and the
call is priced by its class.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ..calls import Call, Target, TensorArg
from ..calls.labels import expanded, labelled
from ..isa import Program
from ..kernels.entries import (
    Indexed,
    Term,
    gather_entries,
    pick_in_rows,
    picks_in_sbuf,
    scatter_entries,
)
from ..kernels.limits import P
from .copies import copied
from .masked_select import put_masked, select_masked
from .op import Lowered, Lowering, around, broadcast_shape

__all__ = [
    "along",
    "at_elements",
    "at_flat",
    "at_tensors",
    "counted",
    "embedding_gradient",
    "gathered",
    "rows_of_weights",
    "scattered",
    "unmasked",
]

PICKED = 1024  # elements of each row, for as many rows, that are picked row by row (chosen)
Reader = Callable[[Call], Indexed]
BY_TENSORS = frozenset("index _unsafe_index index_put _index_put_impl _unsafe_index_put".split())


def _repeated_rows(
    lead: int, size: int, entry: int, count: int, terms: tuple[Term, ...]
) -> Indexed:
    """The same indices in each of `lead` parts: parts on partitions if the indices are few, or pick
    single elements of a row.
    """
    whole: dict[str, Any] = {"entries": lead * size, "entry": entry, "count": count, "terms": terms}
    if lead > 1 and (count < P or (entry == 1 and count <= PICKED * lead)):
        return Indexed(rows=lead, row_step=size, **whole)
    return Indexed(lead=lead, lead_step=size, **whole)


def rows_of_weights(call: Call) -> Indexed:
    """Embedding: whole rows of a matrix."""
    table, index = call.tensors[:2]
    size, entry = table.shape
    return Indexed(entries=size, entry=entry, count=index.numel, terms=(Term(size=size),))


def along(call: Call) -> Indexed:
    """index_select and its kin: a list of indices along dimension `argument(1)`."""
    table, index = call.tensors[:2]
    lead, size, entry = around(table, call.argument(1, 0))
    return _repeated_rows(lead, size, entry, index.numel, (Term(size=size),))


def at_flat(call: Call) -> Indexed:
    """Take and put: elements of the flattened table."""
    table, index = call.tensors[:2]
    term = Term(size=table.numel, wraps=True)
    return Indexed(entries=table.numel, entry=1, count=index.numel, terms=(term,))


def at_elements(call: Call) -> Indexed:
    """Gather and scatter: an index for each element, or, where they repeat, for each run."""
    table, index = call.tensors[0], call.tensors[1]
    dim = call.argument(1, 0) % max(1, len(table.shape))
    others = [n for k, n in enumerate(index.shape) if k != dim]
    if others != [n for k, n in enumerate(table.shape) if k != dim]:
        raise KeyError(f"{call.name} of a part of the table")
    lead, size, inner = around(table, dim)
    count, term = (index.shape[dim] if index.shape else 1), Term(size=size)
    whole: dict[str, Any] = {"entries": lead * size, "lead_step": size, "lead": lead}
    after = zip(index.shape[dim + 1 :], index.strides[dim + 1 :], strict=True)
    if inner > 1 and all(step == 0 for n, step in after if n > 1):  # expanded
        return Indexed(entry=inner, count=count, terms=(term,), places=(count, 0, 1), **whole)
    if inner == 1:
        return Indexed(
            entries=lead * size, entry=1, rows=lead, row_step=size, count=count, terms=(term,),
            places=(0, count, 1),
        )  # fmt: skip
    whole |= {"entries": lead * size * inner, "lead_step": size * inner}
    return Indexed(
        entry=1, rows=count, count=inner, column_step=1, terms=(Term(size=size, step=inner),),
        places=(count * inner, inner, 1), **whole,
    )  # fmt: skip


def at_tensors(call: Call) -> Indexed:
    """Index and index_put: tensors of indices for dimensions next to each other."""
    table, given = call.tensors[0], call.argument(1, ())
    dims = [k for k, t in enumerate(given) if isinstance(t, TensorArg)]
    if not dims or dims != list(range(dims[0], dims[-1] + 1)):
        raise KeyError(f"{call.name} by dimensions that are apart")
    tensors = [given[k] for k in dims]
    if any("int" not in t.dtype for t in tensors):
        raise KeyError(f"{call.name} by a mask")
    sizes = table.shape[dims[0] : dims[-1] + 1]
    terms = tuple(Term(size=n, step=prod(sizes[k + 1 :]), wraps=True) for k, n in enumerate(sizes))
    lead, entry = prod(table.shape[: dims[0]]), prod(table.shape[dims[-1] + 1 :])
    return _repeated_rows(lead, prod(sizes), entry, prod(broadcast_shape(*tensors)), terms)


def _by_mask(call: Call) -> bool:
    """Whether one mask of the leading dimensions chooses."""
    given = call.argument(1, ())
    return call.name in BY_TENSORS and bool(given) and all(
        t is None if k else isinstance(t, TensorArg) and t.dtype in ("bool", "uint8")
        for k, t in enumerate(given)
    )  # fmt: skip


def gathered(read: Reader) -> Lowering:
    """Entries picked from the first tensor."""

    def lower(call: Call, target: Target) -> Lowered:
        table = call.tensors[0]
        if _by_mask(call):
            return select_masked(call, target)
        spec = read(call)
        dtype, cores = table.dtype, target.cores
        plain = spec.entry == spec.lead == len(spec.terms) == 1 and not spec.terms[0].wraps
        plain = plain and spec.terms[0].step == 1 and not spec.column_step
        columns = spec.terms[0].size
        if plain and spec.rows > 1 and picks_in_sbuf(columns, spec.count, dtype, target.chip):
            shared = spec.places[1] == 0
            sizes = spec.rows, columns, spec.count
            program = pick_in_rows(*sizes, shared=shared, dtype=dtype, cores=cores)
            return (labelled(program, {"table": table, "out": call.out, **_indices(call, spec)}),)
        held = {"table": table, "out": call.out, **_indices(call, spec)}
        spec = spec.in_runs().spread(dtype, target.chip, cores)
        return _shared(gather_entries(spec, dtype=dtype, cores=cores), spec, held)

    return lower


def scattered(read: Reader, source_at: int, *, adds: bool | None = None) -> Lowering:
    """Argument `source_at` put or added by index into a copy of the table, or in place.

    adds  whether it is added; None: the call says so
    """

    def lower(call: Call, target: Target) -> Lowered:
        table, out = call.tensors[0], call.out
        source = call.argument(source_at)
        if _by_mask(call):
            return put_masked(call, target)
        if not call.tensors[1].numel:
            return ()
        spec = read(call).in_runs()
        copies = _copied_first(call, table, target)
        program = scatter_entries(
            spec,
            dtype=out.dtype,
            cores=target.cores,
            adds=_adds(call) if adds is None else adds,
            scale=float(call.argument(4, 1)) if call.name == "index_add" else 1.0,
            repeated=_one_for_all(call, source, spec),
            value=None if isinstance(source, TensorArg) else float(source),
        )
        held = {"out": out, **_indices(call, spec)}
        if isinstance(source, TensorArg):
            held["in"] = source
        puts = not (_adds(call) if adds is None else adds)
        first = out if copies else table
        return (*copies, *_shared(program, spec, held, first, puts=puts))

    return lower


def _indices(call: Call, spec: Indexed) -> dict[str, TensorArg]:
    """The call's tensors of indices by the names of buffers; what repeats is there once."""
    given = [a for a in call.arguments if isinstance(a, tuple) and a and call.name in BY_TENSORS]
    if given:
        tensors = [t for t in given[0] if isinstance(t, TensorArg)]
        shape = broadcast_shape(*tensors)
        tensors = [t if t.shape == shape else expanded(t, shape) for t in tensors]
    else:
        tensors = [t for t in call.tensors[1:] if "int" in t.dtype][:1]
        tensors = [_once(t, spec) for t in tensors]
    return {f"index {k}" if k else "index": t for k, t in enumerate(tensors)}


def _once(t: TensorArg, spec: Indexed) -> TensorArg:
    """Indices without the dimensions along which they repeat, where the program has so many."""
    if t.numel == spec.indices:
        return t
    kept = [(n, s) for n, s in zip(t.shape, t.strides, strict=True) if s or n == 1]
    shape, strides = tuple(n for n, _ in kept), tuple(s for _, s in kept)
    views = tuple(replace(v, shape=shape, strides=strides) for v in t.views)
    return replace(t, shape=shape, strides=strides, views=views)


def _shared(
    program: Program, spec: Indexed, held: Mapping[str, TensorArg], before: TensorArg | None = None,
    *, puts: bool = False,
) -> Lowered:  # fmt: skip
    """With labels. A core has a part of the longest of what is looped over (`Indexed.shared`): its
    numbers count from where its part of the table begins.

    before  what the table of a scatter holds at first
    puts    entries are put, of which the last core must not have some that are none
    """
    size, at = int(getattr(spec, spec.longest)), ("lead", "rows", "count").index(spec.longest)
    part = -(-size // program.cores)
    if program.cores > 1 and puts and size % program.cores:
        return (program,)
    moves = (spec.lead_step, spec.row_step, spec.column_step)[at]
    outer = (1, spec.lead, spec.lead * spec.rows)[at]
    steps = dict.fromkeys(("table", "out"), part * moves * spec.entry)
    if before is None:  # of a gather, entries that lie one after the other
        steps.pop("out")
    for name in held:
        if name.startswith("index"):
            steps[name] = part * spec.places[at]
    rest = {"in": outer} | ({"out": outer} if before is None else {})
    first = {"out": before} if before is not None else {}
    if program.cores == 1:
        return (labelled(program, held, before=first),)
    return (labelled(program, held, before=first, outer=rest, steps=steps),)


def _adds(call: Call) -> bool:
    """By `accumulate`, or by the name of a reduction."""
    if not call.name.startswith("scatter"):
        return call.argument(3) is True
    named = [a for a in call.arguments[3:] if isinstance(a, str)]
    partly = call.name == "scatter_reduce" and call.argument(5, True) is False
    if partly or any(n not in ("sum", "add") for n in named):
        raise KeyError(f"{call.name} by {named[0]}")
    return bool(named)


def _one_for_all(call: Call, source: Any, spec: Indexed) -> bool:
    """Whether all entries get one element of a tensor."""
    if not isinstance(source, TensorArg):
        return False
    whole = spec.moved * spec.entry
    if call.name.startswith("scatter") and source.numel != whole:
        raise KeyError(f"{call.name} of a part of the source")
    return source.numel == 1 < whole


def _copied_first(call: Call, table: TensorArg, target: Target) -> tuple[Any, ...]:
    in_place = call.op.split("::")[-1].split(".")[0].endswith("_")
    return () if in_place else copied(table, call.out, target)


def counted(call: Call, target: Target) -> Lowered:
    """Bincount: ones, or weights, added into zeros by number."""
    index, out = call.tensors[0], call.out
    weighted = len(call.tensors) > 1
    term = Term(size=out.numel)
    spec = Indexed(entries=out.numel, entry=1, count=index.numel, terms=(term,))
    held = {"index": index, "out": out, "in": call.tensors[-1]}
    return _summed(spec, call, target, held, value=None if weighted else 1.0)


def _summed(
    spec: Indexed, call: Call, target: Target, held: Mapping[str, TensorArg],
    value: float | None = None,
) -> Lowered:  # fmt: skip
    """Entries added into zeros; of several cores, each clears its part of the table, adds to all.

    value  what is added for all, instead of "in"
    """
    program = scatter_entries(
        spec, adds=True, zeroed=True, value=value, dtype=call.out.dtype, cores=target.cores
    )
    return (program,) if program.cores > 1 else (labelled(program, held),)


def embedding_gradient(call: Call, target: Target) -> Lowered:
    """Rows of the gradient added into zeros."""
    grad, index = call.tensors[:2]
    out = call.out
    size, entry = out.shape
    spec = Indexed(entries=size, entry=entry, count=index.numel, terms=(Term(size=size),))
    plain = call.argument(3, -1) < 0 and not call.argument(4, False)  # else the price alone
    return _summed(spec, call, target, {"index": index, "in": grad, "out": out} if plain else {})


def unmasked(op: str, lower: Lowering, *flags: Any) -> Lowering:
    """`op` of a call without its mask, argument 1, which says what counts as 0 or is filled."""

    def lowered(call: Call, target: Target) -> Lowered:
        x, _, indices, *rest = call.arguments
        plain = Call(op, (x, indices, *rest, *flags), call.results, call.policy)
        return lower(plain, target)

    return lowered
