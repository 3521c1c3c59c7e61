"""The GpSimd engine: eight small processors for what the other engines cannot do.

Sources
  [isa]     Neuron SDK v2.26.1, nki.isa pages; topk: SDK 2.32
  [nkilib]  nki-library, chunked top-k: ceil(rows / 8) x ceil(width / 16)
Where no formula is printed the row says `inferred`.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..isa import Instruction, itemsize
from .arithmetic import REDUCTIONS
from .behaviour import Behaviour, interval
from .lazy_numpy import np
from .vector import elements

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ROWS"]


def _n(i: Instruction, chip: Chip) -> float:
    return interval(i, chip, elements(i))  # [isa] 150 + N


def _pattern(i: Instruction, shape: tuple[int, ...]) -> "Array":
    """Base + channel x partition + step x position"""
    channel, step, base = (int(str(i.attributes.get(k, 0))) for k in ("channel", "step", "base"))
    free = int(np.prod(shape[1:], dtype=int))
    return base + channel * np.arange(shape[0])[:, None] + step * np.arange(free)


def _iota(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    return [_pattern(i, old.shape).reshape(old.shape)]


def _affine_select(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    keep = _pattern(i, old.shape).reshape(old.shape) >= 0
    return [np.where(keep, reads[0].reshape(old.shape), i.attributes["on_false"])]


def _local_gather_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] 150 + (n e) / C with C = ((28 + t e) / (t e)) / min(4 / dtype_size, e), t = 4.
    # e is the number of elements an index takes: 1 here.
    t, e = 4, 1
    c = ((28 + t * e) / (t * e)) / min(4 / itemsize(i.reads[0].buffer.dtype), e)
    return interval(i, chip, i.reads[1].free * e / c)


def _local_gather(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # On the chip 16 partitions share indices; here each partition brings its own.
    data, index = (r.reshape(r.shape[0], -1) for r in reads)
    return [np.take_along_axis(data, index.astype(int), axis=1).reshape(old.shape)]


def _n_gather_cycles(i: Instruction, chip: Chip) -> float:
    # Inferred: an index serves one partition where that of local_gather serves 16, and 512 go
    # together [isa].
    groups = ceil(i.reads[1].free / 512)
    shared = _local_gather_cycles(i, chip) - chip.gpsimd_engine.min_interval_cycles
    return groups * chip.gpsimd_engine.min_interval_cycles + 16 * shared


def _topk_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] 4 n + K. Inferred: n counts the elements of a partition, as a group's 16 partitions are
    # lanes of one processor; 4 cycles for each element of a group would exceed the published time
    # of a whole kernel (mm07 of measured_models.csv) and what [nkilib] says of its cost.
    return interval(i, chip, 4 * i.reads[0].free + float(str(i.attributes["k"])))


def _topk(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # Element s of a group of 16 partitions lies in partition s % 16, column s // 16; results too.
    # [isa] The order of the results is that of the instruction's page, of equal ones the last.
    data, k = reads[0].reshape(reads[0].shape[0] // 16, 16, -1), int(str(i.attributes["k"]))
    groups = data.transpose(0, 2, 1).reshape(data.shape[0], -1)
    order = np.argsort(groups, axis=1, kind="stable")[:, groups.shape[1] - k :]  # ascending
    found = np.take_along_axis(groups, order, axis=1)

    def spread(x: "Array") -> "Array":
        return np.asarray(x.reshape(x.shape[0], k // 16, 16).transpose(0, 2, 1).reshape(old.shape))

    return [spread(found), spread(order)]


def _partition_reduce(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data = np.moveaxis(reads[0], 0, -1)
    return [np.asarray(REDUCTIONS[str(i.attributes["op"])](data)).reshape(old.shape)]


def _partition_reduce_cycles(i: Instruction, chip: Chip) -> float:
    # Inferred: a processor of 16 lanes walks its partitions, then the eight results are combined.
    return interval(i, chip, elements(i) * (i.reads[0].partitions / 16 + 8))


ROWS = (
    Behaviour("iota", _n, _iota),
    Behaviour("affine_select", _n, _affine_select),
    Behaviour("local_gather", _local_gather_cycles, _local_gather),
    Behaviour("nc_n_gather", _n_gather_cycles, _local_gather),
    Behaviour("topk", _topk_cycles, _topk),
    Behaviour("tensor_partition_reduce", _partition_reduce_cycles, _partition_reduce),
)
