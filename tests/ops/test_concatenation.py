"""Copies between strides give exactly torch's elements."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .calls import call_of, lowered, memory, random, run

aten = torch.ops.aten


def _same(op: Any, *args: Any, **feeds: torch.Tensor) -> None:
    expected = op(*args)
    got = run(lowered(call_of(op, *args)), {n: memory(t) for n, t in feeds.items()})["out"]
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    data=st.data(),
)
def test_cat_and_stack(shape: list[int], sizes: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    pieces = []
    for size in sizes:
        of = [*shape]
        of[dim] = size
        pieces.append(random(*reversed(of)).permute(*range(len(of) - 1, -1, -1)))
    _same(aten.cat.default, pieces, dim, **{f"in{k}": t for k, t in enumerate(pieces)})
    alike = [random(*shape) for _ in sizes]
    _same(aten.stack.default, alike, dim, **{f"in{k}": t for k, t in enumerate(alike)})


X = random(3, 5, 7)
G = random(2, 3, 2)
CASES = [
    (aten.constant_pad_nd.default, X, [1, 2, 3, 0], 1.5),
    (aten.constant_pad_nd.default, X, [-1, 2], 0.0),
    (aten.constant_pad_nd.default, random(150, 30), [0, 0, 5, 200], 2.0),
    (aten.reflection_pad1d.default, X, [3, 6]),
    (aten.reflection_pad2d.default, X, [3, 2, 1, 4]),
    (aten.replication_pad1d.default, X, [3, 9]),
    (aten.replication_pad2d.default, X, [3, 2, 1, 4]),
    (aten.flip.default, X, [0, 2]),
    (aten.flip.default, X.mT, [1]),
    (aten.roll.default, X, [2, -3], [0, 2]),
    (aten.repeat.default, X, [2, 1, 3, 2]),
    (aten.slice_backward.default, G, [2, 9, 2], 1, 2, 8, 2),
    (aten.slice_backward.default, G, [2, 3, 5], 2, 1, 3, 1),
    (aten.select_backward.default, G, [2, 4, 3, 2], 1, 2),
    (aten.diagonal_backward.default, random(2, 4), [2, 5, 4], 0, 1, 2),
    (aten.diagonal_backward.default, random(5, 2), [3, 5, 4], -1, 0, 2),
    (aten.pixel_shuffle.default, random(2, 12, 3, 4), 2),
    (aten.pixel_unshuffle.default, random(2, 3, 4, 6), 2),
    (aten.upsample_nearest2d.default, random(2, 3, 4, 5), [8, 15]),
    (aten.upsample_nearest1d.default, random(2, 3, 4), [12]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_one_source(case: tuple[Any, ...]) -> None:
    op, source, *rest = case
    _same(op, source, *rest, **{"in": source})


def test_scatters_of_slices() -> None:
    x, src = random(4, 9, 3), random(4, 3, 3)
    _same(aten.slice_scatter.default, x, src, 1, 2, 8, 2, **{"in": x, "src": src})
    src = random(4, 3)
    _same(aten.select_scatter.default, x, src, 1, 5, **{"in": x, "src": src})


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    lead=st.integers(1, 3),
    inner=st.integers(1, 4),
    chunks=st.integers(1, 5),
    dim=st.integers(0, 1),
)
def test_chunks_of_each_beside_each_other(
    sizes: list[int], lead: int, inner: int, chunks: int, dim: int
) -> None:
    pieces = [random(lead, n, inner) if dim else random(n, inner) for n in sizes]
    feeds = {f"in{k}": t for k, t in enumerate(pieces)}
    _same(aten._chunk_cat.default, pieces, dim, chunks, **feeds)


def test_scatter_to_strides() -> None:
    x, src = random(6, 7), random(3, 4)
    for offset in (0, 2):
        op = aten.as_strided_scatter.default
        _same(op, x, src, [3, 4], [7, 2], offset, **{"in": x, "src": src})


def test_roll_of_a_flattened_tensor() -> None:
    x = random(5, 7)
    _same(aten.roll.default, x, [9], **{"in": x})


@pytest.mark.parametrize("case", [([5, 12], 1, 3, 4), ([9, 4], 0, 2, 2), ([7], 0, 2, 3)], ids=str)
def test_gradients_of_windows(case: tuple[list[int], int, int, int]) -> None:
    sizes, dim, size, step = case
    g = torch.zeros(sizes).unfold(dim, size, step)
    g = random(*g.shape)
    _same(aten.unfold_backward.default, g, sizes, dim, size, step, **{"in": g})
