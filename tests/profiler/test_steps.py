"""The verdict is that of the settled steps: what runs before, between devices, and after them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.ops import dense
from torch_trn_emu.pricing import Price, price_call
from torch_trn_emu.profiler import Launch, Recording
from torch_trn_emu.profiler.communication import Collective
from torch_trn_emu.profiler.steps import WHOLE, settled, steps
from torch_trn_emu.profiler.verdict import judge

TARGET = Target(get_chip("trn3"), 2)
LARGE, SMALL = dense((4096, 4096), "Float"), dense((16,), "Float")
PRODUCT = price_call(Call("aten::mm", (LARGE, LARGE), (LARGE,), "fp32"), TARGET)
SUM = price_call(Call("aten::add.Tensor", (LARGE, LARGE, 1), (LARGE,)), TARGET)
TINY = price_call(Call("aten::add.Tensor", (SMALL, SMALL, 1), (SMALL,)), TARGET)

COLLECTIVE = {
    "operation": "all_reduce", "group": "0", "number": 1, "ranks": 2, "dtype": "float32",
    "elements": 4, "bytes": 16, "algorithm": "ring", "level": "intra", "bandwidth_bound": False,
    "device": 0, "arrivals_ns": (0, 0), "arrival_ns": 0, "exposed_ns": 10,
}  # fmt: skip

Work = tuple[str, Price]  # phase and price of a launch
LOAD: list[Work] = [("other", TINY)] * 100
FIRST: list[Work] = [("forward", SUM)] * 50 + [("backward", PRODUCT), ("optimizer", TINY)]
STEP: list[Work] = [("forward", PRODUCT), ("backward", PRODUCT), ("optimizer", TINY)]
SAMPLE: list[Work] = [("forward", TINY)] * 400


def launches_of(work: Sequence[Work], device: int = 0) -> list[Launch]:
    """Launches one after the other on the clock of their core, which waits for each."""
    found, now = [], 0
    for number, (phase, price) in enumerate(work):
        duration_ns = round(price.seconds * 1e9)
        found.append(
            Launch(op=f"op {number}", signature="", price=price, number=number, device=device,
                   stream=0, host_ns=now, dispatch_ns=55_000, start_ns=now + 55_000,
                   duration_ns=duration_ns, idle_ns=55_000, phase=phase, module="", source="")
        )  # fmt: skip
        now += 55_000 + duration_ns
    return found


def recording_of(*devices: Sequence[Work]) -> Recording:
    """A recording in which the host takes turns between the devices."""
    each = [launches_of(work, device) for device, work in enumerate(devices)]
    turns = sorted((k, x.device, x) for run in each for k, x in enumerate(run))
    return Recording(
        chip=TARGET.chip,
        lnc=2,
        launches=[x for *_, x in sorted(turns, key=lambda turn: turn[:2])],
        regions=[(device, 0, run[-1].end_ns) for device, run in enumerate(each) if run],
        memory={},
    )


@pytest.mark.parametrize("after", [[], SAMPLE], ids=["", "sample"])
@pytest.mark.parametrize("before", [[], LOAD], ids=["", "load"])
@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_only_the_second_half_of_the_steps_is_judged(count: int, before, after) -> None:
    early, late = count // 2, count - count // 2
    run = recording_of([*before, *FIRST * early, *STEP * late, *after])
    assert len(steps(run)) == count
    verdict = judge(run)
    assert verdict.basis == f"steps {early + 1} to {count} of {count}"
    assert verdict.sentence.startswith("Tensor-engine-bound")
    assert verdict.basis in verdict.sentence
    alone = judge(replace(run, launches=launches_of([("forward", p) for _, p in STEP * late])))
    assert alone.basis == WHOLE
    assert (verdict.bound, verdict.bounds) == (alone.bound, pytest.approx(alone.bounds))


@pytest.mark.parametrize(
    "work",
    [[*LOAD, *STEP, *SAMPLE], STEP, SAMPLE, [("optimizer", TINY)] * 7],
    ids=["one step", "a step alone", "inference", "the optimizer alone"],
)
def test_a_run_without_two_steps_is_judged_as_a_whole(work: list[Work]) -> None:
    run = recording_of(work)
    assert settled(run) == (run, WHOLE)
    verdict = judge(run)
    assert verdict.basis == WHOLE
    assert "Based on" not in verdict.sentence


def test_nothing_was_launched() -> None:
    empty = Recording(chip=TARGET.chip, lnc=2, launches=[], regions=[], memory={})
    assert judge(empty).sentence == "Nothing was launched."


def test_each_device_has_steps_of_its_own() -> None:
    run = recording_of([*LOAD, *STEP * 4, *SAMPLE], [*STEP * 2, *SAMPLE])
    kept, basis = settled(run)
    assert basis == "steps 3 to 4 of 4"
    assert [sum(x.device == d for x in kept.launches) for d in (0, 1)] == [6, 3]
    for device in (0, 1):
        own = [x for x in run.launches if x.device == device]
        found = steps(run, device)
        begin_ns, end_ns = found[len(found) // 2].begin_ns, found[-1].end_ns
        inside = [x for x in own if begin_ns <= x.start_ns < end_ns]
        assert [x for x in kept.launches if x.device == device] == inside
    assert kept.elapsed_ns == sum(x.duration_ns + x.idle_ns for x in kept.launches)


def test_a_device_that_takes_no_steps_makes_it_the_whole_run() -> None:
    run = recording_of(STEP * 4, SAMPLE)
    assert settled(run) == (run, WHOLE)


def test_collectives_of_the_settled_steps_count() -> None:
    run = recording_of([*FIRST * 2, *STEP * 2, *SAMPLE])
    found = steps(run)

    def call(start_ns: int) -> Collective:
        return Collective(**COLLECTIVE, start_ns=start_ns, end_ns=start_ns + 1000)

    calls = [call(s.begin_ns) for s in found] + [call(found[-1].end_ns)]
    kept, _ = settled(replace(run, collectives=calls))
    assert list(kept.collectives) == calls[2:4]
    assert kept.collective_times[0] == 2
