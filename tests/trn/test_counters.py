"""Counters and simulated time of what ran on the device."""

import subprocess
import sys
import threading

import pytest
import torch

import torch_trn_emu
from torch_trn_emu import _C
from torch_trn_emu.counters import COUNTERS
from torch_trn_emu.settings import settings


def _step() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(48, 96), torch.nn.LayerNorm(96), torch.nn.GELU(), torch.nn.Linear(96, 10)
    ).to("trn")
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = torch.randn(20, 48, device="trn"), torch.randint(0, 10, (20,), device="trn")
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def _counted() -> dict[str, float]:
    torch.trn.reset_counters()
    _step()
    return torch.trn.counters()


def test_two_runs_count_alike() -> None:
    first, second = _counted(), _counted()
    assert first == second
    assert list(first) == list(COUNTERS)


def test_the_report_adds_up_to_the_counters() -> None:
    counted = _counted()
    rows = torch_trn_emu.op_report()
    assert sum(row.calls for row in rows) == counted["launch_count"]
    assert sum(row.device_s for row in rows) == pytest.approx(counted["total_time"])
    assert counted["core_busy_time"] == pytest.approx(counted["total_time"], rel=1e-3)
    assert {row.status for row in rows} <= {"modelled", "inferred"}, rows
    assert counted["mfu_estimated_percent"] <= counted["hfu_estimated_percent"] <= 100


def test_events_measure_simulated_time() -> None:
    x = torch.ones(1000, 1000, device="trn")
    (x + x).sum()
    start, end = (torch.trn.Event(enable_timing=True) for _ in range(2))
    torch.trn.synchronize()
    start.record()
    for _ in range(5):
        x + x
    end.record()
    torch.trn.synchronize()
    dispatch_ms = float(settings().chip.launch.eager_dispatch_s) * 1e3
    row = next(
        r for r in torch_trn_emu.launches() if r.op == "aten::add.Tensor" and "1000" in r.signature
    )
    assert row.device_ns > 0
    # The host is late: the core works the last launch only after the last dispatch.
    assert start.elapsed_time(end) == pytest.approx(5 * dispatch_ms + row.device_ns * 1e-6)


def test_reading_a_value_waits_for_the_core() -> None:
    x = torch.ones(4_000_000, device="trn")
    torch.trn.synchronize()
    total = x.sum()
    stream = torch.trn.current_stream()
    assert not stream.query()
    total.item()
    assert stream.query()


def test_copies_from_and_to_the_host_differ_from_those_on_the_device() -> None:
    torch.trn.reset_counters()
    x = torch.ones(777, 513)
    on_device = x.to("trn")
    on_device.clone()
    on_device.cpu()
    copies = [r for r in torch_trn_emu.launches() if "777, 513" in r.signature and r.device_ns]
    assert len({r.device_ns for r in copies}) >= 2


def test_views_are_not_launched() -> None:
    x = torch.ones(6, 4, device="trn")
    torch.trn.reset_counters()
    torch.empty(3, device="trn")
    x.view(4, 6).t()[1:].unsqueeze(0)
    assert torch.trn.counters()["launch_count"] == 0


def test_the_precision_is_part_of_the_signature() -> None:
    x = torch.ones(640, 640, device="trn")
    torch.trn.reset_counters()
    with torch_trn_emu.precision("fp32"):
        x @ x
    with torch_trn_emu.precision("bf16"):
        x @ x
    times = {r.device_ns for r in torch_trn_emu.launches() if r.op == "aten::mm"}
    assert len(times) == 2


def test_threads_price_new_operators() -> None:
    def work(k: int) -> None:
        x = torch.ones(11 + k, 7, device="trn")
        x.mul(x).sum()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [
        r for r in torch_trn_emu.launches() if r.op == "aten::mul.Tensor" and ", 7]" in r.signature
    ]
    assert all(r.device_ns > 0 for r in rows)


def _printed(script: str) -> str:
    """By a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_error_in_the_price_leaves_the_operator_alone() -> None:
    script = (
        "import torch, torch_trn_emu; from torch_trn_emu import _C;"
        "_C.set_pricer(lambda *call: 1 / 0); import sys; sys.unraisablehook = lambda _: None;"
        "print(torch.ones(3, device='trn').add(1).tolist())"
    )
    assert _printed(script) == "[2.0, 2.0, 2.0]"


def test_lowering_is_imported_by_the_first_operator() -> None:
    script = (
        "import torch, torch_trn_emu, sys; name = 'torch_trn_emu.pricing';"
        "before = name in sys.modules; torch.ones(3, device='trn') + 1;"
        "print(before, name in sys.modules)"
    )
    assert _printed(script) == "False True"


def test_the_ledger_keeps_the_cores_apart() -> None:
    if torch.trn.device_count() < 2:
        pytest.skip("one logical core only")
    torch.trn.reset_counters()
    x = torch.ones(5, device="trn:1")
    x + x
    assert torch.trn.counters(0)["launch_count"] == 0
    assert torch.trn.counters(1)["launch_count"] > 0
    assert _C.core_times(1)[0] > 0


@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8", "mxfp4"])
def test_a_product_has_its_flops_under_every_policy(policy):
    a, b = torch.ones(32, 64, device="trn"), torch.ones(64, 16, device="trn")
    torch.trn.reset_counters()
    with torch_trn_emu.precision(policy):
        a @ b
    assert torch.trn.counters()["model_flops"] == 2 * 32 * 64 * 16


def test_the_gradients_of_a_convolution_have_programs():
    x = torch.randn(2, 3, 9, 9).to("trn").requires_grad_()
    torch.trn.reset_counters()
    torch.nn.Conv2d(3, 4, 3, device="trn")(x).sum().backward()
    status = {row.op: row.status for row in torch_trn_emu.op_report()}
    assert status["aten::convolution_backward"] == "modelled"
