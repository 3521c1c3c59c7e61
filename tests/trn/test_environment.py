"""A fresh process: autoload, the variables that choose the chip, and wrong ones."""

import os
import subprocess
import sys

import pytest

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("NEURON_", "TRN_EMU_", "TORCH_DEVICE_BACKEND"))
}


def python(code: str, *, timeout: float = 600, **environ: str) -> str:
    """What the code prints in a process of its own, and its errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=CLEAN | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.stdout + done.stderr


def test_importing_torch_is_enough_and_uses_nothing():
    code = """
import torch
assert not torch.trn.is_initialized()
assert "torch_trn_emu" in __import__("sys").modules
x = torch.ones(2, device="trn")
assert torch.trn.is_initialized()
print(x.device, (x + 1).tolist())
"""
    assert python(code) == "trn:0 [2.0, 2.0]\n"


def test_importing_the_package_first_works_too():
    assert python("import torch_trn_emu, torch; print(torch.ones(1).trn().device)") == "trn:0\n"


def test_the_variables_choose_chip_and_cores():
    code = """
import torch
print(torch.trn.device_count(), torch.trn.get_device_name(), end=" ")
print([torch.trn.get_device_properties(i).logical_core for i in range(torch.trn.device_count())])
"""
    assert python(code, TRN_EMU_CHIP="trn1") == "2 AWS Trainium1 (emulated) [0, 1]\n"
    chosen = python(code, NEURON_RT_VISIBLE_CORES="1-2", NEURON_PLATFORM_TARGET_OVERRIDE="trn2")
    assert chosen == "2 AWS Trainium2 (emulated) [1, 2]\n"
    assert python(code, NEURON_LOGICAL_NC_CONFIG="1", NEURON_RT_NUM_CORES="3").startswith("3 ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRN_EMU_CHIP", "trn9"), ("NEURON_RT_NUM_CORES", "99"), ("NEURON_LOGICAL_NC_CONFIG", "x")],
)
def test_a_wrong_variable_is_told_at_the_first_use_only(name, value):
    code = """
import torch
print(torch.ones(2).sum().item(), torch.trn.is_available(), torch.trn.device_count())
torch.manual_seed(0)
torch.accelerator.is_available()
for use in (
    lambda: torch.ones(2, device="trn"),
    lambda: torch.ones(2).to("trn"),
    lambda: torch.ones(2).trn(),
    lambda: torch.nn.Linear(2, 2).to("trn"),
    lambda: torch.trn.init(),
    lambda: torch.trn.current_device(),
    lambda: torch.trn.memory_allocated(),
    lambda: torch.trn.synchronize(),
    lambda: torch.trn.Stream(),
    lambda: torch.trn.set_device(0),
    lambda: torch.trn.get_device_name(),
    lambda: torch.trn.get_rng_state(),
    lambda: torch.trn.empty_cache() or torch.trn.memory_summary(),
):
    try:
        print("no error", use())
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__, error)
"""
    first, *errors = python(code, **{name: value}).splitlines()
    assert first == "2.0 False 0"
    assert len(errors) == 13
    for error in errors:
        assert f"{name}={value!r}" in error or "LNC" in error, error


def test_without_address_space_the_remedy_is_named():
    code = """
import resource, torch
resource.setrlimit(resource.RLIMIT_AS, (20 << 30, 20 << 30))
try:
    torch.ones(2, device="trn")
except torch.OutOfMemoryError as error:
    print(error)
"""
    text = python(code)
    assert "The host gives no address space for 4 emulated HBMs of 36.00 GiB" in text
    assert "ulimit -v" in text


def test_less_address_space_than_usual_is_enough():
    code = """
import resource, torch
resource.setrlimit(resource.RLIMIT_AS, (100 << 30, 100 << 30))
x = torch.ones(1 << 20, device="trn:3")
print((x + 1).sum().item())
"""
    assert python(code) == "2097152.0\n"


def test_a_process_ends_cleanly_with_live_tensors():
    code = """
import threading, torch
kept = torch.ones(1000, device="trn", requires_grad=True)
(kept * 2).sum().backward()
module = torch.nn.Linear(2, 2).to("trn:1")
event, stream = torch.trn.Event(), torch.trn.Stream()
threading.Thread(target=lambda: torch.ones(3, device="trn").sum()).start()
print("end")
"""
    assert python(code) == "end\n"


def test_a_format_of_a_later_chip_is_refused():
    code = """
import torch
x = torch.randn(4, 4, device="trn")
for make in (
    lambda: x.to(torch.float8_e4m3fn),
    lambda: torch.zeros(2, dtype=torch.float8_e4m3fn, device="trn"),
    lambda: torch.zeros(2).to(torch.float8_e8m0fnu).to("trn"),
):
    try:
        make()
    except NotImplementedError as error:
        assert "trn2 has no Float8" in str(error) and "TRN_EMU_CHIP=trn3" in str(error), error
    else:
        raise AssertionError
x.to(torch.float8_e5m2)
"""
    environment = os.environ | {"TRN_EMU_CHIP": "trn2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_variable_leaves_no_alias_without_a_word() -> None:
    """torch.cuda is torch's own then: a script would take the CPU."""
    code = "import torch; print(torch.cuda.is_available())"
    said = python(code, TRN_EMU_AS="cuda", NEURON_RT_VISIBLE_CORES="0-7")
    assert "cuda is no name of trn, which has no device: NEURON_RT_VISIBLE_CORES='0-7'" in said
