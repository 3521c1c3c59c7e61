"""Each kind of error can be met by a user, and its text says who has to act."""

import os
import subprocess
import sys

import pytest
import torch

import torch_trn_emu
from torch_trn_emu import errors
from torch_trn_emu.compatibility import BUILT_FOR, check_torch
from torch_trn_emu.isa.builder import Builder
from torch_trn_emu.settings import read


def too_many_cores():
    read({"TRN_EMU_CHIP": "trn3", "NEURON_LOGICAL_NC_CONFIG": "3"})


def shared_memory():
    import io
    from multiprocessing.reduction import ForkingPickler

    ForkingPickler(io.BytesIO()).dump(torch.ones(2, device="trn"))


def a_value_of_meta():
    torch_trn_emu.estimate(lambda x: x.item(), torch.empty(2, 2, device="meta").sum())


def an_unknown_opcode():
    Builder("program").emit("fly", ())


REACHED = {
    errors.ChipLimit: (too_many_cores, r"Set NEURON_LOGICAL_NC_CONFIG to 1 or 2"),
    errors.Unsupported: (shared_memory, r"Send tensor\.cpu\(\)"),
    errors.Unimplemented: (a_value_of_meta, r"trn-emu estimate script\.py"),
    errors.EmulatorBug: (an_unknown_opcode, r"please report it"),
}


@pytest.mark.parametrize("kind", REACHED, ids=lambda kind: kind.__name__)
def test_a_kind_is_reached_and_says_what_to_do(kind):
    cause, text = REACHED[kind]
    with pytest.raises(kind, match=text):
        cause()


def test_the_list_is_closed():
    kinds = {getattr(errors, name) for name in errors.__all__} - {errors.TrnEmuError}
    assert all(issubclass(kind, errors.TrnEmuError) for kind in kinds)
    assert kinds == {*REACHED, errors.UndefinedOnChip}  # tests/engines/test_machine.py


def test_another_torch_is_refused_with_both_versions():
    with pytest.raises(ImportError, match=rf"for torch {BUILT_FOR}, but torch 2\.12\.1\+cpu"):
        check_torch("2.12.1+cpu")
    check_torch(f"{BUILT_FOR}+cu130")


def test_the_version_is_that_of_the_headers():
    assert torch.__version__.partition("+")[0] == BUILT_FOR


def test_import_refuses_another_torch():
    code = "import torch; torch.__version__ = '2.12.0'; import torch_trn_emu"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert f"built for torch {BUILT_FOR}, but torch 2.12.0 is installed" in done.stderr
