"""Run a script unchanged, then print what the emulated chip did.

python -m torch_trn_emu.report [--profile FOLDER] SCRIPT [ARGUMENT ...]
"""

import argparse
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch_trn_emu import op_counts, trn

if TYPE_CHECKING:
    from torch_trn_emu.profiler import profile

__all__ = ["chip_report", "main", "profiled", "write_profile"]

MOST_LAUNCHES = 200_000  # recorded of one run


def chip_report(most: int = 12) -> str:
    """The devices' memory, simulated time and most frequent ops, as text for a terminal."""
    counts = op_counts()
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ranked[most:]
    lines = [f"{calls:>12,}  {name}" for name, calls in ranked[:most]]
    if rest:
        lines.append(f"{sum(calls for _, calls in rest):>12,}  in {len(rest)} other ops")
    return "\n".join(
        (
            trn.get_device_name(),
            trn.memory_summary(),
            simulated_time(),
            f"{sum(counts.values()):>12,}  calls of {len(counts)} ops, of which",
            *lines,
        )
    )


def simulated_time() -> str:
    """One line: the simulated time of all devices, and what of it the cores worked."""
    run = trn.counters()
    busy, idle = run["core_busy_time"], run["core_idle_time"]
    share = 100 * busy / (busy + idle) if busy + idle else 0.0
    return (
        f"simulated time {busy + idle:.3f} s for {run['launch_count']:,.0f} launches; "
        f"the cores worked {share:.0f} % of it and waited for the host the rest"
    )


@contextmanager
def profiled(folder: Path) -> Iterator["profile"]:
    """Profile the block, also one that raises; then `write_profile` into `folder`."""
    from torch_trn_emu.profiler import profile

    prof = profile(max_launches=MOST_LAUNCHES)
    try:
        with prof:
            yield prof
    finally:
        write_profile(prof, folder)


def write_profile(prof: "profile", folder: Path) -> dict[str, Path]:
    """Write the page, the trace and the tables. Returns what each file is for.

    The trace shows the second half of the launches, as far as it holds them: a loop that has
    settled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = written(folder)
    page, trace, tables = files.values()
    prof.export_html(page)
    prof.export_chrome_trace(trace, skip_launches=len(prof.recording.launches) // 2)
    prof.export_json(tables)
    return files


def written(folder: Path) -> dict[str, Path]:
    """The files of `write_profile`."""
    return {
        "report, for a browser": folder / "report.html",
        "trace, for Perfetto": folder / "trace.json.gz",
        "counters and tables": folder / "profile.json",
    }


def run_script(script: str, arguments: list[str]) -> None:
    """As `python SCRIPT ARGUMENT ...` does."""
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m torch_trn_emu.report", description=__doc__)
    parser.add_argument("--profile", metavar="FOLDER", type=Path, help="write a profile there")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.profile is None:
        run_script(options.script, options.arguments)
        print("\n" + chip_report())
        return
    with profiled(options.profile) as prof:
        run_script(options.script, options.arguments)
    print("\n" + chip_report() + "\n\n" + prof.summary())
    for purpose, file in written(options.profile).items():
        print(f"{purpose}: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
