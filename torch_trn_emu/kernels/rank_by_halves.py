"""The element of a rank in every row, found by halving where it can lie: no row is put in order.

A pass over a row counts the keys that are no smaller than a candidate. Candidates are exact: first
the sign, then the exponent by powers of two, then the mantissa bit by bit. The partitions that
share a row add up their counts by a product with ones. Last, the least place of an equal key.
"""

from math import ceil

from ..isa import Access, Affine, Builder, Program, Role
from .limits import P
from .pieces import beside, cut_rows
from .sort_keys import Keys

__all__ = ["halving_cycles", "rank_by_halves"]

MANTISSA = {"float32": 23, "float16": 10, "bfloat16": 7}
EXPONENTS = (2.0**128, 2.0**128, *(2.0 ** (1 << k) for k in range(6, -1, -1)))  # 256 + 64 + .. + 1
LEAST = 2.0**-149
MOST = 8192  # columns of a partition (chosen: 100 KiB with float32)
FEWEST = 256  # columns of a piece (chosen)
FAR = 2.0**23  # more than any place
WAITS = 1200  # cycles of a pass besides its elements: engines wait for each other (inferred)


def _pieces(rows: int, columns: int) -> int:
    """Partitions that share a row: all of them if there are few rows, else as many as hold it."""
    most = min(P // rows, columns // FEWEST) if rows <= P // 2 else 1
    return max(1, most, ceil(columns / MOST))


def halving_cycles(rows: int, columns: int, dtype: str) -> float:
    """About how many cycles the program takes; infinite where it cannot take a row."""
    pieces = _pieces(rows, columns)
    wide = ceil(columns / pieces)
    if dtype not in MANTISSA or pieces > P:
        return float("inf")
    passes = MANTISSA[dtype] + 11
    tiles = ceil(rows / (P // pieces))
    return float(tiles * (passes * (wide + WAITS) + 12 * wide))


def rank_by_halves(rows: int, columns: int, rank: int, *, dtype: str, cores: int = 1) -> Program:
    """values[r], index[r] = the element of `rank` (from 1, the smallest) of in[r, :], and where.

    NaN is larger than all numbers.
    """
    b = Builder(f"rank {rank} of {rows}x{columns}", cores=cores)
    return _Rank(b, ceil(rows / cores), columns, rank, dtype).build()


class _Rank:
    def __init__(self, b: Builder, rows: int, columns: int, rank: int, dtype: str) -> None:
        self.b, self.rows, self.columns, self.rank, self.dtype = b, rows, columns, rank, dtype
        self.pieces = _pieces(rows, columns)
        self.wide, self.at_once = ceil(columns / self.pieces), min(rows, P // self.pieces)
        self.source = b.hbm("in", (rows, columns), dtype, Role.INPUT)
        self.values = b.hbm("values", (rows, 1), dtype, Role.OUTPUT)
        self.index = b.hbm("index", (rows, 1), "int32", Role.OUTPUT)
        self.keys = Keys(b, 1.0, dtype)
        self.raw = b.sbuf("raw", self.wide, dtype)
        self.key, self.spare = (b.sbuf(n, self.wide, "float32") for n in ("keys", "spare"))
        columns_of_one = ("count", "flag", "need", "sign", "low", "candidate", "step", "place")
        self.columns_of_one = {n: b.sbuf(n, 1, "float32") for n in columns_of_one}
        self.joined = b.sbuf("joined", self.pieces, "float32", slots=2)
        self.row = b.sbuf("first places", 1, "float32")
        self.stored = b.sbuf("stored", 1, dtype)
        self.places = b.sbuf("places", 1, "int32")
        if self.pieces > 1:
            self.total = b.psum("total", 1)
            self._same_row()

    def _same_row(self) -> None:
        """[P, P] ones where both partitions have pieces of one row."""
        b, pieces = self.b, self.pieces
        self.ones = b.sbuf("same row", P, "float32")
        b.emit("memset", self.ones.rows(P, P), value=1.0)
        for r in range(self.at_once):
            view = self.ones.rows(P, pieces, r * pieces)
            first, last = r * pieces, (r + 1) * pieces - 1
            for channel, base in ((1, -first), (-1, last)):
                b.emit("affine_select", view, view, channel=channel, step=0, base=base,
                       on_false=0.0)  # fmt: skip

    def build(self) -> Program:
        b = self.b
        step = self.pieces * self.wide
        b.emit("iota", self.row.rows(P, 1), channel=step, step=0, base=0)
        for r0, size in b.tiles(self.rows, self.at_once):
            parts = size * self.pieces
            self.parts = parts
            self._load(r0, size)
            self._halve()
            self._store(r0, size)
        return b.build()

    def _load(self, r0: Affine, size: int) -> None:
        """Keys of rows, of which the last piece may be filled up with NaN, as the last ones."""
        b, wide, pieces = self.b, self.wide, self.pieces
        raw = self.raw.rows(self.parts, wide)
        if self.columns < pieces * wide:
            b.emit("memset", raw, value=float("nan"))
        at, rows = r0 * self.columns, (size, pieces, self.columns)
        for to, there in cut_rows(b, self.raw, self.source, rows, self.columns, wide, at):
            b.load(to, there)
        self.keys.make(self.key.rows(self.parts, wide), raw, self.spare.rows(self.parts, wide))

    def _one(self, name: str) -> Access:
        return self.columns_of_one[name].rows(self.parts, 1)

    # --- halving ---

    def _halve(self) -> None:
        b, filled = self.b, self.pieces * self.wide
        key = self.key.rows(self.parts, self.wide)
        need, sign, low, step = (self._one(n) for n in ("need", "sign", "low", "step"))
        # At least so many keys of a row are no smaller than the one looked for.
        b.emit("memset", need, value=float(filled - self.rank + 1))
        b.emit("memset", low, value=0.0)
        self._reached(low)
        flag = self._one("flag")
        # Below zero the same of what is negated, from the other end.
        b.emit("tensor_scalar", sign, flag, op0="multiply", imm0=2.0, op1="subtract", imm1=1.0)
        change = float(filled - 2 * self.rank + 1)
        b.emit("tensor_scalar", need, flag, op0="multiply", imm0=change, op1="add",
               imm1=float(self.rank))  # fmt: skip
        b.emit("tensor_scalar", key, key, sign, op0="multiply")
        self._try(LEAST, 0.0)
        for factor in EXPONENTS:
            self._try(factor, None)
        b.emit("tensor_scalar", step, low, op0="multiply", imm0=0.5)
        for _ in range(MANTISSA[self.dtype]):
            b.emit("tensor_tensor", self._one("candidate"), low, step, op="add")
            self._keep()
            b.emit("tensor_scalar", step, step, op0="multiply", imm0=0.5)

    def _try(self, imm: float, start: float | None) -> None:
        """Whether the key is as large as what was found times a factor, or as a number."""
        b, candidate = self.b, self._one("candidate")
        if start is not None:
            b.emit("memset", candidate, value=imm)
        else:
            half = imm**0.5 if imm > 2.0**64 else imm
            b.emit("tensor_scalar", candidate, self._one("low"), op0="multiply", imm0=half)
            if half != imm:
                b.emit("tensor_scalar", candidate, candidate, op0="multiply", imm0=imm / half)
        self._keep()

    def _keep(self) -> None:
        candidate, low = self._one("candidate"), self._one("low")
        self._reached(candidate)
        self.b.emit("select", low, self._one("flag"), candidate, low)

    def _reached(self, candidate: Access) -> None:
        """flag: as many keys as needed are no smaller than the candidate."""
        b, count = self.b, self._one("count")
        spare = self.spare.rows(self.parts, self.wide)
        key = self.key.rows(self.parts, self.wide)
        b.emit("tensor_scalar_reduce", (spare, count), key, candidate, op0="greater_equal",
               op="add")  # fmt: skip
        total = count
        if self.pieces > 1:
            b.fresh(self.total)
            total = self.total.rows(self.parts, 1)
            b.emit("nc_matmul", total, self.ones.rows(self.parts, self.parts), count)
        b.emit("tensor_scalar", self._one("flag"), total, self._one("need"), op0="greater_equal")

    # --- results ---

    def _store(self, r0: Affine, size: int) -> None:
        b, parts, wide = self.b, self.parts, self.wide
        key, spare = self.key.rows(parts, wide), self.spare.rows(parts, wide)
        low, place = self._one("low"), self._one("place")
        b.emit("tensor_scalar", key, key, low, op0="not_equal", op1="multiply", imm1=FAR)
        b.emit("iota", spare, channel=wide, step=1, base=0)
        b.emit("tensor_tensor", key, key, spare, op="add")
        b.emit("tensor_reduce", place, key, op="min")
        b.emit("tensor_tensor", low, low, self._one("sign"), op="multiply")
        self.keys.undo(self.stored.rows(parts, 1), low, self._one("flag"))
        found = self._of_rows(place, size)
        row = self.row.rows(size, 1)
        b.emit("tensor_tensor", self.places.rows(size, 1), found, row, op="subtract")
        b.store(self.index.rows(size, 1, r0), self.places.rows(size, 1))
        every = self.pieces * self.stored.row_elements
        first = self.stored.box((every, size), (1, 1))
        b.store(self.values.rows(size, 1, r0), first)

    def _of_rows(self, place: Access, size: int) -> Access:
        """The least place of the pieces of each row."""
        b = self.b
        if self.pieces == 1:
            return place
        b.fresh(self.joined)
        joined = beside(b, self.joined, place, size)
        least = self.joined.rows(size, 1)
        b.emit("tensor_reduce", least, joined, op="min")
        return least
