"""Counters of each interval reach a writer."""

import pytest
import torch

import torch_trn_emu


class Writer:
    def __init__(self):
        self.rows = {}

    def add_scalar(self, tag, value, step):
        self.rows[tag, step] = value


@pytest.fixture
def work():
    x = torch.ones(64, 64, device="trn")

    def run(times):
        for _ in range(times):
            x @ x

    run(1)
    return run


def test_each_call_logs_what_came_since_the_one_before(work):
    writer = Writer()
    log = torch_trn_emu.tensorboard_callback(writer)
    for step, times in enumerate((1, 3)):
        work(times)
        log(step)
    assert writer.rows["trn/model_flops", 0] == 2 * 64**3
    assert writer.rows["trn/model_flops", 1] == 3 * 2 * 64**3
    assert writer.rows["trn/launch_count", 1] == 3
    share = writer.rows["trn/mfu_estimated_percent", 0], writer.rows["trn/mfu_estimated_percent", 1]
    assert share[0] == pytest.approx(share[1])  # a ratio, not a sum
    assert writer.rows["trn/memory_allocated", 1] > 0


def test_some_counters_on_some_steps(work):
    writer = Writer()
    log = torch_trn_emu.tensorboard_callback(
        writer, every=2, counters=["model_flops"], prefix="chip/"
    )
    for step in range(4):
        work(1)
        log(step)
    flops = {step: value for (tag, step), value in writer.rows.items() if tag == "chip/model_flops"}
    assert flops == {0: 2 * 64**3, 2: 2 * 2 * 64**3}


def test_counters_may_be_reset_in_between(work):
    writer = Writer()
    log = torch_trn_emu.tensorboard_callback(writer)
    work(5)
    log(0)
    torch.trn.reset_counters()
    work(2)
    log(1)
    assert writer.rows["trn/launch_count", 1] == 2


def test_an_unknown_counter_is_refused():
    with pytest.raises(ValueError, match="no counter flops"):
        torch_trn_emu.tensorboard_callback(Writer(), counters=["flops"])
