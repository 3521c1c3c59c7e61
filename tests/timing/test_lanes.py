"""Bounded timelines: the same executions as the scheduler's twin has, however much is merged."""

import pytest

from torch_trn_emu.chip import get_chip
from torch_trn_emu.isa import Engine, Program
from torch_trn_emu.kernels.matmul import matmul
from torch_trn_emu.ops.normalization import row_op
from torch_trn_emu.timing import lanes, price
from torch_trn_emu.timing.price import unrolled

CHIP = get_chip("trn3")
PROGRAMS = [
    matmul(512, 512, 512, chip=CHIP, compute="mxfp8"),
    row_op("softmax", 700, 300, "bfloat16", chip=CHIP),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_unmerged_lanes_are_the_twins_records(program: Program) -> None:
    twin = price(program, CHIP, trace_limit=10**6, scheduler=unrolled)
    expected: dict[str, list[tuple[str, float, float]]] = {}
    for record in twin.records:
        i = record.instruction
        queue = f"dma {i.queue}" if i.engine is Engine.DMA else i.engine.value
        expected.setdefault(queue, []).append((i.opcode, record.start_s, record.end_s))
    found = {
        queue: [(s.instruction.opcode, s.start_s, s.end_s) for s in spans]
        for queue, spans in lanes(program, CHIP, limit=10**6).items()
    }
    assert found == expected


@pytest.mark.parametrize("limit", [1, 2, 7, 64])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_merging_keeps_counts_times_and_order(program: Program, limit: int) -> None:
    whole, merged = lanes(program, CHIP, 10**6), lanes(program, CHIP, limit)
    assert whole.keys() == merged.keys()
    for queue, spans in merged.items():
        single = whole[queue]
        assert len(spans) <= 2 * limit
        assert sum(s.count for s in spans) == len(single)
        assert sum(s.busy_s for s in spans) == pytest.approx(sum(s.busy_s for s in single))
        at = 0
        for span in spans:
            part = single[at : at + span.count]
            at += span.count
            assert span.instruction is not None
            assert span.start_s == min(s.start_s for s in part)
            assert span.end_s == max(s.end_s for s in part)
            assert span.alike == (len({s.instruction.opcode for s in part}) == 1) or not span.alike
