"""The DMA engines: 16 a core, fed through queues. A transfer is cut into descriptors, one for each
contiguous run, which are dealt to the engines; each engine then writes a semaphore.

Sources
  [dma]  Neuron SDK, nki/deep-dives/nki-dma-overview and nki-dma-bandwidth-guide
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..isa import Access, Instruction, Memory, itemsize
from .behaviour import Behaviour
from .lazy_numpy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ROWS", "Transfer", "accessed_bytes", "transfer"]

PACKET_BYTES = 4096  # [dma] default packetisation
BURST_BYTES = 64  # chosen: the least HBM moves for a run
SCATTERS = ("dma_scatter", "dma_scatter_add")
TRANSPOSE_SHARE = {Memory.HBM: 0.9, Memory.SBUF: 0.5, Memory.PSUM: 0.5}  # [dma] of the copy rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a DMA asks of the hardware."""

    engines: int  # how many of the core's DMA engines take part
    engine_s: float  # how long each is busy
    hbm_s: float  # how long HBM is busy at the bandwidth of the cores that share it
    hbm_read_bytes: int
    hbm_write_bytes: int


_NOTHING = Transfer(engines=0, engine_s=0.0, hbm_s=0.0, hbm_read_bytes=0, hbm_write_bytes=0)


def transfer(i: Instruction, chip: Chip, cores: int = 1) -> Transfer:
    """The demands of a DMA instruction when `cores` cores of the chip run the same program."""
    if i.left_out:
        return _NOTHING
    source, to = i.reads[0], i.writes[0]
    run, runs = _runs(i, source, to)
    engines = max(1, min(chip.dma.engines, runs))
    rate: float = chip.dma.engine_bytes_per_s
    if i.opcode == "dma_transpose":
        rate *= TRANSPOSE_SHARE[source.memory]
    wider = max(itemsize(source.buffer.dtype), itemsize(to.buffer.dtype))  # inferred, of a cast
    descriptor_s = max(run * wider / rate, chip.dma.descriptor_min_s)
    read, write = _hbm_bytes(source, run, runs), _hbm_bytes(to, run, runs)
    if i.opcode == "dma_scatter_add":
        read += write
    sharers = min(cores, chip.physical_cores // chip.hbm.stacks)
    bandwidth = chip.hbm.bandwidth_bytes_per_s / chip.hbm.stacks / sharers
    hbm_s = (read / chip.hbm.read_efficiency + write / chip.hbm.write_efficiency) / bandwidth
    # Inferred: the engines, which limit loads and stores, read and write no more than a core's
    # share of HBM, with the others idle.
    both = read + write if read and write else 0.0
    share_s = both / chip.hbm_bytes_per_s_per_core() / cores
    return Transfer(
        engines=engines,
        engine_s=ceil(runs / engines) * descriptor_s + chip.dma.completion_write_s,
        hbm_s=max(hbm_s, share_s),
        hbm_read_bytes=accessed_bytes(i, source) if source.memory is Memory.HBM else 0,
        hbm_write_bytes=accessed_bytes(i, to) if to.memory is Memory.HBM else 0,
    )


def accessed_bytes(i: Instruction, a: Access) -> int:
    """Bytes an instruction touches through an access: of an indexed tensor the chosen rows."""
    if i.opcode == "dma_gather" and a is i.reads[0]:
        return i.writes[0].nbytes
    if i.opcode in SCATTERS and a is i.writes[0]:
        return i.reads[0].nbytes
    return a.nbytes


def _runs(i: Instruction, source: Access, to: Access) -> tuple[int, int]:
    """Elements of one contiguous run, and how many there are."""
    total = to.elements
    if i.opcode == "dma_transpose":  # [dma] done in blocks on the way, not element by element
        run = min(source.run_elements, to.partitions)
    elif i.opcode == "dma_gather":
        run = min(to.run_elements, source.free)
    elif i.opcode in SCATTERS:
        run, total = min(source.run_elements, to.free), source.elements
    elif source.buffer.memory is to.buffer.memory is Memory.HBM:
        run = min(_flat_run(source), _flat_run(to))
        run = min(run, max(1, int(PACKET_BYTES / itemsize(to.buffer.dtype))))
    else:
        run = min(source.run_elements, to.run_elements)
    return run, max(1, ceil(total / run))


def _flat_run(a: Access) -> int:
    """Elements of the longest run across partitions too: in HBM they are not apart."""
    run = 1
    for stride, count in reversed(a.pattern):
        if stride != run and count > 1:
            break
        run *= count
    return run


def _hbm_bytes(a: Access, run: int, runs: int) -> float:
    if a.memory is not Memory.HBM:
        return 0.0
    run_bytes = run * itemsize(a.buffer.dtype)
    return runs * max(run_bytes, BURST_BYTES) * (a.distinct_bytes / max(1, a.nbytes))


def _none(i: Instruction, chip: Chip) -> float:
    return 0.0


def _copy(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    return [reads[0].reshape(old.shape)]


def _transpose(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # [F, lanes x P] -> [P, lanes, F]
    lanes = reads[0].reshape(reads[0].shape[0], -1, old.shape[0])
    return [lanes.transpose(2, 1, 0).reshape(old.shape)]


# An indexed tensor is rows of its free dimensions; an index takes one, and a partition may have
# several indices.


def _gather(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    return [reads[0][reads[1].reshape(-1).astype(int)].reshape(old.shape)]


def _scatter(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    result, index = old.copy(), reads[1].reshape(-1).astype(int)
    rows = reads[0].reshape(index.size, *old.shape[1:])
    if i.opcode == "dma_scatter_add":
        np.add.at(result, index, rows)
    else:
        result[index] = rows
    return [result]


ROWS = (
    Behaviour("dma_copy", _none, _copy),
    Behaviour("dma_transpose", _none, _transpose),
    Behaviour("dma_gather", _none, _gather),
    Behaviour("dma_scatter", _none, _scatter),
    Behaviour("dma_scatter_add", _none, _scatter),
    Behaviour("core_barrier", lambda i, chip: 64.0, lambda i, reads, old: []),  # chosen
)
