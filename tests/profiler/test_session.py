"""A profile counts what the device counts, in regions, and gets in nobody's way."""

import sys
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu.counters import COUNTERS, Unit
from torch_trn_emu.trn.launches import counters as counted


def test_counts_what_the_device_counts(run) -> None:
    run.step()
    torch.trn.reset_counters()
    with torch_trn_emu.profile() as prof:
        run.step()
    assert prof.counters() == pytest.approx(counted(), rel=1e-12)
    assert prof.op_report() == torch_trn_emu.op_report()


def test_two_runs_are_identical(run) -> None:
    run.step()
    profiles = []
    for _ in range(2):
        with torch_trn_emu.profile(with_stack=True) as prof:
            run.step()
        profiles.append(prof)
    a, b = profiles
    assert a.counters() == b.counters()
    assert a.module_report() == b.module_report()
    assert a.memory() == b.memory()
    assert a.verdict() == b.verdict()
    assert a.summary() == b.summary()


def test_invariants(prof) -> None:
    recording, found = prof.recording, prof.counters()
    elapsed_s = recording.elapsed_ns * 1e-9
    for name, value in found.items():
        if name.endswith("_engine_active_time") or name == "dma_active_time":
            assert value <= found["total_time"] * (1 + 1e-9)
            assert value <= elapsed_s
        if COUNTERS[name].unit is Unit.PERCENT:
            assert 0 <= value <= 100, name
    assert found["mfu_estimated_percent"] <= found["hfu_estimated_percent"] <= 100
    moved = sum(found[f"{q}_queue_bytes"] for q in ("input", "weight", "output"))
    moved += found["spill_save_bytes"] + found["spill_reload_bytes"]
    assert moved <= found["hbm_read_bytes"] + found["hbm_write_bytes"]
    # One stream: the core works or waits for the host, from the first to the last moment.
    busy_s, idle_s = found["core_busy_time"], found["core_idle_time"]
    assert busy_s + idle_s == pytest.approx(elapsed_s)
    assert found["total_time"] == pytest.approx(busy_s, rel=1e-3)


def test_sums_over_rows_equal_the_totals(prof) -> None:
    found = prof.counters()
    ops, modules = prof.op_report(), prof.module_report()
    assert sum(row.calls for row in ops) == found["launch_count"]
    assert sum(row.device_s for row in ops) == pytest.approx(found["total_time"])
    assert sum(row.share for row in ops) == pytest.approx(1)
    assert sum(row.own_s for row in modules) == pytest.approx(found["core_busy_time"])
    outermost = [row for row in modules if "." not in row.module]
    assert sum(row.total_s for row in outermost) == pytest.approx(found["core_busy_time"])
    assert sum(row.calls for row in outermost) == found["launch_count"]


def test_launches_follow_each_other(prof) -> None:
    launches = prof.recording.launches
    for before, after in pairwise(launches):
        assert after.host_ns >= before.host_ns + before.dispatch_ns
        assert after.start_ns == before.end_ns + after.idle_ns
        assert after.start_ns >= after.host_ns + after.dispatch_ns


def test_regions_add_up(run) -> None:
    run.step()
    with torch_trn_emu.profile() as once:
        run.step()
    prof = torch_trn_emu.profile()
    for _ in range(3):
        with prof:
            run.step()
        run.step()  # outside
    once_counted, thrice = once.counters(), prof.counters()
    for name in ("launch_count", "hbm_read_bytes", "model_flops", "core_busy_time"):
        assert thrice[name] == pytest.approx(3 * once_counted[name])
    assert len(prof.recording.regions) == 3 * torch.trn.device_count()
    assert prof.recording.elapsed_ns == 3 * once.recording.elapsed_ns


def test_a_second_profile_is_an_error_and_leaves_the_first_alone(run) -> None:
    with torch_trn_emu.profile() as prof:
        with pytest.raises(RuntimeError, match="active already"):
            torch_trn_emu.profile().start()
        with pytest.raises(RuntimeError, match="active already"), prof:
            pass
        run.x + run.x
    assert prof.counters()["launch_count"] == 1


def test_reading_while_recording_is_an_error() -> None:
    with torch_trn_emu.profile() as prof, pytest.raises(RuntimeError, match="after stop"):
        prof.counters()
    assert prof.summary()
    with pytest.raises(RuntimeError, match="without start"):
        prof.stop()


def test_an_exception_ends_the_profile(run) -> None:
    def fails(*_: object) -> None:
        raise KeyError("in a module")

    run.model.layers[1].forward = fails
    with pytest.raises(KeyError), torch_trn_emu.profile() as prof:
        run.step()
    assert prof.counters()["launch_count"] > 0
    with torch_trn_emu.profile() as other:  # its hooks and scopes are gone
        run.x + run.x
    assert [row.module for row in other.module_report()] == [""]


def test_off_means_off(run) -> None:
    filters = list(warnings.filters)
    optimizers = sys.modules["torch.optim.optimizer"]
    hooks = dict(optimizers._global_optimizer_post_hooks)
    with torch_trn_emu.profile(with_modules=False, record_shapes=False) as prof:
        run.step()
        assert not nn.modules.module._global_forward_hooks
    assert {launch.signature for launch in prof.recording.launches} == {""}
    assert {launch.source for launch in prof.recording.launches} == {""}
    assert {launch.module for launch in prof.recording.launches} == {"", "AdamW step"}
    assert warnings.filters == filters
    assert dict(optimizers._global_optimizer_post_hooks) == hooks


def test_streams_overlap() -> None:
    x = torch.ones(2000, 2000, device="trn")
    x + x
    with torch_trn_emu.profile() as prof:
        for stream in (torch.trn.Stream(), torch.trn.Stream()):
            with torch.trn.stream(stream):
                for _ in range(20):
                    x @ x
    recording = prof.recording
    assert len({launch.stream for launch in recording.launches}) == 2
    assert recording.elapsed_ns < sum(launch.duration_ns for launch in recording.launches) * 1.01


def test_nothing_launched() -> None:
    with torch_trn_emu.profile() as prof:
        pass
    assert prof.verdict().sentence == "Nothing was launched."
    assert "0 launches" in prof.summary()
    assert prof.op_report() == []
    assert prof.module_report() == []


def test_a_limit_leaves_out_and_says_so() -> None:
    x = torch.ones(8, device="trn")
    prof = torch_trn_emu.profile(max_launches=5)
    for _ in range(2):
        with prof:
            for _ in range(4):
                x + x
    recording = prof.recording
    assert len(recording.launches) == 5
    assert recording.left_out == 3
    assert "plus 3 more that were not recorded" in prof.summary()
    assert recording.elapsed_ns == sum(x.duration_ns + x.idle_ns for x in recording.launches)


def test_a_profile_that_cannot_start_leaves_room_for_another(monkeypatch):
    def broken(**kwargs):
        raise OSError("no recorder")

    with monkeypatch.context() as patched:
        patched.setattr(torch_trn_emu._C, "start_recording", broken)
        with pytest.raises(OSError, match="no recorder"):
            torch_trn_emu.profile().start()
    with torch_trn_emu.profile():
        pass


def test_a_parameter_at_the_address_of_a_freed_one_has_its_own_path() -> None:
    class Second(nn.Sequential):
        pass

    with torch_trn_emu.profile() as prof:
        scopes = prof._scopes
        first = nn.Sequential(nn.Linear(2, 2)).to("trn")
        first(torch.ones(1, 2, device="trn"))
        address = first[0].weight._cdata
        assert scopes.owners[address] == "Sequential.0"
        kept = []
        del first
        for _ in range(200):
            kept.append(Second(nn.Linear(2, 2)).to("trn"))
            if kept[-1][0].weight._cdata == address:
                break
        else:
            pytest.skip("no parameter came to lie where one was freed")
        kept[-1](torch.ones(1, 2, device="trn"))
        assert scopes.owners[address] == "Second.0"
