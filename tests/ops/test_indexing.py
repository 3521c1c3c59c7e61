"""Gathers and scatters by index give exactly torch's elements; sums within their rounding."""

from typing import Any

import numpy as np
import pytest
import torch

from torch_trn_emu.calls import Call, Target
from torch_trn_emu.counters import fold
from torch_trn_emu.engines import transfer
from torch_trn_emu.kernels import entries
from torch_trn_emu.kernels.entries import Indexed, Term, gather_entries
from torch_trn_emu.ops import OPS, indexing
from torch_trn_emu.timing import price

from .calls import CHIP, GENERATOR, call_of, lowered, random, run

aten = torch.ops.aten


def _index(size: int, *shape: int, negative: bool = False) -> torch.Tensor:
    low = -size if negative else 0
    return torch.randint(low, size, shape, generator=GENERATOR)


X = random(6, 5, 7)
MANY = random(150, 40)
LONG = random(6, 32, 512)
GATHERS = [
    (aten.embedding.default, MANY, _index(150, 3, 70)),
    (aten.index_select.default, X, 0, _index(6, 300)),
    (aten.index_select.default, X, 1, _index(5, 3)),
    (aten.index_select.default, X, 1, _index(5, 400)),
    (aten.index_select.default, MANY, 1, _index(40, 30)),
    (aten.gather.default, MANY, 1, _index(40, 150, 3)),
    (aten.gather.default, MANY, 1, _index(40, 150, 60)),
    (aten.gather.default, X, 1, _index(5, 6, 9, 7)),
    (aten.gather.default, X, 1, _index(5, 6, 9, 1).expand(6, 9, 7)),
    (aten.gather.default, X, 0, _index(6, 130, 1, 1).expand(130, 5, 7)),
    (aten.index.Tensor, X, [_index(6, 4, 5, negative=True)]),
    (aten.index.Tensor, X, [_index(6, 150, negative=True), _index(5, 150, negative=True)]),
    (aten.index.Tensor, X, [None, _index(5, 3), _index(7, 3)]),
    (aten.index.Tensor, X, [None, torch.tensor([-2])]),  # one index for all
    (aten._unsafe_index.Tensor, random(300, 5, 3), [None, torch.tensor([[4]]), None]),
    (aten.index.Tensor, LONG, [_index(6, 3, negative=True)]),  # in pieces
    (aten.embedding.default, LONG.flatten(1), _index(6, 1)),
    (aten.take.default, X, _index(210, 9, 20, negative=True)),
]


def _feeds(table: torch.Tensor, *rest: Any) -> dict[str, torch.Tensor]:
    given = next((r for r in rest if isinstance(r, list)), None)
    tensors = given or [r for r in rest if isinstance(r, torch.Tensor) and "int" in str(r.dtype)]
    kept = [t for t in tensors if t is not None]
    names = ["index"] + [f"index {k}" for k in range(1, len(kept))]
    dense = [t[..., :1] if t.dim() > 1 and t.stride(-1) == 0 else t for t in kept]
    return {"table": table, **dict(zip(names, (_without_repeats(t) for t in dense), strict=True))}


def _without_repeats(t: torch.Tensor) -> torch.Tensor:
    """An expanded index as it lies in memory."""
    for dim, step in enumerate(t.stride()):
        t = t.narrow(dim, 0, 1) if step == 0 and t.shape[dim] > 1 else t
    return t.contiguous()


@pytest.mark.parametrize("case", GATHERS, ids=lambda case: f"{case[0]} {case[2]}"[:40])
def test_gathers(case: tuple[Any, ...]) -> None:
    op, table, *rest = case
    expected = op(table, *rest)
    got = run(lowered(call_of(op, table, *rest)), _feeds(table, *rest))["out"]
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


ONES = _index(5, 6, 1, 1).expand(6, 1, 7)
SCATTERS = [
    (aten.index_add.default, X, 0, _index(6, 140), random(140, 5, 7)),
    (aten.index_add.default, X, 1, _index(5, 9), random(6, 9, 7)),
    (aten.index_copy.default, X, 1, torch.tensor([3, 1]), random(6, 2, 7)),
    (aten.index_fill.int_Scalar, X, 2, torch.tensor([3, 1, 6]), 2.5),
    (aten.scatter.src, X, 2, torch.tensor([4, 0]).expand(6, 5, 2).contiguous(), random(6, 5, 2)),
    (aten.scatter.value, MANY, 1, _index(40, 150, 1), 1.5),
    (aten.scatter_add.default, X, 1, _index(5, 6, 3, 7), random(6, 3, 7)),
    (aten.scatter_add.default, X, 1, ONES, random(6, 1, 7)),
    (aten.scatter_reduce.two, MANY, 1, _index(40, 150, 3), random(150, 3), "sum"),
    (aten.index_put.default, X, [torch.tensor([-1, 2])], random(2, 5, 7)),
    (aten.index_put.default, X, [_index(6, 50), _index(5, 50)], random(50, 7), True),
    (aten.index_put.default, X, [_index(6, 4), None, None], random(1)),
    (aten.index_put.default, X, [None, torch.tensor([-2])], random(6, 1, 7), True),
    (aten.index_put.default, MANY, [None, torch.tensor([9])], random(150, 1)),
    (aten.put.default, X, _index(210, 40), random(40), True),
]


@pytest.mark.parametrize("case", SCATTERS, ids=lambda case: str(case[0]))
def test_scatters(case: tuple[Any, ...]) -> None:
    op, table, *rest = case
    expected = op(table, *rest)
    feeds = _feeds(table, *(r for r in rest if not isinstance(r, float)))
    source = next((r for r in reversed(rest) if isinstance(r, torch.Tensor)), table)
    feeds |= {"in": source, "in0": table}
    call = call_of(op, table, *rest)
    whole = lowered(call)
    links = [{}, {"out": "out"}]
    got = run(whole, feeds, links)["out"]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
    # In place only the scatter is left.
    name, _, overload = call.op.partition(".")
    in_place = Call(f"{name}_.{overload}", call.arguments, call.results)
    assert len(lowered(in_place)) == len(whole) - 1 == 1


def test_gradient_of_an_embedding() -> None:
    g, index = random(3, 70, 9), _index(50, 3, 70)
    op = aten.embedding_dense_backward.default
    expected = op(g, index, 50, -1, False)
    got = run(lowered(call_of(op, g, index, 50, -1, False)), {"in": g, "index": index})["out"]
    np.testing.assert_allclose(got.reshape(50, 9), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bytes_", [64, 16 * 1024])
def test_long_entries_are_cut(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "TILE_BYTES", bytes_)
    table, index = random(9, 100), _index(9, 200)
    how = Indexed(entries=9, entry=100, count=200, terms=(Term(size=9),))
    program = gather_entries(how, dtype="float32")
    got = run((program,), {"table": table, "index": index})["out"]
    np.testing.assert_array_equal(got.reshape(200, 100), table[index])


def test_only_what_is_picked_is_read() -> None:
    how = Indexed(entries=1000, entry=64, count=256, terms=(Term(size=1000),))
    totals = fold(price(gather_entries(how, dtype="float32"), CHIP))
    picked = 256 * 64 * 4
    assert totals["hbm_read_bytes"] == picked + 256 * 4  # and the indices
    assert totals["hbm_write_bytes"] == picked


def test_a_descriptor_for_each_entry() -> None:
    """Two indices a partition: 256 runs of 256 bytes, dealt to 16 engines of 33 bytes a ns."""
    how = Indexed(entries=1000, entry=64, count=256, terms=(Term(size=1000),))
    program = gather_entries(how, dtype="float32")
    (move,) = (i for i in program.instructions() if i.opcode == "dma_gather")
    each = max(256 / 33e9, 12e-9)
    assert transfer(move, CHIP).engine_s == pytest.approx(16 * each + 160e-9)


def test_rows_are_brought_whole_where_much_of_them_is_picked() -> None:
    assert not entries.picks_in_sbuf(50_000, 1, "float32", CHIP)
    assert entries.picks_in_sbuf(64, 64, "float32", CHIP)
    wide = random(150, 900)
    few = call_of(aten.gather.default, wide, 1, _index(900, 150, 1))
    most = call_of(aten.gather.default, wide, 1, _index(900, 150, 400))
    opcodes = [{i.opcode for p in lowered(c) for i in p.instructions()} for c in (few, most)]
    assert "dma_gather" in opcodes[0]
    assert "nc_n_gather" in opcodes[1]


@pytest.mark.parametrize("cores", [1, 2])
def test_what_a_row_does_not_cover_says_so(cores: int) -> None:
    part = call_of(aten.gather.default, X, 1, _index(5, 3, 2, 7))
    with pytest.raises(KeyError, match="part of the table"):
        OPS["gather"].lower(part, Target(CHIP, cores))
    apart = call_of(aten.index.Tensor, X, [_index(6, 3), None, _index(7, 3)])
    with pytest.raises(KeyError, match="apart"):
        OPS["index"].lower(apart, Target(CHIP, cores))
    assert indexing.at_flat(call_of(aten.take.default, X, _index(9, 2))).entries == 210


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("least", [0, 50])
def test_bincount(weighted: bool, least: int) -> None:
    index = torch.randint(0, 20, (700,), generator=GENERATOR)
    weights = random(700) if weighted else None
    expected = aten.bincount.default(index, weights, least)
    feeds = {"index": index} | ({"in": weights} if weights is not None else {})
    got = run(lowered(call_of(aten.bincount.default, index, weights, least)), feeds)["out"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
