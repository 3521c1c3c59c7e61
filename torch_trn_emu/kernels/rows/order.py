"""When the steps of a program over rows run: phases, between which rows are reduced."""

from collections.abc import Iterator, Sequence
from math import inf

from .values import Kind, RowStep, Values

__all__ = ["Order"]


class Order:
    """Inputs, steps and outputs by name. `steps` may differ from those of `values`."""

    def __init__(self, values: Values, steps: Sequence[RowStep]) -> None:
        self.inputs = {i.name: i for i in values.inputs}
        self.steps = {s.name: s for s in steps}
        self.outputs = {o.name: o for o in values.outputs}
        self._phases: dict[str, int] = {}

    def of(self, kind: Kind) -> Iterator[str]:
        yield from (i.name for i in self.inputs.values() if i.kind is kind)
        yield from (s.name for s in self.steps.values() if s.kind is kind)

    def phase(self, name: str) -> int:
        """How many reductions over whole rows come before a value can be used."""
        if name in self.inputs:
            return 0
        if name not in self._phases:
            s = self.steps[name]
            before = max((self.phase(r) for r in s.reads), default=0)
            self._phases[name] = before + s.reduces
        return self._phases[name]

    def needed(self, names: Sequence[str]) -> list[str]:
        """The FULL values that `names` are made of, in order, and inputs to load."""
        wanted: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in wanted or (name in self.steps and self.steps[name].kind is Kind.COLUMN):
                continue
            wanted.add(name)
            if name in self.steps:
                pending += self.steps[name].reads
        return [n for n in (*self.inputs, *self.steps) if n in wanted]

    @property
    def reads_once(self) -> bool:
        """Whether rows are reduced, and nothing of them is used after."""
        reduces = any(s.reduces for s in self.steps.values())
        full = [s for s in self.steps.values() if s.kind is not Kind.COLUMN or s.reduces]
        return reduces and all(self.phase(r) == 0 for s in full for r in s.reads)

    def _when(self) -> dict[str, tuple[float, float]]:
        """When each step over rows runs if a row is not cut: (phase, place in it)."""
        ends = {
            s.name: self.phase(s.name) - s.reduces
            for s in self.steps.values()
            if s.reduces or s.kind is Kind.ROW or (s.kind is Kind.FULL and s.name in self.outputs)
        }
        number = {name: k for k, name in enumerate(self.steps)}
        when: dict[str, tuple[float, float]] = {}
        for phase in sorted(set(ends.values())):
            now = [e for e, at in ends.items() if at == phase]
            for name in self.needed([r for e in now for r in (e, *self.steps[e].reads)]):
                if name in number:
                    when.setdefault(name, (phase, number[name]))
            when |= {e: (phase, inf) for e in now if self.steps[e].reduces}
        return when

    def shared(self, *, inputs: bool = False) -> dict[str, str]:
        """Steps that overwrite a value which they are the last to read, and whose tile that is.

        inputs  also values that were loaded: the next tile of rows is then loaded later
        """
        when = self._when()
        last: dict[str, tuple[float, float]] = {}
        for name, at in when.items():
            for read in self.steps[name].reads:
                last[read] = max(last.get(read, at), at)
        places: dict[str, str] = {}
        for name in sorted(when, key=lambda n: when[n]):
            if self.steps[name].kind is not Kind.FULL or name in self.outputs:
                continue
            for read in self.steps[name].aligned:
                ends = last[read] == when[name]
                alike = self._tile_of(read, inputs) == (Kind.FULL, self.steps[name].dtype)
                if alike and ends and read not in self.outputs:
                    places[name] = places.get(read, read)
                    break
        return places

    def _tile_of(self, name: str, inputs: bool) -> tuple[Kind, str] | None:
        """How a value lies in SBUF, and its dtype, "" for float32; None where it may not change."""
        if name in self.steps:
            return self.steps[name].kind, self.steps[name].dtype
        given = self.inputs[name]
        return (given.kind, "" if given.dtype == "float32" else given.dtype) if inputs else None
