"""Entries that a graph writes into its inputs: in place, ordered, and the inputs are not copied."""

import pytest
import torch
import torch.distributed.fsdp  # its operators
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.compiler.graph_price import price_graph, windows_of
from torch_trn_emu.compiler.subgraphs import Piece, launches_of, pieces_of

from .test_windows import TARGETS

TRN3 = TARGETS[-1]
LENGTH, WIDTH = 4096, 128
CACHE_BYTES = LENGTH * WIDTH * 4


def piece_of(function, *inputs: torch.Tensor) -> Piece:
    functional = torch.func.functionalize(function, remove="mutations")
    gm = make_fx(functional, tracing_mode="fake")(*inputs)
    [piece] = pieces_of("graph", gm, "bf16", TRN3)
    return piece


def inputs() -> tuple[torch.Tensor, ...]:
    return torch.empty(LENGTH, WIDTH), torch.zeros(1, dtype=torch.int64), torch.empty(1, WIDTH)


def copied(cache, at, x):
    cache.index_copy_(0, at, x)
    return cache @ x.t()


def put(cache, at, x):
    cache[at] = x
    return cache @ x.t()


def twice(cache, at, x):
    cache.index_copy_(0, at, x)
    cache.index_add_(0, at + 1, x)
    return cache @ x.t()


@pytest.mark.parametrize("function", [copied, put, twice])
def test_a_cache_is_written_where_it_is(function) -> None:
    price = price_graph("graph", piece_of(function, *inputs()).work, TRN3).price
    assert price.totals["hbm_write_bytes"] < 0.05 * CACHE_BYTES
    assert price.totals["hbm_read_bytes"] < 1.1 * CACHE_BYTES


@pytest.mark.parametrize("function", [copied, put, twice])
def test_what_reads_a_cache_waits_for_all_that_write_it(function) -> None:
    piece = piece_of(function, *inputs())
    [cache, *_] = [n.name for n in piece.gm.graph.find_nodes(op="placeholder")]
    [window] = windows_of(piece.work, TRN3)
    assert cache in window.ordered
    writers = [p for p in window.parts if cache in p.makes]
    assert len(writers) == (2 if function is twice else 1)
    assert cache in window.parts[-1].tensors.values()


def old_values_too(cache, at, x):
    old = cache.sum(0)
    cache.index_copy_(0, at, x)
    return old, cache @ x.t()


def another(cache, at, x):
    """The result is no input's: the cache stays as it was."""
    return torch.index_copy(cache, 0, at, x) @ x.t()


@pytest.mark.parametrize("function", [old_values_too, another])
def test_a_cache_whose_old_values_are_read_is_copied(function) -> None:
    price = price_graph("graph", piece_of(function, *inputs()).work, TRN3).price
    assert price.totals["hbm_write_bytes"] > 0.9 * CACHE_BYTES


def test_what_returns_nothing_is_priced_by_what_it_writes() -> None:
    """As FSDP copies shards: an operator of its own, whose result is the tensor given."""

    def copy(to: torch.Tensor, x: torch.Tensor) -> None:
        torch.ops.fsdp.copy_(to, x)

    def same(to: torch.Tensor, x: torch.Tensor) -> None:
        to.copy_(x)

    given = torch.empty(1024, 512), torch.empty(1024, 512)
    times = []
    for function in (copy, same):
        gm = make_fx(function, tracing_mode="fake")(*given)
        [launch] = launches_of("graph", gm, "bf16", TRN3)
        times.append(launch.priced.price.seconds)
    assert times[0] == times[1] > TRN3.chip.launch.kernel_overhead_s
