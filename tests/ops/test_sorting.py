"""The largest in order, and sorting networks: torch's values, and where they were."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.isa import Engine, validate
from torch_trn_emu.kernels import rank_by_halves as rank_by_halves_module
from torch_trn_emu.kernels import sort_network
from torch_trn_emu.kernels.largest_of_groups import largest_of_groups
from torch_trn_emu.kernels.rank_by_halves import rank_by_halves
from torch_trn_emu.kernels.sort_network import sort_rows
from torch_trn_emu.ops import OPS, sorting
from torch_trn_emu.ops.sorting import select_largest
from torch_trn_emu.pricing import price_call
from torch_trn_emu.timing import price

from .calls import CHIP, GENERATOR, TARGET, Arrays, call_of, lowered, random, run
from .on_cores import computed

aten = torch.ops.aten


def _holds(got: Arrays, x: torch.Tensor, values: torch.Tensor) -> None:
    """The values, and different places that have them."""
    np.testing.assert_array_equal(got["values"].reshape(values.shape), values)
    index = got["index"].reshape(values.shape).astype(int)
    np.testing.assert_array_equal(np.take_along_axis(x.numpy(), index, -1), values)
    assert all(len(set(row)) == len(row) for row in index)


@pytest.mark.parametrize("wide", [8192, 20])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("columns", "k"), [(50, 3), (50, 9), (5, 5), (50, 50)])
def test_topk(
    columns: int, k: int, largest: bool, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "WIDE", wide)
    x = random(140, columns).round(decimals=1)  # some are equal
    program = select_largest(
        140, columns, k, sign=1.0 if largest else -1.0, chip=CHIP, dtype="float32"
    )
    _holds(run((program,), {"in": x}), x, x.topk(k, largest=largest).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("rows", "columns", "k"), [(3, 300, 5), (32, 128, 2), (1, 130, 12)])
def test_few_rows_are_cut_over_the_partitions(
    rows: int, columns: int, k: int, largest: bool, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sorting, "LEAST", 16)
    x = (100 * random(rows, columns)).to(dtype)
    call = call_of(aten.topk.default, x, k, -1, largest)
    programs = lowered(call)
    _holds(run(programs, {"in": x}), x, x.topk(k, largest=largest).values)
    busy = [a.partitions for i in programs[0].instructions() if i.opcode == "max8" for a in i.reads]
    assert max(busy) >= 2 * rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "k"),
    [(129, 3, 2), (400, 8, 1), (613, 8, 2), (2049, 4, 4), (700, 60, 8), (390, 40, 9)],
)
def test_partitions_have_several_short_rows(
    rows: int, columns: int, k: int, largest: bool, dtype: torch.dtype
) -> None:
    """Also where the last of them has fewer; of up to eight, equal ones are found in order."""
    x = (10 * random(rows, columns)).round().to(dtype)
    (program,) = lowered(call_of(aten.topk.default, x, k, -1, largest))
    transfers = [i for i in program.instructions() if i.opcode == "dma_copy"]
    assert len(transfers) <= 3 * 2 * (rows * columns // (128 * 2048) + 1)
    host = x.float()
    got = run((program,), {"in": host})
    _holds(got, host, host.topk(k, largest=largest).values)
    if k <= 8:
        order = host.sort(stable=True, dim=-1, descending=largest).indices[:, :k]
        np.testing.assert_array_equal(got["index"].reshape(order.shape), order)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("shape", [(140, 37), (3, 64), (1, 1), (2, 2)], ids=str)
def test_network_in_one_tile(shape: tuple[int, int], descending: bool) -> None:
    x = random(*shape).round(decimals=1)
    program = sort_rows(*shape, shape[1], descending=descending, chip=CHIP, dtype="float32")
    _holds(run((program,), {"in": x}), x, x.sort(1, descending=descending).values)


INF, NAN = float("inf"), float("nan")


def _odd(rows: int, columns: int, *values: float) -> torch.Tensor:
    """Rows in which a third of the elements are among `values`, and one row of nothing else."""
    x = random(rows, columns)
    chosen = torch.tensor(values)[torch.randint(len(values), x.shape, generator=GENERATOR)]
    x = torch.where(torch.rand(x.shape, generator=GENERATOR) < 0.3, chosen, x)
    x[0] = values[0]
    return x


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("shape", [(140, 37), (3, 64), (2, 1)], ids=str)
@pytest.mark.parametrize("chunk", [4096, 8])
def test_sorts_have_torchs_order_of_nan(
    shape: tuple[int, int], chunk: int, descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CHUNK", chunk), ("LEAST", chunk), ("PIECE", 4)):
        monkeypatch.setattr(sort_network, name, value)
    x = _odd(*shape, INF, -INF, NAN)
    program = sort_rows(*shape, shape[1], descending=descending, chip=CHIP, dtype="float32")
    _holds(run((program,), {"in": x}), x, x.sort(1, descending=descending).values)


@pytest.mark.parametrize("wide", [8192, 20])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("rows", "columns", "k"), [(140, 50, 9), (40, 5, 5), (3, 300, 12)])
def test_the_largest_with_infinities(
    rows: int, columns: int, k: int, largest: bool, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinities are found where they are, also after all others."""
    monkeypatch.setattr(sorting, "WIDE", wide)
    monkeypatch.setattr(sorting, "LEAST", 16)
    x = _odd(rows, columns, -INF if largest else INF, INF, -INF)
    program = select_largest(
        rows, columns, k, sign=1.0 if largest else -1.0, chip=CHIP, dtype="float32"
    )
    _holds(run((program,), {"in": x}), x, x.topk(k, largest=largest).values)


@pytest.mark.parametrize(("chunk", "piece"), [(8, 8), (16, 4)])
@pytest.mark.parametrize(("shape", "count"), [((1, 300), 300), ((5, 130), 40), ((140, 33), 33)])
def test_network_over_chunks(
    shape: tuple[int, int], count: int, chunk: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CHUNK", chunk), ("LEAST", chunk), ("PIECE", piece)):
        monkeypatch.setattr(sort_network, name, value)
    x = random(*shape)
    program = sort_rows(*shape, count, descending=True, chip=CHIP, dtype="float32")
    _holds(run((program,), {"in": x}), x, x.topk(count).values)


@pytest.mark.parametrize(
    ("op", "rest"),
    [(aten.topk.default, (3,)), (aten.sort.default, ()), (aten.sort.stable, (None, -1, True))],
    ids=str,
)
def test_calls(op: Any, rest: tuple[Any, ...]) -> None:
    x = torch.randint(-50, 50, (6, 21), generator=GENERATOR)
    call = call_of(op, x, stable=None, dim=-1, descending=True) if len(rest) > 1 else None
    call = call or call_of(op, x, *rest)
    values = op(x, stable=None, dim=-1, descending=True)[0] if len(rest) > 1 else op(x, *rest)[0]
    _holds(run(lowered(call), {"in": x}), x, values)


def test_a_dimension_that_is_not_the_last_is_turned() -> None:
    call = call_of(aten.sort.default, random(64, 48), 0)
    turned, ordered, *back = lowered(call)
    assert turned.name.startswith("transpose")
    assert ordered.name == "top 64 of 48x64"
    assert len(back) == 2  # values and places


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize("shape", [(1, 10**6), (300, 50_257), (4096, 4096)], ids=str)
def test_long_rows_fit(shape: tuple[int, int], chip: str) -> None:
    spec = get_chip(chip)
    validate(sort_rows(*shape, 3000, descending=False, chip=spec, dtype="float32"), spec)
    validate(select_largest(*shape, 16, sign=1.0, chip=spec, dtype="float32"), spec)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chip", ["trn1", "trn2"])
@pytest.mark.parametrize(
    "shape", [(3, 300_000, 500), (64, 50_257, 4096), (65, 8192, 1200)], ids=str
)
def test_what_does_not_fit_is_not_chosen(
    shape: tuple[int, int, int], chip: str, dtype: str
) -> None:
    spec = get_chip(chip)
    validate(sorting.ordered(*shape, True, dtype, Target(spec, 1)), spec)


def test_two_passes_over_a_row_for_eight() -> None:
    """Two rounds of max8 and nc_match_replace8 over 4,000 columns, the sign and a copy of places;
    what is compared is made on the Scalar engine.
    """
    (program,) = lowered(call_of(aten.topk.default, random(128, 4000), 10))
    busy = price(program, CHIP).engine_busy_s(Engine.VECTOR)
    assert busy * 1.2e9 == pytest.approx(2 * 2 * 4000 + 2 * 64)


def test_few_are_taken_by_eights_and_many_by_a_network() -> None:
    target = Target(CHIP, 1)
    few = call_of(aten.topk.default, random(4, 5000), 8)
    many = call_of(aten.sort.default, random(4, 5000))
    opcodes = [
        {i.opcode for p in OPS[c.name].lower(c, target) for i in p.instructions()}
        for c in (few, many)
    ]
    assert "max8" in opcodes[0]
    assert "max8" not in opcodes[1]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    cut=st.booleans(),
    data=st.data(),
)
def test_one_of_each_row_by_rank(shape: list[int], cut: bool, data: st.DataObject) -> None:
    """Kthvalue and median; of equal elements any place."""
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            for name, value in (("CHUNK", 8), ("LEAST", 8), ("PIECE", 4)):
                patch.setattr(sort_network, name, value)
        dim, k = -1, data.draw(st.integers(1, shape[-1]))
        x = random(*shape).round(decimals=1)
        for op, rest in (
            (aten.kthvalue.default, (k, dim)), (aten.median.dim, (dim,)),
            (aten.median.default, ()),
        ):  # fmt: skip
            _, pairs = computed(op._schema.name.removeprefix("aten::"), op, x, *rest, most=1)
            (got, values), *places = pairs
            np.testing.assert_array_equal(got, values)
            for index, _ in places:
                found = x.gather(dim, index.unsqueeze(dim)).squeeze(dim)
                np.testing.assert_array_equal(found, values)


def _special(x: torch.Tensor) -> torch.Tensor:
    x[:, ::7], x[:, 1::5], x[:, 3::11] = torch.inf, -torch.inf, torch.nan
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1000), (2, 300), (130, 20)])
def test_ranks_by_halves(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Exact for equal, infinite and very different numbers and NaN; rows are not put in order."""
    for values in (
        random(rows, columns).round(decimals=1),
        _special(random(rows, columns)),
        random(rows, columns) * 10.0 ** (9 * random(rows, columns)).clamp(-30, 30),
    ):
        x = values.to(dtype)
        for rank in {1, columns // 3, columns // 2, columns}:
            name = str(dtype).removeprefix("torch.")
            program = rank_by_halves(rows, columns, rank, dtype=name)
            got = run((program,), {"in": x.float()})
            expected = x.float().sort(-1).values[:, rank - 1 : rank]
            np.testing.assert_array_equal(got["values"], expected)
            index = torch.from_numpy(got["index"].astype(np.int64))
            np.testing.assert_array_equal(x.float().gather(-1, index), expected)


def test_ranks_of_many_rows_that_no_partition_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_by_halves_module, "MOST", 16)
    x = random(100, 50)
    got = run((rank_by_halves(100, 50, 20, dtype="float32"),), {"in": x})
    np.testing.assert_array_equal(got["values"], x.sort(-1).values[:, 19:20])
    index = torch.from_numpy(got["index"].astype(np.int64))
    np.testing.assert_array_equal(x.gather(-1, index), got["values"])


@pytest.mark.parametrize("shape", [(1, 65_536), (16, 8192), (128, 8192), (256, 16_385)])
def test_ranks_of_long_rows_take_a_share_of_a_sort(shape: tuple[int, int]) -> None:
    x = torch.empty(shape, device="meta")
    call = call_of(aten.median.dim, x, -1)
    whole = call_of(aten.sort.default, x)
    assert price_call(call, TARGET).seconds < price_call(whole, TARGET).seconds / 4


ODD = (math.nan, math.inf, -math.inf, 0.0, 1.5)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(9, 5), (3, 40), (70, 12), (2, 300)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    dim=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
    share=st.sampled_from([0.1, 0.6, 1.0]),
)
def test_nan_comes_after_infinity(
    shape: tuple[int, int], dtype: torch.dtype, dim: int, seed: int, share: float
) -> None:
    """Sort and kthvalue; the median of a row with NaN is NaN, and nanmedian leaves it out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor(ODD).to(dtype)[torch.randint(5, shape, generator=generator)]
    x = torch.where(torch.rand(shape, generator=generator) < share, special, x)
    for op, rest in (
        (aten.sort.default, (dim, False)), (aten.sort.default, (dim, True)),
        (aten.kthvalue.default, (1 + seed % shape[dim], dim)), (aten.median.dim, (dim,)),
        (aten.nanmedian.dim, (dim,)),
    ):  # fmt: skip
        name = op._schema.name.removeprefix("aten::")
        (got, values), (index, _) = computed(name, op, x, *rest)[1]
        np.testing.assert_array_equal(got.float(), values.float())
        index, values = (t if t.dim() == 2 else t.unsqueeze(dim) for t in (index, values))
        if name != "median":  # whose index of a NaN is that of the middle element
            np.testing.assert_array_equal(x.gather(dim, index.long()).float(), values.float())


def test_a_permutation_is_the_order_of_random_numbers() -> None:
    call = call_of(aten.randperm.default, 3000)
    got = run(lowered(call), {}, [{}, {"in": "out"}])
    keys, index = got["out"], got["index"].reshape(-1).astype(int)
    np.testing.assert_array_equal(np.sort(index), np.arange(3000))
    assert (np.diff(keys[index]) >= 0).all()
    # As many ascents as descents: each of 2,999 with a chance of a half, in six deviations.
    assert abs((np.diff(index) > 0).sum() - 1499.5) < 6 * (3000 / 12) ** 0.5


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "k"), [(1, 2048, 20), (1, 1000, 40), (3, 70, 9), (140, 130, 33), (9, 7, 7)]
)
def test_the_largest_by_groups_of_gpsimd(rows: int, columns: int, k: int, largest: bool) -> None:
    x = _odd(rows, columns, -INF if largest else INF, INF, -INF, NAN).bfloat16().float()
    program = largest_of_groups(
        rows, columns, k, sign=1.0 if largest else -1.0, chip=CHIP, dtype="bfloat16"
    )
    validate(program, CHIP)
    _holds(run((program,), {"in": x}), x, x.topk(k, largest=largest).values)


def test_many_of_bfloat16_are_found_by_topk() -> None:
    (program,) = lowered(call_of(aten.topk.default, random(1, 100_000).bfloat16(), 256))
    assert [i.opcode for i in program.instructions()].count("topk") == 2
    assert not validate(program, CHIP)


@pytest.mark.parametrize("columns", [1_048_577, 3_000_000])
def test_rows_of_millions_are_sorted_too(columns: int) -> None:
    """They took the time of a copy: pieces of them are more than there are partitions."""
    kept = sorting.ordered(1, columns, columns, False, "float32", Target(CHIP, 1))
    shorter = sorting.ordered(1, 1_048_576, 1_048_576, False, "float32", Target(CHIP, 1))
    assert price(kept, CHIP).total_s > price(shorter, CHIP).total_s
