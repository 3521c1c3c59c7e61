"""The Scalar engine: `function(data * scale + bias)`, one element per lane and cycle.

Source: [isa] Neuron SDK v2.26.1, nki.isa.activation and activation_reduce.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..isa import Instruction
from .arithmetic import ACTIVATIONS
from .behaviour import Behaviour, interval
from .lazy_numpy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ROWS", "table_of"]


def table_of(i: Instruction) -> str:
    """The activation table the instruction needs, "" for none."""
    return ACTIVATIONS[str(i.attributes["op"])].table if "op" in i.attributes else ""


def _cycles(i: Instruction, chip: Chip) -> float:
    return interval(i, chip, i.reads[0].free)  # [isa] scale, bias and function are free


def _reduce_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] an extra read of the accumulator
    return _cycles(i, chip) + chip.scalar_engine.min_interval_cycles


def _activation(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data = reads[0].reshape(reads[0].shape[0], -1)
    scale = np.float32(str(i.attributes.get("scale", 1.0)))
    argument = data * scale
    if len(reads) > 1:  # adding a bias of 0 would lose the sign of a zero
        argument = argument + reads[1].reshape(reads[1].shape[0], -1)
    argument = argument.astype(np.float32).astype(np.float64)
    value = ACTIVATIONS[str(i.attributes["op"])].function(argument)
    return [value.astype(np.float32).reshape(old.shape)]


def _activation_reduce(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    (value,) = _activation(i, reads, old)
    flat = value.reshape(value.shape[0], -1)
    return [value, flat.sum(axis=1, dtype=np.float32, keepdims=True)]


ROWS = (
    Behaviour("activation", _cycles, _activation),
    Behaviour("activation_reduce", _reduce_cycles, _activation_reduce),
)
