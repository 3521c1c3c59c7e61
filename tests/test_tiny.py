"""A bit of everything in seconds: run it first."""

import copy
import io

import pytest
import torch
from torch import nn


def model_and_data(device: str):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(16, 8),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 16),
        nn.GELU(),
        nn.Linear(16, 4),
    ).to(device)
    x = torch.randint(16, (8, 4)).to(device)
    y = torch.randint(4, (8,)).to(device)
    return model, x, y


def losses(device: str) -> list[float]:
    model, x, y = model_and_data(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True)
    out = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        out.append(loss.item())
    return out


def test_training_on_trn_equals_training_on_the_host():
    host = losses("cpu")
    assert losses("trn") == host
    assert losses("trn:1") == host
    assert host[-1] < host[0]


def test_devices_streams_and_memory():
    assert torch.trn.is_available()
    assert torch.accelerator.current_accelerator().type == "trn"
    with torch.trn.device(1), torch.trn.stream(torch.trn.Stream()):
        x = torch.ones(1 << 20, device="trn")
        assert x.device.index == 1
        assert torch.trn.memory_allocated() >= x.nbytes
    start, end = (torch.trn.Event(enable_timing=True) for _ in range(2))
    start.record()
    x.add_(1)
    end.record()
    torch.trn.synchronize()
    assert start.elapsed_time(end) >= 0


def test_random_numbers_equal_the_hosts():
    torch.manual_seed(1)
    host = torch.randn(9), torch.rand(9)
    torch.manual_seed(1)
    device = torch.randn(9, device="trn"), torch.rand(9, device="trn")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(host, device, strict=True))


def test_saving_loading_and_copying():
    model, x, _ = model_and_data("trn")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    host, _, _ = model_and_data("cpu")
    host.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    assert torch.equal(host(x.cpu()), model(x).cpu())
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_autocast_and_transforms():
    model, x, y = model_and_data("trn")
    with torch.autocast("trn", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    w = torch.randn(3, 3, device="trn")
    gradients = torch.func.vmap(torch.func.grad(lambda row: (row @ w).sin().sum()))(w)
    assert gradients.shape == (3, 3)
    assert y.is_trn


def test_mixing_devices_is_an_error():
    with pytest.raises(RuntimeError, match="trn:0 and cpu"):
        torch.ones(2, device="trn") + torch.ones(2)
