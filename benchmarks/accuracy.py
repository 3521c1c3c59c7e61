"""Predicted against published times of real chips: one row per measurement.

    python benchmarks/accuracy.py

The measurements are benchmarks/data/measured_calibration.csv; how each is priced is a row of
`PRICES` here. Rows that a constant in chips.py was fitted on say so: their small errors show
that the mechanism can be right, the others whether it is. measured_holdout.csv holds measurements
that no constant was fitted on, measured_compiled.csv graphs of the vendor's compiler, which
compiled_graphs.py prices as torch.compile(backend="trn") does.
"""

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from compiled_graphs import GRAPHS, graph_us, launched_us
from kernels.add import add_single_elements
from kernels.convolution import conv2d
from kernels.matmul import SERIAL, naive_matmul
from kernels.normalization import rms_norm

import torch_trn_emu
from torch_trn_emu.chip import CHIPS, Chip, Figure, get_chip
from torch_trn_emu.engines import clock_hz, cycles, transfer
from torch_trn_emu.isa import Builder, Program, Role, tile
from torch_trn_emu.kernels.matmul import COMPILER, HAND, matmul
from torch_trn_emu.kernels.pointwise import activation, pointwise, tensor_tensor
from torch_trn_emu.kernels.reduce_rows import reduce_rows
from torch_trn_emu.timing import price

DATA = Path(__file__).parent / "data" / "measured_calibration.csv"
HOLDOUT = DATA.with_name("measured_holdout.csv")
LAUNCHED = DATA.with_name("measured_launched.csv")
COMPILED = DATA.with_name("measured_compiled.csv")
TRN1, TRN2 = get_chip("trn1"), get_chip("trn2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement and its prediction, in microseconds unless the unit says otherwise."""

    id: str
    what: str
    measured: float
    predicted: float
    unit: str
    fitted: tuple[str, ...]  # constants of chips.py fitted on this row
    note: str  # what else the prediction owes to the row, or assumes

    taken: bool  # something of the prediction was taken from the row itself

    @property
    def independent(self) -> bool:
        """Whether the prediction owes nothing to the row."""
        return not self.fitted and not self.taken

    @property
    def error(self) -> float:
        """Of the time: positive when the prediction is too slow."""
        ratio = self.predicted / self.measured
        return (1 / ratio if self.unit == "GB/s" else ratio) - 1


def _us(*programs: Program, chip: Chip = TRN2) -> float:
    return sum(price(p, chip).total_s for p in programs) * 1e6


def _eager_us(program: Program) -> float:
    """An op in a stream of them: the host dispatches while the core works."""
    return max(TRN2.launch.eager_dispatch_s * 1e6, _us(program))


def _compiled_us(program: Program) -> float:
    """A graph of one op in a stream of launches."""
    return max(TRN2.launch.graph_launch_s * 1e6, _us(program))


def _called_us(
    function: Callable[..., torch.Tensor], *inputs: tuple[str, tuple[int, ...]]
) -> float:
    """An eager operator in a stream of them, from a call."""
    tensors = (torch.empty(s, dtype=getattr(torch, d), device="meta") for d, s in inputs)
    with torch.no_grad():
        found = torch_trn_emu.estimate(function, *tensors, chip="trn2", lnc=2)
    return max(TRN2.launch.eager_dispatch_s * 1e6, found.device_us)


def _called_gb_per_s(
    function: Callable[..., torch.Tensor], nbytes: float, *inputs: tuple[str, tuple[int, ...]]
) -> float:
    return nbytes / _called_us(function, *inputs) / 1e3


def _dma_copy_us(row_bytes: int) -> float:
    """One of many transfers to 128 partitions in one queue."""
    count, free = 400, row_bytes // 4
    b = Builder("loads")
    x = b.hbm("x", (count * 128, free), F4, Role.INPUT)
    t = b.sbuf("t", free, F4, slots=8)
    with b.loop(count) as i:
        b.fresh(t)
        b.load(tile(t, (0, 0), (128, free)), tile(x, (i * 128, 0), (128, free)))
    return (price(b.build(), TRN2).total_s - TRN2.launch.kernel_overhead_s) / count * 1e6


def _gb_per_s(program: Program, nbytes: float) -> float:
    return nbytes / price(program, TRN2).total_s / 1e9


def _mm(m: int, k: int, n: int, dtype: str, chip: Chip = TRN2, **options: object) -> Program:
    types = dict.fromkeys(("compute", "lhs_dtype", "rhs_dtype", "out_dtype"), dtype)
    return matmul(m, k, n, chip=chip, **{**types, **options})  # type: ignore[arg-type]


def _exp_us(n: int) -> float:
    """One activation from its start until a semaphore shows it."""
    b = Builder("exp")
    t = b.sbuf("t", n, "float32")
    i = b.emit("activation", tile(t, (0, 0), (128, n)), tile(t, (0, 0), (128, n)), op="exp")
    engine = TRN2.scalar_engine
    total = cycles(i, TRN2) + engine.pipeline_latency_cycles
    return total / clock_hz(i.engine, TRN2) * 1e6


def _dma_2kib_us() -> float:
    """2 KiB on one DMA engine, without the semaphore write."""
    b = Builder("load")
    x, t = b.hbm("x", (128, 128), "bfloat16", Role.INPUT), b.sbuf("t", 128, "bfloat16")
    i = b.load(tile(t, (0, 0), (128, 128)), tile(x, (0, 0), (128, 128)))
    return (transfer(i, TRN2).engine_s - TRN2.dma.completion_write_s) * 1e6


def _add(elements: int, dtype: str, cores: int) -> Program:
    steps = [tensor_tensor("add")]
    return pointwise("add", elements, [dtype] * 2, dtype, steps, chip=TRN2, cores=cores)


LARGE = 2**28
F4, B2 = "float32", "bfloat16"


def _exp_large() -> Program:
    return pointwise("exp", LARGE, [B2], B2, [activation("exp")], chip=TRN2, cores=2)


def _reduce_large() -> Program:
    return reduce_rows(2**14, 2**14, op="add", chip=TRN2, cores=2)


def _silu() -> Program:
    return pointwise("silu", 4096 * 7168, [F4], F4, [activation("silu")], chip=TRN1)


def _rms_norm_matmul_us() -> float:
    """Priced as two programs, where the measured kernel is fused."""
    norm = rms_norm(4096, 1024, chip=TRN1, dtype=F4)
    return _us(norm, _mm(4096, 1024, 2048, F4, TRN1, schedule=HAND), chip=TRN1)


@dataclass(frozen=True, slots=True)
class Price:
    """How a row is predicted, and what to compare with if the file gives it as text only."""

    predict: Callable[[], float]
    measured: float = 0.0
    unit: str = "us"
    note: str = ""
    taken: bool = False  # a constant or the schedule was taken from the row itself


PRICES = {
    "cal01": Price(lambda: _us(_mm(4096, 8192, 8192, F4, lhs_layout="km", schedule=HAND))),
    "cal02": Price(
        lambda: _us(naive_matmul(4096, 8192, 8192, dtype=F4)),
        note="four tiles in flight, which fits",
        taken=True,
    ),
    "cal03": Price(lambda: _us(_mm(2048, 2048, 2048, B2, lhs_layout="km", schedule=HAND))),
    "cal04": Price(lambda: _us(_mm(2048, 2048, 2048, B2, lhs_layout="km", schedule=SERIAL))),
    "cal05": Price(lambda: _us(_mm(2048, 2048, 2048, B2, lhs_layout="km", schedule=COMPILER))),
    "cal06": Price(lambda: _us(conv2d(1, 256, 224, 224, 256, 3, chip=TRN2, dtype="float16"))),
    "cal07": Price(
        lambda: _us(add_single_elements()), note="two tiles in flight, which fits", taken=True
    ),
    "cal08": Price(lambda: _us(_add(25600, F4, 1))),
    "cal09": Price(
        lambda: _exp_us(128), 0.291 + 128 / 1200, note="the latency is from here", taken=True
    ),
    "cal10": Price(_dma_2kib_us, 0.097, note="the descriptor time is from here", taken=True),
    "cal11": Price(lambda: _us(_silu(), chip=TRN1)),
    "cal12": Price(_rms_norm_matmul_us, note="priced as two programs, measured fused"),
    "cal13": Price(
        lambda: _us(
            _mm(4096, 64, 4096, F4, TRN1, batch=16, lhs_layout="km", schedule=HAND), chip=TRN1
        )
    ),
    "cal14": Price(lambda: _us(_mm(4096, 2048, 10944, F4, TRN1, schedule=HAND), chip=TRN1)),
    "cal15": Price(lambda: _eager_us(_mm(1024, 4096, 4096, B2, cores=2))),
    "cal16": Price(lambda: _eager_us(_mm(4096, 4096, 4096, B2, cores=2))),
    "cal17": Price(lambda: _eager_us(_mm(1024, 4096, 4096, F4, cores=2))),
    "cal18": Price(
        lambda: _eager_us(_add(2**20, B2, 2)), note="the dispatch is from here", taken=True
    ),
    "cal19": Price(lambda: _gb_per_s(_add(LARGE, B2, 2), 6 * LARGE), 602, "GB/s"),
    "cal20": Price(lambda: _gb_per_s(_exp_large(), 4 * LARGE), 579, "GB/s"),
    "cal21": Price(lambda: _gb_per_s(_reduce_large(), 4 * LARGE), 639, "GB/s"),
    "cal22": Price(
        lambda: _called_gb_per_s(lambda x: torch.softmax(x, -1), 4 * LARGE, (B2, (2**16, 4096))),
        496,
        "GB/s",
    ),
    "cal23": Price(
        lambda: TRN2.launch.eager_dispatch_s * 1e6,
        measured=60,
        note="the dispatch; 45 to 65 us",
        taken=True,
    ),
}


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


_LAUNCH = "the launch is the middle of the two tables"

HOLDOUT_PRICES = {
    "out01": Price(
        lambda: _compiled_us(_mm(4096, 4096, 4096, "float8_e5m2", cores=2, out_dtype=B2))
    ),
    "out05": Price(lambda: _dma_copy_us(2048), note="the issue interval is from this curve"),
    "out06": Price(lambda: _dma_copy_us(4096)),
    "out07": Price(lambda: _dma_copy_us(16384)),
    **{name: Price(partial(launched_us, name)) for name in GRAPHS if name.startswith("out")},
    "out18": Price(lambda: _eager_us(_mm(2048, 4096, 4096, B2, cores=2))),
    "out19": Price(lambda: _called_us(lambda x: torch.softmax(x, -1), (B2, (2048, 1024)))),
    "out20": Price(lambda: _called_us(_causal, *[(B2, (1, 8, 2048, 128))] * 3)),
    "out21": Price(lambda: _called_us(_causal, *[(B2, (1, 8, 4096, 128))] * 3)),
    "out22": Price(
        lambda: _called_gb_per_s(torch.clone, 4 * LARGE, (B2, (2**18, 1024))), 648.7, "GB/s"
    ),
    "out23": Price(
        lambda: _called_gb_per_s(
            lambda x, i: x.index_select(0, i), 4 * LARGE, (F4, (2**17, 1024)), ("int64", (2**17,))
        ),
        631.6,
        "GB/s",
    ),
}

# The compiled figures of calibration rows.
LAUNCHED_PRICES = {
    "cal05": Price(
        partial(graph_us, "cal05"), note="trn2.tensor_engine.exposed_stationary_load", taken=True
    ),
    "cal15": Price(partial(launched_us, "cal15")),
    "cal16": Price(partial(launched_us, "cal16")),
    "cal18": Price(partial(launched_us, "cal18"), note=_LAUNCH, taken=True),
    "cal23": Price(lambda: TRN2.launch.graph_launch_s * 1e6, note=_LAUNCH, taken=True),
}

# What the measured kernel does otherwise, from its text or its counters.
_OTHERWISE = {
    "com01": "divides by a reciprocal on Vector",
    "com04": "54 % of the array's float32 peak, and only 132 MB moved: little overlap",
    "com07": "loads its operands again for every tile, 9 GB",
    "com10": "spills 754 MB",
    "com11": "keeps nothing of the scores on chip either, 1.1 GB",
    "com12": "works on 64 of 128 partitions",
    "com13": "spreads its products over the engines in another way",
}
COMPILED_PRICES = {
    name: Price(partial(graph_us, name), note=_OTHERWISE.get(name, ""))
    for name in GRAPHS
    if name.startswith("com")
}

# Every table with its title.
TABLES = (
    ("calibration: constants were fitted on some of these", DATA, PRICES),
    ("held out: fitted on none", HOLDOUT, HOLDOUT_PRICES),
    ("compiled figures of calibration rows", LAUNCHED, LAUNCHED_PRICES),
    ("graphs that the vendor's compiler made, fitted on none", COMPILED, COMPILED_PRICES),
)


def fitted_on(row: str) -> tuple[str, ...]:
    """The constants of the chips that were fitted on a calibration row."""
    names = []
    for chip in CHIPS.values():
        for part in dataclasses.fields(chip):
            value = getattr(chip, part.name)
            if not dataclasses.is_dataclass(value):
                continue
            for field in dataclasses.fields(value):
                figure = getattr(value, field.name)
                if isinstance(figure, Figure) and row in figure.rows:
                    names.append(f"{chip.name}.{part.name}.{field.name}")
    return tuple(names)


def rows(data: Path = DATA, prices: dict[str, Price] = PRICES) -> list[Row]:
    """Every measurement of the file with its prediction."""
    out = []
    with data.open() as file:
        for line in csv.DictReader(file):
            how = prices[line["id"]]
            what = f"{line['chip']} {line['mode']} {line['kernel']} {line['shape']}"
            measured = float(line["measured_us"] or 0) if not how.measured else how.measured
            out.append(
                Row(
                    id=line["id"],
                    what=what,
                    measured=measured,
                    predicted=how.predict(),
                    unit=how.unit,
                    fitted=fitted_on(line["id"]) if data == DATA else (),
                    note=how.note,
                    taken=how.taken,
                )
            )
    return out


def show(table: list[Row]) -> None:
    """Print the rows and their mean."""
    for row in table:
        status = "predicted" if row.independent else "taken from the row"
        status = f"fitted: {', '.join(row.fitted)}" if row.fitted else status
        status += f"; {row.note}" if row.note else ""
        print(
            f"{row.id}  {row.measured:10.3f} {row.predicted:10.3f} {row.unit:5}"
            f"{row.error:+8.1%}  {row.what[:58]:58}  {status}"
        )
    errors = [abs(row.error) for row in table]
    print(f"mean absolute error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}")
    alone = [abs(row.error) for row in table if row.independent]
    mean = sum(alone) / len(alone)
    print(f"{len(alone)} rows that the prediction owes nothing to: {mean:.1%}, {max(alone):.1%}")


def main() -> None:
    """Print each table with its mean error."""
    for title, data, prices in TABLES:
        print(title)
        show(rows(data, prices))
        print()


if __name__ == "__main__":
    main()
