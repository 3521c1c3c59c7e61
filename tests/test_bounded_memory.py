"""Runs whose shapes change with every step: what is kept of them is small, or bounded."""

import gc
import json
import tracemalloc
from types import SimpleNamespace

import pytest

from torch_trn_emu import pricing
from torch_trn_emu.calls import Target, read_call
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler import graph_launches
from torch_trn_emu.compiler.dynamic_sizes import MOST_SIZES, SizedPrice

TARGET = Target(get_chip("trn3"), 2)


def tensor(*shape: int) -> dict[str, object]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return {"t": "Float", "s": list(shape), "d": strides, "c": 0}


def signatures(rows: int) -> list[tuple[str, str, str]]:
    x = tensor(rows, 64)
    calls = [
        ("aten::mul.Tensor", [x, x], [x]),
        ("aten::mm", [x, tensor(64, 64)], [x]),
        ("aten::_softmax", [x, -1, False], [x]),
        ("aten::sum.dim_IntList", [x, [1], False], [tensor(rows)]),
    ]
    return [(op, json.dumps(given), json.dumps(made)) for op, given, made in calls]


def record(first: int, count: int) -> list[int]:
    """The numbers of `count` signatures."""
    return [
        pricing.record(*signature, "mxfp8", TARGET)[1]
        for rows in range(first, first + count // 4)
        for signature in signatures(rows)
    ]


def test_a_signature_keeps_two_kilobytes(monkeypatch) -> None:
    # A list that other tests have filled would be copied whole when it grows, and be counted.
    monkeypatch.setattr(pricing, "_recorded", [])
    record(100_000, 40)  # what is made once
    pricing.price_call.cache_clear()
    tracemalloc.start()
    try:
        record(200_000, 200)
        pricing.price_call.cache_clear()
        gc.collect()
        kept = sum(
            s.size
            for s in tracemalloc.take_snapshot()
            .filter_traces([tracemalloc.Filter(True, "*pricing.py")])
            .statistics("filename")
        )
    finally:
        tracemalloc.stop()
    assert kept < 200 * 2048


@pytest.mark.conformance
def test_60000_signatures_take_less_than_200_megabytes() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    record(300_000, 40)
    before = resident()
    record(400_000, 60_000)
    assert resident() - before < 200e6


def test_what_was_dropped_is_priced_again_equal() -> None:
    numbers = record(500_000, 8)
    before = pricing.prices(numbers)
    pricing.price_call.cache_clear()
    for signature, price in zip(signatures(500_000), before, strict=False):
        assert pricing.price_call(read_call(*signature, "mxfp8"), TARGET) == price
        assert price is not None


def test_programs_are_made_again() -> None:
    mul = record(600_000, 4)[0]
    assert [p.buffers for p in pricing.programs(mul)]


def test_a_graph_keeps_the_prices_of_a_few_sizes() -> None:
    asked = []

    def price(gm: object, text: str) -> tuple[()]:
        asked.append(text)
        return ()

    sized = SizedPrice((), SimpleNamespace(), price)  # type: ignore[arg-type]
    place = SimpleNamespace(symbol="s0", made=False)
    sized.places = (place,)  # type: ignore[assignment]
    for size in range(MOST_SIZES + 8):
        sized.at((size,))
        sized.at((0,))  # used all the time, so it stays
    assert len(asked) == MOST_SIZES + 8
    sized.at((1,))
    assert asked[-1] == "s0=1"
    assert len(sized._known) == MOST_SIZES


def test_graphs_that_left_are_still_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    price = pricing.prices(record(700_000, 4))[0]
    assert price is not None
    monkeypatch.setattr(graph_launches, "MOST_WHOLE", 2)
    before = len(graph_launches._names)
    for k in range(4):
        priced = graph_launches.GraphPrice(
            name=f"bounded {k}", price=price, regions=(), windows=k, spilled_bytes=0, calls=()
        )
        graph_launches.launch_row(priced, 0)
    rows = graph_launches.summary()[before:]
    assert [row.windows for row in rows] == [0, 1, 2, 3]
    assert not isinstance(graph_launches._launched[before], graph_launches.GraphPrice)
    assert isinstance(graph_launches._launched[before + 3], graph_launches.GraphPrice)
