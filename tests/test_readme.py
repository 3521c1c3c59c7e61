"""The README's Python examples run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_has_an_example():
    assert EXAMPLES


def test_the_output_shown_is_that_of_the_example(tmp_path):
    """Numbers may differ a little: other instruction sets add in another order."""
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```\n(.*?)```", README.read_text(), re.S
    ).groups()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRN_EMU")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    number = r"\d+\.\d+"
    assert re.sub(number, "#", done.stdout) == re.sub(number, "#", shown), done.stderr
    values = [[float(n) for n in re.findall(number, text)] for text in (done.stdout, shown)]
    assert values[0] == pytest.approx(values[1], rel=0.05, abs=0.01)


@pytest.mark.parametrize("code", EXAMPLES[1:], ids=["profile", "compile"])
def test_an_example_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
