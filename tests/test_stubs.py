"""mypy and pyright know what the device adds to torch, as docs/typing.md describes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torch_trn_emu import stubs

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/typing.md").read_text()
(SCRIPT,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MYPY, PYRIGHT = re.findall(r"```(?:toml|json)\n(.*?)```", PAGE, re.DOTALL)
EVENT = "mark: torch.trn.Event = torch.trn.current_stream().record_event()\n"
WRONG = (
    "\nwrong: str = torch.trn.device_count()\nx.to_trn()\ntorch.backends.trn.matmul.precision = 3\n"
)


@pytest.fixture
def project(tmp_path):
    stubs.write_stubs(tmp_path / "typings")
    (tmp_path / "right.py").write_text(SCRIPT + EVENT)
    (tmp_path / "wrong.py").write_text(SCRIPT + WRONG)
    (tmp_path / "pyproject.toml").write_text(MYPY)
    (tmp_path / "pyrightconfig.json").write_text(PYRIGHT)
    return tmp_path


def check(command: list[str], folder: Path) -> list[str]:
    """The errors, as file and line."""
    # Nothing but the installation says where the package is, as for a user.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    return re.findall(r"^ *\S*?((?:right|wrong)\.py:\d+).*error", done.stdout, re.MULTILINE)


def wrong_lines() -> list[str]:
    first = len(SCRIPT.splitlines()) + 2
    return [f"wrong.py:{first + i}" for i in range(3)]


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs the group lint: mypy")
def test_mypy_knows_the_device(project):
    found = check([sys.executable, "-m", "mypy", "right.py", "wrong.py"], project)
    assert found == wrong_lines()


@pytest.mark.skipif(shutil.which("pyright") is None, reason="needs pyright on the path")
def test_pyright_knows_the_device(project):
    command = ["pyright", "--pythonpath", sys.executable, "right.py", "wrong.py"]
    assert check(command, project) == wrong_lines()


def test_a_torch_that_declares_otherwise_is_refused():
    with pytest.raises(RuntimeError, match="not checked on it"):
        stubs._before("    def cuda(", "")("no such line")
