"""Collectives in a recording: the table, the lanes, what is said about them."""

import itertools
import json

import pytest
import torch

import torch_trn_emu
from torch_trn_emu import pricing
from torch_trn_emu.calls import Call, Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.ops import dense
from torch_trn_emu.pricing import price_call
from torch_trn_emu.profiler import Launch, Recording
from torch_trn_emu.profiler.communication import HIDING, Collective, collective_rows, cure, lanes_of
from torch_trn_emu.profiler.timeline import timeline
from torch_trn_emu.profiler.trace import events
from torch_trn_emu.profiler.verdict import judge

CHIP = get_chip("trn3")


def collective(
    start_ns: int,
    end_ns: int,
    *,
    operation: str = "all_reduce",
    exposed_ns: int = 0,
    group: str = "default_pg",
    bound: bool = True,
    late_ns: int = 0,
) -> Collective:
    return Collective(
        operation=operation, group=group, number=1, ranks=4, dtype="float32", elements=256,
        bytes=1024, algorithm="ring", level="sled", bandwidth_bound=bound, device=0,
        arrivals_ns=(start_ns - late_ns, start_ns), arrival_ns=start_ns - late_ns,
        start_ns=start_ns, end_ns=end_ns, exposed_ns=exposed_ns,
    )  # fmt: skip


def recording(*collectives: Collective) -> Recording:
    x = dense((128, 128), "Float")
    given = {"t": "Float", "s": [128, 128], "d": [128, 1], "c": 0}
    recorded = json.dumps([given, given, 1]), json.dumps([given])
    number = pricing.record("aten::add.Tensor", *recorded, "fp32", Target(CHIP, 2))[1]
    price = price_call(Call("aten::add.Tensor", (x, x, 1), (x,)), Target(CHIP, 2))
    launch = Launch(op="aten::add.Tensor", signature="", price=price, number=number, device=0,
                    stream=0, host_ns=0, dispatch_ns=55_000, start_ns=55_000, duration_ns=10_000,
                    idle_ns=0, phase="forward", module="", source="")  # fmt: skip
    return Recording(chip=CHIP, lnc=2, launches=(launch,), regions=((0, 0, 10**6),), memory={},
                     collectives=collectives)  # fmt: skip


def test_calls_that_differ_in_time_alone_are_one_row():
    r = recording(collective(0, 1000, exposed_ns=200), collective(2000, 3000, late_ns=500),
                  collective(0, 10, operation="barrier"))  # fmt: skip
    first, second = collective_rows(r)
    assert (first.operation, first.calls, second.operation) == ("all_reduce", 2, "barrier")
    assert first.duration_s == pytest.approx(2e-6)
    assert (first.exposed_s, first.late_s) == (pytest.approx(2e-7), pytest.approx(5e-7))
    assert first.algorithm_bandwidth == pytest.approx(1024e6)  # bytes/s: 1024 B in 1 us
    assert first.bus_bandwidth == pytest.approx(1024e6 * 2 * 3 / 4)


def test_messages_that_overlap_get_lanes_of_their_own():
    calls = [collective(0, 100), collective(50, 150), collective(120, 200),
             collective(0, 10, group="mesh_tp")]  # fmt: skip
    lanes = lanes_of(calls)
    assert {name: len(found) for name, found in lanes.items()} == {
        "collectives, default_pg": 2, "collectives, default_pg (2)": 1, "collectives, mesh_tp": 1,
    }  # fmt: skip
    for found in lanes.values():
        assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(found))


def test_the_verdict_says_what_is_exposed_and_what_would_hide_it():
    verdict = judge(recording(collective(0, 900_000, exposed_ns=900_000)))
    assert verdict.bound == "collectives"
    assert verdict.sentence.startswith("Communication-bound: for 9")
    (change,) = [c for c in verdict.changes if c.name == "communication"]
    assert "async_op=True" in change.text
    assert "0 % of their time is hidden" in change.text
    hidden = judge(recording(collective(0, 900_000)))
    assert not [c for c in hidden.changes if c.name == "communication"]


@pytest.mark.parametrize(("prefix", "text"), HIDING, ids=lambda x: x[:12])
def test_each_operation_has_a_way_to_hide_it(prefix, text):
    name = prefix or "broadcast"
    calls = [collective(0, 10, operation=f"{name}_x" if prefix else name, exposed_ns=5)]
    assert cure(calls) == text
    small = [collective(0, 10, operation=name, exposed_ns=5, bound=False)]
    assert cure(small).endswith("pay for it less often.")


def test_trace_and_page_have_the_lanes():
    r = recording(collective(60_000, 90_000))
    spans = [e for e in events(r) if e["ph"] == "X" and e["name"] == "all_reduce"]
    assert [(e["ts"], e["dur"]) for e in spans] == [(60.0, 30.0)]
    assert spans[0]["args"]["algorithm"] == "ring"
    data = timeline(r)
    ((name, rows),) = data["devices"][0]["collectives"].items()
    assert (name, len(rows)) == ("collectives, default_pg", 1)
    assert data["words"][rows[0][2]] == "all_reduce"


def test_a_profile_without_groups_has_none():
    with torch_trn_emu.profile() as found:
        torch.ones(2, device="trn").add(1)
    assert found.recording.collectives == ()
