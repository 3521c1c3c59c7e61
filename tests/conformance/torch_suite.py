"""PyTorch's device-generic test files on trn, from a source tree of PyTorch as released.

    python tests/conformance/torch_suite.py SOURCE [--only test_view] [--ways trn,cuda] [-k rot90]

With `--state FOLDER` a file that takes longer than its time is continued by the next run.

torch_suite_files.py has the files below SOURCE/test, and why tests do not pass. Each file runs in a
process of its own, in which a test that crashes or hangs is recorded and left out of the next.
Those that do not pass run once more on the CPU: a skipped test counts if this twin passes, a failed
one unless the twin fails too. Results are kept in docs/torch_suite.json, from which a table of
docs/conformance.md is made. Given to pytest as a plug-in, this file writes a line for each test.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

from torch_suite_files import FILES, REASONS, File

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "torch_suite.json"
ONLY_FOR = "PYTORCH_TESTING_DEVICE_ONLY_FOR"
WAYS = {
    "trn": {ONLY_FOR: "privateuse1", "TRN_EMU_MATMUL": "fp32"},
    "cuda": {ONLY_FOR: "cuda", "TRN_EMU_MATMUL": "fp32", "TRN_EMU_AS": "cuda"},
    "cpu": {ONLY_FOR: "cpu", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
}
WRITTEN, DONE, CHOSEN = "TORCH_SUITE_WRITTEN", "TORCH_SUITE_DONE", "TORCH_SUITE_CHOSEN"
EVERY = "TORCH_SUITE_EVERY"
LARGEST_BYTES = 2 << 30  # tests that ask for more are skipped
NOT_COUNTED = (
    r"Only runs on|Insufficient .* memory|test is slow|Excluded from CUDA|CUDA.* available|"
    r"Test specific for CPU|CUDA implementation is not yet"
)
PYTEST = (  # neither settings nor plug-ins of the source tree
    f"-q --tb=native --disable-warnings -p torch_suite -p no:cacheprovider -p no:logging "
    f"--noconftest "
    f"-c {os.devnull} --rootdir . --timeout=300 --timeout-method=thread"
)


@dataclass(frozen=True)
class Outcome:
    word: str  # passed, skipped, failed, crashed, hung
    why: str = ""


def twin(test: str) -> str:
    """The name of a test without its device, which is all that twins differ in."""
    name = re.sub(r"(PRIVATEUSE1|TRN|CUDA|CPU)(?=::)", "", test)
    return test if name == test else re.sub(r"_(trn|cuda|cpu)(?=_|$)", "", name)


# As a plug-in of pytest: one line of JSON when a test begins, and one when it ends.


def _write(line: dict[str, str]) -> None:
    with open(os.environ[WRITTEN], "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_configure() -> None:
    from torch.testing._internal import common_device_type as devices
    from torch.testing._internal import common_methods_invocations as operators

    devices._has_sufficient_memory = lambda device, size: size <= LARGEST_BYTES
    if not hasattr(operators, "skipOps"):  # torch 2.13 moved it, and takes the last argument alone
        operators.skip, operators.xfail = devices.skip, devices.xfail
        operators.skipOps = lambda *args: devices.skipOps(args[-1])


def pytest_collection_modifyitems(items: list[Any]) -> None:
    done = set(Path(os.environ[DONE]).read_text().split("\n"))
    chosen = set(Path(os.environ[CHOSEN]).read_text().split("\n")) - {""}
    every = int(os.environ[EVERY])
    items[:] = [
        item
        for item in items
        if item.nodeid not in done
        and (
            twin(item.nodeid) in chosen
            if chosen
            else crc32(twin(item.nodeid).encode()) % every == 0
        )
    ]


def pytest_runtest_logstart(nodeid: str) -> None:
    _write({"test": nodeid, "word": "begun"})


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    why = "" if report.outcome == "passed" else _short(report)
    word = (
        "passed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
    )
    _write({"test": report.nodeid, "word": word, "why": why})


def _short(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.partition("To execute this test")[0].split())[:300]


# The driver.


def run(
    source: Path,
    file: File,
    way: str,
    until: float,
    chosen: Set[str] = frozenset(),
    k: str = "",
    state: Path | None = None,
) -> dict[str, Outcome]:
    """Outcomes of a file's tests; after a crash or a hang the rest run in a new process.

    `state` is a file of outcomes to begin with, which is written again.
    """
    found: dict[str, Outcome] = {}
    if state and state.exists():
        found = {test: Outcome(*pair) for test, pair in json.loads(state.read_text()).items()}
    with TemporaryDirectory() as folder:
        written, done, only = (Path(folder) / name for name in ("written", "done", "chosen"))
        only.write_text("\n".join(chosen))
        while time.monotonic() < until:
            written.write_text("")
            done.write_text("\n".join(found))
            names = {
                WRITTEN: str(written),
                DONE: str(done),
                CHOSEN: str(only),
                EVERY: str(file.every),
            }
            status, last = _run_rest(source, file, way, names, until, k)
            begun = _read(written, found)
            if state:
                pairs = {test: (outcome.word, outcome.why) for test, outcome in found.items()}
                state.write_text(json.dumps(pairs))
            if status == 124 or (not begun and status not in (0, 1, 5)):  # 5: no tests
                found[f"{file.path}.py"] = Outcome("failed", last)
            if status == 124 or not begun:
                break
            found[begun] = Outcome("hung" if "Timeout" in last else "crashed", last)
    return found


def _run_rest(
    source: Path, file: File, way: str, names: dict[str, str], until: float, k: str
) -> tuple[int, str]:
    left_out = f"not {file.without}" if file.without else ""
    named = ["-k", " and ".join(filter(None, (k and f"({k})", left_out)))]
    command = [sys.executable, "-m", "pytest", f"{file.path}.py", *PYTEST.split(), *named]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | names | WAYS[way]
    try:
        ran = subprocess.run(
            command, cwd=source / "test", env=env, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=until - time.monotonic(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "the time for the file is over"
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"Error\b|Timeout|Fatal|terminate|what\(\)", line)]
    return ran.returncode, (told or lines or [""])[-1][:300]


def _read(written: Path, found: dict[str, Outcome]) -> str:
    """Adds the outcomes of a process, and returns the test that had only begun."""
    begun = ""
    for line in map(json.loads, written.read_text().splitlines()):
        if line["word"] == "begun":
            begun = line["test"]
        elif line["test"] not in found or line["word"] == "failed":
            found[line["test"]] = Outcome(line["word"], line["why"])
        if line["word"] != "begun":
            begun = ""
    return begun


def record(
    source: Path, file: File, way: str, seconds: float, k: str = "", state: Path | None = None
) -> dict[str, Any]:
    """What docs/torch_suite.json keeps of a file: counts, and each test that should pass."""
    so_far = state and state / f"{way}.{file.path.replace('/', '.')}.{file.every}.json"
    found = run(source, file, way, time.monotonic() + seconds, k=k, state=so_far)
    others = {
        twin(test)
        for test, outcome in found.items()
        if outcome.word != "passed" and not re.match(NOT_COUNTED, outcome.why)
    }
    for test, outcome in found.items():
        if twin(test) in others:
            print(f"  {outcome.word} {test}: {outcome.why}", flush=True)
    twins = {}
    if others and f"{file.path}.py" not in found:
        ran = run(source, file, "cpu", time.monotonic() + seconds, others, k)
        twins = {twin(test): outcome.word for test, outcome in ran.items()}
    row: dict[str, Any] = {"passed": 0, "not counted": 0, "other": {}}
    if file.every > 1 or file.without:
        row["part"] = _part(file)
    for test, outcome in sorted(found.items()):
        beside = twins.get(twin(test), "skipped")
        if outcome.word == "passed":
            row["passed"] += 1
        elif beside == "passed" or (outcome.word != "skipped" and beside == "skipped"):
            row["other"][test.partition("::")[2] or test] = [outcome.word, outcome.why]
        else:
            row["not counted"] += 1
    return row


def _part(file: File) -> str:
    sampled = f", one test in {file.every}" if file.every > 1 else ""
    return sampled + (f", without `{file.without}`" if file.without else "")


def reason(name: str, why: str) -> str:
    """Why a test does not pass, or nothing where a reason is owed."""
    rows = (row for row in REASONS if re.search(row.tests, name) and re.search(row.why, why))
    return next((row.text for row in rows), "")


def owed(results: dict[str, Any]) -> list[str]:
    """Tests that do not pass and have no reason, a line each."""
    return [
        f"{way}/{file}::{test} {word}: {why}"
        for way, files in results["ways"].items()
        for file, row in files.items()
        for test, (word, why) in row["other"].items()
        if not reason(f"{way}/{file}::{test}", why)
    ]


def summary(results: dict[str, Any]) -> str:
    """Passed of counted for each file, then the tests that do not pass, by reason."""
    lines = ["| file | way | passed | of |", "| --- | --- | --- | --- |"]
    listed: dict[str, list[str]] = {}
    for way, files in sorted(results["ways"].items(), reverse=True):
        for file, row in files.items():
            counted = row["passed"] + len(row["other"])
            lines.append(f"| `{file}`{row.get('part', '')} | {way} | {row['passed']} | {counted} |")
            for test, (_, why) in row["other"].items():
                text = reason(f"{way}/{file}::{test}", why) or "No reason yet."
                listed.setdefault(text, []).append(f"{way} `{file}` `{test}`")
    for text, tests in listed.items():
        lines += ["", text, "", *(f"- {test}" for test in tests)]
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("source", type=Path, help="a source tree of PyTorch, as released")
    options.add_argument("--only", default="", help="a pattern of files")
    options.add_argument("--ways", default="trn,cuda")
    options.add_argument("--seconds", type=float, default=720, help="limit of a file and way")
    options.add_argument("-k", default="", help="of these tests only; nothing is recorded")
    options.add_argument("--every", type=int, default=0, help="one test in so many")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--state", type=Path, help="a folder of outcomes, to continue files")
    chosen = options.parse_args()
    if not (chosen.source / "test").is_dir():
        options.error(f"{chosen.source} has no folder test: give a source tree of PyTorch")
    if chosen.state:
        chosen.state.mkdir(parents=True, exist_ok=True)
    now: dict[str, Any] = {"ways": {}}
    for file in FILES:
        for way in file.ways:
            if way not in chosen.ways.split(",") or not re.search(chosen.only, file.path):
                continue
            if chosen.every:
                file = replace(file, every=chosen.every)
            row = record(chosen.source, file, way, chosen.seconds, chosen.k, chosen.state)
            print(way, file.path, row["passed"], "passed,", len(row["other"]), "others", flush=True)
            now["ways"].setdefault(way, {})[file.path] = row
            if not chosen.k and f"{file.path}.py" not in row["other"]:  # whole files only
                keep(chosen.results, chosen.source, way, file, row)
    print(*owed(now), sep="\n")
    return bool(owed(now))


def keep(path: Path, source: Path, way: str, file: File, row: dict[str, Any]) -> None:
    import torch

    version = source / "version.txt"
    named = re.search(r"\d+\.\d+\.\d+", source.resolve().name)
    results = json.loads(path.read_text()) if path.exists() else {"ways": {}}
    results["source"] = (
        version.read_text().strip() if version.exists()
        else named[0] if named else "(unknown version)"
    )  # fmt: skip
    results["torch"] = torch.__version__
    results["ways"].setdefault(way, {})[file.path] = row
    order = [each.path for each in FILES]
    results["ways"] = {
        each: dict(sorted(rows.items(), key=lambda pair: order.index(pair[0])))
        for each, rows in sorted(results["ways"].items())
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
