"""`python -m torch_trn_emu.report` runs a script as it is and ends with what the chip did."""

import gzip
import json
import subprocess
import sys


def report(*arguments, cwd):
    command = [sys.executable, "-m", "torch_trn_emu.report", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_a_script_runs_with_its_arguments_and_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("SIZE = 32\n")
    (tmp_path / "script.py").write_text(
        "import sys, torch\n"
        "from neighbour import SIZE\n"
        "x = torch.ones(SIZE, SIZE, device='trn')\n"
        "print(__name__, sys.argv[1:], (x @ x).sum().item())\n"
    )
    done = report("script.py", "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    script, *chip = done.stdout.splitlines()
    assert script == f"__main__ ['--steps', '3'] {32.0**3}"
    assert any("aten::mm" in line for line in chip)
    assert any("peak" in line for line in chip)
    assert any(line.startswith("simulated time 0.") for line in chip)


def test_a_profile_is_written_also_of_a_script_that_fails(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "x = torch.ones(64, 64, device='trn')\n"
        "(x @ x).sum().item()\n"
        "raise SystemExit(3 if 'fail' in __import__('sys').argv else 0)\n"
    )
    done = report("--profile", "out/p", "script.py", "fail", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert {file.name for file in (tmp_path / "out/p").iterdir()} == {
        "report.html",
        "trace.json.gz",
        "profile.json",
    }


def test_a_profile_says_where_it_is(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch\nx = torch.ones(64, 64, device='trn')\n(x @ x).sum().item()\n"
    )
    done = report("--profile", "out/p", "script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Bound by dispatch" in done.stdout
    last = done.stdout.splitlines()[-3:]
    assert last[0] == "report, for a browser: out/p/report.html"
    assert last[1] == "trace, for Perfetto: out/p/trace.json.gz"
    with gzip.open(tmp_path / "out/p/trace.json.gz", "rt") as file:
        assert json.load(file)["traceEvents"]


def test_without_a_script_it_says_how(tmp_path):
    done = report(cwd=tmp_path)
    assert done.returncode != 0
    assert "usage" in done.stderr
