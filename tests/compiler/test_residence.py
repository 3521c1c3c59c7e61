"""Tensors that stay in SBUF between the programs of a graph: which ones, and what that saves."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.graph_price import Work, price_graph, windows_of
from torch_trn_emu.compiler.programs import Lowered
from torch_trn_emu.compiler.residence import MOST_BYTES
from torch_trn_emu.compiler.subgraphs import pieces_of
from torch_trn_emu.compiler.windows import windows
from torch_trn_emu.isa import Instruction, Memory, Program, Residence

from .test_windows import CASES, TARGETS, mlp, piece_of

TRN1, TRN3 = TARGETS[0], TARGETS[-1]


def work_of(function, *shapes: Sequence[int], target: Target = TRN1) -> Work:
    gm = make_fx(function, tracing_mode="fake")(*[torch.empty(s) for s in shapes])
    [piece] = pieces_of("graph", gm, "bf16", target)
    return piece.work


def parts_of(work: Work, target: Target) -> Iterator[Lowered]:
    for window in windows_of(work, target):
        yield from window.parts


def moves_of(parts: Sequence[Lowered], tensor: str) -> list[Residence]:
    """Of each DMA of a tensor, in order."""
    return [
        access.residence
        for part in parts
        for i in (part.program.instructions() if part.program else ())
        for access in (*i.reads, *i.writes)
        if access.buffer.memory is Memory.HBM and part.tensors.get(access.buffer.name) == tensor
    ]


def residences(program: Program) -> set[Residence]:
    return {a.residence for i in program.instructions() for a in (*i.reads, *i.writes)}


# What a graph computes does not depend on where its tensors are: these counters stay.
SAME = ("model_flops", "hardware_flops", "psum_write_bytes")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.chip.name}-{t.cores}")
@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_no_slower_and_moves_less(name: str, target: Target, monkeypatch) -> None:
    work = piece_of(name, target).work
    found = price_graph("graph", work, target).price
    monkeypatch.setattr(
        "torch_trn_emu.compiler.graph_price.staying", lambda parts, *_: tuple(parts)
    )
    without = price_graph("graph", work, target).price
    assert found.seconds <= without.seconds
    for counter in ("hbm_read_bytes", "hbm_write_bytes", "dma_active_time"):
        assert found.totals[counter] <= without.totals[counter], counter
    for counter in SAME:
        assert found.totals[counter] == without.totals[counter], counter


def test_a_norm_and_its_product_pass_rows_on_without_memory() -> None:
    def function(x, g, w):
        return torch.relu(torch.nn.functional.layer_norm(x, (256,), g)) @ w

    work = work_of(function, (128, 256), (256,), (256, 64))
    parts = list(parts_of(work, TRN1))
    assert set(moves_of(parts, "relu")) == {Residence.IN_PLACE}
    inputs = [t for t in ("x_1", "g_1", "w_1") if moves_of(parts, t)]
    assert len(inputs) == 3
    assert all(set(moves_of(parts, t)) == {Residence.HBM} for t in inputs)


def test_a_reader_that_lays_rows_out_anew_moves_them_on_chip() -> None:
    def function(x, w, v):
        return (x @ w).view(64, 512).relu() @ v

    work = work_of(function, (128, 128), (128, 256), (512, 32))
    parts = list(parts_of(work, TRN1))
    found = moves_of(parts, "mm") + moves_of(parts, "relu")
    assert found[0] is Residence.IN_PLACE
    assert Residence.HBM not in found
    moved = [i for p in parts for i in p.program.instructions()
             if any(a.residence is Residence.MOVED for a in i.reads)]  # fmt: skip
    assert moved
    assert all(a.memory is Memory.SBUF for i in moved for a in (*i.reads, *i.writes))


def test_results_large_tensors_and_those_written_in_place_go_to_memory() -> None:
    def function(x, w, v):
        y = x @ w
        return y, y @ v

    parts = list(parts_of(work_of(function, (64, 64), (64, 64), (64, 64)), TRN1))
    assert set(moves_of(parts, "mm")) == {Residence.HBM}

    rows = 128 * (MOST_BYTES // (512 * 4) + 1)
    large = list(parts_of(work_of(lambda x, w, v: (x @ w) @ v,
                                  (rows, 128), (128, 512), (512, 64)), TRN1))  # fmt: skip
    small = list(parts_of(work_of(lambda x, w, v: (x @ w) @ v,
                                  (rows - 128, 128), (128, 512), (512, 64)), TRN1))  # fmt: skip
    assert set(moves_of(large, "mm")) == {Residence.HBM}
    assert set(moves_of(small, "mm")) == {Residence.IN_PLACE}

    work = piece_of("decode", TRN1).work
    ordered = frozenset().union(*(p.ordered for p in work.parts))
    assert ordered
    for tensor in ordered:
        assert set(moves_of(list(parts_of(work, TRN1)), tensor)) <= {Residence.HBM}


def test_what_stays_finds_room_beside_every_program() -> None:
    chip = get_chip("trn1")
    weights = [s for _ in range(3) for s in ((512, 2048), (2048, 512), (512,))]

    def layers(x, *given):
        for k in range(0, len(given), 3):
            x = mlp(x, *given[k : k + 3])
        return x

    work = work_of(layers, (256, 512), *weights)
    [window] = windows_of(work, TRN1)
    held: dict[str, tuple[int, int, int]] = {}
    for k, part in enumerate(window.parts):
        for i in part.program.instructions():
            for a in (*i.writes, *i.reads):
                if a.residence is not Residence.HBM:
                    tensor = part.tensors[a.buffer.name]
                    first, _, size = held.get(tensor, (k, k, 0))
                    held[tensor] = first, k, size or -(-a.buffer.elements * 4 // 128)
    assert held
    for k, part in enumerate(window.parts):
        own = sum(b.bytes_per_partition for b in part.program.buffers if b.memory is Memory.SBUF)
        beside = sum(size for first, last, size in held.values() if first <= k <= last)
        assert own + beside <= chip.sbuf.usable_bytes_per_partition


def test_a_price_alone_cuts_what_stays() -> None:
    """What the host reads between two windows goes through memory."""
    work = piece_of("mlp", TRN3).work
    assert all(w.priced or w.parts for w in windows(work.parts))
    [window] = windows_of(work, TRN3)
    assert any(Residence.IN_PLACE in residences(p.program) for p in window.parts)
    halves = Work(work.regions, work.parts[:1], work.calls)
    [half] = windows_of(halves, TRN3)
    assert residences(half.parts[0].program) == {Residence.HBM}


def test_what_is_left_out_costs_nothing() -> None:
    [window] = windows_of(piece_of("one row", TRN3).work, TRN3)
    left = [i for p in window.parts for i in p.program.instructions() if i.left_out]
    assert left
    assert all(isinstance(i, Instruction) and i.opcode.startswith("dma_") for i in left)
    shown = [s for lane in price_graph("graph", piece_of("one row", TRN3).work, TRN3).lanes(
        TRN3.chip, 64) for spans in lane.values() for s in spans]  # fmt: skip
    assert shown
    assert not any(s.instruction.left_out for s in shown)
