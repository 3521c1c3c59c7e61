"""The pytest plugin: options, the fixture `trn_device` and the marker `trn`.

It lies beside the package because importing torch_trn_emu imports torch, and a test run that uses
none of this must not pay for that.

    pytest --trn-chip trn2 --trn-matmul bf16

    @pytest.mark.trn(precision="fp32")
    def test_a_layer(trn_device): ...
"""

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

__all__ = ["trn_device"]

_VARIABLES = {"trn_chip": "TRN_EMU_CHIP", "trn_matmul": "TRN_EMU_MATMUL"}
_PRECISION = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trn", "emulated Trainium (torch_trn_emu)")
    group.addoption("--trn-chip", metavar="CHIP", help="a chip, such as trn2: sets TRN_EMU_CHIP")
    group.addoption(
        "--trn-matmul", metavar="POLICY", help="matmul precision policy: sets TRN_EMU_MATMUL"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """The emulator reads its environment once, when torch is imported: before any conftest."""
    options = early_config.known_args_namespace
    for option, variable in _VARIABLES.items():
        value = getattr(options, option, None)
        if value is None:
            continue
        if "torch_trn_emu" in sys.modules and os.environ.get(variable) != value:
            raise pytest.UsageError(
                f"--{option.replace('_', '-')}: torch was imported before pytest read its options. "
                f"Set {variable}={value} in the environment instead."
            )
        os.environ[variable] = value


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "trn(precision=None): run on the emulated device, with this matmul policy if given",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("trn")
    if marker is None:
        return
    if marker.args or set(marker.kwargs) - {"precision"}:
        raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.trn takes only precision=...")
    if (policy := marker.kwargs.get("precision")) is not None:
        from torch_trn_emu import precision

        block = precision(policy)
        block.__enter__()
        item.stash[_PRECISION] = block


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if (block := item.stash.get(_PRECISION, None)) is not None:
        del item.stash[_PRECISION]
        block.__exit__(None, None, None)


@pytest.fixture
def trn_device() -> "torch.device":
    """The current trn device, its counters and memory peaks at zero."""
    import torch
    from torch import trn  # type: ignore[attr-defined]

    trn.init()
    trn.reset_counters()
    trn.reset_peak_memory_stats()
    return torch.device("trn", trn.current_device())
