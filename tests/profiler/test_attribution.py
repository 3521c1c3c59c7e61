"""Launches belong to modules and source lines, also those of the backward pass."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_trn_emu


def launches(prof: torch_trn_emu.profile, phase: str) -> dict[str, list[str]]:
    """Operators by module."""
    found: dict[str, list[str]] = {}
    for launch in prof.recording.launches:
        if launch.phase == phase:
            found.setdefault(launch.module, []).append(launch.op.removeprefix("aten::"))
    return found


def test_forward_and_backward_of_each_module(run) -> None:
    run.step()
    with torch_trn_emu.profile() as prof:
        run.step()
    linear = ["Model.head", "Model.layers.0", "Model.layers.2"]
    forward, backward = launches(prof, "forward"), launches(prof, "backward")
    assert set(forward) - {""} == {*linear, "Model.layers.1"}
    assert forward["Model.layers.1"] == ["mul.Tensor", "tanh"]
    assert forward[""] == ["mse_loss"]
    for name in linear:
        assert [op.split(".")[0] for op in forward[name]] == ["addmm"]
        assert "mm" in backward[name], backward
    assert backward["Model.layers.1"][0] == "tanh_backward"
    assert backward["Model.layers.1"].count("mul.Tensor") == 2
    assert any(op.startswith("mse_loss_backward") for op in backward[""])
    assert set(launches(prof, "optimizer")) == {"AdamW step"}


def test_module_report(run) -> None:
    with torch_trn_emu.profile() as prof:
        run.step()
    rows = {row.module: row for row in prof.module_report()}
    model, layers = rows["Model"], rows["Model.layers"]
    assert model.own_s == 0
    assert model.total_s == pytest.approx(layers.total_s + rows["Model.head"].total_s)
    assert model.total_s == pytest.approx(model.forward_s + model.backward_s)
    assert model.calls == sum(rows[f"Model.{n}"].calls for n in ("layers", "head"))
    assert 0 < rows["AdamW step"].share < 1


def test_gradients_of_leaves_belong_to_the_owner(run) -> None:
    run.step()
    with torch_trn_emu.profile() as prof:
        for _ in range(2):  # the second backward adds to the first one's gradients
            nn.functional.mse_loss(run.model(run.x), run.y).backward()
    backward = launches(prof, "backward")
    assert any(op.startswith("add") for op in backward["Model.layers.1"])


def test_a_second_model_of_one_class_has_a_number() -> None:
    a, b = (nn.Linear(8, 8).to("trn") for _ in range(2))
    x = torch.ones(4, 8, device="trn")
    with torch_trn_emu.profile() as prof:
        a(b(x)).sum().backward()
    assert set(launches(prof, "forward")) >= {"Linear", "Linear (2)"}


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.outer = nn.Linear(8, 8)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(checkpoint(self.inner, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_runs_the_forward_pass_of_a_module_again(reentrant: bool) -> None:
    model = Checkpointed(reentrant).to("trn")
    x = torch.ones(4, 8, device="trn", requires_grad=True)
    with torch_trn_emu.profile() as prof:
        model(x).sum().backward()
    forward, backward = launches(prof, "forward"), launches(prof, "backward")
    assert len([op for op in forward["Checkpointed.inner.0"] if op.startswith("addmm")]) == 2
    assert backward["Checkpointed.inner.0"].count("mm") == 2
    assert backward["Checkpointed.inner.1"] == ["tanh_backward"]
    assert backward["Checkpointed.outer"].count("mm") == 2


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


def test_custom_functions() -> None:
    x = torch.ones(4, device="trn", requires_grad=True)
    with torch_trn_emu.profile() as prof:
        Custom()(x).sum().backward()
    assert launches(prof, "forward")["Custom"] == ["mul.Tensor"]
    assert launches(prof, "backward")["Custom"] == ["mul.Tensor"]


def test_backward_on_another_thread_knows_the_forward_pass() -> None:
    import threading

    model = nn.Linear(8, 8).to("trn")
    x = torch.ones(4, 8, device="trn")
    with torch_trn_emu.profile() as prof:
        loss = model(x).sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert "mm" in launches(prof, "backward")["Linear"]


def test_source_lines() -> None:
    x = torch.ones(4, 4, device="trn", requires_grad=True)
    with torch_trn_emu.profile(with_stack=True) as prof:
        line = inspect.currentframe().f_lineno  # type: ignore[union-attr]
        y = x.exp()
        z = y.cos()
        z.sum().backward()
    lines = {
        (launch.op.removeprefix("aten::"), launch.phase): launch.source
        for launch in prof.recording.launches
    }
    assert lines["exp", "forward"].endswith(f"test_attribution.py:{line + 1} test_source_lines")
    assert f".py:{line + 2} " in lines["cos", "forward"]
    assert f".py:{line + 2} " in lines["sin", "backward"]
    backward_of_exp = [
        launch.source
        for launch in prof.recording.launches
        if launch.phase == "backward" and f".py:{line + 1} " in launch.source
    ]
    assert backward_of_exp


def test_source_of_a_module_is_the_line_in_it(prof) -> None:
    sources = {
        launch.source
        for launch in prof.recording.launches
        if launch.module == "Model.layers.1" and launch.op == "aten::tanh"
    }
    assert len(sources) == 1
    assert "conftest.py" in sources.pop()


def test_compiled_modules_are_traced_without_a_break() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).to("trn")
    x = torch.ones(4, 8, device="trn")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch_trn_emu.profile() as prof:
        compiled(x)
    assert set(launches(prof, "forward")) <= {"Sequential"}
