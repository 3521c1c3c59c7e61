"""Every public measurement in data/ with its prediction: writes accuracy.json.

    python benchmarks/measurements.py [--only ID ...] [--kind KIND] [--ranges]

The rows are data/measured_*.csv. `use` says what a row has served for: "fitted", a constant was
set by it; "shaped", someone looked at it while changing a schedule; "not fitted". docs/accuracy.md
is made of the file, and so is the table of torch_trn_emu/chip/calibration.py, which --ranges
prints.
"""

import argparse
import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import torch_trn_emu
from torch_trn_emu.chip import get_chip, get_system
from torch_trn_emu.chip.calibration import FEWEST, REGIMES
from torch_trn_emu.collectives import bus_factor, duration
from torch_trn_emu.estimation import Estimate
from torch_trn_emu.ranges import regime_of_collective

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import accuracy  # noqa: E402
import workloads  # noqa: E402
from compiled_graphs import GRAPHS, Graph  # noqa: E402
from workloads import Predicted  # noqa: E402

__all__ = ["RESULTS", "ranges", "read", "rows"]

RESULTS = HERE / "accuracy.json"
DATA = HERE / "data"
KINDS = (
    "products on Trn3",
    "operators",
    "graphs",
    "whole models",
    "training",
    "decode",
    "collectives",
    "programs that no operator makes",
)
Row = dict[str, Any]
F4, B2 = torch.float32, torch.bfloat16
LARGE = (2**14, 2**14)


def read(name: str) -> list[dict[str, str]]:
    """The rows of a file of data/."""
    lines = (DATA / f"measured_{name}.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _row(kind: str, line: Mapping[str, str], what: str, measured: float, unit: str) -> Row:
    return {
        "id": line["id"],
        "kind": kind,
        "chip": line["chip"],
        "what": what,
        "measured": measured,
        "unit": unit,
        "use": line["use"],
        "source": line.get("source", ""),
        "date": line.get("date", ""),
        "note": ", ".join(accuracy.fitted_on(line["id"])),
    }


def _filled(row: Row, made: Callable[[], Predicted], to_unit: Callable[[float], float]) -> Row:
    found = made()
    row["predicted"] = to_unit(found.us)
    row["regime"] = found.found.range.regime
    row["note"] = "; ".join(filter(None, (row["note"], found.note)))
    return row


# --- products, operators, models ------------------------------------------------------------

_MODE = {"kernel": "operators", "eager": "operators", "compiled": "whole models",
         "training": "training"}  # fmt: skip
_GRAPH = frozenset(("mm03", "mm08", "mm37"))
_DECODE = frozenset(("mm15", "mm16", "mm17"))
_MODELS = frozenset(("mm21", "mm23"))


def _kind_of(line: Mapping[str, str]) -> str:
    name = line["id"]
    if name in _DECODE:
        return "decode"
    if name in _MODELS:
        return "whole models"
    return "graphs" if name in _GRAPH else _MODE[line["mode"]]


def _products() -> Iterator[tuple[Row, Callable[[], Row]]]:
    for line in read("trn3_gemm"):
        m, n, k = (int(line[x]) for x in "mnk")
        row = _row("products on Trn3", line, f"{m} x {n} x {k}, bfloat16, LNC=2",
                   float(line["device_us_p50"]), "us")  # fmt: skip
        yield (
            row,
            lambda row=row, s=(m, n, k): _filled(row, lambda: workloads.product(*s), lambda us: us),
        )


def _models() -> Iterator[tuple[Row, Callable[[], Row]]]:
    for line in read("models"):
        what = f"{line['kernel']} {line['shape']} {line['dtype']} ({line['mode']})"
        row = _row(_kind_of(line), line, what, float(line["measured_us"]), "us")
        yield row, lambda row=row: _workload(row, lambda us: us)
    for line in read("llm_decode"):
        what = f"{line['model']}, {line['deployment']}, batch {line['batch']}, {line['quantity']}"
        row = _row("decode", line, what, float(line["measured"]), line["unit"])
        yield row, lambda row=row: _workload(row, lambda us: us / 1e3)


def _workload(row: Row, to_unit: Callable[[float], float]) -> Row:
    name = row["id"]
    row["reason"] = workloads.REASONS.get(name, "")
    if name in workloads.UNPREDICTED:
        return row | {"unpredicted": workloads.UNPREDICTED[name]}
    return _filled(row, workloads.WORKLOADS[name], to_unit)


# --- rows that accuracy.py prices too -------------------------------------------------------


def _called(
    function: Callable[..., Any], *inputs: tuple[torch.dtype, tuple[int, ...]]
) -> Predicted:
    tensors = [torch.empty(s, dtype=d, device="meta") for d, s in inputs]
    policy = "fp32" if inputs[0][0] is F4 else "bf16"
    with torch.no_grad(), torch_trn_emu.precision(policy):
        found = torch_trn_emu.estimate(function, *tensors, chip="trn2", lnc=2)
    dispatch = get_chip("trn2").launch.eager_dispatch_s * 1e6
    return Predicted(max(dispatch, found.device_us), found)


def _graph(graph: Graph) -> Estimate:
    tensors = [torch.empty(s, dtype=graph.dtype, device="meta") for s in graph.shapes]
    with torch.no_grad(), torch_trn_emu.precision(graph.policy):
        return torch_trn_emu.estimate(
            graph.function, *tensors, chip=graph.chip, lnc=graph.cores, mode="compile"
        )


def _of_graph(name: str) -> Predicted:
    graph = GRAPHS[name]
    found = _graph(graph)
    alone = name.startswith("com") or name == "cal05"
    launch = 0.0 if alone else get_chip(graph.chip).launch.graph_launch_s * 1e6
    return Predicted(max(launch, found.device_us), found)


def _mm(m: int, k: int, n: int, dtype: torch.dtype) -> Callable[[], Predicted]:
    return lambda: _called(torch.mm, (dtype, (m, k)), (dtype, (k, n)))


_CAUSAL = workloads._causal_attention
REACHED: dict[str, Callable[[], Predicted]] = {
    "cal15": _mm(1024, 4096, 4096, B2),
    "cal16": _mm(4096, 4096, 4096, B2),
    "cal17": _mm(1024, 4096, 4096, F4),
    "cal18": lambda: _called(torch.add, *[(B2, (1024, 1024))] * 2),
    "cal19": lambda: _called(torch.add, *[(B2, LARGE)] * 2),
    "cal20": lambda: _called(torch.exp, (B2, LARGE)),
    "cal21": lambda: _called(lambda x: x.sum(1), (F4, LARGE)),
    "cal22": lambda: _called(lambda x: x.softmax(-1), (B2, (2**16, 4096))),
    "out18": _mm(2048, 4096, 4096, B2),
    "out19": lambda: _called(lambda x: x.softmax(-1), (B2, (2048, 1024))),
    "out20": lambda: _called(_CAUSAL, *[(B2, (1, 8, 2048, 128))] * 3),
    "out21": lambda: _called(_CAUSAL, *[(B2, (1, 8, 4096, 128))] * 3),
    "out22": lambda: _called(torch.clone, (B2, (2**18, 1024))),
    "out23": lambda: _called(
        lambda x, i: x.index_select(0, i), (F4, (2**17, 1024)), (torch.int64, (2**17,))
    ),
}
# Bytes that a plateau in GB/s counts.
_PLATEAU = {"cal19": 6 * 2**28, "cal20": 4 * 2**28, "cal21": 4 * 2**28, "cal22": 4 * 2**28,
            "out22": 4 * 2**28, "out23": 8 * 2**27}  # fmt: skip


def _tables() -> Iterator[tuple[Row, Callable[[], Row]]]:
    files = ("calibration", "holdout", "launched", "compiled")
    for file, (_, _, prices) in zip(files, accuracy.TABLES, strict=True):
        for line in read(file):
            how = prices[line["id"]]
            graph = line["id"] in GRAPHS and file in ("launched", "compiled", "holdout")
            made = (lambda name=line["id"]: _of_graph(name)) if graph else REACHED.get(line["id"])
            kind = "graphs" if graph else "operators" if made else KINDS[-1]
            what = f"{line['kernel']} {line['shape']} {line['dtype']} ({line['mode']})"
            measured = how.measured or float(line["measured_us"])
            row = _row(kind, line, what, measured, how.unit)
            if file == "launched":
                row["id"] += "c"
            row["reason"] = accuracy._OTHERWISE.get(line["id"], "")
            yield row, lambda row=row, made=made, how=how: _old(row, made, how)


def _old(row: Row, made: Callable[[], Predicted] | None, how: accuracy.Price) -> Row:
    row["note"] = "; ".join(n for n in (row["note"], how.note) if n and n != row["reason"])
    if made is None:
        return row | {"predicted": how.predict(), "regime": ""}
    nbytes = _PLATEAU.get(row["id"])
    return _filled(row, made, lambda us: nbytes / us / 1e3 if nbytes else us)


# --- collectives ----------------------------------------------------------------------------


def _collectives() -> Iterator[tuple[Row, Callable[[], Row]]]:
    for number, line in enumerate(read("collectives"), 1):
        timed = bool(line["time_us"])
        what = f"{line['op']}, {line['ranks']} ranks, {line['size_bytes'] or '?'} bytes"
        what += f" ({line['series']})"
        named = {**line, "id": f"cc{number:02d}"}
        row = _row("collectives", named, what, float(line["time_us"] or line["busbw_gb_per_s"]),
                   "us" if timed else "GB/s")  # fmt: skip
        row["reason"] = (
            "the vendor's pages give latencies of like operations that differ by a factor of 50"
            if "nccom" in line["source"]
            else "the size is not published: 1 GiB is assumed"
            if not line["size_bytes"]
            else ""
        )
        yield row, lambda row=row, line=line: _collective(row, line)


def _collective(row: Row, line: Mapping[str, str]) -> Row:
    if row["unit"] == "us" and not line["size_bytes"]:
        return row | {"unpredicted": "the size is not published"}
    chip, lnc = get_chip(line["chip"]), int(line["lnc"])
    per_chip, ranks, nodes = chip.logical_cores(lnc), int(line["ranks"]), int(line["nodes"])
    system = get_system("", chip.name)
    server = system.chips_per_server * per_chip
    members = tuple(node * server + i for node in range(nodes) for i in range(ranks // nodes))
    size = int(line["size_bytes"] or 2**30)  # a bandwidth is that of large buffers
    caller = "eager" if "eager" in line["series"] else "graph"
    op = line["op"].removesuffix("_v")
    seconds = duration(op, size, members, system, per_chip, caller).seconds
    bus = size / seconds / 1e9 * bus_factor(op, ranks)
    return row | {
        "predicted": seconds * 1e6 if row["unit"] == "us" else bus,
        "regime": regime_of_collective(size),
    }


# --- what follows from them -----------------------------------------------------------------


def _all() -> Iterator[tuple[Row, Callable[[], Row]]]:
    for source in (_products, _models, _tables, _collectives):
        yield from source()


def rows(kind: str = "", only: Iterable[str] = (), told: bool = False) -> list[Row]:
    """The rows chosen, predicted; `told` prints each."""
    wanted, out = set(only), []
    for row, predict in _all():
        if (kind and row["kind"] != kind) or (wanted and row["id"] not in wanted):
            continue
        made = predict()
        if "predicted" in made:
            ratio = made["predicted"] / made["measured"]
            made["error"] = round((1 / ratio if made["unit"] == "GB/s" else ratio) - 1, 4)
            made["predicted"] = float(f"{made['predicted']:.5g}")
        if told:
            print(
                f"{made['id']:6} {made.get('error', math.nan):+8.1%}  {made['what'][:90]}",
                flush=True,
            )
        out.append(made)
    return out


def _weighted(values: list[tuple[float, float]], share: float) -> float:
    """The value that `share` of the weight does not exceed."""
    total, so_far = sum(w for _, w in values), 0.0
    for value, weight in sorted(values):
        so_far += weight
        if so_far >= share * total - 1e-9:
            return value
    return max(values)[0]


def _span(found: list[Row]) -> tuple[float, float]:
    """The 10th and the 90th percentile of measured / predicted, few rows of each source."""
    of = Counter(row["source"] for row in found)
    ratios = [(1 / (1 + row["error"]), min(1.0, FEWEST / of[row["source"]])) for row in found]
    high = _weighted(ratios, 0.9)
    low = -_weighted([(-value, weight) for value, weight in ratios], 0.9)
    return math.floor(low * 100) / 100, math.ceil(high * 100) / 100


# Rows of what docs/timing.md says is not modelled do not count for a range.
NOT_MODELLED = frozenset(("mm33", "mm34"))
# Whose rows a regime takes that has too few of its own.
_WIDER = {
    "small": ("operators", ("large product", "stream", "reduction", "small")),
    "stream": ("operators", ("large product", "stream", "reduction", "small")),
    "reduction": ("operators", ("large product", "stream", "reduction", "small")),
    "large product": ("operators", ("large product", "stream", "reduction", "small")),
    "decode": ("graphs", ("decode", "whole graph")),
    "whole graph": ("graphs", ("decode", "whole graph")),
    "small collective": ("collectives", ("small collective", "large collective")),
    "large collective": ("collectives", ("small collective", "large collective")),
}


def ranges(rows: list[Row]) -> list[tuple[str, float, float, int, int, str]]:
    """(regime, low, high, rows, rows on Trn3 of any use, of) for chip/calibration.py."""
    usable = [r for r in rows if r.get("regime") and "error" in r and r["id"] not in NOT_MODELLED]
    alone = [r for r in usable if r["use"] == "not fitted"]
    out = []
    for regime in REGIMES:
        wider, members = _WIDER[regime]
        choices = (
            (regime, [r for r in alone if r["regime"] == regime]),
            (
                f"{regime}, shaped ones too",
                [r for r in usable if r["regime"] == regime and r["use"] != "fitted"],
            ),
            (wider, [r for r in alone if r["regime"] in members]),
        )
        of, found = next((c for c in choices if len(c[1]) >= FEWEST), choices[-1])
        if not found:
            continue  # a file of some rows only
        low, high = _span(found)
        on_trn3 = sum(r["chip"] == "trn3" and r.get("regime") == regime for r in rows)
        out.append((regime, low, high, len(found), on_trn3, of))
    return out


def _print_ranges(table: list[Row]) -> None:
    for regime, low, high, count, trn3, of in ranges(table):
        more = f", {trn3}" if trn3 or of != regime else ""
        more += f', "{of}"' if of != regime else ""
        print(f'            _range("{regime}", {low}, {high}, {count}{more}),')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--kind", default="", choices=("", *KINDS))
    parser.add_argument("--ranges", action="store_true", help="print the table from the file")
    options = parser.parse_args()
    if not options.ranges:
        made = rows(options.kind, options.only, told=True)
        if options.kind or options.only:
            known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
            new = {row["id"]: row for row in made}
            made = [new.pop(row["id"], row) for row in known] + list(new.values())
        RESULTS.write_text(json.dumps({"rows": made}, indent=1) + "\n")
    _print_ranges(json.loads(RESULTS.read_text())["rows"])


if __name__ == "__main__":
    main()
