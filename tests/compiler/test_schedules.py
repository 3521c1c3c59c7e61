"""What a graph schedules, as torch's caches keep it: equal programs and engine lanes, small."""

import pickle

import pytest

from torch_trn_emu.calls import Target
from torch_trn_emu.compiler.graph_price import GraphPrice, price_graph
from torch_trn_emu.compiler.schedules import Schedules
from torch_trn_emu.isa import dump

from .test_windows import CASES, TARGETS, piece_of

POLICIES = ("bf16", "mxfp8")


def lanes_of(priced: GraphPrice, target: Target, limit: int) -> list[list[tuple[object, ...]]]:
    """The spans of each lane as plain data."""
    return [
        [
            (queue, s.start_s, s.end_s, s.busy_s, s.count, s.alike, s.instruction.opcode)
            for queue, spans in found.items()
            for s in spans
        ]
        for found in priced.lanes(target.chip, limit)
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.chip.name}-{t.cores}")
@pytest.mark.parametrize("name", CASES)
def test_a_cached_graph_has_the_lanes_and_programs_of_the_first(
    name: str, target: Target, policy: str
) -> None:
    first = price_graph(name, piece_of(name, target, policy).work, target)
    again = pickle.loads(pickle.dumps(first))
    for limit in (1, 64):
        expected = lanes_of(first, target, limit)
        assert all(expected)
        assert lanes_of(again, target, limit) == expected
    programs = [dump(p) for p in first.programs(target.chip)]
    assert programs
    assert [dump(p) for p in again.programs(target.chip)] == programs
    assert again == first


def test_what_was_not_read_is_cached_again_as_it_was() -> None:
    target = TARGETS[-1]
    first = price_graph("mlp", piece_of("mlp", target).work, target)
    once = pickle.dumps(first)
    assert pickle.dumps(pickle.loads(once)) == once
    read = pickle.loads(once)
    assert read.programs(target.chip)
    assert lanes_of(pickle.loads(pickle.dumps(read)), target, 64) == lanes_of(first, target, 64)


def test_equal_programs_are_kept_once() -> None:
    target = TARGETS[-1]
    one, two = (
        price_graph(name, piece_of(name, target).work, target) for name in ("mlp", "two layers")
    )
    again = pickle.loads(pickle.dumps(two))
    [schedule] = again.schedules
    parts = len(schedule.parts)
    assert len({id(part.program) for part in schedule.parts}) < parts
    assert len(pickle.dumps(two.schedules)) < 1.5 * len(pickle.dumps(one.schedules))


def test_a_graph_that_has_only_a_price_keeps_nothing() -> None:
    assert list(pickle.loads(pickle.dumps(Schedules()))) == []
