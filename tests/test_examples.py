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
    "export.py": [],
    "lora.py": ["--steps", "3"],
    "sort_gpt.py": ["--iterations", "5"],
    "tensorboard_counters.py": ["--steps", "3"],
    "torchao_quantize.py": [],
    "word_language_lstm.py": ["--epochs", "2"],
}
# Through `trn-emu run`, which tells these libraries of the device. What they warn of is their own.
THROUGH_RUN = {
    "accelerate_loop.py": ["--epochs", "1"],
    "hf_trainer.py": ["--steps", "3"],
    "lightning_digits.py": ["--epochs", "1", "--precision", "bf16-mixed"],
}
ABOUT_US = {"tensorboard_counters.py"}  # shows a function of this package
# What an example must say: that it ran where it should.
SAID = {
    "accelerate_loop.py": "training on trn",
    "export.py": "torch.export on trn:0, equal: True",
    "hf_trainer.py": "training on trn",
    "lightning_digits.py": "on trn:0: accuracy",
    "lora.py": "12 tensors stored, loaded to trn:0",
}


def test_every_example_is_listed():
    listed = FEW_STEPS.keys() | THROUGH_RUN.keys()
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == listed


def run(command, name, folder):
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert SAID.get(name, "") in done.stdout


@pytest.mark.parametrize("name", FEW_STEPS)
def test_an_example_runs(name, tmp_path):
    run(["-W", "error", str(ROOT / "examples" / name), *FEW_STEPS[name]], name, tmp_path)


@pytest.mark.parametrize("name", THROUGH_RUN)
def test_an_example_runs_through_the_command(name, tmp_path):
    script = str(ROOT / "examples" / name)
    run(["-m", "torch_trn_emu", "run", script, *THROUGH_RUN[name]], name, tmp_path)


@pytest.mark.parametrize("name", sorted(FEW_STEPS.keys() - ABOUT_US))
def test_an_example_is_ordinary_pytorch(name):
    source = (ROOT / "examples" / name).read_text()
    assert re.findall(r"torch_trn_emu|torch\.trn|TRN_EMU|torch\.backends\.trn", source) == []
    assert 'default="trn"' in source
