"""Streams and events order work and measure simulated time."""

import threading

import pytest
import torch

from torch_trn_emu.settings import settings


def work(device: str = "trn") -> None:
    x = torch.ones(8, device=device)
    for _ in range(10):
        x.add_(1)


def timing() -> torch.Event:
    return torch.trn.Event(enable_timing=True)


def test_stream_zero_is_the_default_and_current_one():
    assert torch.trn.current_stream() == torch.trn.default_stream()
    assert torch.trn.current_stream("trn:1") == torch.trn.default_stream(1)
    assert torch.trn.default_stream() != torch.trn.default_stream(1)
    assert torch.accelerator.current_stream() == torch.trn.current_stream()


def test_a_new_stream_is_another_stream():
    a, b = torch.trn.Stream(), torch.trn.Stream()
    assert a != b
    assert a != torch.trn.default_stream()
    assert hash(a) != hash(b)
    assert a.device == torch.device("trn", 0)
    assert torch.trn.Stream(device="trn:2", priority=-1).device.index == 2
    assert "trn" in repr(a)


def test_a_stream_is_a_stream_of_torch():
    assert isinstance(torch.trn.Stream(), torch.Stream)
    assert isinstance(torch.trn.Stream(), torch.trn.Stream)
    assert isinstance(torch.trn.current_stream(), torch.trn.Stream)
    assert torch.Stream().device.type == "trn"


def test_the_stream_context_sets_and_restores():
    stream = torch.trn.Stream()
    with torch.trn.stream(stream):
        assert torch.trn.current_stream() == stream
        assert torch.accelerator.current_stream() == stream
        with torch.trn.stream(None):
            assert torch.trn.current_stream() == stream
        with torch.trn.Stream() as inner:
            assert torch.trn.current_stream() == inner
        assert torch.trn.current_stream() == stream
    assert torch.trn.current_stream() == torch.trn.default_stream()


def test_a_stream_of_another_device_brings_its_device():
    stream = torch.trn.Stream("trn:1")
    with torch.trn.stream(stream):
        assert torch.trn.current_device() == 1
        assert torch.trn.current_stream() == stream
        assert torch.ones(1, device="trn").device.index == 1
    assert torch.trn.current_device() == 0
    assert torch.trn.current_stream(1) == torch.trn.default_stream(1)


def test_set_stream_lasts():
    stream = torch.trn.Stream()
    torch.trn.set_stream(stream)
    assert torch.trn.current_stream() == stream
    torch.trn.set_stream(None)
    assert torch.trn.current_stream() == stream
    torch.trn.set_stream(torch.trn.default_stream())
    assert torch.trn.current_stream() == torch.trn.default_stream()


def test_the_current_stream_belongs_to_the_thread():
    seen = []
    with torch.trn.stream(torch.trn.Stream()):
        thread = threading.Thread(target=lambda: seen.append(torch.trn.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.trn.default_stream()]


@pytest.mark.parametrize("make", [timing, lambda: torch.Event("trn", enable_timing=True)])
def test_elapsed_time_is_simulated_milliseconds(make):
    work()
    torch.trn.synchronize()  # nothing is queued on the core
    start, end = make(), make()
    start.record()
    work()
    end.record()
    torch.trn.synchronize()
    first = start.elapsed_time(end)
    assert 0 < first < 1000
    start.record()
    work()
    end.record()
    torch.trn.synchronize()
    assert start.elapsed_time(end) == pytest.approx(first)
    assert end.elapsed_time(start) == pytest.approx(-first)


def test_every_kind_of_event_is_an_event():
    event = torch.trn.Event()
    assert isinstance(event, torch.Event)
    assert isinstance(event, torch.trn.Event)
    assert issubclass(torch.trn.Event, torch.Event)
    assert not isinstance(torch.trn.Stream(), torch.trn.Event)


def test_an_event_without_timing_measures_nothing():
    a, b = torch.trn.Event(), timing()
    a.record()
    b.record()
    with pytest.raises((RuntimeError, ValueError), match="timing"):
        a.elapsed_time(b)


def test_an_unrecorded_event_measures_nothing():
    with pytest.raises((RuntimeError, ValueError), match="recorded"):
        timing().elapsed_time(timing())


def test_an_event_is_done_when_simulated_time_has_reached_it():
    event = timing()
    assert event.query()  # not recorded: nothing to wait for
    work()
    event.record()
    event.synchronize()
    assert event.query()


def test_streams_and_events_wait_for_one_another():
    a, b = torch.trn.Stream(), torch.trn.Stream("trn:1")
    with torch.trn.stream(a):
        work()
    event = a.record_event()
    assert isinstance(event, torch.trn.Event)
    assert a.record_event(event) is event or a.record_event(event) is None
    b.wait_event(event)
    b.wait_stream(a)
    event.wait()
    event.wait(b)
    a.wait_stream(torch.trn.current_stream())
    a.synchronize()
    assert a.query()
    torch.trn.synchronize()
    torch.trn.synchronize("trn:1")


def test_a_waiting_stream_does_not_end_before_what_it_waits_for():
    first, second = torch.trn.Stream(), torch.trn.Stream()
    before, after = timing(), timing()
    with torch.trn.stream(first):
        work()
        before.record()
    second.wait_event(before)
    after.record(second)
    torch.trn.synchronize()
    assert before.elapsed_time(after) >= 0


def test_record_stream_is_accepted():
    x = torch.ones(4, device="trn")
    x.record_stream(torch.trn.Stream())
    assert x.sum().item() == 4


@pytest.mark.parametrize("number", [-1, 64, 1 << 40])
def test_a_number_of_no_stream_is_refused(number):
    with pytest.raises(ValueError, match="trn has no stream"):
        torch.trn.Stream(stream_id=number, device_index=0, device_type=20)


@pytest.mark.parametrize("number", [-1, 64, 10**6])
def test_a_stream_of_torch_with_a_number_that_no_device_has_is_refused(number):
    device_type = torch.trn.Stream().device_type
    stream = torch.Stream(stream_id=number, device_index=0, device_type=device_type)
    event = torch.Event("trn")
    event.record()
    uses = (
        lambda: torch.accelerator.set_stream(stream),
        lambda: stream.__enter__(),
        lambda: torch.Event("trn").record(stream),
        lambda: event.wait(stream),
        stream.synchronize,
        stream.query,
    )
    for use in uses:
        with pytest.raises(ValueError, match=f"trn has no stream {number}"):
            use()


@pytest.mark.parametrize("cycles", [0, 700_000, 1_400_000])
def test_sleep_occupies_the_stream_for_its_cycles(cycles):
    begin, end = (torch.trn.Event(enable_timing=True) for _ in range(2))
    stream = torch.trn.Stream()
    with torch.trn.stream(stream):
        begin.record()
        torch.trn._sleep(cycles)
        end.record()
    assert end.query() == stream.query() == (cycles == 0)
    end.synchronize()
    per_ms = 1e-3 * settings().chip.sync_clock_hz
    assert begin.elapsed_time(end) == pytest.approx(cycles / per_ms, abs=0.06)  # and its dispatch
