"""`python -m torch_trn_emu.report` runs a script as it is and ends with what the chip did."""

import subprocess
import sys


def report(*arguments, cwd):
    command = [sys.executable, "-m", "torch_trn_emu.report", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


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


def test_without_a_script_it_says_how(tmp_path):
    done = report(cwd=tmp_path)
    assert done.returncode != 0
    assert "usage" in done.stderr
