"""The Tensor engine: a systolic array that holds `stationary` and streams `moving` through it.

Sources
  [isa]    Neuron SDK v2.26.1, nki.isa.nc_matmul and nc_transpose (cost formulas)
  [guide]  Neuron SDK, nki/guides/architecture (rates, LoadStationary, double_row, MX)
  [golden] Neuron SDK, nki/deep-dives/src/mxfp-matmul (nc_matmul_mx)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..formats import MX_FORMATS
from ..isa import Instruction
from .behaviour import Behaviour
from .lazy_numpy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ROWS", "passes_of", "stationary_load_cycles", "x4_of"]


def x4_of(i: Instruction) -> int:
    """Contraction elements each partition holds for one row of the array: 4 for MX."""
    if i.opcode == "nc_matmul_mx":
        return 4
    return 2 if i.attributes.get("perf_mode") == "double_row" else 1


def passes_of(i: Instruction, chip: Chip) -> float:
    """How often the moving tensor streams through: 4 times for float32. [isa]

    A part of once where the array multiplies an MX format at more than the rate of trn3.
    """
    rates = chip.tensor_engine.macs_per_pe_cycle
    if i.opcode == "nc_matmul_mx":
        return x4_of(i) / min(rates[_mx_of(a.buffer.dtype, rates)] for a in i.reads[:2])
    rate = rates.get(i.reads[0].buffer.dtype, 1)
    return 1 / rate if rate < 1 else 1.0


def _mx_of(element: str, rates: Mapping[str, float]) -> str:
    """The MX format of the array whose elements they are; MXFP8 takes those of either kind."""
    for row in MX_FORMATS.values():
        if row.element.name == element and row.name in rates:
            return row.name
    return "mxfp8"


def stationary_load_cycles(i: Instruction, chip: Chip) -> float:
    """Cycles of LoadStationary that the multiply before does not hide. [guide]

    load="background" hides all of it, as hand-written kernels manage; otherwise the share that
    the vendor compiler's code leaves exposed.
    """
    if i.attributes.get("load") == "background":
        return 0.0
    te = chip.tensor_engine
    columns = i.reads[0].free / x4_of(i) if i.opcode != "nc_transpose" else i.reads[0].free
    load = columns / te.stationary_columns_per_cycle * passes_of(i, chip)
    return load * te.exposed_stationary_load


def _matmul_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] max(min(64, N_stationary), N_moving), x4 for float32
    stationary, moving = (a.free / x4_of(i) for a in i.reads[:2])
    floor = min(chip.tensor_engine.min_interval_cycles, stationary)
    passes = passes_of(i, chip)
    streamed = max(floor * max(1.0, passes), moving * passes)
    return streamed + stationary_load_cycles(i, chip)


def _accumulated(i: Instruction, product: "Array", old: "Array", written: "Array") -> "Array":
    accumulate = i.attributes.get("accumulate", "auto")
    if accumulate == "auto":  # overwrite what was not written since the tile is fresh
        return np.where(written, old + product, product)
    return old + product if accumulate else product


def _matmul(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # Products of 16-bit or narrower operands are exact in float32; so is the sum's type [guide].
    stationary, moving = (r.reshape(r.shape[0] * x4_of(i), -1) for r in reads[:2])
    product = (stationary.T @ moving).astype(np.float32)
    return [_accumulated(i, product.reshape(old.shape), old, reads[-1])]


def _matmul_mx(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # [golden] unpack, scale, multiply and add in float32. Tiles [P, N, 4], scales [P / 8, N].
    scaled = []
    for data, scale in zip(reads[:2], reads[2:4], strict=True):
        packed = data.reshape(data.shape[0], -1, 4)
        scales = np.repeat(scale.reshape(scale.shape[0], -1), 8, axis=0)[..., None]
        scaled.append((packed * scales).astype(np.float32))
    product = np.einsum("pmj,pnj->mn", *scaled).astype(np.float32)
    return [_accumulated(i, product.reshape(old.shape), old, reads[-1])]


def _transpose_cycles(i: Instruction, chip: Chip) -> float:
    data = i.reads[0]
    if i.engine.value == "vector":  # [isa] max(MIN_II, N)
        return max(chip.vector_engine.min_interval_cycles, data.free)
    # [isa] max(P, min(64, F)): the moving tensor is the identity. A transpose in the background
    # runs beside another one or a product [guide].
    te, cycles = chip.tensor_engine, max(data.partitions, min(64, data.free))
    passes = te.float32_transpose_passes if data.buffer.dtype == "float32" else 1.0
    return cycles * passes / te.transposes_at_once


def _transpose(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data = reads[0].reshape(reads[0].shape[0], -1)
    return [data.T.reshape(old.shape)]


ROWS = (
    Behaviour("nc_matmul", _matmul_cycles, _matmul, accumulates=True),
    # rate [guide], formula inferred
    Behaviour("nc_matmul_mx", _matmul_cycles, _matmul_mx, accumulates=True),
    Behaviour("nc_transpose", _transpose_cycles, _transpose),
)
