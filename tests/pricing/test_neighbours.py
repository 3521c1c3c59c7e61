"""No cliffs: an operator takes about as long as one whose dimension is longer by one."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

import torch_trn_emu

from .families import FAMILIES, empty

# Around the sizes to which programs are cut.
EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MOST, LATENCY_US = 1.2, 4.0  # a factor, and what one more step of a pipeline takes (chosen)
TILE = "one row more is one tile of 128 partitions more, on each core"
CHUNK = "one column more is one more pass over the rows"
LINES = "a number of rows that lines divide has none left over"
PASSES = "the network has a pass more for each doubling, over scratch memory beyond a tile"
KEYS = "another block of 512 keys"
CHANNELS = "128 channels are a tile of partitions"
# Where a step is meant: (family, the longer size), and why.
STEPS = {
    ("sum of long rows", 129): TILE,
    ("sum of long rows", 257): TILE,
    ("sum of long rows", 513): TILE,
    ("sum of the middle", 257): LINES,
    ("sum of the middle", 1025): LINES,
    ("sum of the middle", 2049): LINES,
    ("sort", 1025): PASSES,
    ("sort", 2049): PASSES,
    ("sort", 4097): PASSES,
    ("sort", 8193): PASSES,
    ("convolution 7x7", 129): CHANNELS,
    ("convolution 7x7", 257): CHANNELS,
    ("attention of one query", 257): "beyond 256 keys the faster of two programs",
    ("attention of one query", 513): KEYS,
    ("attention of one query", 1025): KEYS,
    ("permute", 2): "matrices of one column are contiguous: nothing is copied",
    ("var of columns", 257): CHUNK,
    ("var of columns", 1025): CHUNK,
    ("var of columns", 2049): CHUNK,
    ("cumsum of columns", 1025): CHUNK,
    ("cumsum of columns", 2): "a single column is a row",
    ("transpose", 2): "a single column is contiguous: nothing is copied",
    ("mm of rows", 257): TILE,
    ("linear", 257): TILE,
    ("mm over", 129): TILE,
    ("gather", 4097): "entries of a row beyond 4,096 are a pass of their own",
}


def cliffs(family: str) -> Iterator[tuple[int, float, float]]:
    """(the longer size, us of the shorter one, us of it)"""
    for edge in EDGES:
        around = [n for n in (edge - 1, edge, edge + 1) if n > 0]
        times = [torch_trn_emu.estimate(f, *a).device_us for f, a in map(FAMILIES[family], around)]
        for n, before, after in zip(around[1:], times[:-1], times[1:], strict=True):
            small, large = sorted((before, after))
            if large > MOST * small + LATENCY_US:
                yield n, before, after


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_take_about_as_long(family: str) -> None:
    found = [f for f in cliffs(family) if (family, f[0]) not in STEPS]
    assert not found


COLUMNS = (8, 16, 32, 48, 63, 64, 65, 66, 96, 128)
ALONG_COLUMNS = {
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "gradient of softmax": lambda x: torch.ops.aten._softmax_backward_data(x, x, 0, x.dtype),
    "cumsum": lambda x: x.cumsum(0),
    "argmax": lambda x: x.argmax(0),
}


@pytest.mark.parametrize("name", ALONG_COLUMNS)
def test_more_columns_take_no_less(name: str) -> None:
    """Also where another program is the better one from some number of columns on."""
    call = ALONG_COLUMNS[name]
    times = [torch_trn_emu.estimate(call, empty(8192, n)).device_us for n in COLUMNS]
    for n, (before, after) in zip(COLUMNS[1:], pairwise(times), strict=True):
        assert 0.95 * before < after, (n, before, after)


ROWS = (1, 2, 3, 8, 9, 31, 32, 64, 100, 128)
OVER_ROWS = {
    "sum": lambda x: x.sum(0),
    "amax": lambda x: x.amax(0),
    "any": lambda x: x.any(0),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=0),
    "var": lambda x: x.var(0),
    "cummax": lambda x: x.cummax(0),
    "argmax": lambda x: x.argmax(0),
}


@pytest.mark.parametrize("columns", [300, 1000, 16_383, 65_536])
@pytest.mark.parametrize("name", OVER_ROWS)
def test_a_few_rows_more_are_no_cliff(name: str, columns: int) -> None:
    """Rows of any number of columns; the tensor as a whole grows as the rows do."""
    call = OVER_ROWS[name]
    times = [torch_trn_emu.estimate(call, empty(n, columns)).device_us for n in ROWS]
    for (fewer, more), (before, after) in zip(pairwise(ROWS), pairwise(times), strict=True):
        assert after < 1.2 * before * more / fewer, (fewer, more, before, after)
        assert before < 1.2 * after, (fewer, more, before, after)


@pytest.mark.parametrize(("rows", "columns"), [(9, 65_536), (64, 16_384), (128, 4096), (2048, 384)])
def test_sums_over_few_rows_compile_to_no_more(rows: int, columns: int) -> None:
    call = lambda x: (x.relu() + 1).sum(0)  # noqa: E731
    eager, compiled = (
        torch_trn_emu.estimate(call, empty(rows, columns), mode=m) for m in ("eager", "compile")
    )
    assert compiled.device_us < 1.02 * eager.device_us


SHORT_ROWS = {
    "sum": lambda x: x.sum(1),
    "softmax": lambda x: x.softmax(1),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[1:]),
    "var": lambda x: x.var(1),
    "gradient of softmax": lambda x: torch.ops.aten._softmax_backward_data(x, x, 1, x.dtype),
    "gradient of layer_norm": lambda x: torch.ops.aten.native_layer_norm_backward(
        x, x, [x.shape[1]], empty(len(x), 1), empty(len(x), 1), empty(x.shape[1]),
        empty(x.shape[1]), [True] * 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("columns", [17, 40])
@pytest.mark.parametrize("name", SHORT_ROWS)
def test_any_number_of_short_rows_takes_as_long(name: str, columns: int) -> None:
    """Several share a partition, whether or not their number has a divisor that suits."""
    for near in ((8190, 8191, 8192), (16_381, 16_384, 16_385)):
        times = [
            torch_trn_emu.estimate(SHORT_ROWS[name], empty(n, columns), chip="trn1").device_us
            for n in near
        ]
        assert max(times) < MOST * min(times) + LATENCY_US, (near, times)


# Between powers of two; a row more may be another tile of chunks, up to the documented factor.
FEW_ROWS = [
    (rows, n) for rows in (1, 2, 3, 8, 16, 31, 64) for n in (300, 1500, 4773, 10_202, 23_346)
]
SORTS = {
    "sort": lambda x: x.sort(-1),
    "median": lambda x: x.median(-1),
    "kthvalue": lambda x: x.kthvalue(x.shape[-1] // 3, -1),
}


@pytest.mark.parametrize("name", SORTS)
def test_sorts_of_few_rows_have_no_cliffs(name: str) -> None:
    for rows, columns in FEW_ROWS:
        first, longer, more = (
            torch_trn_emu.estimate(SORTS[name], empty(*shape)).device_us
            for shape in ((rows, columns), (rows, columns + 1), (rows + 1, columns))
        )
        assert max(first, longer) < 1.2 * min(first, longer) + LATENCY_US, (rows, columns)
        assert rows < 4 or more < 1.6 * first + LATENCY_US, (rows, columns)


@pytest.mark.parametrize("rows", [100, 65_536, 1_000_000])
def test_sorts_of_rows_of_a_few_elements_have_no_cliffs(rows: int) -> None:
    made = [torch_trn_emu.estimate(SORTS["sort"], empty(rows, n)) for n in range(2, 9)]
    assert all(row.status == "modelled" for one in made for row in one.ops)
    for before, after in pairwise(one.device_us for one in made):
        assert max(before, after) < 1.2 * min(before, after) + LATENCY_US
