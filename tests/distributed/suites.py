"""PyTorch's own tests of torch.distributed on trn, from a source tree of PyTorch as released.

    python tests/distributed/suites.py SOURCE [--only tensor/] [--seconds 600]
                                       [--again | --rest | --gloo]

suite_files.py names files below SOURCE/test/distributed, the devices that their tests find and the
way to run them: `cuda`, the tests for CUDA and NCCL by TRN_EMU_AS=cuda, or `trn`, those for any
accelerator. The same file runs with gloo on the CPU. A test that does not pass counts if this twin
passes, or skips where trn fails; suite_files.py says why. It does not count if a line of torch 2.13
keeps it from passing on any device, as a row of CHANGED says. Counts, and the tests that do not
pass, are kept in docs/distributed_conformance.json, from which a table of docs/distributed.md is
made. --rest goes on where the time cut a file off. --gloo runs whole files with gloo alone, of
those that have been recorded to the end, and so counts how many of the tests that gloo passes trn
passes as well. forked_tests.py runs the tests; the process that forks them is ended with whatever
it left behind.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "conformance")]

from suite_files import CHANGED, FILES, REASONS, File  # noqa: E402
from torch_suite import Outcome, twin  # noqa: E402  one rule for twins

RESULTS = ROOT / "docs" / "distributed_conformance.json"
WAYS = {
    "gloo": {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    "cuda": {"TRN_EMU_AS": "cuda", "TRN_EMU_MATMUL": "fp32"},
    "trn": {"TRN_EMU_MATMUL": "fp32"},
}
DEVICES = {
    2: {"NEURON_RT_VISIBLE_CORES": "0-1"},
    4: {"NEURON_RT_VISIBLE_CORES": "0-3"},
    8: {"LOCAL_WORLD_SIZE": "8"},
}


@dataclass
class Ran:
    """What a file's tests came to; `used` counts those that had memory of trn."""

    outcomes: dict[str, Outcome]
    used: int
    left: list[str]  # tests that the time did not suffice for


def run(
    source: Path,
    file: File,
    way: str,
    limits: tuple[float, float],
    chosen: Collection[object] = (),
) -> Ran:
    """Runs a file's tests but the chosen, for so many seconds and seconds a test.

    chosen  after the word `only`, the tests to run; after the word `after`, how many to leave out
    """
    devices = {} if way == "gloo" else DEVICES[file.devices]
    with _lines(source, [file], way, limits, devices, chosen) as lines:
        return _read(Path(file.path).name, lines)


@contextlib.contextmanager
def _lines(
    source: Path,
    files: Sequence[File],
    way: str,
    limits: tuple[float, float],
    devices: dict[str, str],
    chosen: Collection[object] = (),
) -> Iterator[Iterator[str]]:
    """What forked_tests.py prints of files."""
    paths = [str(source / "test" / "distributed" / file.path) for file in files]
    command = [sys.executable, "-u", str(Path(__file__).with_name("forked_tests.py")), way]
    child = subprocess.Popen(
        [*command, str(limits[1]), str(limits[0]), *paths],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | WAYS[way] | devices
        | {"DISTRIBUTED_TESTS_DEFAULT_TIMEOUT": str(max(300, int(limits[1])))},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    with child.stdin as names:
        json.dump(list(chosen), names)
    try:
        yield child.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read(name: str, lines: Iterator[str]) -> Ran:
    known: list[str] = []
    ran = Ran({}, 0, [])
    for line in lines:
        word, _, told = line.partition(" ")
        if word == "all":
            known = json.loads(told)
        elif word == "broken":
            ran.outcomes[name] = Outcome("failed", json.loads(told)[0][:300])
        elif word == "end":
            test, outcome, used, why = json.loads(told)
            ran.outcomes[test] = Outcome(outcome, _short(why))
            ran.used += bool(used)
    ran.left = sorted(set(known) - set(ran.outcomes))
    return ran


def _short(why: str) -> str:
    """The line that says most: the last error of a rank, else the last line."""
    lines = [line.strip() for line in why.partition("To execute this test")[0].splitlines()]
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Failure)\b", line)]
    told = [line for line in told if "exited with error code" not in line] or told
    return (told or [line for line in lines if line] or [""])[-1][:300]


def record(source: Path, file: File, seconds: float, test_seconds: float) -> dict[str, Any]:
    """What is kept of a file: counts of both runs, and each test that should pass."""
    found = run(source, file, file.way, (seconds, test_seconds))
    others = {t for t, outcome in found.outcomes.items() if outcome.word != "passed"}
    known = {*found.outcomes, *found.left}
    left_out = [on_cpu(test) for test in known - others]
    beside = run(source, file, "gloo", (seconds, test_seconds), left_out)
    row: dict[str, Any] = {"way": file.way, "used": found.used, "left": len(found.left)}
    row |= {"gloo": counts(beside), "trn": counts(found), "other": should_pass(found, beside)}
    return row


def should_pass(found: Ran, beside: Ran) -> dict[str, list[str]]:
    """The tests that did not pass on trn, but pass with gloo or are skipped there alone."""
    twins = {plain(test): outcome.word for test, outcome in beside.outcomes.items()}
    owed = {}
    for test, outcome in sorted(found.outcomes.items()):
        word = twins.get(plain(test), "skipped")
        if outcome.word != "passed" and (
            word == "passed" or (word == "skipped" and outcome.word != "skipped")
        ):
            owed[test] = [outcome.word, outcome.why, word]
    return owed


def rest(source: Path, file: File, seconds: float, test_seconds: float) -> dict[str, Any]:
    """Goes on with a file that was cut off; each run takes its tests in the same order."""
    row: dict[str, Any] | None = json.loads(RESULTS.read_text())["files"].get(file.path)
    if row is None:
        return record(source, file, seconds, test_seconds)
    if not row["left"]:
        return row
    done = sum(row["trn"].values())
    found = run(source, file, file.way, (seconds, test_seconds), ["after", done])
    bad = [test for test, outcome in found.outcomes.items() if outcome.word != "passed"]
    beside = run(source, file, "gloo", (seconds, test_seconds), ["only", *map(on_cpu, bad)])
    for way, ran in (("trn", found), ("gloo", beside)):
        row[way] = {word: row[way][word] + count for word, count in counts(ran).items()}
    row["left"] -= len(found.outcomes)
    row["used"] += found.used
    row["other"] |= should_pass(found, beside)
    return row


def again(source: Path, file: File, seconds: float, test_seconds: float) -> dict[str, Any]:
    """Runs the tests that did not pass when the file was recorded; what else is kept stays.

    Those that fail with gloo as well do not count any more.
    """
    row: dict[str, Any] | None = json.loads(RESULTS.read_text())["files"].get(file.path)
    if row is None:
        return record(source, file, seconds, test_seconds)
    before = row["other"]
    if not before:
        return row
    found = run(source, file, file.way, (seconds, test_seconds), ["only", *before])
    for test, outcome in found.outcomes.items():
        if test not in before:
            continue
        for word, step in ((before.pop(test)[0], -1), (outcome.word, 1)):
            row["trn"][word if word in row["trn"] else "failed"] += step
        if outcome.word != "passed":
            before[test] = [outcome.word, outcome.why, "skipped"]
    row["used"] = max(row["used"], found.used)
    if before:
        beside = run(source, file, "gloo", (seconds, test_seconds), ["only", *map(on_cpu, before)])
        twins = {plain(test): outcome.word for test, outcome in beside.outcomes.items()}
        row["other"] = {
            test: [*told[:2], word]
            for test, told in before.items()
            if (word := twins.get(plain(test), told[2])) in ("passed", "skipped")
        }
    return row


def passes_with_gloo(source: Path, pattern: str, seconds: float, test_seconds: float) -> None:
    """Keeps of each file that ran to the end how many tests gloo passes."""
    rows = json.loads(RESULTS.read_text())["files"]
    files = [
        file
        for file in FILES
        if re.search(pattern, file.path) and file.path in rows and not rows[file.path]["left"]
    ]
    with _lines(source, files, "gloo", (seconds, test_seconds), {}) as lines:
        for file, told in zip(files, _by_file(lines), strict=False):
            found = _read(Path(file.path).name, iter(told))
            if found.left:
                continue
            row = json.loads(RESULTS.read_text())["files"][file.path]
            row["gloo_alone"] = counts(found)["passed"]
            print(file.path, row["gloo_alone"], "pass with gloo", flush=True)
            keep(file.path, row, source)


def _by_file(lines: Iterator[str]) -> Iterator[list[str]]:
    told: list[str] = []
    next(lines, "")  # the first file
    for line in lines:
        if line.startswith("file "):
            yield told
            told = []
        else:
            told.append(line)
    yield told


def on_cpu(test: str) -> str:
    """The name of the twin of a test that is instantiated by device."""
    name = re.sub(r"(PRIVATEUSE1|TRN|CUDA)(?=\.)", "CPU", test)
    return test if name == test else re.sub(r"_(trn|cuda)(?=_|$)", "_cpu", name)


def plain(test: str) -> str:
    """The name of a test without its device."""
    return twin(test.replace(".", "::"))


def counts(ran: Ran) -> dict[str, int]:
    words = [outcome.word for outcome in ran.outcomes.values()]
    found = {word: words.count(word) for word in ("passed", "skipped")}
    return found | {"failed": len(words) - sum(found.values())}


def reason(path: str, test: str, why: str) -> str:
    """Why a test does not pass, or nothing where a reason is owed."""
    row = _row(path, test, why)
    return row.text if row else ""


def _row(path: str, test: str, why: str) -> Any:
    rows = (r for r in REASONS if re.search(r.tests, f"{path}::{test}") and re.search(r.why, why))
    return next(rows, None)


def counted(path: str, row: dict[str, Any]) -> dict[str, list[str]]:
    """The tests of a file that do not pass and count."""
    return {
        test: told
        for test, told in row["other"].items()
        if _row(path, test, told[1]) not in CHANGED
    }


def summary(files: dict[str, Any]) -> str:
    """How many tests count and pass, beside all and beside those that gloo passes."""
    passed = sum(row["trn"]["passed"] for row in files.values())
    bad = [told for path, row in files.items() for told in counted(path, row).values()]
    share = passed / (passed + len(bad))
    old = sum(len(row["other"]) for row in files.values()) - len(bad)
    with_gloo = sum(word == "passed" for *_, word in bad)
    text = (
        f"{passed:,} of {passed + len(bad):,} tests in {len(files)} files pass ({share:.1%}). "
        f"Of the {len(bad)} others, {with_gloo} pass with gloo on the CPU; gloo skips the other "
        f"{len(bad) - with_gloo}, which need a device of CUDA. {old} more do not count: they fail "
        "with torch 2.13 on any device."
    )
    whole = [row for row in files.values() if "gloo_alone" in row]
    if whole:
        gloo = sum(row["gloo_alone"] for row in whole)
        fail = sum(word == "passed" for row in whole for *_, word in row["other"].values())
        text += (
            f"\n\nOf the tests that gloo passes, {gloo - fail:,} of {gloo:,} pass on trn "
            f"({1 - fail / gloo:.1%}), in {len(whole)} files that ran to the end with both."
        )
    return text


def table(files: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each file: way, passed of counted on trn, with memory of trn, not run."""
    return [
        (
            f"`{path}`", row["way"], str(row["trn"]["passed"]),
            str(row["trn"]["passed"] + len(counted(path, row))), str(row["used"]),
            str(row["left"] or ""),
        )
        for path, row in files.items()
    ]  # fmt: skip


KINDS = {
    "passed": "Gloo passes these tests:",
    "skipped": "Gloo skips these, which need a device of CUDA:",
    "": "These do not count. They expect what torch 2.12 did, and the line named of torch 2.13 "
    "keeps them from passing on any device:",
}


def others(files: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """The tests that do not pass, by what gloo does of them, or "" if they do not count, and by
    reason.
    """
    listed: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for path, row in files.items():
        for test, (word, why, beside) in row["other"].items():
            found = _row(path, test, why)
            text = found.text if found else "No reason yet."
            shown = f"`{path}` `{test}` {word}" + ("" if found else f": {why}")
            kind = "" if found in CHANGED else beside
            listed[kind].setdefault(text, []).append(shown)
    return listed


def text_of(files: dict[str, Any]) -> str:
    """The lists of tests that do not pass, for the documentation."""
    parts = []
    for kind, reasons in others(files).items():
        if reasons:
            parts.append(KINDS[kind])
        for text, tests in reasons.items():
            parts += [text, "\n".join(f"- {test}" for test in tests)]
    return "\n\n".join(parts)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("source", type=Path, help="a source tree of PyTorch, as released")
    options.add_argument("--only", default="", help="a pattern of files")
    options.add_argument("--seconds", type=float, default=1800, help="limit of a file and way")
    options.add_argument("--test-seconds", type=float, default=120, help="limit of a test")
    options.add_argument("--again", action="store_true", help="only what did not pass before")
    options.add_argument("--rest", action="store_true", help="what the time did not suffice for")
    options.add_argument("--gloo", action="store_true", help="whole files with gloo alone")
    chosen = options.parse_args()
    if not (chosen.source / "test" / "distributed").is_dir():
        options.error(f"{chosen.source} has no folder test/distributed: give PyTorch's source tree")
    if chosen.gloo:
        passes_with_gloo(chosen.source, chosen.only, chosen.seconds, chosen.test_seconds)
        return 0
    owed = []
    for file in FILES:
        if not re.search(chosen.only, file.path):
            continue
        take = again if chosen.again else rest if chosen.rest else record
        row = take(chosen.source, file, chosen.seconds, chosen.test_seconds)
        print(file.path, row["trn"], "on trn,", row["gloo"], "with gloo", flush=True)
        keep(file.path, row, chosen.source)
        owed += [
            f"{file.path}::{test} {word}: {why}"
            for test, (word, why, _) in row["other"].items()
            if not reason(file.path, test, why)
        ]
    print(*owed, sep="\n")
    return bool(owed)


def keep(path: str, row: dict[str, Any], source: Path) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    version = source / "version.txt"
    results["source"] = version.read_text().strip() if version.exists() else "(unknown version)"
    files = results.setdefault("files", {})
    files[path] = row
    RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
