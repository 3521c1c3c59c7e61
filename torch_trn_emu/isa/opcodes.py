"""The instructions, under the names of `nki.isa`: one row each. Add one here and in `engines/`.

Source: Neuron SDK 2.32, nki/api/nki/isa (operands, engines, limits). `select` stands for
`tensor_copy_predicated` with both sides given.
"""

from dataclasses import dataclass
from types import MappingProxyType

from .program import Engine

__all__ = ["OPCODES", "Opcode"]

_ENGINES = {
    "T": Engine.TENSOR,
    "V": Engine.VECTOR,
    "S": Engine.SCALAR,
    "G": Engine.GPSIMD,
    "D": Engine.DMA,
    "Y": Engine.SYNC,
}


@dataclass(frozen=True, slots=True)
class Opcode:
    """What an instruction reads (a trailing `?` marks an optional operand) and who can run it.

    It writes `writes` tiles, or `most_writes`.
    """

    name: str
    engines: tuple[Engine, ...]
    reads: tuple[str, ...]
    attributes: tuple[str, ...]
    since: int  # NeuronCore version
    writes: int
    most_writes: int

    @property
    def required_reads(self) -> int:
        return sum(not name.endswith("?") for name in self.reads)


def _row(
    name: str,
    engines: str,
    reads: str,
    attributes: str = "",
    since: int = 2,
    writes: int = 1,
    most_writes: int = 0,
) -> Opcode:
    return Opcode(
        name=name,
        engines=tuple(_ENGINES[letter] for letter in engines),
        reads=tuple(reads.split()),
        attributes=tuple(attributes.split()),
        since=since,
        writes=writes,
        most_writes=most_writes or writes,
    )


_TABLE = (
    #    name                       engines  reads, attributes
    _row("nc_matmul",               "T",   "stationary moving", "accumulate perf_mode load"),
    _row("nc_matmul_mx",            "T",   "stationary moving stationary_scale moving_scale",
                                           "accumulate load", since=4),
    _row("nc_transpose",            "TV",  "data"),
    _row("activation",              "S",   "data bias?", "op scale"),
    _row("activation_reduce",       "S",   "data bias?", "op scale", writes=2),
    _row("exponential",             "V",   "data max?", since=4, most_writes=2),  # and the sum
    _row("quantize_mx",             "V",   "data", "rule", since=4, writes=2),
    _row("tensor_tensor",           "VG",  "data1 data2", "op"),
    _row("tensor_scalar",           "VSG", "data operand0? operand1?",
                                           "op0 op1 imm0 imm1 reverse0 reverse1"),
    _row("scalar_tensor_tensor",    "V",   "data operand0 operand1?", "op0 op1 imm0"),
    _row("tensor_reduce",           "V",   "data", "op negate"),
    _row("tensor_scalar_reduce",    "V",   "data operand0?", "op0 imm0 op", writes=2),
    _row("tensor_partition_reduce", "G",   "data", "op"),
    _row("tensor_copy",             "VSG", "data"),
    _row("tensor_tensor_scan",      "V",   "data1 data2 initial?", "op0 op1"),
    _row("select",                  "V",   "predicate on_true on_false"),
    _row("range_select",            "V",   "data bound0 bound1", "on_false", since=3),
    _row("affine_select",           "G",   "data", "channel step base on_false"),
    _row("bn_stats",                "V",   "data"),
    _row("bn_aggr",                 "V",   "data"),
    _row("reciprocal",              "VS",  "data"),
    _row("iota",                    "G",   "", "channel step base"),
    _row("dropout",                 "V",   "data random", "threshold"),
    _row("rng",                     "VG",  "", "seed"),
    _row("max8",                    "V",   "data"),
    _row("nc_find_index8",          "V",   "data values"),
    _row("nc_match_replace8",       "V",   "data values", "imm", writes=2),
    _row("nc_stream_shuffle",       "V",   "data", "mask"),
    _row("local_gather",            "G",   "data index"),
    _row("nc_n_gather",             "G",   "data index"),
    _row("topk",                    "G",   "data", "k", writes=2),
    _row("memset",                  "VG",  "", "value"),
    _row("dma_copy",                "D",   "data"),
    _row("dma_transpose",           "D",   "data"),
    _row("dma_gather",              "D",   "data index"),
    _row("dma_scatter",             "D",   "data index"),
    _row("dma_scatter_add",         "D",   "data index"),
    _row("core_barrier",            "Y",   "", since=3, writes=0),
)  # fmt: skip

OPCODES = MappingProxyType({row.name: row for row in _TABLE})
