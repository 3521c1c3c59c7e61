"""HBM by category: the replay by hand, and a training step against the pool's own peak."""

import torch

import torch_trn_emu
from torch_trn_emu.profiler.hooks import CATEGORIES, PHASES
from torch_trn_emu.profiler.memory import Block, replay

FORWARD, BACKWARD, OTHER = (PHASES.index(p) for p in ("forward", "backward", "other"))
PARAMETERS, GRADIENTS = (CATEGORIES.index(c) for c in ("parameters", "gradients"))


def test_replay_by_hand() -> None:
    events = [
        Block(1, 0, 0, 0, PARAMETERS, 100),  # there before
        Block(2, 10, 0, 0, OTHER, 0),
        Block(3, 20, 1, 0, FORWARD, 0),
        Block(4, 30, 2, 0, BACKWARD, 0),
        Block(4, 0, 3, 0, GRADIENTS, 30),  # known later
        Block(3, -20, 3, 0, 0, 0),
        Block(9, -7, 4, 0, 0, 0),  # there before, and never named
    ]
    use = replay([(150, events)], 1000)
    #            parameters, gradients, optimizer state, activations, other
    assert dict(use.samples) == {
        0: (100, 0, 0, 0, 60),
        1: (100, 0, 0, 20, 60),
        2: (100, 30, 0, 20, 60),
        3: (100, 30, 0, 0, 60),
        4: (100, 30, 0, 0, 53),
    }
    assert use.peak == dict(zip(CATEGORIES, (100, 30, 0, 20, 60), strict=True))
    assert use.peak_bytes == 210
    assert replay([], 1000).peak_bytes == 0


def test_an_address_is_used_again_by_another_category() -> None:
    events = [
        Block(1, 10, 0, 0, FORWARD, 0),
        Block(1, -10, 0, 0, 0, 0),
        Block(1, 10, 1, 0, OTHER, 0),
    ]
    assert dict(replay([(0, events)], 100).samples) == {0: (0, 0, 0, 10, 0), 1: (0, 0, 0, 0, 10)}


def test_a_training_step(run) -> None:
    run.step()
    torch.trn.reset_peak_memory_stats()
    with torch_trn_emu.profile() as prof:
        run.step()
        run.step()
    peak = prof.memory()[0]
    assert sum(peak.values()) == torch.trn.max_memory_allocated()
    parameters = sum(p.nbytes for p in run.model.parameters())
    assert parameters <= peak["parameters"] <= 2 * parameters  # blocks are rounded up
    assert 2 * parameters <= peak["optimizer state"] <= 4 * parameters
    assert 0 < peak["gradients"] <= peak["parameters"]
    assert peak["activations"] >= 64 * 32 * 4


def test_what_an_earlier_region_named_is_known_in_the_next(run) -> None:
    prof = torch_trn_emu.profile()
    with prof:
        run.step()
    with prof:
        run.step()
    second = prof.recording.memory[0].samples[-1][1]
    named = dict(zip(CATEGORIES, second, strict=True))
    assert named["parameters"] > 0
    assert named["optimizer state"] > named["parameters"]


def test_high_water_marks(prof) -> None:
    found, chip = prof.counters(), prof.recording.chip
    for name, spec in (("sbuf", chip.sbuf), ("psum", chip.psum)):
        assert 0 < found[f"{name}_high_water_bytes"] <= spec.partitions * spec.bytes_per_partition
