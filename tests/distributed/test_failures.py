"""What goes wrong on one rank ends on all, with a line that says what, where and why."""

import re
import signal
import time

import launch
import pytest

# By the way to fail: what rank 0 says, and in the two last cases how long ranks may wait.
SAID = {
    "size": "what one rank sends is not what another expects",
    "dtype": "the dtypes differ",
    "operation": "the ranks call different operations",
    "killed": "rank 1 .* ended unexpectedly",
    "terminated": "rank 1 .* ended unexpectedly",
    "memory": "rank 1 ended with OutOfMemoryError",
    "left": "rank 1 has left the group",
    "stopped": "its process is stopped",
}


# A spawn costs each rank an import of torch: pytest runs these.
FAST = ("size", "killed", "memory")
WIDE = pytest.mark.distributed_conformance


def outcome(way: str, transport: str = "shm", seconds: float = 60) -> tuple[list, float]:
    begin = time.monotonic()
    started = launch.start("failing.py", way, str(seconds), TRN_EMU_TRANSPORT=transport)
    if way == "stopped":
        started[0].wait(60)
        started[1].kill()
    return launch.finish(started, 60), time.monotonic() - begin


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in FAST else WIDE) for way in SAID]
)
def test_every_rank_is_told(way):
    ended, took = outcome(way, seconds=4 if way == "stopped" else 60)
    text = ended[0].err
    assert ended[0].code == 1, text
    assert "together" in ended[0].out
    assert "not reached" not in ended[0].out
    last = text[text.rindex("DistBackendError") :]
    assert "all_reduce #2 of group default_pg: rank 0 of 2 ranks" in last
    assert re.search(SAID[way], last), last
    assert took < 50
    if way in ("size", "dtype", "operation"):
        other = ended[1].err[ended[1].err.rindex("DistBackendError") :]
        assert SAID[way] in other
        assert "rank 0: all_reduce #2 float32[4096] SUM" in last
        assert "rank 1: " in last


@WIDE
def test_members_of_a_group_are_named_by_their_ranks():
    """Who is late is in the first line, which the others hear."""
    ended = launch.run("failing.py", "subgroup", "2", ranks=3)
    out = ended[1].out
    assert "recv #1 of float32[4] from rank 2, tag 0 in group pair: rank 1 of 2 ranks: " in out
    assert "all_reduce #1 of group pair: rank 1 of 2 ranks: the timeout of 2 s has passed" in out
    assert "has passed, and rank 2 did not come. A rank that" in out
    assert "rank 1: in all_reduce #1 float32[4096] SUM\n  rank 2: joined the group" in out


@WIDE
def test_an_interrupt_ends_a_wait():
    started = launch.start("failing.py", "interrupted", "20", TRN_EMU_TRANSPORT="shm")
    while started[0].poll() is None and "together" not in read(started[0]):
        time.sleep(0.2)
    time.sleep(1)
    started[0].send_signal(signal.SIGINT)
    assert started[0].wait(10) != 0
    started[1].kill()
    ended = launch.finish(started)
    assert "KeyboardInterrupt" in ended[0].err
    assert "not reached" not in ended[0].out


def read(process) -> str:
    process.out.seek(0)
    return process.out.read()


@WIDE
@pytest.mark.parametrize("way", ["size", "killed"])
def test_gloo_tells_as_well(way):
    ended, _ = outcome(way, "gloo")
    assert ended[0].code == 1
    assert "all_reduce #2 of group default_pg" in ended[0].err
