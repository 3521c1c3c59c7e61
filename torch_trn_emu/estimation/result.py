"""What an estimate says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..pages import HtmlTable, render
from ..pricing import OpRow
from ..ranges import Range

__all__ = ["Estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a function takes on one logical core.

    time_us     from the first dispatch to the last result, with the host's dispatches and
                functional collectives
    device_us   the programs alone, one after the other
    counters    as `torch.trn.counters()` gives them
    ops         a row for each operator, longest first
    precision   the matmul precision policy that was priced
    range       where four of five measurements like it lie, as factors on the time; `basis` says
                what that rests on for this chip
    """

    chip: str
    lnc: int
    mode: str
    precision: str
    time_us: float
    device_us: float
    counters: Mapping[str, float] = field(repr=False)
    ops: tuple[OpRow, ...] = field(repr=False)
    memory_peak_bytes: int
    range: Range
    basis: str

    def __str__(self) -> str:
        count = int(self.counters["launch_count"])
        launches = f"{count:,} launch{'es' * (count != 1)}"
        return (
            f"{self.time_us:,.1f} us on {self.chip} (LNC={self.lnc}, {self.mode}, "
            f"precision {self.precision}): {launches}, "
            f"{self.device_us:,.1f} us of programs, at most {self.memory_peak_bytes / 2**20:,.1f} "
            f"MiB of HBM; {self.range}; {self.basis}"
        )

    def _repr_html_(self) -> str:
        head = ("operator", "calls", "us", "share", "engine", "price")
        rows = [
            (op.op, f"{op.calls:,}", f"{op.device_s * 1e6:,.1f}", f"{op.share:.1%}", op.engine,
             op.status)
            for op in self.ops
        ]  # fmt: skip
        return render("notebook.html", lines=[str(self)], tables=[HtmlTable("", head, rows, 10)])
