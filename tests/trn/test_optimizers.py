"""Every optimizer, in each of its implementations; schedulers, averaging and captured state."""

import copy

import pytest
import torch
from parity import assert_same_on_trn
from torch import nn, optim

OPTIMIZERS = {
    optim.Adadelta: {}, optim.Adafactor: {}, optim.Adagrad: {}, optim.Adam: {"amsgrad": True},
    optim.AdamW: {}, optim.Adamax: {}, optim.ASGD: {"lr": 1e-2}, optim.NAdam: {}, optim.RAdam: {},
    optim.RMSprop: {"momentum": 0.9, "centered": True}, optim.Rprop: {},
    optim.SGD: {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
}  # fmt: skip
FUSED = (optim.Adagrad, optim.Adam, optim.AdamW, optim.SGD)


def train(device, make, steps=4, closure=False):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
    optimizer = make(model.parameters())
    x = torch.randn(16, 4).to(device)

    def evaluate():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    losses = [
        optimizer.step(evaluate) if closure else (evaluate(), optimizer.step())[0]
        for _ in range(steps)
    ]
    return losses, list(model.parameters())


@pytest.mark.parametrize("foreach", [False, True, None], ids=["single", "foreach", "default"])
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_an_optimizer_trains_as_on_the_host(kind, foreach):
    """By default an accelerator takes the foreach implementation, the host the single one."""
    options = OPTIMIZERS[kind]
    if foreach is not None:
        options = options | {"foreach": foreach}
    bound = 1e-6 if foreach is None else 0.0
    assert_same_on_trn(lambda device: train(device, lambda p: kind(p, **options)), bound=bound)


@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.__name__)
def test_a_fused_optimizer_trains_as_on_the_host(kind):
    options = OPTIMIZERS[kind] | {"fused": True}
    assert_same_on_trn(lambda device: train(device, lambda p: kind(p, **options)))


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("on_trn", [False, True], ids=["host", "trn"])
@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.__name__)
def test_a_fused_optimizer_takes_its_rate_from_a_tensor(kind, on_trn, shape):
    """Which may stay on the host, as on CUDA."""

    def trained(device):
        rate = torch.full(shape, 0.1, device=device if on_trn else "cpu")
        return train(device, lambda p: kind(p, lr=rate, fused=True))

    assert_same_on_trn(trained)


@pytest.mark.parametrize("options", [{}, {"line_search_fn": "strong_wolfe"}], ids=str)
def test_lbfgs_with_a_closure(options):
    make = lambda p: optim.LBFGS(list(p), max_iter=4, **options)  # noqa: E731
    assert_same_on_trn(lambda device: train(device, make, steps=2, closure=True))


def test_muon_trains_matrices():
    def step(device):
        model = nn.Linear(6, 5, bias=False).to(device)
        optimizer = optim.Muon(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6).to(device)).square().sum().backward()
            optimizer.step()
        return model.weight

    assert_same_on_trn(step)


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_tensor_learning_rates_and_capturable_state(kind):
    def step(device):
        make = lambda p: kind(p, lr=torch.tensor(1e-2, device=device), capturable=device == "trn")  # noqa: E731
        return train(device, make)

    assert_same_on_trn(step, bound=1e-6)


def test_half_precision_training():
    def step(device):
        model = nn.Linear(8, 8).to(device, torch.bfloat16)
        optimizer = optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        for _ in range(3):
            model(torch.randn(4, 8).to(device, torch.bfloat16)).square().sum().backward()
            optimizer.step()
        return list(model.parameters())

    assert_same_on_trn(step)


SCHEDULERS = {
    "step": lambda o: optim.lr_scheduler.StepLR(o, 2),
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "one cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "linear": lambda o: optim.lr_scheduler.LinearLR(o),
    "cyclic": lambda o: optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "sequence": lambda o: optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.ConstantLR(o), optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler(name):
    def step(device):
        model = nn.Linear(3, 2).to(device)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        rates = []
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(1, 3, device=device)).sum().backward()
            optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()
        return rates, model.weight

    assert_same_on_trn(step)


def test_a_plateau_is_noticed():
    optimizer = optim.SGD([torch.ones(1, device="trn", requires_grad=True)], lr=1.0)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(torch.tensor(1.0, device="trn"))
    assert optimizer.param_groups[0]["lr"] < 1


def test_swa_averages_and_renews_batch_norm():
    def step(device):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(device)
        mean = optim.swa_utils.AveragedModel(model)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(8, 4).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            mean.update_parameters(model)
        optim.swa_utils.update_bn([x], mean)
        return list(mean.parameters()), list(mean.module.buffers())

    assert_same_on_trn(step, bound=1e-6)  # an accelerator averages by foreach


def test_optimizer_state_lies_on_trn_and_is_copied():
    p = torch.ones(3, device="trn:1", requires_grad=True)
    optimizer = optim.Adam([p])
    p.sum().backward()
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].device == torch.device("trn", 1)
    assert copy.deepcopy(optimizer.state_dict())["state"][0]["exp_avg"].device.index == 1


def test_optimizer_state_of_the_host_loads_onto_trn():
    def make(device):
        model = nn.Linear(2, 2).to(device)
        return model, optim.Adam(model.parameters())

    host, host_optimizer = make("cpu")
    host(torch.ones(1, 2)).sum().backward()
    host_optimizer.step()
    _, optimizer = make("trn")
    optimizer.load_state_dict(host_optimizer.state_dict())
    moments = [state["exp_avg"].device.type for state in optimizer.state.values()]
    assert moments == ["trn", "trn"]


def test_parameters_of_two_devices_train_together():
    a = torch.ones(2, device="trn", requires_grad=True)
    b = torch.ones(2, device="trn:1", requires_grad=True)
    c = torch.ones(2, requires_grad=True)
    optimizer = optim.Adam([a, b, c], lr=0.1)
    (a.to("trn:1") * b).cpu().mul(c).sum().backward()
    optimizer.step()
    for p in (a, b, c):
        assert p.tolist() == pytest.approx([0.9, 0.9])
