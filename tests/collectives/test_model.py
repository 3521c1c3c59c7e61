"""Durations: order, levels and the vendor's bounds; no figure of trn3 is measured."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torch_trn_emu.chip import SYSTEMS, get_system
from torch_trn_emu.collectives import duration, extents

TRN2 = get_system("trn2-ultraserver", "trn2")
TRN3 = get_system("trn3-gen2", "trn3")
OPS = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all", "barrier", "send"]


def seconds(op, size, ranks, system=TRN2, caller="graph"):
    return duration(op, size, tuple(ranks), system, 4, caller).seconds


def test_a_group_spans_the_levels_of_its_members():
    assert [n for _, n in extents(range(64), 4, TRN2)] == [4, 16, 1, 1]
    assert [n for _, n in extents(range(256), 4, TRN2)] == [4, 16, 4, 1]
    assert [n for _, n in extents(range(512), 4, TRN2)] == [4, 16, 4, 2]
    assert [n for _, n in extents(range(0, 64, 4), 4, TRN2)] == [1, 16, 1, 1]
    assert [n for _, n in extents(range(576), 4, TRN3)] == [4, 4, 18, 2, 1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    op=st.sampled_from(OPS),
    size=st.integers(0, 1 << 32),
    more=st.integers(0, 1 << 20),
    world=st.sampled_from([2, 4, 8, 64, 256, 1024]),
    name=st.sampled_from([s.name for s in SYSTEMS if s.chip != "trn1"]),
    caller=st.sampled_from(["graph", "eager"]),
)
def test_more_bytes_never_take_less(op, size, more, world, name, caller):
    system = next(s for s in SYSTEMS if s.name == name)
    ranks = range(2 if op == "send" else world)
    less = seconds(op, size, ranks, system, caller)
    # Where an algorithm's range ends, the next may be slower for the same bytes; never faster.
    assert 0 < less <= seconds(op, size + more, ranks, system, caller) * (1 + 1e-9)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_all_reduce_is_reduce_scatter_and_all_gather(system):
    size, ranks = 1 << 26, range(64)
    both = seconds("reduce_scatter", size, ranks, system) + seconds(
        "all_gather", size, ranks, system
    )
    assert seconds("all_reduce", size, ranks, system) <= both


def test_a_collective_of_a_graph_starts_faster_than_an_eager_one():
    for op in OPS[:5]:
        assert seconds(op, 4096, range(64)) < seconds(op, 4096, range(64), caller="eager")


def test_eager_collectives_have_the_ring_alone():
    assert duration("all_reduce", 4096, tuple(range(64)), TRN2, 4, "eager").algorithm == "ring"
    assert duration("all_reduce", 4096, tuple(range(64)), TRN2, 4, "graph").algorithm == "mesh"


def test_the_vendors_algorithms_come_in_the_vendors_order():
    ranks = tuple(range(0, 64, 4))
    found = [
        duration("all_reduce", s, ranks, TRN2, 4, "graph").algorithm
        for s in (1 << 14, 1 << 23, 1 << 29)
    ]
    assert found == ["mesh", "recursive doubling and halving", "KangaRing"]


def test_the_network_is_slower_than_the_server():
    near, far = range(64), range(0, 64 * 64, 64)
    assert seconds("all_reduce", 1 << 28, far, get_system("", "trn2")) > 2 * seconds(
        "all_reduce", 1 << 28, near, get_system("", "trn2")
    )


def test_chips_of_a_trn3_ultraserver_reach_each_other_in_ten_microseconds():
    """[arch] says "under 10 us" from chip to chip, through NeuronSwitch."""
    mesh = duration("all_gather", 1024, tuple(range(0, 576, 4)), TRN3, 4, "graph")
    assert mesh.seconds - 6e-6 < 10e-6


def test_a_system_has_a_name_and_a_chip():
    assert get_system("trn2-ultraserverx4", "trn2") is TRN2
    with pytest.raises(ValueError, match=r"unknown system; choose from trn1\.32xlarge"):
        get_system("trn4", "trn3")
    with pytest.raises(ValueError, match="has trn2 chips"):
        get_system("trn2.48xlarge", "trn3")
