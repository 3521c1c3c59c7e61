"""The pytest plugin, in pytest runs of its own."""

import subprocess
import sys
from pathlib import Path

TESTS = """
import os
import pytest
import torch, torch_trn_emu

def test_device(trn_device):
    assert trn_device == torch.device("trn", 0)
    assert torch.trn.counters()["launch_count"] == 0
    print("on", torch.trn.get_device_name(), torch_trn_emu.current_precision())

@pytest.mark.trn(precision="mxfp4")
def test_marked(trn_device):
    assert torch_trn_emu.current_precision() == "mxfp4"

def test_after():
    assert torch_trn_emu.current_precision() == "bf16"
"""


def run(tmp_path: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-s", *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )


def test_options_fixture_and_marker(tmp_path):
    done = run(tmp_path, TESTS, "--trn-chip", "trn2", "--trn-matmul", "bf16")
    assert "3 passed" in done.stdout, done.stdout
    assert "on AWS Trainium2 (emulated) bf16" in done.stdout


def test_torch_is_not_imported_for_who_does_not_use_it(tmp_path):
    source = "import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n"
    done = run(tmp_path, source)
    assert "1 passed" in done.stdout, done.stdout


def test_wrong_markers_are_errors_of_their_tests(tmp_path):
    markers = ('precision="fp7"', '"fp32"', "chip='trn2'")
    source = "import pytest\n" + "".join(
        f"@pytest.mark.trn({marker})\ndef test_{i}(): pass\n" for i, marker in enumerate(markers)
    )
    done = run(tmp_path, source)
    assert "3 errors" in done.stdout, done.stdout
    assert "unknown precision 'fp7'" in done.stdout
    assert done.stdout.count("takes only precision=...") >= 2


def test_torch_before_the_plugin_is_told(tmp_path):
    (tmp_path / "early.py").write_text("import torch\n")
    source = "def test_it(): pass\n"
    done = run(tmp_path, source, "-p", "early", "--trn-chip", "trn1")
    assert done.returncode == 4
    assert "Set TRN_EMU_CHIP=trn1 in the environment" in done.stderr
