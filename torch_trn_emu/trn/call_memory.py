"""A call's tensors as its programs read and write them, by the labels of HBM buffers alone.

No operator is known here. Each core of a program runs on its share: of a buffer that holds less
than its label, the elements after those of the cores before; what the last core lacks is 0.
Checked on torch 2.13.0.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..calls import DTYPES
from ..isa import Buffer, Label, Memory, Program, Role, Source, Split, View

if TYPE_CHECKING:
    from ..engines.machine import Machine

__all__ = ["CallMemory", "Mismatch", "is_labelled"]

_INPUTS = (Role.INPUT, Role.WEIGHT)
_DOUBLE = frozenset(("float64", "complex64", "complex128", "sparse"))


class Mismatch(Exception):
    """A tensor that a program's buffer does not hold as it is."""


def is_labelled(programs: Sequence[Program], results: Collection[int]) -> bool:
    """Whether the machine can be fed, and makes the first of some results."""
    hbm = [(p, b) for p in programs for b in p.buffers if b.memory is Memory.HBM]
    fed = all(b.name in p.labels for p, b in hbm if b.role in _INPUTS)
    written = {v.source for p, b in hbm if b.role is Role.OUTPUT and b.name in p.labels
               for v in p.labels[b.name].views}  # fmt: skip
    return fed and (not results or ("result", min(results)) in written)


@dataclass(slots=True)
class _Region:
    """A tensor's memory on the host, and what of it programs have written."""

    values: Tensor
    written: Tensor


@dataclass(slots=True)
class CallMemory:
    """Memory by the source of its views; `arguments` and results come first, values follow."""

    regions: dict[Source, _Region] = field(default_factory=dict)

    def hold(self, source: Source, t: Tensor) -> None:
        """A copy of a tensor's memory, from its first element to its last."""
        span = _span(t.shape, t.stride())
        values = t.detach().as_strided((span,), (1,)).cpu().clone()
        self.regions[source] = _Region(values, torch.zeros(span, dtype=torch.bool))

    def written(self, source: Source, t: Tensor) -> Tensor | None:
        """A tensor's new elements on the host; None if no program wrote it, or not all of it."""
        region = self.regions.get(source)
        if region is None or not t.numel():
            return None
        if not bool(region.written.as_strided(t.shape, t.stride()).all()):
            return None
        return region.values.as_strided(t.shape, t.stride())

    def run(self, program: Program, machine: "Machine", drawn: int = 0) -> None:
        """A program on each of its cores, whose generators are far from each other.

        drawn  where that of the first core is
        """
        for core in range(program.cores):
            feeds = {}
            for b in program.buffers:
                label = program.labels.get(b.name)
                if label is None or b.memory is not Memory.HBM:
                    continue
                if b.role in _INPUTS:
                    feeds[b.name] = self._fed(b, label, label.views, core)
                elif label.before:
                    goes_on = core and (label.step or b.elements >= label.elements)
                    held = label.views if goes_on else label.before
                    feeds[b.name] = self._fed(b, label, held, core)
            made = machine.run(program, feeds, drawn + core * 2**30)
            for b in program.buffers:
                if b.role is Role.OUTPUT and b.name in made and b.name in program.labels:
                    self._put(b, program.labels[b.name], torch.from_numpy(made[b.name]), core)

    def _fed(self, b: Buffer, label: Label, views: Sequence[View], core: int) -> Any:
        parts = [self._read(v).reshape(-1) for v in views]
        dtypes = {v.dtype for v in views}
        for dtype in dtypes:
            _check_dtype(b, dtype)
        held = parts[0] if len(parts) == 1 else torch.cat(parts)
        rest = _share(held, b, label, core)
        if rest.dtype == torch.int64 and b.dtype != "int64" and rest.numel():
            low, high = (int(x) for x in rest.aminmax())
            if low < -(2**31) or high >= 2**32:
                raise Mismatch(f"{b.name} has numbers beyond 32 bits.")
        wide = rest.float() if rest.is_floating_point() else rest
        return wide.contiguous().numpy()

    def _read(self, v: View) -> Tensor:
        if v.source[0] == "constant":
            return torch.full(v.shape, float(v.source[1]), dtype=getattr(torch, v.dtype))
        region = self.regions.get(v.source)
        if region is None or region.values.numel() < v.reach:
            raise Mismatch(f"no program has made {v.source}.")
        return region.values.as_strided(v.shape, v.strides, v.offset)

    def _put(self, b: Buffer, label: Label, values: Tensor, core: int) -> None:
        """One core's part of a buffer into the memory that the label names."""
        for v in label.views:
            _check_dtype(b, v.dtype)
        whole = torch.arange(label.elements)
        share = _share(whole, b, label, core, fill=-1)
        keep = share >= 0
        if label.split is not None:
            keep[_lacking(label.split, core)] = False
        at, new = share[keep], values.reshape(-1)[keep]
        start = 0
        for v in label.views:
            inside = (at >= start) & (at < start + v.elements)
            self._write(v, at[inside] - start, new[inside])
            start += v.elements

    def _write(self, v: View, at: Tensor, new: Tensor) -> None:
        """Elements `at` of a view; of those that repeat, the first counts."""
        region = self.regions.get(v.source)
        if region is None:
            values = torch.zeros(v.reach, dtype=getattr(torch, v.dtype))
            region = self.regions[v.source] = _Region(values, torch.zeros(v.reach).bool())
        places = torch.arange(region.values.numel()).as_strided(v.shape, v.strides, v.offset)
        first = torch.ones(v.shape, dtype=torch.bool)
        for d, (size, stride) in enumerate(zip(v.shape, v.strides, strict=True)):
            if size > 1 and not stride:
                first.narrow(d, 1, size - 1).fill_(False)
        chosen = first.reshape(-1)[at]
        to = places.reshape(-1)[at][chosen]
        region.values[to] = new[chosen].to(region.values.dtype)
        region.written[to] = True


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if prod(shape) else 0


def _share(held: Tensor, b: Buffer, label: Label, core: int, fill: float = 0) -> Tensor:
    """A core's elements: columns of [outer, rest], and `fill` beyond the end."""
    if label.step:
        held = held[core * label.step :][: b.elements]
        missing = torch.full((b.elements - held.numel(),), fill).to(held.dtype)
        return torch.cat([held, missing])
    if held.numel() == b.elements:
        return held
    if held.numel() < label.outer:  # one value for all
        return held.expand(b.elements)
    wide = b.elements // label.outer
    grid = held.reshape(label.outer, -1)
    mine = grid[:, core * wide : (core + 1) * wide]
    if mine.shape[1] < wide:
        missing = torch.full((label.outer, wide - mine.shape[1]), fill).to(mine.dtype)
        mine = torch.cat([mine, missing], 1)
    return mine.reshape(-1)


def _lacking(split: Split, core: int) -> Tensor:
    """Where a core's buffer has elements of which the core has none."""
    most = split.sizes[split.axis]
    has = min(max(split.whole - core * most, 0), most)
    places = torch.arange(_span(split.sizes, split.strides)).as_strided(split.sizes, split.strides)
    return places.narrow(split.axis, has, most - has).reshape(-1)


def _check_dtype(b: Buffer, dtype: str) -> None:
    """Refuse what the buffer does not hold; where torch keeps 16 bits it may have float32."""
    wide = b.dtype == "float32" and "float" in dtype
    if dtype in _DOUBLE or not (DTYPES.get(dtype) == b.dtype or wide):
        raise Mismatch(f"{dtype} is {b.dtype} in the program's {b.name}.")
