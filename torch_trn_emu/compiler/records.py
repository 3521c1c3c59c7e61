"""What the compiler did: a row for each graph, and what runs eagerly instead, with the reason."""

import warnings
from dataclasses import dataclass
from threading import Lock

__all__ = [
    "CompileFallbackWarning",
    "GraphRecord",
    "UnpricedGraphWarning",
    "fall_back",
    "note",
    "note_once",
    "report",
    "reset",
    "warn_unknown",
    "warn_unpriced",
]


class CompileFallbackWarning(UserWarning):
    """A part of a compiled program runs eagerly."""


class UnpricedGraphWarning(UserWarning):
    """A compiled graph or an operator of a library runs, and its time is not modelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """One graph, or one place where there is none.

    kind    forward, backward, inference or break
    status  compiled, eager or note
    reason  why it is not compiled, or what the compiled graph does otherwise; else empty
    fused   producers that round their own result as an operand: `options={"fuse_producers": True}`
    """

    name: str
    kind: str
    status: str
    nodes: int = 0
    reason: str = ""
    fused: int = 0


_lock = Lock()
_records: list[GraphRecord] = []
_said: set[str] = set()


def note(record: GraphRecord) -> None:
    with _lock:
        _records.append(record)


def _is_new(reason: str) -> bool:
    with _lock:
        known = reason in _said
        _said.add(reason)
    return not known


def note_once(reason: str) -> bool:
    """Record something that holds for all graphs. Whether it was new."""
    if new := _is_new(reason):
        note(GraphRecord(name="all graphs", kind="note", status="note", reason=reason))
    return new


def fall_back(name: str, kind: str, nodes: int, reason: str) -> None:
    """Record that a graph runs eagerly, and say so the first time its reason comes up."""
    note(GraphRecord(name=name, kind=kind, status="eager", nodes=nodes, reason=reason))
    if _is_new(reason):
        warnings.warn(
            f"torch.compile(backend='trn'): {name} runs eagerly on trn: {reason}. "
            'options={"strict": True} makes this an error; '
            "torch_trn_emu.compiler.report() lists all such parts.",
            CompileFallbackWarning,
            stacklevel=2,
        )


def warn_unpriced(name: str, reason: str) -> None:
    """Record that a graph has no engine program, and say so the first time its reason comes up."""
    text = f"no engine program: {reason}"
    note(GraphRecord(name=name, kind="program", status="note", reason=text))
    _warn_once(text, f"torch.compile(backend='trn'): {name} has no engine program: {reason}.")


def warn_unknown(op: str) -> None:
    """Say the first time that an operator of a library has no kernel whose launches tell."""
    _warn_once(f"unknown: {op}", f"{op} has no kernel for trn, and no price: the host runs it.")


def _warn_once(reason: str, text: str) -> None:
    if _is_new(reason):
        warnings.warn(
            f"{text} Its time is that of copying its tensors to the host and back: op_report() "
            "has it as not modelled.",
            UnpricedGraphWarning,
            stacklevel=3,
        )


def report() -> list[GraphRecord]:
    """All graphs since the start or `reset`, in order; then the graph breaks of Dynamo."""
    with _lock:
        rows = list(_records)
    return rows + _breaks()


def _breaks() -> list[GraphRecord]:
    from ..torch_private.dynamo import counters

    return [
        GraphRecord(name="break", kind="break", status="eager", nodes=count, reason=reason)
        for reason, count in sorted(counters["graph_break"].items())
    ]


def reset() -> None:
    """Forget all rows; reasons are said anew. Dynamo keeps its counts of breaks."""
    with _lock:
        _records.clear()
        _said.clear()
