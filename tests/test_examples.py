"""Each example runs for a few steps and mentions this project by its device string only."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FEW_STEPS = {
    "bert_finetune.py": ["--steps", "3"],
    "char_gpt.py": ["--steps", "3", "--batch", "4", "--layers", "2", "--sample", "8"],
    "digits_cnn.py": ["--epochs", "1"],
    "gpt124m.py": ["--tiny", "--steps", "3", "--batch", "2"],
}


def test_every_example_is_listed():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(FEW_STEPS)


@pytest.mark.parametrize("name", FEW_STEPS)
def test_an_example_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / name), *FEW_STEPS[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FEW_STEPS)
def test_an_example_is_ordinary_pytorch(name):
    source = (ROOT / "examples" / name).read_text()
    assert re.findall(r"torch_trn_emu|torch\.trn|TRN_EMU|torch\.backends\.trn", source) == []
    assert 'default="trn"' in source
