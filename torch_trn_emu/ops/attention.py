"""Rows of attention: sizes, masks and formats from a call."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import constant, labelled, spanned
from ..chip import Chip
from ..isa import Program, Split
from ..kernels.attention.backward import attention_backward
from ..kernels.attention.forward import attention
from ..kernels.attention.heads import Layout, layout_of
from ..kernels.attention.short import short_attention, takes_short
from ..kernels.attention.spec import AttentionSpec, Mask
from ..kernels.limits import P
from ..timing import price
from .op import Lowered, Lowering
from .products import format_of

__all__ = ["ATTENTION", "ATTENTION_BACKWARD", "attention_spec", "without_sums"]

SURELY = 128  # keys: four heads share a step, which no other program beats (a sweep holds it)

# By operator: which of its arguments are is_causal, the mask (-1: it has none) and the scale.
_ARGUMENTS = {
    "scaled_dot_product_attention": (5, 3, 6),
    "_scaled_dot_product_flash_attention_for_cpu": (4, 5, 6),
    "_scaled_dot_product_flash_attention": (4, -1, 6),
    "_scaled_dot_product_efficient_attention": (6, 3, 7),
    "_scaled_dot_product_fused_attention_overrideable": (5, 3, 7),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (7, 8, 9),
    "_scaled_dot_product_flash_attention_backward": (11, -1, 14),
    "_scaled_dot_product_fused_attention_overrideable_backward": (13, 4, 16),
}


def without_sums(call: Call) -> Call:
    """A call of attention whose logarithms nobody reads: it does not make them."""
    forward = call.name in _ARGUMENTS and not call.name.endswith("_backward")
    return replace(call, results=call.results[:1]) if forward else call


def attention_spec(call: Call, target: Target, first: int) -> AttentionSpec:
    """The attention of a call whose query is argument `first`.

    head_dim beyond 128 counts as several heads of 128 (inferred): the price, not the values.
    """
    causal, mask, scale = _ARGUMENTS[call.name]
    q, k = call.argument(first), call.argument(first + 1)
    whole = AttentionSpec(
        batch=prod(q.shape[:-3]),
        heads=_heads(q),
        kv_heads=_heads(k),
        queries=q.shape[-2],
        keys=k.shape[-2],
        dim=q.shape[-1],
        dtype=q.dtype,
        compute=format_of(call, target, q.dtype, "attention").replace("mxfp8", "bfloat16"),
        causal=bool(call.argument(causal, False)),
        scale=call.argument(scale),
    )
    given = call.argument(mask) if mask >= 0 else None
    if given is not None:
        whole = replace(whole, mask=_mask(given))
    if whole.dim <= P:
        return _folded(replace(whole, layouts=_layouts(call, first)), first)
    parts = ceil(whole.dim / P)
    return _folded(replace(whole, batch=whole.batch * parts, dim=P, scale=whole.factor), first)


def _folded(a: AttentionSpec, first: int) -> AttentionSpec:
    """Few queries a head: heads that share keys as the queries of one, up to 128 of them."""
    if a.causal or (first and a.queries > 1):
        return a
    fits = [n for n in range(1, a.group + 1) if a.group % n == 0 and n * a.queries <= P]
    together = a.group if a.queries == 1 else max(fits, default=1)
    if together == 1:
        return a
    layouts = tuple(
        (n, x if n in ("k", "v", "dk", "dv") else x.with_heads_as_rows(together, a.queries))
        for n, x in a.layouts
    )
    return replace(
        a,
        heads=a.heads // together,
        queries=together * a.queries,
        mask=a.mask and a.mask.with_heads_as_queries(together, a.queries),
        layouts=layouts,
    )


def _layouts(call: Call, first: int) -> tuple[tuple[str, Layout], ...]:
    """Where operands and results lie that are tensors of heads."""
    made = ("out",) if first == 0 else ("dq", "dk", "dv")
    tensors = {n: call.argument(k) for n, k in _places(call, first).items() if n != "lse"}
    tensors |= dict(zip(made, call.outputs, strict=False))
    found = ((name, layout_of(t)) for name, t in tensors.items())
    return tuple((name, layout) for name, layout in found if layout is not None)


def _places(call: Call, first: int) -> dict[str, int]:
    """Where operands stand in the arguments, by the names of buffers."""
    if first == 0:
        return {"q": 0, "k": 1, "v": 2}
    at = 6 if call.name.endswith("_overrideable_backward") else 4
    return {"g": 0, "q": 1, "k": 2, "v": 3, "out": at, "lse": at + 1}


def _heads(t: TensorArg) -> int:
    return t.shape[-3] if len(t.shape) > 2 else 1


def _mask(t: TensorArg) -> Mask:
    """A mask of any number of dimensions, repeated where a size is 1 or missing."""
    strides = [0 if size == 1 else s for size, s in zip(t.shape, t.strides, strict=True)]
    padded = (0,) * (4 - len(strides)) + tuple(strides[-4:])
    return Mask(strides=padded, elements=t.span, dtype=t.dtype)  # type: ignore[arg-type]


def _labelled(program: Program, call: Call, whole: AttentionSpec, first: int) -> Program:
    """With what its buffers stand for: memory where it has strides of its own, else elements."""
    results = dict(zip(("out", "lse") if first == 0 else ("dq", "dk", "dv"), call.outputs,
                       strict=False))  # fmt: skip
    at = _ARGUMENTS[call.name][1]
    mask = call.argument(at) if at >= 0 else None
    held = {**{n: call.argument(k) for n, k in _places(call, first).items()}, **results}
    layouts, share = dict(whole.layouts), whole.share(program.cores)
    held |= {n: spanned(held[n]) for n in layouts}
    held["mask"] = spanned(mask) if mask is not None else None
    if mask is not None and whole.mask is not None:
        by_batch, by_head, *_ = whole.mask.strides
        layouts["mask"] = Layout(by_batch, by_head, 0)
    steps = {n: _step(whole, share, n, x) for n, x in layouts.items()}
    outer = {} if share.batch != whole.batch else dict.fromkeys(held, whole.batch)
    gaps = {n: constant(0.0, (1,), t.torch_dtype) for n, t in results.items() if n in layouts}
    splits = {n: _split(whole, share, n, layouts[n]) for n in results if n in layouts}
    return labelled(program, held, before=gaps, outer=outer, steps=steps, splits=splits)


def _split(whole: AttentionSpec, share: AttentionSpec, name: str, layout: Layout) -> Split:
    """How a core's part of a result lies in memory."""
    of_keys = name in ("dk", "dv")
    heads, all_heads = (a.heads // (a.group if of_keys else 1) for a in (share, whole))
    length = share.keys if of_keys else share.queries
    folded = layout.folded
    by_batch = share.batch != whole.batch
    return Split(
        sizes=(share.batch, heads, folded, length // folded, share.dim),
        strides=(layout.batch, layout.head, layout.among, layout.row, layout.dim),
        axis=0 if by_batch else 1,
        whole=whole.batch if by_batch else all_heads,
    )


def _step(whole: AttentionSpec, share: AttentionSpec, name: str, layout: Layout) -> int:
    """Elements from where a core's part of a tensor begins to where the next core's does."""
    if share.batch != whole.batch:
        return share.batch * layout.batch
    if share.heads == whole.heads:
        return 0
    return (share.heads // (share.group if name in ("k", "v", "dk", "dv") else 1)) * layout.head


def _row(build: Callable[..., Program], first: int) -> Lowering:
    def lower(call: Call, target: Target) -> Lowered:
        q, k = call.argument(first), call.argument(first + 1)
        if not k.numel:
            return ()
        whole = attention_spec(call, target, first)
        if first == 0:
            whole = replace(whole, stats=len(call.outputs) > 1)
        shared = max(whole.batch, whole.heads // whole.group) >= target.cores
        program = build(whole, chip=target.chip, cores=target.cores if shared else 1)
        # A wider head is counted as several.
        return (program if q.shape[-1] > P else _labelled(program, call, whole, first),)

    return lower


def _forward(a: AttentionSpec, *, chip: Chip, cores: int) -> Program:
    """Of few keys the program whose steps have several heads; of some more, the faster one."""
    short = short_attention(a, chip=chip, cores=cores) if takes_short(a) else None
    if short is not None and a.keys <= SURELY:
        return short
    long = attention(a, chip=chip, cores=cores)
    if short is None or price(long, chip).total_s < price(short, chip).total_s:
        return long
    return short


ATTENTION, ATTENTION_BACKWARD = _row(_forward, 0), _row(attention_backward, 1)
