"""Sums and products of 16-bit tensors that stay in 16 bits between the steps of a row program.

The Vector engine adds and multiplies 16-bit tiles in SBUF at twice the rate of others [guide].
Inferred: where operands, result and all that reads it are such sums and products, the graph's
format is kept, as in the vendor's kernels; what activations read or make is float32, as times of
measured graphs show (out14 to out17 of benchmarks/data).

Source: [guide] Neuron SDK, nki/guides/architecture (performance modes)
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from .values import JOINED, Input, Kind, RowStep

__all__ = ["SHORT", "kept_short"]

SHORT = frozenset(("bfloat16", "float16"))
_SIMPLE = frozenset(("add", "subtract", "multiply"))


def kept_short(
    inputs: Sequence[Input],
    steps: Sequence[RowStep],
    stored: Collection[str],
    dtypes: Mapping[str, str],
) -> list[RowStep]:
    """The steps, with results of `dtypes` where nothing needs more.

    dtypes  16-bit formats that values have in the graph
    """
    held = {i.name: i.dtype for i in inputs if i.kind is Kind.FULL and i.dtype in SHORT}
    readers: dict[str, list[RowStep]] = {}
    for s in steps:
        for name in s.reads:
            readers.setdefault(name, []).append(s)
    found = []
    for s in steps:
        dtype = dtypes.get(s.name, "")
        reads = readers.get(s.name, [])
        keeps = dtype and _is_simple(s) and all(held.get(r) == dtype for r in s.reads)
        if keeps and all(map(_is_simple, reads)) and (reads or s.name in stored):
            held[s.name] = dtype
            found.append(replace(s, dtype=dtype))
        else:
            found.append(s)
    return found


def _is_simple(s: RowStep) -> bool:
    if s.opcode == JOINED:
        return not s.dtype
    plain = s.opcode == "tensor_tensor" and s.kind is Kind.FULL and not s.dtype
    return plain and s.on_vector and s.attributes["op"] in _SIMPLE
