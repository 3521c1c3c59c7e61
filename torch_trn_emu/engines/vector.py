"""The Vector engine and what it shares with the Scalar and GpSimd engines.

Sources
  [isa]    Neuron SDK v2.26.1, nki.isa pages (cost formulas, N elements per partition)
  [guide]  Neuron SDK, nki/guides/architecture (perf modes, widths)
  [isa4]   Neuron SDK 2.32, nki.isa pages of the NC-v4 instructions
Where a page prints no formula the row says `inferred`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..chip import Chip
from ..formats import FORMATS
from ..isa import Engine, Instruction, Memory
from .arithmetic import ALU, REDUCTIONS
from .behaviour import Behaviour, contiguous_in_sbuf, elementwise_engine, interval
from .lazy_numpy import np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ROWS", "alu", "elements", "performance_mode"]


def elements(i: Instruction) -> int:
    """N: the longest operand's elements per partition."""
    return max(a.free for a in (*i.reads, *i.writes))


def alu(op: str, a: "Array", b: "Array", engine: Engine = Engine.VECTOR) -> "Array":
    """An ALU operation; comparisons give 1 and 0.

    The Vector and Scalar engines compute in float32, integers too; GpSimd has integers. Bitwise
    operations leave the bits alone everywhere. [guide]
    """
    if engine is not Engine.GPSIMD and not op.startswith(("bitwise", "left_", "right_")):
        a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    value = np.asarray(ALU[op](a, b))
    return value.astype(np.float32) if value.dtype == np.bool_ else value


def _n(factor: float = 1.0) -> Callable[[Instruction, Chip], float]:
    """[isa] max(MIN_II, factor x N)"""
    return lambda i, chip: interval(i, chip, factor * elements(i))


def _speed(i: Instruction, chip: Chip) -> float:
    """Elements per lane and cycle of a copy-like instruction. [guide] perf modes

    Full speed when input and output are contiguous in SBUF in a fast format; half of it when
    strided or one side is PSUM; one element otherwise.
    """
    fast = elementwise_engine(i.engine, chip).fast_elements_per_lane_cycle
    tensors = (i.reads[0], *i.writes) if i.reads else i.writes
    speed = min(fast.get(a.buffer.dtype, 1) for a in tensors)
    return speed if contiguous_in_sbuf(tensors) else max(1, speed // 2)


def _copy_cycles(i: Instruction, chip: Chip) -> float:
    return interval(i, chip, elements(i) / _speed(i, chip))


def _copy(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    return [reads[0].reshape(old.shape)]


def _scalar_operand(i: Instruction, reads: "Sequence[Array]", which: int) -> "Array":
    immediate = i.attributes.get(f"imm{which}")
    if immediate is not None:
        return np.asarray(immediate)
    position = 1 if which == 0 or "imm0" in i.attributes else 2
    operand = reads[position]  # [P, 1]
    return operand.reshape(operand.shape[0], 1)


def _tensor_scalar(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    value = reads[0].reshape(reads[0].shape[0], -1)
    for which in (0, 1):
        op = i.attributes.get(f"op{which}")
        if op is not None:
            operand = _scalar_operand(i, reads, which)
            reverse = i.attributes.get(f"reverse{which}")
            a, b = (operand, value) if reverse else (value, operand)
            value = alu(str(op), a, b, i.engine)
    return [value.reshape(old.shape)]


def _short_in_sbuf(i: Instruction) -> bool:
    tensors = (*i.reads, *i.writes)
    short = all(a.buffer.dtype in ("bfloat16", "float16") for a in tensors)
    simple = i.attributes["op"] in ("add", "subtract", "multiply")
    return short and simple and contiguous_in_sbuf(tensors)


def _tensor_tensor_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] N with exactly one input in PSUM, or all bfloat16 add, subtract, multiply contiguous
    # in SBUF; else 2 N. GpSimd: one pass.
    n = elements(i)
    if i.engine is Engine.GPSIMD:
        return interval(i, chip, n)
    in_psum = sum(a.buffer.memory is Memory.PSUM for a in i.reads)
    return interval(i, chip, n if in_psum == 1 or _short_in_sbuf(i) else 2 * n)


def performance_mode(i: Instruction, chip: Chip) -> int:
    """4, 2 or 1: how many times its base rate the Vector engine runs `i` at. [guide] perf modes"""
    if i.engine is not Engine.VECTOR or chip.nc_version < 3:
        return 1
    if i.opcode in ("tensor_copy", "tensor_scalar"):
        return int(_speed(i, chip))
    return 2 if i.opcode == "tensor_tensor" and _short_in_sbuf(i) else 1


def _tensor_tensor(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    a, b = (r.reshape(r.shape[0], -1) for r in reads)
    return [alu(str(i.attributes["op"]), a, b, i.engine).reshape(old.shape)]


def _scalar_tensor_tensor_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] N if both bfloat16, subtract then multiply, N even; else 2 N
    n, ops = elements(i), (i.attributes["op0"], i.attributes["op1"])
    short = all(a.buffer.dtype == "bfloat16" for a in i.reads)
    fast = short and ops == ("subtract", "multiply") and n % 2 == 0
    return interval(i, chip, n if fast else 2 * n)


def _scalar_tensor_tensor(
    i: Instruction, reads: "Sequence[Array]", old: "Array"
) -> "Sequence[Array]":
    data, *rest = (r.reshape(r.shape[0], -1) for r in reads)
    scalar, tensor = rest if len(rest) > 1 else (np.asarray(i.attributes["imm0"]), rest[0])
    inner = alu(str(i.attributes["op0"]), data, scalar)
    return [alu(str(i.attributes["op1"]), inner, tensor).reshape(old.shape)]


def _reduce_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] N / 2 if bfloat16 in and out and add or max; else N
    short = all(a.buffer.dtype == "bfloat16" for a in (*i.reads, *i.writes))
    fast = short and i.attributes["op"] in ("add", "max") and chip.nc_version > 2
    return interval(i, chip, elements(i) / (2 if fast else 1))


def _reduce(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # Reduces the innermost dimensions that the destination does not have.
    kept = int(np.prod(old.shape[1:], dtype=int))
    data = reads[0].reshape(reads[0].shape[0], kept, -1)
    result = np.asarray(REDUCTIONS[str(i.attributes["op"])](data)).reshape(old.shape)
    return [-result if i.attributes.get("negate") else result]


def _tensor_scalar_reduce_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] max(MIN_II, N) + MIN_II
    return interval(i, chip, elements(i)) + chip.vector_engine.min_interval_cycles


def _tensor_scalar_reduce(
    i: Instruction, reads: "Sequence[Array]", old: "Array"
) -> "Sequence[Array]":
    (value,) = _tensor_scalar(i, reads, old)
    flat = value.reshape(value.shape[0], -1)
    return [value, np.asarray(REDUCTIONS[str(i.attributes["op"])](flat))[:, None]]


def _scan(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    a, b = (r.reshape(r.shape[0], -1) for r in reads[:2])
    state = reads[2].reshape(-1) if len(reads) > 2 else np.zeros(a.shape[0], dtype=np.float32)
    out = np.empty_like(a)
    for k in range(a.shape[1]):
        state = alu(str(i.attributes["op0"]), a[:, k], state)
        state = alu(str(i.attributes["op1"]), state, b[:, k])
        out[:, k] = state
    return [out.reshape(old.shape)]


def _select_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] tensor_copy_predicated: N if data and predicate are in different memories, else 2 N
    memories = {a.buffer.memory for a in i.reads}
    return interval(i, chip, elements(i) * (1 if len(memories) > 1 else 2))


def _select(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    predicate, a, b = (np.broadcast_to(r.reshape(r.shape[0], -1), _flat(old)) for r in reads)
    return [np.where(predicate != 0, a, b).reshape(old.shape)]


def _flat(old: "Array") -> tuple[int, int]:
    return old.shape[0], int(np.prod(old.shape[1:], dtype=int))


def _range_select(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data, low, high = (r.reshape(r.shape[0], -1) for r in reads)
    position = np.arange(data.shape[1])
    inside = (position >= low) & (position < high)
    return [np.where(inside, data, i.attributes["on_false"]).reshape(old.shape)]


def _bn_stats(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # [isa] (count, mean, variance x count) of the even, then of the odd elements
    data = reads[0].reshape(reads[0].shape[0], -1)
    columns = []
    for half in (data[:, 0::2], data[:, 1::2]):
        count = half.shape[1]
        mean = half.mean(axis=1) if count else np.zeros(data.shape[0], np.float32)
        spread = ((half - mean[:, None]) ** 2).sum(axis=1)
        columns += [np.full(data.shape[0], count, np.float32), mean, spread]
    return [np.stack(columns, axis=1).astype(np.float32).reshape(old.shape)]


def _bn_aggr(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    groups = reads[0].reshape(reads[0].shape[0], -1, 3)
    count, mean, spread = (groups[:, :, k] for k in range(3))
    total = count.sum(axis=1)
    overall = (count * mean).sum(axis=1) / total
    variance = (spread + count * (mean - overall[:, None]) ** 2).sum(axis=1) / total
    return [np.stack([overall, variance], axis=1).astype(np.float32).reshape(old.shape)]


def _reciprocal_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] 8 N on the Vector engine, N on the Scalar engine
    return interval(i, chip, elements(i) * (8 if i.engine is Engine.VECTOR else 1))


def _reciprocal(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    return [(np.float32(1) / reads[0]).reshape(old.shape)]


def _exponential_cycles(i: Instruction, chip: Chip) -> float:
    # Documented for no format in particular. Inferred: the data path takes 256 elements a cycle of
    # float32, two a lane; the sum costs what it costs tensor_scalar_reduce.
    engine = chip.vector_engine
    widths = (
        engine.fast_elements_per_lane_cycle.get(a.buffer.dtype, 2)
        for a in (i.reads[0], i.writes[0])
    )
    rate = min(engine.exponential_per_lane_cycle, *widths)
    total = engine.min_interval_cycles * (len(i.writes) > 1)
    return interval(i, chip, elements(i) / rate) + total


def _exponential(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data = reads[0].reshape(reads[0].shape[0], -1)
    shift = reads[1].reshape(reads[1].shape[0], 1) if len(reads) > 1 else np.float32(0)
    value = np.exp((data - shift).astype(np.float64)).astype(np.float32)
    total = value.sum(axis=1, dtype=np.float32, keepdims=True)
    return [value.reshape(old.shape), total][: len(i.writes)]


def _quantize_mx_cycles(i: Instruction, chip: Chip) -> float:
    return interval(i, chip, i.reads[0].free / 4)  # [isa4] 4 input elements per lane and cycle


def _quantize_mx(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    """Groups of 8 partitions x 4 neighbours. data [P, N, 4] -> elements [P, N, 4], [P / 8, N]"""
    from ..formats.mx import MxFormat, dequantize_mx, quantize_mx

    p, n = reads[0].shape[0], int(np.prod(reads[0].shape[1:])) // 4
    blocks = reads[0].reshape(p // 8, 8, n, 4).transpose(0, 2, 1, 3).reshape(p // 8, n, 32)
    format = MxFormat(name="mx", element=FORMATS[i.writes[0].buffer.dtype])
    codes, scales = quantize_mx(blocks, format, str(i.attributes.get("rule", "trn3")))
    values = dequantize_mx(codes, np.full_like(scales, 127), format)
    values = values.reshape(p // 8, n, 8, 4).transpose(0, 2, 1, 3)
    scale = np.where(scales == 255, np.nan, np.ldexp(1.0, scales.astype(int) - 127))
    return [values.reshape(old.shape), scale.reshape(p // 8, n)]


def _memset_cycles(i: Instruction, chip: Chip) -> float:
    # [isa] N / 2 if the value is 0 and the type has 16 bits; else N
    fast = i.attributes["value"] == 0 and i.writes[0].buffer.dtype in ("bfloat16", "float16")
    return interval(i, chip, elements(i) / (2 if fast else 1))


def _memset(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    value = i.attributes["value"]
    assert isinstance(value, (int, float))
    return [np.full(old.shape, value)]


def _dropout(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # The random numbers are an operand, so that a run can be repeated.
    data, random = (r.reshape(r.shape[0], -1) for r in reads)
    threshold = i.attributes["threshold"]
    assert isinstance(threshold, (int, float))
    return [np.where(random >= threshold, data, 0).reshape(old.shape)]


def _rng_cycles(i: Instruction, chip: Chip) -> float:
    # [guide] on NC-v4; inferred before it, one number a lane and cycle
    engine = elementwise_engine(i.engine, chip)
    return interval(i, chip, elements(i) / engine.random_per_lane_cycle)


def _rng(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # The chip's XORWOW states are not public; chosen: the murmur finalizer of seed and position.
    first = int(str(i.attributes["seed"])) * 0x9E3779B9 + int(reads[0])
    x = (np.arange(old.size, dtype=np.uint64) + np.uint64(first)) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    return [x.astype(np.int64).reshape(old.shape)]


def _max8(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    data = reads[0].reshape(reads[0].shape[0], -1)
    return [-np.sort(-data, axis=1)[:, :8].reshape(old.shape)]


def _places(data: "Array", values: "Array", order: range) -> "Array":
    """Where each of the eight values is first, those taken before it in `order` left out."""
    free, found = np.ones(data.shape, dtype=bool), np.zeros(values.shape, dtype=int)
    for k in order:
        found[:, k] = (free & (data == values[:, k : k + 1])).argmax(axis=1)
        np.put_along_axis(free, found[:, k : k + 1], False, axis=1)
    return found


def _find_index8(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # Equal values get their places in ascending order. [isa4]
    data, values = (r.reshape(r.shape[0], -1) for r in reads)
    return [_places(data, values, range(8)).reshape(old.shape)]


def _match_replace8(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    # Equal values get their places in descending order. [isa4]
    data, values = (r.reshape(r.shape[0], -1) for r in reads)
    found, replaced = _places(data, values, range(7, -1, -1)), data.copy()
    np.put_along_axis(replaced, found, np.float32(str(i.attributes["imm"])), axis=1)
    return [replaced.reshape(old.shape), found]


def _shuffle(i: Instruction, reads: "Sequence[Array]", old: "Array") -> "Sequence[Array]":
    mask = i.attributes["mask"]  # source partition inside the quadrant of 32
    assert isinstance(mask, tuple)
    p = np.arange(old.shape[0])
    return [reads[0][p // 32 * 32 + np.asarray(mask)[p % 32]].reshape(old.shape)]


ROWS = (
    Behaviour("tensor_copy", _copy_cycles, _copy),  # [isa], [guide] perf modes
    Behaviour("tensor_scalar", _copy_cycles, _tensor_scalar),  # one or two ops alike [isa]
    Behaviour("tensor_tensor", _tensor_tensor_cycles, _tensor_tensor),
    Behaviour("scalar_tensor_tensor", _scalar_tensor_tensor_cycles, _scalar_tensor_tensor),
    Behaviour("tensor_reduce", _reduce_cycles, _reduce),
    Behaviour("tensor_scalar_reduce", _tensor_scalar_reduce_cycles, _tensor_scalar_reduce),
    Behaviour("tensor_tensor_scan", _n(2), _scan),  # [isa]
    Behaviour("select", _select_cycles, _select),
    Behaviour("range_select", _n(), _range_select),  # [isa]
    Behaviour("bn_stats", _n(), _bn_stats),  # [isa]
    Behaviour("bn_aggr", _n(13 / 3), _bn_aggr),  # [isa]
    Behaviour("reciprocal", _reciprocal_cycles, _reciprocal),
    Behaviour("exponential", _exponential_cycles, _exponential),
    Behaviour("quantize_mx", _quantize_mx_cycles, _quantize_mx),
    Behaviour("memset", _memset_cycles, _memset),
    Behaviour("dropout", _n(), _dropout),  # [isa]
    Behaviour("rng", _rng_cycles, _rng, draws=True),
    Behaviour("max8", _n(), _max8),  # [isa]
    Behaviour("nc_find_index8", _n(), _find_index8),  # [isa]
    Behaviour("nc_match_replace8", _n(), _match_replace8),  # [isa], which prints min for max
    Behaviour("nc_stream_shuffle", _n(), _shuffle),  # [isa]
)
