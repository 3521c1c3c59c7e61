"""Captured graphs: nothing happens until a replay, which is one launch."""

import pytest
import torch

import torch_trn_emu


def test_a_capture_does_nothing_and_a_replay_does_it():
    x = torch.zeros(4, device="trn")
    graph = torch.accelerator.Graph()
    with torch.Stream(device="trn"), graph:
        x += 1
        y = x * 2
    assert x.tolist() == [0, 0, 0, 0]
    for times in (1, 2, 3):
        graph.replay()
        assert x.tolist() == [times] * 4
        assert y.tolist() == [2 * times] * 4
    x.fill_(10)
    graph.replay()
    assert y.tolist() == [22] * 4


def test_a_replay_is_one_launch_of_all_kernels():
    a = torch.randn(64, 64, device="trn")
    graph = torch.trn.Graph()
    torch_trn_emu.reset_op_counts()
    with torch.trn.graph(graph):
        b = (a @ a).relu().sum()
    assert not {"aten::mm", "aten::relu"} & torch_trn_emu.op_counts().keys()
    torch_trn_emu.reset_op_counts()
    torch.trn.reset_counters()
    graph.replay()
    graph.replay()
    rows = [row for row in torch_trn_emu.launches() if "graph" in row.op]
    assert [row.launches for row in rows] == [2]
    assert rows[0].signature == "(3 kernels)"
    assert "aten::mm" not in torch_trn_emu.op_counts()
    times = torch.trn.counters()
    assert times["total_time"] == pytest.approx(2 * rows[0].device_ns / 1e9, rel=0.01)
    torch.testing.assert_close(b, (a @ a).relu().sum())


def test_a_training_step_in_a_graph():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin.load_state_dict(model.state_dict())
    model, twin = model.to("trn"), twin.to("trn")
    data = torch.randn(3, 4, 8).to("trn")

    def step(model, optimizer, x):
        optimizer.zero_grad(set_to_none=False)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    pairs = [(m, torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (model, twin)]
    for m, optimizer in pairs:
        step(m, optimizer, data[0])
    given = data[0].clone()
    graph = torch.accelerator.Graph()
    with graph:
        loss = step(*pairs[0], given)
    for x in data:
        given.copy_(x)
        graph.replay()
        assert torch.equal(loss, step(*pairs[1], x))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_numbers_are_new_in_each_replay_and_untouched_by_the_capture():
    x = torch.ones(64, device="trn")
    torch.manual_seed(3)
    expected = [torch.nn.functional.dropout(x) for _ in range(2)]
    graph = torch.accelerator.Graph()
    torch.manual_seed(3)
    with graph:
        y = torch.nn.functional.dropout(x)
    for wanted in expected:
        graph.replay()
        assert torch.equal(y, wanted)


def test_what_a_graph_cannot_hold_is_refused(tmp_path):
    x = torch.ones(4, device="trn")
    graph = torch.accelerator.Graph()
    with pytest.raises(RuntimeError, match="no capture"):
        graph.replay()

    def read_in_a_capture():
        with graph:
            assert torch.trn.is_current_stream_capturing()
            x.sum().item()

    with pytest.raises(RuntimeError, match="stream is capturing"):
        read_in_a_capture()
    assert not torch.trn.is_current_stream_capturing()
    graph.reset()
    with graph:
        x.mul_(2)
    with pytest.raises(RuntimeError, match="reset"):
        graph.capture_begin()
    graph.enable_debug_mode()
    graph.debug_dump(str(tmp_path / "graph.dot"))
    assert "aten.mul_.Tensor" in (tmp_path / "graph.dot").read_text()
    assert len(graph.pool()) == len(torch.trn.graph_pool_handle()) == 2


def test_a_graph_dropped_while_it_captures_leaves_nothing_open():
    x = torch.zeros(4, device="trn")
    for close in ("reset", "drop"):
        graph = torch.trn.CUDAGraph()
        graph.capture_begin(torch.trn.graph_pool_handle(), capture_error_mode="relaxed")
        assert torch.trn.current_stream().is_capturing()
        assert torch.trn.is_current_stream_capturing()
        x.add_(1)
        if close == "reset":
            graph.reset()
        del graph
        assert not torch.trn.current_stream().is_capturing()
        assert not torch.trn.is_current_stream_capturing()
        assert x.tolist() == [0] * 4
    with pytest.raises(RuntimeError, match="No capture to end"):
        torch.trn.CUDAGraph().capture_end()


def test_a_capture_runs_on_the_stream_that_it_is_given():
    stream = torch.trn.Stream()
    with torch.trn.graph(torch.trn.CUDAGraph(), stream=stream):
        assert torch.trn.current_stream() == stream
    assert torch.trn.current_stream() != stream


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_step_that_is_counted_on_the_host_is_not_captured(kind, foreach):
    def replayed(**options):
        weight = torch.ones(3, device="trn", requires_grad=True)
        weight.grad = torch.ones_like(weight)
        optimizer = kind([weight], lr=0.1, foreach=foreach, **options)
        optimizer.step()
        graph = torch.trn.CUDAGraph()
        with torch.trn.graph(graph):
            optimizer.step()
        for _ in range(2):
            graph.replay()
        return weight, optimizer

    with pytest.raises(RuntimeError, match="capturable is False"):
        replayed()
    weight, optimizer = replayed(capturable=True)
    assert optimizer.state[weight]["step"] == 3


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("change", ["set_state", "manual_seed", "graphsafe_set_state", ""])
def test_a_state_that_is_set_in_a_capture_is_not_drawn_from(own, change):
    generator = torch.Generator("trn") if own else torch.trn.default_generators[0]
    given = {"generator": generator} if own else {}
    values = {
        "set_state": generator.get_state(),
        "manual_seed": 3,
        "graphsafe_set_state": torch.Generator("trn"),
    }
    graph = torch.trn.CUDAGraph()
    graph.capture_begin()
    first = torch.rand(3, device="trn", **given)
    if not change:
        second = torch.rand(3, device="trn", **given)
        graph.capture_end()
        generator.manual_seed(5)
        graph.replay()
        generator.manual_seed(5)
        assert torch.equal(torch.cat([first, second]), torch.rand(6, device="trn", **given))
        return
    getattr(generator, change)(values[change])
    with pytest.raises(RuntimeError, match="rand draws from a state that was set"):
        torch.rand(3, device="trn", **given)
    graph.reset()
