"""Fill the generated sections of the documents: one row of SECTIONS each.

python docs/generate.py [--check]

A section lies between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. With --check nothing is
written and a stale document is an error; tests/test_docs.py does the same.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Section:
    document: str
    name: str
    text: Callable[[], str]


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (head, tuple("---" for _ in head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def recorded(name: str) -> dict[str, Any] | None:
    """A file that `make bench` or benchmarks/convergence.py wrote, or None."""
    path = ROOT / "benchmarks" / name
    return json.loads(path.read_text()) if path.exists() else None


def machine_line(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"`{results['command']}` on {machine['cpu']}, {machine['threads']} threads, "
        f"{machine['vector_instructions']}, Python {machine['python']}, torch {machine['torch']}."
    )


# The rows of the README; benchmarks/README.md has all.
_SHOWN = (
    "training step, GPT 6 x 384, 2,048 tokens, AdamW, mxfp8",
    "mm, 2048 x 2048, mxfp8",
    "quantize_mx, 4096 x 4096 float32, dim -1",
)


def speed_table() -> str:
    """Three medians, for the README."""
    if (results := recorded("results.json")) is None:
        return "Not measured yet: `make bench`."
    rows = [
        (row["name"], row["against"], f"{row['value']:.3g} {row['unit']}")
        for row in results["rows"]
        if row["name"] in _SHOWN
    ]
    head = ("on `trn`", "on the CPU", "time")
    return markdown_table(tuple(head), rows) + "\n\n" + machine_line(results)


def benchmark_table() -> str:
    """Everything that `make bench` measured."""
    return measured_table("results.json", "make bench")


def compile_table() -> str:
    """What benchmarks/compile.py measured."""
    return measured_table("compile.json", "python benchmarks/compile.py")


def measured_table(name: str, command: str) -> str:
    if (results := recorded(name)) is None:
        return f"Not measured yet: `{command}`."
    rows = [
        (
            row["name"],
            row["against"],
            f"{row['value']:.3g} {row['unit']}",
            "{:.3g} to {:.3g}".format(*row["quartiles"]),
            f"{row['target']:.3g}",
            row["verdict"],
            f"{row['measured_s'] * 1e3:.4g}",
            f"{row['baseline_s'] * 1e3:.4g}",
            str(row["rounds"]),
        )
        for row in results["rows"]
    ]
    head = "what,against,measured,quartiles,goal,result,ms,baseline ms,rounds".split(",")
    return machine_line(results) + "\n\n" + markdown_table(head, rows)


def instruction_set_tables() -> str:
    """Every row of benchmarks/instruction_sets.py under each instruction set of every processor."""
    if (results := recorded("instruction_sets.json")) is None:
        return "Not measured yet: `make benchmark`."
    return "\n\n".join(map(_instruction_set_table, results["runs"]))


def _instruction_set_table(run: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            row["against"],
            *(
                "{:.3g} ({:.3g} to {:.3g})".format(one["value"], *one["quartiles"])
                for one in row["measured"].values()
            ),
            f"{row['target']:.3g}",
            str(min(one["rounds"] for one in row["measured"].values())),
        )
        for row in run["rows"]
    ]
    shared = "" if run["quiet"] else " The machine was shared: other work ran on it."
    head = ("what", "against", *run["rows"][0]["measured"], "goal", "pairs")
    return machine_line(run) + shared + "\n\n" + markdown_table(head, rows)


def ranks_table() -> str:
    """Collectives against gloo, from benchmarks/ranks.py."""
    if (results := recorded("ranks.json")) is None:
        return "Not measured yet: `python benchmarks/ranks.py`."
    rows = [
        (
            row["name"],
            row["against"],
            f"{row['value']:.3g} {row['unit']}",
            "{:.3g} to {:.3g}".format(*row["quartiles"]),
            f"{row['goal']:g}",
            f"{row['measured_us']:.4g}",
            f"{row['baseline_us']:.4g}",
        )
        for row in results["rows"]
    ]
    head = ("what", "against", "measured", "quartiles", "goal", "us", "baseline us")
    return markdown_table(head, rows)


def convergence_table() -> str:
    """Validation losses of the demo's model under each matmul precision."""
    if (results := recorded("convergence.json")) is None:
        return "Not measured yet: `python benchmarks/convergence.py`."
    baseline = results["rows"][0]["validation_loss"]
    rows = [
        (
            f"`{row['precision']}`",
            f"{row['validation_loss']:.4f}",
            f"{row['validation_loss'] / baseline - 1:+.2%}",
        )
        for row in results["rows"]
    ]
    return markdown_table(("precision", "validation loss", "against `fp32`"), rows)


VERDICTS = {
    "EXACT": "exact",
    "BOUND": "within bound",
    "UNCOMPILED": "not compiled",
    "DIFFERS": "differs",
    "ERROR_DIFFERS": "another error",
    "CRASH": "crash",
}


def conformance_table() -> str:
    return walk_table("docs/conformance.json")


def compiled_conformance_table() -> str:
    return walk_table("docs/conformance_compiled.json")


def walk_table(name: str) -> str:
    """Cases by class, and each that is not exact, grouped by its reason."""
    path = ROOT / name
    if not path.exists():
        return "Not measured yet: `make conformance`."
    found = json.loads(path.read_text())
    counts = found["counts"]
    verdicts = [v for v in VERDICTS if v != "UNCOMPILED" or any(v in of for of in counts.values())]
    rows = [(suite, *(str(of.get(v, 0)) for v in verdicts)) for suite, of in counts.items()]
    text = (
        f"{found['share']:.2%} of the cases are exact or within a bound with a reason "
        f"({found['samples']} samples, torch {found['torch']}, Python {found['python']}).\n\n"
        + markdown_table(("suite", *(VERDICTS[v] for v in verdicts)), rows)
    )
    by_reason: dict[str, list[str]] = {}
    for row in found["remaining"]:
        cases = by_reason.setdefault(row["reason"] or "none yet", [])
        cases.append(f"`{row['case']}` {VERDICTS[row['verdict']]}: {row['why']}")
    for reason, cases in by_reason.items():
        text += f"\n\n{reason}\n\n" + "\n".join(f"- {case}" for case in cases)
    return text


def distributed_conformance_table() -> str:
    """Torch's own tests of process groups that do not pass, from tests/distributed/upstream.py."""
    path = ROOT / "docs/distributed_conformance.json"
    if not path.exists() or "gloo" not in (results := json.loads(path.read_text())):
        return "Not measured yet: `make distributed-conformance`."
    sys.path.insert(0, str(ROOT / "tests/distributed"))
    import upstream

    found = upstream.counted(results)
    passed = sum(outcome == "passed" for outcome, _ in found.values())
    text = (
        f"{passed} of {len(found)} tests pass ({passed / len(found):.1%}). They count if they pass "
        "with gloo on the CPU or need an accelerator, as which trn serves them; the rest of the "
        "suite is for MPI or disabled by torch.\n\n"
    )
    rows = [
        (f"`{name}`", outcome, upstream.reason(name) or why.replace("|", "/"))
        for name, (outcome, why) in sorted(found.items())
        if outcome != "passed"
    ]
    return text + markdown_table(("test", "outcome", "reason"), rows)


def torch_suite_table() -> str:
    """What passes of PyTorch's device-generic files, from tests/conformance/torch_suite.py."""
    path = ROOT / "docs/torch_suite.json"
    if not path.exists():
        return "Not measured yet: `make upstream TORCH_SOURCE=...`."
    results = json.loads(path.read_text())
    sys.path.insert(0, str(ROOT / "tests/conformance"))
    import torch_suite

    text = f"Tests of PyTorch {results['source']} on torch {results['torch']}:\n\n"
    return text + torch_suite.summary(results)


def distributed_files_table() -> str:
    """PyTorch's test files of torch.distributed, from tests/distributed/suites.py."""
    path = ROOT / "docs/distributed_conformance.json"
    files = json.loads(path.read_text()).get("files", {}) if path.exists() else {}
    if not files:
        return "Not measured yet: `make distributed-conformance TORCH_SOURCE=...`."
    sys.path.insert(0, str(ROOT / "tests/distributed"))
    import suites

    head = ("file", "way", "passed on trn", "of", "with trn memory", "not run")
    rows = markdown_table(head, suites.table(files))
    return "\n\n".join((suites.summary(files), rows, suites.text_of(files)))


def operator_table() -> str:
    """The rows of OPS, those alike together."""
    from torch_trn_emu.ops import OPS
    from torch_trn_emu.ops.unbounded import worth

    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in OPS.values():
        status = worth(row.name, row.status)
        groups.setdefault((status, row.engine, row.note), []).append(f"`{row.name}`")
    rows = [
        (" ".join(sorted(names)), engine, status, note)
        for (status, engine, note), names in groups.items()
    ]
    head = ("operators", "engine", "status", "note")
    counts = f"{len(OPS)} operators have a row."
    return counts + "\n\n" + markdown_table(head, sorted(rows, key=lambda r: (r[2], r[1], r[0])))


def _measured() -> list[dict[str, Any]]:
    return (recorded("accuracy.json") or {"rows": []})["rows"]


def range_table() -> str:
    """The ranges of chip/calibration.py, by regime."""
    from torch_trn_emu.chip.calibration import RANGES, REGIMES

    rows = [
        (
            r.regime,
            REGIMES[r.regime],
            f"{r.low:.2f} to {r.high:.2f}",
            f"{r.rows}" + (f", {r.trn3} on Trn3" if r.trn3 else ""),
            "" if r.of == r.regime else f"those of {r.of}: too few of its own",
        )
        for r in RANGES.values()
    ]
    return markdown_table(("regime", "what", "measured / predicted", "rows", "rows taken"), rows)


def _errors(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    errors = sorted(abs(row["error"]) for row in rows)
    if not errors:
        return ("0", "", "", "")
    mean = sum(errors) / len(errors)
    return (f"{len(errors)}", f"{median(errors):.1%}", f"{mean:.1%}", f"{errors[-1]:.1%}")


def accuracy_summary() -> str:
    """Errors by kind, rows that nothing was fitted on apart."""
    rows = [row for row in _measured() if "error" in row]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    uses = ("not fitted", "shaped", "fitted")
    cells = [
        (kind, use, *_errors(found))
        for kind in kinds
        for use in uses
        if (found := [r for r in rows if r["kind"] == kind and r["use"] == use])
    ]
    reached = [r for r in rows if r["regime"] and r["kind"] != "collectives"]
    for use in uses:
        found = [r for r in reached if r["use"] == use]
        cells.append(("**what a user can reach**, without collectives", use, *_errors(found)))
    cells.append(("**what a user can reach**, without collectives", "all", *_errors(reached)))
    head = ("kind", "use", "rows", "median", "mean", "worst")
    return markdown_table(head, cells)


def accuracy_rows() -> str:
    """Every measurement, by kind."""
    rows = _measured()
    head = ("row", "chip", "what", "measured", "predicted", "error", "use", "regime", "remarks")
    text = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = [row for row in rows if row["kind"] == kind]
        text.append(
            f"### {kind[0].upper() + kind[1:]}\n\n{markdown_table(head, list(map(_cells, of)))}\n"
        )
    return "\n".join(text).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    predicted = f"{row['predicted']:.4g}" if "predicted" in row else "none"
    error = f"{row['error']:+.1%}" if "error" in row else ""
    said = [row["note"], row.get("reason", ""), row.get("unpredicted", "")]
    return (row["id"], row["chip"], row["what"], f"{row['measured']:.4g} {row['unit']}", predicted,
            error, row["use"], row.get("regime", ""), "; ".join(filter(None, said)))  # fmt: skip


def policy_table() -> str:
    """The matmul policies, those that are a chip's default first."""
    from torch_trn_emu.chip import CHIPS
    from torch_trn_emu.formats import MX_FORMATS, POLICIES

    texts = {"as_given": "as given", "bf16": "bfloat16"}
    texts |= {row.name: row.label for row in MX_FORMATS.values()}

    def named(policy: str) -> str:
        chips = [c.name for c in CHIPS.values() if c.default_matmul_precision == policy]
        return f"`{policy}`" + (f" (default on {', '.join(chips)})" if chips else "")

    rows = []
    for row in POLICIES.values():
        linear = texts[row.weight]
        if row.weight != row.other:
            linear = f"weights {linear}, the other operand {texts[row.other]}"
        rows.append((named(row.name), linear, texts[row.attention], texts[row.convolution]))
    return markdown_table(("policy", "linear layers", "attention", "convolution"), rows)


def counter_table() -> str:
    """The rows of COUNTERS."""
    from torch_trn_emu.counters import COUNTERS

    rows = [
        (f"`{row.name}`", row.unit.value, row.doc, row.kind, row.source)
        for row in COUNTERS.values()
    ]
    return markdown_table(("counter", "unit", "meaning", "kind", "source"), rows)


def coverage_table() -> str:
    """A row for each operator, by name."""
    from torch_trn_emu.cli.coverage import coverage

    names = ("op", "contract", "price", "engine", "note")
    rows = [tuple(f"`{row[n]}`" if n == "op" else row[n] for n in names) for row in coverage()]
    return markdown_table(("operator", *names[1:]), sorted(rows))


def device_list_table() -> str:
    """Where other libraries list devices by name, and what each bridge makes work."""
    from torch_trn_emu.integrations.device_lists import PLACES

    twins = ("pytorch_lightning", "lightning_fabric")  # the same modules under another name
    rows = [
        (f"`{place.module}.{place.name}`", place.does)
        for place in PLACES
        if place.module.partition(".")[0] not in twins
    ]
    return markdown_table(("place", "enables"), rows)


def cuda_name_table() -> str:
    """Every public name of torch.cuda, joined by what it is under --as-cuda."""
    from torch_trn_emu.aliases.cuda_names import SAME, rows

    joined: dict[tuple[str, str], list[str]] = {("mapped", "the same name in `torch.trn`"): []}
    for name, how, why in rows():
        kind = "the same name in `torch.trn`" if name in SAME else why
        joined.setdefault((how, kind), []).append(f"`{name}`")
    rows_ = [(" ".join(names), how, why) for (how, why), names in joined.items()]
    return markdown_table(("names", "status", "counterpart or reason"), rows_)


def neuron_name_table() -> str:
    """TorchNeuron's names under --as-neuron, by module, and what is refused."""
    from torch_trn_emu.aliases.neuron_names import REFUSED, SERVED

    rows = [(f"`{m}`", " ".join(f"`{n}`" for n in names), "") for m, names in SERVED.items()]
    whys: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        whys.setdefault(why, []).append(f"`{name}`")
    rows += [("refused", " ".join(names), why) for why, names in whys.items()]
    return markdown_table(("module", "names", "why"), rows)


def neuron_variable_table() -> str:
    """The vendor's variables, and what each does here."""
    from torch_trn_emu.aliases.neuron_names import VARIABLES

    rows = [
        (f"`{name}`", "honoured" if known.honoured else "no effect", str(known))
        for name, known in VARIABLES.items()
    ]
    return markdown_table(("variable", "status", "effect, or why it has none"), rows)


SECTIONS = (
    Section(document="docs/vendor.md", name="neuron names", text=neuron_name_table),
    Section(document="docs/vendor.md", name="neuron variables", text=neuron_variable_table),
    Section(document="docs/cuda.md", name="cuda names", text=cuda_name_table),
    Section(document="docs/ecosystem.md", name="device lists", text=device_list_table),
    Section(document="README.md", name="policies", text=policy_table),
    Section(document="docs/precision.md", name="policies", text=policy_table),
    Section(document="docs/fidelity.md", name="policies", text=policy_table),
    Section(document="docs/counters.md", name="counters", text=counter_table),
    Section(document="docs/coverage.md", name="coverage", text=coverage_table),
    Section(document="docs/accuracy.md", name="ranges", text=range_table),
    Section(document="docs/accuracy.md", name="accuracy summary", text=accuracy_summary),
    Section(document="docs/accuracy.md", name="accuracy rows", text=accuracy_rows),
    Section(document="docs/timing.md", name="operators", text=operator_table),
    Section(document="README.md", name="speed", text=speed_table),
    Section(document="benchmarks/README.md", name="speed", text=benchmark_table),
    Section(document="benchmarks/README.md", name="instruction sets", text=instruction_set_tables),
    Section(document="docs/performance.md", name="compile", text=compile_table),
    Section(document="benchmarks/README.md", name="convergence", text=convergence_table),
    Section(document="docs/conformance.md", name="conformance", text=conformance_table),
    Section(document="docs/conformance.md", name="compiled", text=compiled_conformance_table),
    Section(document="docs/conformance.md", name="torch suite", text=torch_suite_table),
    Section(document="docs/distributed.md", name="suite", text=distributed_conformance_table),
    Section(document="docs/distributed.md", name="files", text=distributed_files_table),
    Section(document="benchmarks/README.md", name="ranks", text=ranks_table),
)


def filled(section: Section, document: str) -> str:
    """The document with the section's text as it should be now."""
    begin, end = f"<!-- begin: {section.name} -->", f"<!-- end: {section.name} -->"
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    if not pattern.search(document):
        raise SystemExit(f"{section.document} has no section {begin}")
    return pattern.sub(lambda _: section.text() + "\n", document)


def main() -> None:
    for section in SECTIONS:
        path = ROOT / section.document
        before = path.read_text()
        after = filled(section, before)
        if after == before:
            continue
        if "--check" in sys.argv:
            raise SystemExit(f"{section.document}: {section.name} is stale; run `make docs`")
        path.write_text(after)


if __name__ == "__main__":
    main()
