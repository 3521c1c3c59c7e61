"""Copies that lay rows one after the other for products alone are no program of a graph."""

from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from torch_trn_emu.compiler.graph_price import price_graph, windows_of

from .test_residence import TRN1, TRN3, work_of

Function = Callable[..., Tensor]
SHAPES = ((1, 256, 4, 128), (1, 256, 2, 128))


def names(function: Function, shapes: Sequence[Sequence[int]]) -> list[str]:
    [window] = windows_of(work_of(function, *shapes, target=TRN3), TRN3)
    return [p.program.name for p in window.parts if p.program]


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Heads side by side, two queries to a key."""
    keys = k.repeat_interleave(2, 2).transpose(1, 2)
    return q.transpose(1, 2) @ keys.transpose(2, 3)


def test_rows_of_heads_are_read_where_they_are() -> None:
    assert all(name.startswith("matmul") for name in names(scores, SHAPES))


def read_again(q: Tensor, k: Tensor) -> Tensor:
    rows = q.transpose(1, 2).contiguous()
    return rows @ k.transpose(1, 2).repeat_interleave(2, 1).transpose(2, 3) + rows.sum()


def short_rows(q: Tensor, k: Tensor) -> Tensor:
    return scores(q[..., :64], k[..., :64])


def across(x: Tensor, w: Tensor) -> Tensor:
    """Each row of the copy is a column of what it copies."""
    return x.t().contiguous() @ w


@pytest.mark.parametrize(
    ("function", "shapes"),
    [(read_again, SHAPES), (short_rows, SHAPES), (across, ((256, 512), (256, 128)))],
)
def test_other_copies_are_made(function: Function, shapes: Sequence[Sequence[int]]) -> None:
    assert any(not name.startswith("matmul") for name in names(function, shapes))


def test_a_graph_pays_no_more_for_rows_apart() -> None:
    def apart(q: Tensor, k: Tensor) -> Tensor:
        return q.transpose(1, 2) @ k.transpose(1, 2).transpose(2, 3)

    def together(q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(2, 3)

    one = price_graph("g", work_of(apart, *[(1, 256, 4, 128)] * 2), TRN1).price
    other = price_graph("g", work_of(together, *[(1, 4, 256, 128)] * 2), TRN1).price
    assert one.seconds == pytest.approx(other.seconds, rel=0.01)
    assert one.totals["hardware_flops"] == other.totals["hardware_flops"]
