"""OPS: one row per aten operator, for all its overloads: what it becomes on the engines.

A row names the engine that does the work, the lowering, how sure we are of its price, and what it
leaves out. To add an operator, add a row (elementwise ones: a line in `elementwise.py`). What has
no row is priced by a class (`classes.py`).

Status, of the program's shape (each instruction's cost has its own source in `chip` and `engines`):
  modelled   the program computes the operator; tests run it on the machine
  inferred   a program of the right shape: values or layouts are simplified as the note says
  free       metadata only, nothing is launched
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType

from ..isa import Program, itemsize
from .attention import attention, attention_backward
from .blocking import COMPILER
from .call import Call, Target, TensorArg
from .columns import cumulate_rows, reduce_columns, scatter_rows, topk_rows
from .convolution import conv2d
from .elementwise import (
    BINARY,
    SIMPLIFIED,
    STEPS,
    TERNARY,
    UNARY,
    constant,
    drop,
    elementwise,
    lower_elementwise,
    random_bits,
    reciprocal,
    select,
)
from .epilogue import Epilogue
from .matmul import matmul
from .movement import gather_rows, transpose
from .moving import copy_runs, longest_run, turned
from .normalizing import row_op
from .pointwise import Step, activation, pointwise, tensor_scalar, tensor_tensor
from .reduction import reduce_rows

__all__ = [
    "OPS",
    "HostTransfer",
    "Op",
    "Product",
    "compute_format",
    "multiplied",
    "product_of",
]


@dataclass(frozen=True, slots=True)
class HostTransfer:
    """Bytes over the host's link; the host waits for what leaves the device."""

    nbytes: float
    blocks: bool


Lowered = tuple[Program, ...] | HostTransfer
Lowering = Callable[[Call, Target], Lowered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    name: str
    engine: str
    lower: Lowering
    status: str = "inferred"
    note: str = ""


# --- shapes --------------------------------------------------------------------------------------


def dense(shape: tuple[int, ...], torch_dtype: str) -> TensorArg:
    """A contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return TensorArg(torch_dtype, shape, tuple(reversed(strides)))


def flat(t: TensorArg, elements: int) -> TensorArg:
    return TensorArg(t.torch_dtype, (elements,), (1,))


def _rows_of(t: TensorArg, dim: int = -1) -> tuple[int, int]:
    """Rows and columns when `dim` is what a row runs over."""
    columns = t.shape[dim] if t.shape else 1
    return max(1, t.numel // max(1, columns)), max(1, columns)


# --- matrix products -----------------------------------------------------------------------------

_LINEAR = frozenset(
    "mm addmm _addmm_activation linear mv addmv dot vdot addr ger outer _scaled_mm".split()
)


def compute_format(policy: str, dtype: str, kind: str) -> str:
    """The format on the array for a policy; `kind` is linear, attention or convolution."""
    if dtype not in ("float32", "bfloat16", "float16"):
        return "float32" if dtype in ("float64",) else "bfloat16"
    if policy == "fp32":
        return dtype
    narrow = dtype if dtype != "float32" else "bfloat16"
    if kind == "linear":
        return {"mxfp8": "mxfp8", "mxfp8_all": "mxfp8", "mxfp4": "mxfp4"}.get(policy, narrow)
    if kind == "attention" and policy == "mxfp8_all":
        return "mxfp8"
    return narrow


def _compute(call: Call, target: Target, dtype: str, kind: str) -> str:
    chosen = compute_format(call.policy, dtype, kind)
    if chosen in ("mxfp8", "mxfp4"):
        # The array of a chip without MX multiplies what the MX values are exact in.
        return "mxfp8" if "mxfp8" in target.chip.tensor_engine.macs_per_pe_cycle else "bfloat16"
    return chosen


def _major(t: TensorArg, straight: str, exchanged: str) -> str:
    """The layout of a matrix by its strides."""
    return exchanged if t.shape[-1] > 1 and t.strides[-1] != 1 else straight


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product of a call: its sizes, what else `matmul` takes, and what is added."""

    sizes: tuple[int, int, int, int]  # batch, m, k, n
    options: Mapping[str, object]
    addend: TensorArg | None

    @property
    def adds_all(self) -> bool:
        """Whether what is added is as large as the result; a row is added on the way out."""
        batch, m, _, n = self.sizes
        return self.addend is not None and self.addend.numel >= batch * m * n


def product_of(call: Call, target: Target) -> Product:
    """The product that a call of the matmul family is."""
    tensors = call.tensors
    a, b = tensors[:2] if call.name == "linear" else tensors[-2:]
    kind = "linear" if call.name in _LINEAR else "attention"
    addend = tensors[0] if len(tensors) > 2 and call.name != "linear" else None
    if call.name == "linear":
        addend = tensors[2] if len(tensors) > 2 else None
        b = TensorArg(b.torch_dtype, b.shape[::-1], b.strides[::-1])
    if len(a.shape) == 1:
        a = TensorArg(a.torch_dtype, (1, *a.shape), (a.numel, *a.strides))
    if len(b.shape) == 1:
        b = TensorArg(b.torch_dtype, (*b.shape, 1), (*b.strides, 1))
    k, n = b.shape[-2:]
    if len(b.shape) == 2:
        batch, m = 1, a.numel // max(1, k)
    else:
        batch, m = prod(b.shape[:-2]), a.shape[-2]
    dtype = a.dtype if "float" in a.dtype else "float32"
    held = [x.dtype if "float" in x.dtype else "float32" for x in (a, b, call.out)]
    options = {
        "compute": _compute(call, target, dtype, kind),
        "lhs_dtype": held[0],
        "rhs_dtype": held[1],
        "out_dtype": held[2],
        "lhs_layout": _major(a, "mk", "km"),
        "rhs_layout": _major(b, "kn", "nk"),
    }
    return Product((batch, m, k, n), MappingProxyType(options), addend)


def multiplied(
    product: Product, target: Target, epilogue: Epilogue | None = None
) -> tuple[Program, ...]:
    """The product's program; none where there is nothing to multiply."""
    batch, m, k, n = product.sizes
    if not batch * m * k * n:
        return ()
    program = matmul(
        m,
        k,
        n,
        chip=target.chip,
        batch=batch,
        cores=target.cores,
        schedule=COMPILER,
        epilogue=epilogue,
        **product.options,  # type: ignore[arg-type]
    )
    return (program,)


def _matmul(call: Call, target: Target) -> Lowered:
    product = product_of(call, target)
    programs = multiplied(product, target)
    if not programs or not product.adds_all:
        return programs
    extra = _flat_steps("add", [tensor_tensor("add")], [call.out] * 2, call.out, target)
    return (*programs, extra)


def _flat_steps(
    name: str, steps: list[Step], operands: list[TensorArg], out: TensorArg, target: Target
) -> Program:
    return elementwise(name, steps, [flat(t, out.numel) for t in operands], out, target)


# --- reductions ----------------------------------------------------------------------------------


_FEW = 8  # rows that are added like so many tensors


def _reduced_dims(call: Call, t: TensorArg) -> tuple[int, ...]:
    """The dimensions reduced: named in the call, or all."""
    rank = len(t.shape)
    overload = call.op.partition(".")[2]
    if call.name == "norm" or call.name == "linalg_vector_norm":
        named = call.argument(2, ())
    elif "dim" in overload or call.name in _BY_DIM:
        named = call.argument(1, ())
    else:
        named = ()
    dims = named if isinstance(named, tuple) else (named,)
    chosen = (
        {d % rank for d in dims if isinstance(d, int) and not isinstance(d, bool)}
        if rank
        else set()
    )
    return tuple(sorted(chosen)) or tuple(range(rank))


_BY_DIM = frozenset(
    "amax amin argmax argmin logsumexp cumsum cumprod cummax _softmax _log_softmax aminmax "
    "all any median kthvalue mode var_mean std_mean".split()
)


def collapsed(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, int, int]:
    """(outer, reduced, inner) sizes; dimensions of 1 do not count, others between fold outward."""
    kept = [(n, k in dims) for k, n in enumerate(shape) if n != 1]
    reduced = prod(n for n, r in kept if r)
    inner = 1
    while kept and not kept[-1][1]:
        inner *= kept.pop()[0]
    outer = prod(n for n, r in kept if not r)
    return outer, reduced, inner


def _reduction(op: str, row_name: str = "") -> Lowering:
    """By the Vector engine along rows, by ones or partition by partition along columns."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        outer, rows, inner = collapsed(t.shape, _reduced_dims(call, t))
        options = {"chip": target.chip, "cores": target.cores}
        out = call.out.dtype
        if inner > 1 and outer == 1 and rows <= _FEW and op in ("add", "max", "multiply"):
            steps = [tensor_tensor(op, 0, 1), *(tensor_tensor(op, -1, k) for k in range(2, rows))]
            few = [flat(t, inner)] * rows
            return (_flat_steps(f"reduce_{op}", steps, few, flat(call.out, inner), target),)
        if inner > 1:
            return (
                reduce_columns(outer, rows, inner, op=op, dtype=t.dtype, out_dtype=out, **options),  # type: ignore[arg-type]
            )
        if outer == 1 and rows > 1024:  # everything: rows first, then the partitions
            first = reduce_rows(128, ceil(rows / 128), op=op, dtype=t.dtype, **options)  # type: ignore[arg-type]
            return (first, reduce_rows(1, 128, op=op, out_dtype=out, chip=target.chip))
        if row_name:
            return (row_op(row_name, outer, rows, t.dtype, **options),)  # type: ignore[arg-type]
        return (reduce_rows(outer, rows, op=op, dtype=t.dtype, out_dtype=out, **options),)  # type: ignore[arg-type]

    return lower


def _rows(name: str, which: int = 0, dim_at: int | None = None) -> Lowering:
    """An entry of ROW_OPS over dimension `dim_at` of the call, or the last one."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        dim = call.argument(dim_at, -1) if dim_at is not None else -1
        rows, columns = _rows_of(t, dim if isinstance(dim, int) else -1)
        if not t.numel:
            return ()
        return (row_op(name, rows, columns, t.dtype, chip=target.chip, cores=target.cores),)

    return lower


def _over_normalized(name: str, which: int) -> Lowering:
    """Layer and RMS norm: a row is the normalized shape."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        shape = next(
            (a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], int)),
            None,
        )
        columns = prod(shape) if shape else t.shape[-1]
        if not t.numel:
            return ()
        rows = t.numel // columns
        return (row_op(name, rows, columns, t.dtype, chip=target.chip, cores=target.cores),)

    return lower


def _over_channels(name: str, which: int) -> Lowering:
    """Batch norm: channels on partitions, everything else along the row."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        channels = t.shape[1] if len(t.shape) > 1 else 1
        if not t.numel:
            return ()
        cores = target.cores if channels >= target.cores else 1
        columns = t.numel // channels
        return (row_op(name, channels, columns, t.dtype, chip=target.chip, cores=cores),)

    return lower


def _over_groups(name: str, which: int) -> Lowering:
    """Group norm: a row is one group of one sample."""

    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[which]
        integers = [a for a in call.arguments if isinstance(a, int) and not isinstance(a, bool)]
        groups = integers[3] if len(integers) > 3 else 1  # N, C, HxW, group
        rows = max(1, t.shape[0] * groups)
        if not t.numel:
            return ()
        columns = max(1, t.numel // rows)
        return (row_op(name, rows, columns, t.dtype, chip=target.chip, cores=target.cores),)

    return lower


def _scan(op: str) -> Lowering:
    def lower(call: Call, target: Target) -> Lowered:
        t = call.tensors[0]
        if not t.numel:
            return ()
        rows, columns = _rows_of(t, call.argument(1, -1))
        cores = target.cores
        return (cumulate_rows(rows, columns, op=op, chip=target.chip, dtype=t.dtype, cores=cores),)

    return lower


def _sort(call: Call, target: Target) -> Lowered:
    t = call.tensors[0]
    integers = [a for a in call.arguments[1:] if isinstance(a, int) and not isinstance(a, bool)]
    k = integers[0] if call.name == "topk" and integers else 0
    rows, columns = _rows_of(t)
    if not t.numel:
        return ()
    count = k or columns
    return (topk_rows(rows, columns, count, chip=target.chip, dtype=t.dtype, cores=target.cores),)


# --- movement ------------------------------------------------------------------------------------


def _copy(call: Call, target: Target) -> Lowered:
    """Of one tensor to another, on the device or over the host's link."""
    tensors = call.tensors
    if call.name in ("copy", "_copy_from", "_copy_from_and_resize"):
        to, source = tensors[:2] if call.name == "copy" else tensors[1::-1]
    else:
        source, to = tensors[0], call.out
    if to.on_host != source.on_host and call.name in ("copy", "_copy_from", "_to_copy"):
        return HostTransfer(source.numel * itemsize(source.dtype), to.on_host)
    return copied(source, to, target)


def copied(source: TensorArg, to: TensorArg, target: Target) -> tuple[Program, ...]:
    """A copy with the layouts and dtypes given."""
    if not to.numel:
        return ()
    options = {"chip": target.chip, "cores": target.cores}
    if source.numel != to.numel:  # broadcast
        return (elementwise("copy", [], [source], to, target),)
    for t in (source, to):
        if (swap := turned(t)) and itemsize(t.dtype) <= 4:
            batch, rows, columns = swap
            if min(rows, columns) >= 16 and t.dtype in target.chip.tensor_engine.macs_per_pe_cycle:
                return (transpose(columns * batch, rows, dtype=t.dtype, **options),)  # type: ignore[arg-type]
    runs = longest_run(source), longest_run(to)
    if min(runs) < to.numel:
        side = "in" if runs[0] <= runs[1] else "out"
        program = copy_runs(to.numel, min(runs), source.dtype, to.dtype, strided=side, **options)  # type: ignore[arg-type]
        return (program,)
    return (elementwise("copy", [], [flat(source, to.numel)], flat(to, to.numel), target),)


def _concatenate(call: Call, target: Target) -> Lowered:
    """Every piece copied: runs are what one row of the smallest piece holds."""
    out = call.out
    if not out.numel:
        return ()
    pieces = [t for t in call.tensors if t.numel]
    dims = [a for a in call.arguments[1:] if isinstance(a, int) and not isinstance(a, bool)]
    dim = dims[0] % len(out.shape) if dims and out.shape else 0
    inner = [prod(t.shape[dim:]) for t in pieces]
    run = max(1, min(min(inner, default=1), *(longest_run(t) for t in pieces), out.numel))
    options = {"chip": target.chip, "cores": target.cores, "strided": "out"}
    return (copy_runs(out.numel, run, pieces[0].dtype, out.dtype, **options),)  # type: ignore[arg-type]


def _rearranged(call: Call, target: Target) -> Lowered:
    """Flips, rolls, repeats, pads, slices' gradients: runs of the last dimension."""
    out, source = call.out, call.tensors[0]
    run = max(1, source.shape[-1] if source.shape else 1)
    if not out.numel:
        return ()
    options = {"chip": target.chip, "cores": target.cores, "strided": "out"}
    return (copy_runs(out.numel, run, source.dtype, out.dtype, **options),)  # type: ignore[arg-type]


def _gather(call: Call, target: Target) -> Lowered:
    """Rows by index when whole rows are taken, elements otherwise."""
    table, out = call.tensors[0], call.out
    if not out.numel or not table.numel:
        return ()
    columns = 1
    if call.name in ("embedding", "index_select", "index", "_embedding_bag", "embedding_renorm"):
        columns = table.numel // max(1, table.shape[0])
        if call.name == "index":
            taken = [t for t in call.tensors[1:] if "int" in t.dtype or t.dtype == "bool"]
            columns = prod(table.shape[len(taken) :])
        if call.name == "index_select" and call.argument(1, 0) % len(table.shape):
            columns = prod(table.shape[call.argument(1, 0) % len(table.shape) + 1 :])
    columns = max(1, columns)
    count = max(1, out.numel // columns)
    program = gather_rows(
        max(1, table.numel // columns),
        columns,
        count,
        chip=target.chip,
        dtype=table.dtype,
        cores=target.cores,
    )
    return (program,)


def _scatter(source_at: int, *, copies: bool) -> Lowering:
    """Rows or elements added or put by index into a copy of the table, in place, or into zeros."""

    def lower(call: Call, target: Target) -> Lowered:
        out = call.out
        tensors = call.tensors
        source = tensors[min(source_at, len(tensors) - 1)]
        if not out.numel or not source.numel:
            return ()
        whole = call.name in ("embedding_dense_backward", "index_add", "index_copy")
        columns = out.numel // max(1, out.shape[0] if out.shape else 1) if whole else 1
        if call.name in ("index_put", "_index_put_impl", "_unsafe_index_put") and tensors[1:]:
            indices = len(call.argument(1, ()))
            columns = prod(out.shape[indices:])
        columns = max(1, min(columns, source.numel))
        count = max(1, source.numel // columns)
        functional = copies and not call.op.split("::")[-1].split(".")[0].endswith("_")
        program = scatter_rows(
            max(1, out.numel // columns),
            columns,
            count,
            chip=target.chip,
            dtype=out.dtype,
            cores=target.cores,
            zeroed=not copies,
        )
        return (*copied(tensors[0], out, target), program) if functional else (program,)

    return lower


def _nll(call: Call, target: Target) -> Lowered:
    """One element a row, then their sum."""
    x = call.tensors[0]
    rows, columns = _rows_of(x)
    if not x.numel:
        return ()
    taken = gather_rows(rows * columns, 1, rows, chip=target.chip, dtype=x.dtype)
    return (taken, reduce_rows(1, rows, op="add", chip=target.chip, out_dtype=call.out.dtype))


def _nll_backward(call: Call, target: Target) -> Lowered:
    out = call.out
    rows, _ = _rows_of(out)
    if not out.numel:
        return ()
    cores = target.cores
    program = scatter_rows(out.numel, 1, rows, chip=target.chip, dtype=out.dtype, cores=cores)
    return (program,)


# --- convolution, pooling, attention -------------------------------------------------------------


def _window(call: Call, position: int, rank: int, default: int) -> tuple[int, ...]:
    given = call.argument(position, ())
    given = given if isinstance(given, tuple) else (given,)
    return (tuple(given) or (default,)) * (rank if len(given) <= 1 else 1)


def _implicit(
    m: int, k: int, n: int, groups: int, call: Call, target: Target, **layouts: str
) -> Program:
    """A convolution as a product over channels and taps, with patches read straight from HBM."""
    dtype = call.out.dtype
    return matmul(
        m,
        k,
        n,
        chip=target.chip,
        compute=_compute(call, target, dtype, "convolution"),
        lhs_dtype=dtype,
        rhs_dtype=dtype,
        out_dtype=dtype,
        batch=groups,
        cores=target.cores,
        **layouts,  # type: ignore[arg-type]
    )


def _convolution(call: Call, target: Target) -> Lowered:
    x, w, out = call.tensors[0], call.tensors[1], call.out
    rank = len(w.shape) - 2
    transposed, groups = bool(call.argument(6, False)), int(call.argument(8, 1) or 1)
    if not out.numel or not x.numel:
        return ()
    stride, padding = _window(call, 3, rank, 1), _window(call, 4, rank, 0)
    dilation = _window(call, 5, rank, 1)
    taps = prod(w.shape[2:])
    plain = rank == 2 and groups == 1 and not transposed and set(stride) | set(dilation) == {1}
    if plain and w.shape[2] == w.shape[3] and x.shape[3] + 2 * padding[1] <= 512:
        program = conv2d(
            x.shape[0],
            x.shape[1],
            x.shape[2] + 2 * padding[0],
            x.shape[3] + 2 * padding[1],
            w.shape[0],
            w.shape[2],
            chip=target.chip,
            dtype=_compute(call, target, x.dtype, "convolution"),
            cores=target.cores,
        )
        return (program,)
    pixels = out.shape[0] * prod(out.shape[2:])
    if transposed:
        pixels = x.shape[0] * prod(x.shape[2:])
        return (_implicit(pixels, x.shape[1] // groups, w.shape[1] * taps, groups, call, target),)
    m, k = out.shape[1] // groups, w.shape[1] * taps
    return (_implicit(m, k, pixels, groups, call, target, rhs_layout="kn"),)


def _convolution_backward(call: Call, target: Target) -> Lowered:
    """The two products of the gradients, and the sum for the bias."""
    g, x, w = call.tensors[:3]
    if not g.numel or not x.numel:
        return ()
    named = call.name == "convolution_backward" and isinstance(call.argument(3), tuple)
    booleans = [a for a in call.arguments if isinstance(a, bool)]
    mask = booleans[-3:] if len(booleans) >= 3 else [True, True, True]
    last = call.arguments[-1] if call.arguments else None
    if isinstance(last, tuple) and len(last) == 3 and isinstance(last[0], bool):
        mask = list(last)
    integers = [a for a in call.arguments if isinstance(a, int) and not isinstance(a, bool)]
    groups = integers[-1] if integers and named else 1
    taps, pixels = prod(w.shape[2:]), g.shape[0] * prod(g.shape[2:])
    out_channels, in_channels = g.shape[1] // groups, x.shape[1] // groups
    programs: list[Program] = []
    if mask[0]:
        n = x.shape[0] * prod(x.shape[2:])
        k = out_channels * taps
        programs.append(_implicit(in_channels, k, n, groups, call, target))
    if mask[1]:
        layouts = {"lhs_layout": "mk", "rhs_layout": "nk"}
        depth = min(pixels, 16384)  # longer contractions add their parts
        program = _implicit(
            out_channels, depth, in_channels * taps, groups, call, target, **layouts
        )
        programs += [program] * ceil(pixels / depth)
    if mask[2]:
        channels, columns = g.shape[1], pixels
        programs.append(reduce_rows(channels, columns, op="add", chip=target.chip, dtype=g.dtype))
    return tuple(programs)


def _pool(op: str, *, backward: bool = False) -> Lowering:
    """Windows combined on the Vector engine, one pass a tap."""

    def lower(call: Call, target: Target) -> Lowered:
        x = call.tensors[1] if backward and len(call.tensors) > 1 else call.tensors[0]
        small = call.tensors[0] if backward else call.out
        if not x.numel or not small.numel:
            return ()
        if "adaptive" in call.name or (not backward and "mean" in call.name):
            taps = max(1, ceil(x.numel / small.numel))
        else:
            windows = [
                a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], int)
            ]
            taps = prod(windows[0]) if windows else max(1, ceil(x.numel / small.numel))
            taps *= taps if windows and len(windows[0]) == 1 and len(x.shape) > 3 else 1
        step = tensor_tensor(op, -1, 0)
        steps = [tensor_scalar(0, op0="multiply", imm0=1.0), *[step] * min(taps - 1, 64)]
        work = _flat_steps(call.name, steps, [small], small, target)
        whole = copied(flat(x, x.numel), flat(x, x.numel), target)
        return (work, *whole) if backward else (*whole, work)

    return lower


def _attention(call: Call, target: Target) -> Lowered:
    q, k = call.tensors[:2]
    heads, queries, dim = prod(q.shape[:-2]), *q.shape[-2:]
    if not q.numel or not k.numel:
        return ()
    program = attention(
        heads,
        queries,
        k.shape[-2],
        dim,
        chip=target.chip,
        dtype=q.dtype,
        compute=_compute(call, target, q.dtype, "attention").replace("mxfp8", "bfloat16"),
        causal=_causal(call),
        cores=target.cores if heads >= target.cores else 1,
    )
    return (program,)


def _attention_backward(call: Call, target: Target) -> Lowered:
    q, k = call.tensors[1:3]
    heads, queries, dim = prod(q.shape[:-2]), *q.shape[-2:]
    if not q.numel or not k.numel:
        return ()
    program = attention_backward(
        heads,
        queries,
        k.shape[-2],
        dim,
        chip=target.chip,
        dtype=q.dtype,
        compute=_compute(call, target, q.dtype, "attention").replace("mxfp8", "bfloat16"),
        causal=_causal(call),
        cores=target.cores if heads >= target.cores else 1,
    )
    return (program,)


def _causal(call: Call) -> bool:
    return any(a is True for a in call.arguments[:9])


# --- optimizers, lists, random -------------------------------------------------------------------

_ADAMW = [  # parameter 0, gradient 1, first moment 2, second moment 3
    tensor_scalar(0, op0="multiply", imm0=0.999),
    tensor_tensor("subtract", 1, 2),
    tensor_scalar(-1, op0="multiply", imm0=0.1),
    tensor_tensor("add", 2, -1),  # first moment
    activation("square", 1, scale=0.03),
    tensor_scalar(3, op0="multiply", imm0=0.999),
    tensor_tensor("add", -1, -2),  # second moment
    activation("sqrt", -1),
    tensor_scalar(-1, op0="add", imm0=1e-8),
    reciprocal(-1),
    tensor_tensor("multiply", -1, -7),
    tensor_scalar(-1, op0="multiply", imm0=1e-3),
    tensor_tensor("subtract", -12, -1),
]
_SGD = [  # parameter 0, gradient 1, momentum 2
    tensor_scalar(2, op0="multiply", imm0=0.9),
    tensor_tensor("add", 1, -1),
    tensor_scalar(-1, op0="multiply", imm0=1e-2),
    tensor_tensor("subtract", 0, -1),
]


def _fused(steps: list[Step], outputs: tuple[int, ...], lists: int) -> Lowering:
    """One pass over all tensors of the lists, which lie one after the other."""

    def lower(call: Call, target: Target) -> Lowered:
        groups = [
            a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], TensorArg)
        ]
        total = sum(t.numel for t in groups[0]) if groups else 0
        if not total:
            return ()
        dtypes = [g[0].dtype for g in groups[:lists]]
        dtypes += [dtypes[0]] * (lists - len(dtypes))
        program = pointwise(
            call.name,
            total,
            dtypes,
            dtypes[0],
            steps,
            chip=target.chip,
            cores=target.cores,
            outputs=outputs,
        )
        return (program,)

    return lower


def _foreach(call: Call, target: Target) -> Lowered:
    """The elementwise row of the name without `_foreach_`, over all tensors at once."""
    plain = call.name.removeprefix("_foreach_")
    groups = [
        a for a in call.arguments if isinstance(a, tuple) and a and isinstance(a[0], TensorArg)
    ]
    total = sum(t.numel for t in groups[0])
    if not total:
        return ()
    if plain in ("norm", "max"):
        return (
            reduce_rows(128, ceil(total / 128), op="add", dtype=groups[0][0].dtype,
                        chip=target.chip, cores=target.cores),
        )  # fmt: skip
    first = groups[0][0]
    operands = tuple(
        flat(g[0], total) if prod(g[0].shape) > 1 or len(g) == len(groups[0]) else g[0]
        for g in groups
    )
    others = tuple(a for a in call.arguments if not isinstance(a, tuple))
    if plain == "copy" and len(operands) > 1:
        return copied(operands[1], operands[0], target)
    single = Call(f"aten::{plain}", (*operands, *others), (flat(first, total),), call.policy)
    return lower_elementwise(single, target)


def _dropout(call: Call, target: Target) -> Lowered:
    """Random bits, the choice, the scale; the mask is stored too."""
    x = call.tensors[0]
    if not x.numel:
        return ()
    steps = [
        random_bits(),
        tensor_scalar(-1, op0="multiply", imm0=2.0**-32),
        drop(0, -1),
        tensor_scalar(-1, op0="multiply", imm0=2.0),
        tensor_scalar(-3, op0="greater", imm0=0.5),
    ]
    program = pointwise(
        "dropout",
        x.numel,
        [x.dtype],
        x.dtype,
        steps,
        chip=target.chip,
        cores=target.cores,
        outputs=(-2, -1),
    )
    return (program,)


def _item(call: Call, target: Target) -> Lowered:
    return HostTransfer(itemsize(call.tensors[0].dtype), True)


def _nothing(call: Call, target: Target) -> Lowered:
    return ()


def _masked_fill(call: Call, target: Target) -> Lowered:
    tensors = [t for t in call.tensors if t.shape or not t.on_host][:2]
    steps = [constant(0.0), select(1, -1, 0)]
    return (elementwise("masked_fill", steps, tensors, call.out, target),)


# --- the table -----------------------------------------------------------------------------------


def _table() -> list[Op]:
    rows: list[Op] = []

    def add(
        names: str, engine: str, lower: Lowering, status: str = "inferred", note: str = ""
    ) -> None:
        rows.extend(
            Op(name=n, engine=engine, lower=lower, status=status, note=note) for n in names.split()
        )

    made, bits = "modelled", "rounded once to the result's dtype"
    for recipes in (UNARY, BINARY, TERNARY):
        for name in recipes:
            if name not in ("pow_scalar", "clamp_tensor", "masked_fill"):
                exact = name not in SIMPLIFIED
                add(name, "vector", lower_elementwise, made if exact else "inferred", bits)
    add(
        " ".join(STEPS),
        "vector",
        lower_elementwise,
        "inferred",
        "made on the core, not these values",
    )

    # fmt: off
    def put(
        names: str, engine: str, lower: Lowering, status: str = "inferred", note: str = ""
    ) -> None:
        kept = set(names.split())
        rows[:] = [r for r in rows if r.name not in kept]
        add(names, engine, lower, status, note)

    put("masked_fill", "vector", _masked_fill, made)
    put("mm bmm mv dot vdot linear _scaled_mm", "tensor", _matmul, made,
        "the precision policy's operands")
    put("addmm baddbmm addmv addbmm _addmm_activation", "tensor", _matmul, "inferred",
        "a bias is added as results leave PSUM, without cost")
    put("sum", "vector", _reduction("add"), made)
    put("nansum count_nonzero", "vector", _reduction("add"), "inferred", "as the sum")
    put("mean", "vector", _reduction("add", "mean"), made)
    put("amax max", "vector", _reduction("max"), made)
    put("amin min aminmax argmax argmin median kthvalue mode", "vector", _reduction("max"),
        "inferred", "as the maximum")
    put("prod", "vector", _reduction("multiply"))
    put("all", "vector", _reduction("logical_and"))
    put("any equal", "vector", _reduction("logical_or"), "inferred", "as a reduction of the first")
    put("var std var_mean std_mean", "vector", _reduction("add", "variance"), "inferred",
        "along rows in one pass; along columns as a sum")
    put("norm linalg_vector_norm frobenius_norm", "vector", _reduction("add", "norm"), "inferred",
        "the 2-norm")
    put("logsumexp", "scalar", _rows("logsumexp", 0, 1), made)
    put("_softmax softmax _safe_softmax", "scalar", _rows("softmax", 0, 1), made)
    put("_log_softmax log_softmax", "scalar", _rows("log_softmax", 0, 1), made)
    put("_softmax_backward_data", "vector", _rows("softmax_backward", 0, 2), made)
    put("_log_softmax_backward_data", "vector", _rows("log_softmax_backward", 0, 2), made)
    put("native_layer_norm layer_norm", "vector", _over_normalized("layer_norm", 0), made)
    put("native_layer_norm_backward", "vector", _over_normalized("layer_norm_backward", 0), made)
    put("rms_norm _fused_rms_norm", "vector", _over_normalized("rms_norm", 0), made)
    put("_fused_rms_norm_backward", "vector", _over_normalized("rms_norm_backward", 0), made)
    put("native_batch_norm _native_batch_norm_legit _batch_norm_with_update batch_norm "
        "_native_batch_norm_legit_no_training _batch_norm_no_update", "vector",
        _over_channels("scaled_norm", 0), "inferred", "rows are read as if contiguous")
    put("native_batch_norm_backward batch_norm_backward", "vector",
        _over_channels("scaled_norm_backward", 0), "inferred", "rows are read as if contiguous")
    put("native_group_norm", "vector", _over_groups("plain_norm", 0), "inferred",
        "without the channels' weights")
    put("native_group_norm_backward", "vector", _over_groups("scaled_norm_backward", 0),
        "inferred", "weights as one a row")
    put("cumsum", "vector", _scan("add"), made)
    put("logcumsumexp", "vector", _scan("add"), "inferred", "as cumsum")
    put("cummax cummin cumprod", "vector", _scan("max"), "inferred", "as a scan of maxima")
    put("topk sort argsort msort _unique2 unique_dim unique_consecutive randperm", "gpsimd", _sort,
        "inferred", "parts longer than 8192 are not merged")
    put("copy clone contiguous _to_copy _copy_from _copy_from_and_resize lift_fresh_copy "
        "_pin_memory", "dma", _copy, made)
    put("cat stack _cat _chunk_cat", "dma", _concatenate)
    put("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
        "flip roll repeat slice_backward select_backward diagonal_backward unfold_backward "
        "slice_scatter select_scatter as_strided_scatter tril triu repeat_interleave "
        "upsample_nearest1d upsample_nearest2d upsample_bilinear2d upsample_nearest2d_backward "
        "upsample_bilinear2d_backward pixel_shuffle pixel_unshuffle im2col col2im", "dma",
        _rearranged)
    put("embedding index_select index _unsafe_index gather take masked_select nonzero "
        "take_along_dim", "dma", _gather)
    put("embedding_dense_backward", "dma", _scatter(0, copies=False), made)
    put("index_add index_copy", "dma", _scatter(2, copies=True))
    put("scatter scatter_add scatter_reduce index_put _index_put_impl _unsafe_index_put put "
        "masked_scatter index_fill", "dma", _scatter(9, copies=True))
    put("nll_loss_forward nll_loss nll_loss2d_forward", "dma", _nll)
    put("nll_loss_backward nll_loss2d_backward", "dma", _nll_backward)
    put("convolution convolution_overrideable _convolution conv2d conv1d", "tensor", _convolution,
        "inferred", "strided and grouped ones as a product over channels and taps")
    put("convolution_backward convolution_backward_overrideable", "tensor", _convolution_backward,
        "inferred", "two products over patches read from HBM")
    put("max_pool2d_with_indices max_pool2d max_pool1d max_pool3d_with_indices "
        "adaptive_max_pool2d", "vector", _pool("max"))
    put("avg_pool2d avg_pool1d avg_pool3d _adaptive_avg_pool2d adaptive_avg_pool2d "
        "_adaptive_avg_pool3d", "vector", _pool("add"))
    put("max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
        "adaptive_max_pool2d_backward", "vector", _pool("max", backward=True))
    put("avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward", "vector",
        _pool("add", backward=True))
    put("_scaled_dot_product_flash_attention_for_cpu scaled_dot_product_attention "
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_fused_attention_overrideable", "tensor", _attention, made,
        "the average run of keys where causal tiles share a loop; masks are not loaded")
    put("_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_flash_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward", "tensor",
        _attention_backward, made, "as the forward pass")
    put("native_dropout dropout", "vector", _dropout, "inferred", "the random bits are ours")
    put("_fused_adamw _fused_adam", "vector", _fused(_ADAMW, (-1, -10, -7), 4))
    put("_fused_sgd", "vector", _fused(_SGD, (-1, -3), 3))
    put("_fused_adagrad", "vector", _fused(_SGD, (-1, -3), 3))
    put(" ".join("_foreach_" + n for n in (
        "add sub mul div neg sqrt rsqrt exp abs reciprocal zero copy lerp addcdiv addcmul maximum "
        "minimum clamp_min clamp_max pow norm max sigmoid tanh log sign").split()), "vector",
        _foreach)
    put("_amp_foreach_non_finite_check_and_unscale", "vector", _fused(_SGD[:1], (-1,), 3))
    put("_local_scalar_dense item", "dma", _item, made, "the host waits for the value")
    put("empty empty_strided empty_like new_empty new_empty_strided resize set view as_strided "
        "_reshape_alias detach alias expand t transpose permute select slice squeeze unsqueeze "
        "unbind split split_with_sizes reshape _unsafe_view view_as lift lift_fresh diagonal "
        "empty_permuted unfold chunk flatten is_set_to _resize_output narrow "
        "swapaxes movedim _has_compatible_shallow_copy_type is_same_size view_as_real "
        "view_as_complex sym_size sym_numel sym_stride record_stream requires_grad "
        "_fused_sdp_choice data is_pinned", "none", _nothing, "free")
    # fmt: on
    return rows


OPS: Mapping[str, Op] = MappingProxyType({row.name: row for row in _table()})
