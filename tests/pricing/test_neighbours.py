"""No cliffs: an operator takes about as long as one whose dimension is longer by one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import torch_trn_emu

# Around the sizes to which programs are cut.
EDGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MOST, LATENCY_US = 1.2, 4.0  # a factor, and what one more step of a pipeline takes (chosen)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


Case = tuple[Callable[..., Any], tuple[Any, ...]]
# A family's call at a size.
FAMILIES: dict[str, Callable[[int], Case]] = {
    "sum of columns": lambda n: (lambda x: x.sum(0), (empty(65536, n),)),
    "sum of few columns, by rows": lambda n: (lambda x: x.sum(0), (empty(n, 40),)),
    "sum of rows": lambda n: (lambda x: x.sum(1), (empty(16384, n),)),
    "sum of rows, by rows": lambda n: (lambda x: x.sum(1), (empty(n, 300),)),
    "sum of long rows": lambda n: (lambda x: x.sum(1), (empty(n, 65536),)),
    "sum of all": lambda n: (lambda x: x.sum(), (empty(n, 1001),)),
    "sum of the middle": lambda n: (lambda x: x.sum(1), (empty(64, n, 33),)),
    "max of columns": lambda n: (lambda x: x.amax(0), (empty(16384, n),)),
    "mean of images": lambda n: (lambda x: x.mean((2, 3)), (empty(32, n, 7, 7),)),
    "var of columns": lambda n: (lambda x: x.var(0), (empty(16384, n),)),
    "var of rows": lambda n: (lambda x: x.var(1), (empty(16384, n),)),
    "argmax": lambda n: (lambda x: x.argmax(1), (empty(4096, n),)),
    "softmax": lambda n: (lambda x: x.softmax(-1), (empty(16384, n),)),
    "softmax, by rows": lambda n: (lambda x: x.softmax(-1), (empty(n, 33),)),
    "log_softmax of columns": lambda n: (lambda x: x.log_softmax(0), (empty(4096, n),)),
    "logsumexp": lambda n: (lambda x: x.logsumexp(1), (empty(16384, n),)),
    "layer_norm": lambda n: (lambda x: F.layer_norm(x, (n,)), (empty(16384, n),)),
    "batch_norm": lambda n: (
        lambda x: F.batch_norm(x, None, None, training=True),
        (empty(8, n, 14, 14),),
    ),
    "add": lambda n: (torch.add, (empty(n, 1001), empty(n, 1001))),
    "add a row": lambda n: (torch.add, (empty(16384, n), empty(n))),
    "add a column": lambda n: (torch.add, (empty(16384, n), empty(16384, 1))),
    "add a column, by rows": lambda n: (torch.add, (empty(n, 33), empty(n, 1))),
    "gelu": lambda n: (F.gelu, (empty(n * 1001),)),
    "transpose": lambda n: (lambda x: x.t().contiguous(), (empty(4096, n),)),
    "cat": lambda n: (lambda x, y: torch.cat([x, y], 1), (empty(4096, n), empty(4096, n))),
    "cumsum of columns": lambda n: (lambda x: x.cumsum(0), (empty(4096, n),)),
    "cumsum of rows": lambda n: (lambda x: x.cumsum(1), (empty(4096, n),)),
    "embedding": lambda n: (F.embedding, (indices(4096), empty(4096, n))),
    "gather": lambda n: (lambda x, i: x.gather(1, i), (empty(1024, 64), indices(1024, n))),
    "index_select": lambda n: (lambda x, i: x.index_select(0, i), (empty(4096, 64), indices(n))),
    "topk": lambda n: (lambda x: x.topk(1, -1), (empty(1024, n),)),
    "cross_entropy": lambda n: (F.cross_entropy, (empty(1024, n), indices(1024))),
    "mm of rows": lambda n: (torch.mm, (empty(n, 1024), empty(1024, 1024))),
    "mm of columns": lambda n: (torch.mm, (empty(1024, 1024), empty(1024, n))),
    "mm over": lambda n: (torch.mm, (empty(1024, n), empty(n, 1024))),
    "linear": lambda n: (F.linear, (empty(n, 1024), empty(1024, 1024), empty(1024))),
    "bmm": lambda n: (torch.bmm, (empty(n, 64, 64), empty(n, 64, 64))),
    "conv2d": lambda n: (
        lambda x, w: F.conv2d(x, w, padding=1),
        (empty(2, 64, 14, 14), empty(n, 64, 3, 3)),
    ),
    "max_pool2d": lambda n: (lambda x: F.max_pool2d(x, 2), (empty(2, n, 28, 28),)),
    "dropout": lambda n: (lambda x: F.dropout(x, 0.1, training=True), (empty(n, 1001),)),
}
TILE = "one row more is one tile of 128 partitions more, on each core"
CHUNK = "one column more is one more pass over the rows"
LINES = "256 rows of a core lie as two on each partition, odd ones as a tile more"
# Where a step is meant: (family, the longer size), and why.
STEPS = {
    ("sum of long rows", 129): TILE,
    ("sum of long rows", 257): TILE,
    ("sum of long rows", 513): TILE,
    ("sum of the middle", 256): LINES,
    ("sum of the middle", 257): LINES,
    ("sum of the middle", 512): LINES,
    ("var of columns", 257): CHUNK,
    ("var of columns", 1025): CHUNK,
    ("var of columns", 2049): CHUNK,
    ("cumsum of columns", 1025): CHUNK,
    ("cumsum of columns", 2): "a single column is a row",
    ("log_softmax of columns", 65): "up to 64 columns share a partition",
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
