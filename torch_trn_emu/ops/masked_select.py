"""What a mask chooses, side by side, and the way back: positions are prefix sums of the mask.

How much is chosen depends on the data: a price is that of moving
everything, what is not chosen to one entry past the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod

from ..calls import Call, Target, TensorArg
from ..calls.labels import constant, expanded, labelled, made
from ..isa import Access, Affine, Buffer, Builder, Program, Role, itemsize
from ..kernels.limits import TILE_BYTES, P
from ..kernels.runs import run_of, runs
from .elementwise import elementwise
from .formulas import steps_of
from .op import Lowered, broadcast_shape, flat
from .scans import Prefix

__all__ = [
    "BROADCAST",
    "nonzero",
    "past_end",
    "put_masked",
    "select_masked",
    "spread_masked",
]

BROADCAST = frozenset(("masked_select", "masked_scatter"))  # the others' masks lead

MOST = 1024  # flags of a partition that are scanned together (chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """`count` entries of `entry` elements and a flag for each; `kept` of them are chosen."""

    count: int
    entry: int
    kept: int
    dtype: str
    mask: str = "bool"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    at: Affine  # first flag
    rows: int
    count: int


class _Positions:
    """Flags, and how many are set before each."""

    def __init__(self, b: Builder, spec: Masked, each: float) -> None:
        """`each` is the bytes of what else a flag's tile holds."""
        self.b, self.spec = b, spec
        fits = max(1, int(TILE_BYTES / each))
        self.together = max(1, min(MOST, fits, ceil(spec.count / P)))
        self.mask = b.hbm("mask", (spec.count,), spec.mask, Role.INPUT)
        self.raw = self.tile("mask tile", spec.mask)
        self.flags = self.tile("flags", "float32")
        self.prefix = Prefix(b, self.together, -1.0)  # the first position is 0

    def tile(self, name: str, dtype: str, width: int = 0) -> Buffer:
        return self.b.sbuf(name, width or self.together, dtype, slots=2)

    def tiles(self) -> Iterator[_Tile]:
        for at, rows, count in runs(self.b, self.spec.count, self.together):
            yield _Tile(at=at, rows=rows, count=count)

    def there(self, hbm: Buffer, tile: _Tile, entry: int) -> Access:
        """Entries of the tile in memory."""
        return run_of(hbm, tile.at * entry, tile.rows, tile.count * entry, self.together * entry)

    def find(self, tile: _Tile) -> tuple[Access, Access]:
        """(flags as 0 and 1, positions of what is chosen) of a tile."""
        b, rows, count = self.b, tile.rows, tile.count
        b.fresh(self.raw, self.flags)
        raw, flags = (t.rows(rows, count) for t in (self.raw, self.flags))
        b.load(raw, self.there(self.mask, tile, 1))
        b.emit("tensor_scalar", flags, raw, op0="not_equal", imm0=0.0)
        return flags, self.prefix.over(flags, rows, count)


class _Kept(_Positions):
    """Chosen entries on their way to their positions, the others to the one past the end."""

    def __init__(self, b: Builder, spec: Masked, each: float) -> None:
        super().__init__(b, spec, each)
        self.out = b.hbm("out", ((spec.kept + 1) * spec.entry,), spec.dtype, Role.OUTPUT)
        self.past, self.number = self.tile("past", "float32"), self.tile("number", "int32")
        b.emit("memset", self.past.rows(P, self.together), value=float(spec.kept))

    def keep(self, tile: _Tile, values: Access) -> None:
        b, (flags, positions) = self.b, self.find(tile)
        b.fresh(self.number)
        number = self.number.rows(tile.rows, tile.count)
        b.emit("select", number, flags, positions, self.past.rows(tile.rows, tile.count))
        whole = self.out.box((self.spec.entry, self.spec.kept + 1), (1, self.spec.entry))
        b.emit("dma_scatter", whole, values, number, queue="kept")


def choose(spec: Masked) -> Program:
    """Out = the entries of "in" whose flag is set, on one core."""
    b = Builder(f"choose of {spec.count} entries of {spec.entry}")
    source = b.hbm("in", (spec.count * spec.entry,), spec.dtype, Role.INPUT)
    kept = _Kept(b, spec, spec.entry * itemsize(spec.dtype))
    data = kept.tile("entries", spec.dtype, kept.together * spec.entry)
    for tile in kept.tiles():
        b.fresh(data)
        values = data.rows(tile.rows, tile.count * spec.entry)
        b.load(values, kept.there(source, tile, spec.entry))
        kept.keep(tile, values)
    return b.build()


def coordinates(spec: Masked, shape: tuple[int, ...]) -> Program:
    """Out = the indices, one a dimension, of the flags that are set, on one core."""
    b = Builder(f"coordinates in {shape}")
    kept = _Kept(b, spec, 4 * len(shape))
    found = kept.tile("coordinates", "int32", kept.together * len(shape))
    work = [kept.tile(n, d) for n, d in (("flat", "float32"), ("part", "float32"))]
    whole = kept.tile("quotient", "int32")
    start, order = b.sbuf("start", 1, "float32"), b.sbuf("order", kept.together, "float32")
    shared = start.rows(P, 1)
    b.emit("memset", shared, value=0.0)
    b.emit("iota", order.rows(P, kept.together), channel=kept.together, step=1, base=0)
    for tile in kept.tiles():
        rows, count = tile.rows, tile.count
        b.fresh(found, whole, *work)
        flat, part, quotient = (t.rows(rows, count) for t in (*work, whole))
        if not tile.at.terms:  # not in a loop, which moves it on
            b.emit("memset", start.rows(P, 1), value=float(tile.at.const))
        b.emit("tensor_scalar", flat, order.rows(rows, count), start.rows(rows, 1),
               op0="add")  # fmt: skip
        places = [
            found.lanes(rows, (len(shape), count), at=k)
            for k in range(len(shape))
        ]  # fmt: skip
        _divide(b, flat, part, quotient, places, shape)
        kept.keep(tile, found.rows(rows, count * len(shape)))
        if tile.at.terms:
            b.emit("tensor_scalar", shared, shared, op0="add", imm0=float(P * kept.together))
    return b.build()


def _divide(
    b: Builder, flat: Access, part: Access, quotient: Access, places: list[Access],
    shape: tuple[int, ...],
) -> None:  # fmt: skip
    """The index of every dimension from a flat one, by division from the last dimension on."""
    for to, size in zip(places[:0:-1], shape[:0:-1], strict=True):
        # floor(i / size): (i + 0.5) / size - 0.5 rounds to it
        b.emit("tensor_scalar", part, flat, op0="add", imm0=0.5, op1="multiply", imm1=1 / size)
        b.emit("tensor_scalar", quotient, part, op0="add", imm0=-0.5)
        b.emit("tensor_scalar", part, quotient, op0="multiply", imm0=-float(size))
        b.emit("tensor_tensor", to, flat, part, op="add")
        b.emit("tensor_copy", flat, quotient)
    b.emit("tensor_copy", places[0], flat)


def spread(spec: Masked, *, adds: bool) -> Program:
    """Out = the next entry of "source" where the flag is set, else that of "in"; or their sum."""
    b = Builder(f"spread over {spec.count} entries of {spec.entry}")
    entry, size = spec.entry, spec.count * spec.entry
    rest = b.hbm("in", (size,), spec.dtype, Role.INPUT)
    source = b.hbm("source", (spec.kept * entry,), spec.dtype, Role.INPUT)
    out = b.hbm("out", (size,), spec.dtype, Role.OUTPUT)
    positions = _Positions(b, spec, entry * itemsize(spec.dtype))
    tiles = [positions.tile(n, spec.dtype, positions.together * entry) for n in ("old", "new")]
    number = positions.tile("number", "int32")
    table = source.box((entry, spec.kept), (1, entry))
    for tile in positions.tiles():
        flags, found = positions.find(tile)
        b.fresh(number, *tiles)
        where = number.rows(tile.rows, tile.count)
        b.emit("tensor_tensor", where, found, flags, op="multiply")
        old, new = (t.rows(tile.rows, tile.count * entry) for t in tiles)
        b.emit("dma_gather", new, table, where, queue="source")
        b.load(old, positions.there(rest, tile, entry))
        each = flags.buffer.box(flags.pattern[0], (1, tile.count), (0, entry))
        if adds:
            b.emit("tensor_tensor", new, new, each, op="multiply")
            b.emit("tensor_tensor", old, old, new, op="add")
        else:
            b.emit("select", old, each, new, old)
        b.store(positions.there(out, tile, entry), old)
    return b.build()


# --- from calls ---


def _described(call: Call, moved: int) -> Masked:
    """`moved` elements are chosen by a mask: over the leading dimensions of what is indexed, or
    broadcast together with it, where operands that repeat are read in full.
    """
    x, mask = call.tensors[:2]
    if call.name in BROADCAST:
        count = prod(broadcast_shape(x, mask))
        return Masked(count=count, entry=1, kept=moved, dtype=x.dtype, mask=mask.dtype)
    entry = max(1, x.numel // mask.numel)
    if entry * itemsize(x.dtype) > TILE_BYTES:
        raise KeyError(f"entries of {entry} elements chosen by a mask")
    if moved < entry:
        raise KeyError("a value that repeats inside an entry")
    return Masked(
        count=mask.numel, entry=entry, kept=moved // entry, dtype=x.dtype, mask=mask.dtype
    )


def select_masked(call: Call, target: Target) -> Lowered:
    """x[mask] and masked_select."""
    program, out = choose(_described(call, call.out.numel)), past_end(call.out)
    before = _nothing(call.tensors[0])
    return (labelled(program, {**_masked(call), "out": out}, before=before),)


def past_end(out: TensorArg, entry: int = 1) -> TensorArg:
    """A result and the entry past its end, where what is not chosen goes."""
    views = tuple(made(f"past {v.dtype}", (entry,), v.dtype).views[0] for v in out.views[:1])
    return replace(flat(out, out.numel + entry), views=(*out.views, *views) if views else ())


def _nothing(x: TensorArg) -> dict[str, TensorArg]:
    """What the entry past the end holds where every element is chosen."""
    return {"out": constant(0.0, (1,), x.torch_dtype)}


def _masked(call: Call) -> dict[str, TensorArg]:
    """What a mask chooses from, and the mask, broadcast together where the operator does it."""
    x, mask = call.tensors[:2]
    if call.name not in BROADCAST:
        return {"in": x, "mask": mask}
    shape = broadcast_shape(x, mask)
    return {"in": expanded(x, shape), "mask": expanded(mask, shape)}


def nonzero(call: Call, target: Target) -> Lowered:
    x, out = call.tensors[0], call.out
    rank = len(x.shape)
    spec = Masked(count=x.numel, entry=rank, kept=out.shape[0], dtype=out.dtype, mask=x.dtype)
    program = coordinates(spec, x.shape)
    return (labelled(program, {"mask": x, "out": past_end(out, rank)}, before=_nothing(out)),)


def spread_masked(call: Call, target: Target) -> Lowered:
    """masked_scatter, and x[mask] = values."""
    source = call.tensors[2]
    if not source.numel:
        return ()
    adds = call.name != "masked_scatter" and call.argument(3) is True
    program = spread(_described(call, source.numel), adds=adds)
    return (labelled(program, {**_masked(call), "source": source, "out": call.out}),)


def put_masked(call: Call, target: Target) -> Lowered:
    """x[mask] = values, which broadcast over what is chosen; one entry for all is a choice between
    two.
    """
    x, mask, source = call.tensors[:3]
    entry, adds = x.shape[len(mask.shape) :], call.argument(3) is True
    chosen = source.shape[: max(0, len(source.shape) - len(entry))]
    if prod(chosen) != 1:
        each = expanded(source, (chosen[-1], *entry))
        return spread_masked(replace(call, arguments=(x, call.argument(1), each, adds)), target)
    missing = (1,) * len(entry)
    over = replace(mask, shape=mask.shape + missing, strides=mask.strides + missing)
    one = source.shape[len(chosen) :]
    held = replace(source, shape=one, strides=source.strides[len(chosen) :])
    steps = steps_of(lambda x, mask, new: mask.where(x + new if adds else new, x), 3)
    return (elementwise(call.name, steps, [x, over, held], call.out, target),)
