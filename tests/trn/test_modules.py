"""Modules on trn: parameters keep their identity when they move."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


@pytest.mark.parametrize(
    "move", [lambda m: m.to("trn"), lambda m: m.trn(), lambda m: m.to("trn:0", torch.bfloat16)]
)
def test_tied_weights_stay_tied(move):
    model = Tied()
    weight = model.head.weight
    move(model)
    assert model.head.weight is model.embedding.weight is weight
    assert weight.is_trn
    model.to("cpu")
    assert model.head.weight is weight


def test_an_optimizer_made_before_the_move_trains_the_model():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.to("trn")
    assert optimizer.param_groups[0]["params"][0] is model.weight
    before = model.weight.detach().clone()
    model(torch.ones(2, 3, device="trn")).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_gradients_and_buffers_move_with_the_module():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(4, 3)).sum().backward()
    model.to("trn")
    assert model[0].weight.grad.is_trn
    assert model[1].running_mean.is_trn
    model(torch.randn(4, 3, device="trn")).sum().backward()  # adds to it
    assert model[1].num_batches_tracked.item() == 2


def test_hooks_survive_the_move():
    seen = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.device.type))
    model.weight.register_hook(lambda grad: seen.append(grad.device.type))
    model.to("trn")(torch.ones(1, 2, device="trn")).sum().backward()
    assert seen == ["trn", "trn"]


def test_swapping_instead_of_setting_works_too():
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model = Tied()
        weight = model.head.weight
        model.to("trn")
        assert model.head.weight is model.embedding.weight is weight
        assert weight.is_trn
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("first", ["move", "run"])
def test_lazy_modules_become_real_ones(first):
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    assert isinstance(model[0].weight, nn.UninitializedParameter)
    if first == "move":
        model.to("trn")
        assert isinstance(model[0].weight, nn.UninitializedParameter)
        assert model[0].weight.is_trn
    else:
        model(torch.ones(2, 3))
        model.to("trn")
    assert model(torch.randn(5, 3, device="trn")).shape == (5, 4)
    assert type(model[0].weight) is nn.Parameter
    assert model[0].weight.is_trn
    convolution = nn.LazyConv2d(4, 3, device="trn")
    assert convolution(torch.ones(1, 2, 5, 5, device="trn")).shape == (1, 4, 3, 3)


def test_uninitialized_parameters_move_and_materialize():
    parameter = nn.UninitializedParameter(device="trn")
    assert parameter.is_trn
    with pytest.raises(ValueError, match="uninitialized"):
        parameter + 1
    parameter.materialize((2, 3))
    assert parameter.shape == (2, 3)
    assert parameter.is_trn
    moved = nn.UninitializedParameter().to("trn")
    assert moved.is_trn


def test_state_goes_between_host_and_device():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2))
    device = copy.deepcopy(host).to("trn")
    nn.init.ones_(device[3].weight)
    host.load_state_dict(device.state_dict())
    assert (host[3].weight == 1).all()
    nn.init.zeros_(host[3].weight)
    device.load_state_dict(host.state_dict())
    assert (device[3].weight == 0).all()
    assert device[3].weight.is_trn
    with torch.device("meta"):
        empty = nn.Linear(18, 2)
    empty.load_state_dict(device[3].state_dict(), assign=True)
    assert empty.weight.is_trn


def test_a_meta_module_becomes_a_trn_module():
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    model.to_empty(device="trn:1")
    nn.init.ones_(model.weight)
    assert model.weight.device == torch.device("trn", 1)
    assert model.weight.sum().item() == 6


def test_parametrized_modules_move():
    torch.manual_seed(0)
    host = parametrizations.weight_norm(nn.Linear(4, 3))
    parametrizations.spectral_norm(host, "bias") if host.bias.dim() > 1 else None
    x = torch.randn(2, 4)
    expected = host(x)
    device = copy.deepcopy(host).to("trn")
    assert parametrize.is_parametrized(device)
    torch.testing.assert_close(device(x.to("trn")).cpu(), expected, rtol=0, atol=0)
    orthogonal = parametrizations.orthogonal(nn.Linear(4, 4).to("trn"))
    w = orthogonal.weight
    torch.testing.assert_close((w @ w.T).cpu(), torch.eye(4), rtol=1e-5, atol=1e-5)
    normed = parametrizations.spectral_norm(nn.Linear(4, 3).to("trn"))
    assert torch.linalg.matrix_norm(normed.weight, 2).item() < 1.5


def test_a_module_computes_in_half_formats():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()).to("trn")
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        y = copy.deepcopy(model).to(dtype)(torch.ones(2, 8, device="trn", dtype=dtype))
        assert y.dtype == dtype
        y.sum().backward()


def test_replicas_average_into_a_moving_mean():
    torch.manual_seed(0)
    model = nn.Linear(2, 2).to("trn")
    mean = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    mean.update_parameters(model)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    mean.update_parameters(model)
    assert mean.module.weight.is_trn
    torch.testing.assert_close(mean.module.weight, first + 0.1)
