"""The verdict: the right bound for runs made to be bound by it, and changes that follow."""

from dataclasses import replace

import pytest
import torch

import torch_trn_emu
from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.ops import dense
from torch_trn_emu.pricing import price_call
from torch_trn_emu.profiler import Launch, Recording
from torch_trn_emu.profiler.verdict import BOUNDS, CHANGES, judge

TARGET = Target(get_chip("trn3"), 2)
LARGE = dense((4096, 4096), "Float")


def verdict_of(work, *, times: int = 1):
    work()
    with torch_trn_emu.profile() as prof:
        for _ in range(times):
            work()
    return prof.verdict()


def names(verdict) -> list[str]:
    return [change.name for change in verdict.changes]


def test_small_operators_are_bound_by_dispatch() -> None:
    x = torch.ones(16, device="trn")
    verdict = verdict_of(lambda: x + x, times=50)
    assert verdict.bound == "dispatch"
    assert verdict.bounds["dispatch"] > 0.9
    assert names(verdict)[0] == "compile"
    assert "50 launches of 55 us" in verdict.changes[0].text
    assert verdict.sentence.startswith("Dispatch-bound: for ")


def recording_of(*calls: tuple[Call, int]) -> Recording:
    """Launches of calls on a core that never waits, without running them: (call, times)."""
    launches = []
    for number, (call, times) in enumerate(calls):
        price = price_call(call, TARGET)
        duration_ns = round(price.seconds * 1e9)
        launches += [
            Launch(op=call.op, signature="", price=price, number=number, device=0, stream=0,
                   host_ns=0, dispatch_ns=55_000, start_ns=0, duration_ns=duration_ns, idle_ns=0,
                   phase="forward", module="", source="")
        ] * times  # fmt: skip
    busy_ns = sum(launch.duration_ns for launch in launches)
    return Recording(
        chip=TARGET.chip, lnc=2, launches=launches, regions=[(0, 0, busy_ns)], memory={}
    )


def test_large_elementwise_operators_are_bound_by_hbm() -> None:
    verdict = judge(recording_of((Call("aten::add.Tensor", (LARGE, LARGE, 1), (LARGE,)), 4)))
    assert verdict.bound == "dma"
    assert names(verdict)[0] == "fuse"
    assert "aten::add.Tensor" in verdict.changes[0].text
    assert 0.2 < verdict.changes[0].share < verdict.bounds["dma"]  # the engines remain


def test_large_float32_products_are_bound_by_the_tensor_engine() -> None:
    verdict = judge(recording_of((Call("aten::mm", (LARGE, LARGE), (LARGE,), "fp32"), 4)))
    assert verdict.bound == "tensor"
    assert names(verdict)[0] == "bf16"
    assert "4 times as fast" in verdict.changes[0].text
    assert 0.5 < verdict.changes[0].share < 0.76
    verdict = judge(recording_of((Call("aten::mm", (LARGE, LARGE), (LARGE,), "bf16"), 4)))
    assert "bf16" not in names(verdict)
    assert "mxfp8" in names(verdict)


def test_shares_are_shares() -> None:
    x = torch.ones(700, 700, device="trn")
    verdict = verdict_of(lambda: (x @ x).softmax(-1).cumsum(0).sum().item(), times=3)
    assert set(verdict.bounds) == set(BOUNDS)
    assert sum(verdict.bounds.values()) == pytest.approx(1)
    assert list(verdict.bounds.values()) == sorted(verdict.bounds.values(), reverse=True)
    shares = [change.share for change in verdict.changes]
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share <= 1 for share in shares)
    assert len(shares) <= 3


def test_host_work_is_named() -> None:
    x = torch.eye(300, device="trn")
    verdict = verdict_of(lambda: torch.linalg.qr(x), times=2)
    assert verdict.bound == "host" or "host" in names(verdict)


def test_a_fused_optimizer_is_advised_unless_it_is_there() -> None:
    parameters = [torch.ones(64, 64, device="trn", requires_grad=True) for _ in range(8)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    slow = torch.optim.AdamW(parameters, foreach=False)
    assert "optimizer" in names(verdict_of(slow.step))
    fast = torch.optim.AdamW(parameters, fused=True)
    assert "optimizer" not in names(verdict_of(fast.step))


def test_time_behind_a_read_is_counted() -> None:
    recording = recording_of(
        (Call("aten::mm", (LARGE, LARGE), (LARGE,), "bf16"), 1),
        (Call("aten::_local_scalar_dense", (dense((), "Float"),), ()), 1),
        (Call("aten::mm", (LARGE, LARGE), (LARGE,), "bf16"), 1),
    )
    launches = list(recording.launches)
    assert [x.price.blocks for x in launches] == [False, True, False]
    launches[2] = replace(launches[2], idle_ns=1_000_000)
    found = {row(replace(recording, launches=launches)).name: row for row in CHANGES}
    reads = found["reads"](replace(recording, launches=launches))
    # One read; of the two launches that wait for nothing, one was 1 ms late: 0.5 ms is usual.
    total_ns = sum(x.duration_ns + x.idle_ns for x in launches)
    assert reads.share == pytest.approx(500_000 / total_ns)
    assert "1 times" in reads.text


def test_advice_for_an_operator() -> None:
    x = torch.ones(700, 700, device="trn")
    with torch_trn_emu.profile() as prof, torch_trn_emu.precision("fp32"):
        x @ x
        (x + x).long()
        x[0, 0].item()
    advice = {row.op: row.advice for row in prof.op_report()}
    assert "float32 takes the array four times" in advice["aten::mm"]
    assert "bound by HBM" in advice["aten::add.Tensor"], advice
    assert any("not supported by the chip" in text for text in advice.values())
    assert "makes the host wait" in advice["aten::_local_scalar_dense"]


def test_narrower_operands_are_advised_for_products_only() -> None:
    x = torch.randn(256, 256, device="trn")
    with torch_trn_emu.profile() as prof, torch_trn_emu.precision("fp32"):
        x @ x
        x.sum(0)
    advice = {row.op.split(".")[0]: row.advice for row in prof.op_report()}
    assert "precision 'bf16'" in advice["aten::mm"]
    assert "precision" not in advice["aten::sum"]
