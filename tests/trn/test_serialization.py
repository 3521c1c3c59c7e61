"""Saving and loading: between trn and the host, in both formats, with and without weights_only."""

import io
import pickle

import pytest
import torch
from torch import nn

LOADS = [
    # map_location             where a tensor of trn:1 lands
    (None, "trn:1"),
    ("cpu", "cpu"),
    ("trn", "trn:0"),
    ("trn:2", "trn:2"),
    (torch.device("trn", 3), "trn:3"),
    ({"trn:1": "cpu"}, "cpu"),
    ({"trn:1": "trn:0"}, "trn:0"),
    (lambda storage, location: storage, "cpu"),
]  # fmt: skip


def through(value, *, map_location=None, weights_only=True, zip_format=True):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zip_format)
    file.seek(0)
    return torch.load(file, map_location=map_location, weights_only=weights_only)


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("weights_only", [True, False], ids=["weights", "all"])
@pytest.mark.parametrize(
    ("location", "lands"), LOADS, ids=lambda value: "function" if callable(value) else str(value)
)
def test_tensors_land_where_map_location_says(location, lands, weights_only, zip_format):
    value = {
        "x": torch.arange(6.0, device="trn:1").view(2, 3),
        "p": nn.Parameter(torch.ones(2).trn(1)),
    }
    loaded = through(value, map_location=location, weights_only=weights_only, zip_format=zip_format)
    assert loaded["x"].device == loaded["p"].device == torch.device(lands)
    assert loaded["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(loaded["p"], nn.Parameter)


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_host_files_load_onto_trn(zip_format):
    x = torch.randn(3, 4)
    loaded = through(x, map_location="trn:1", zip_format=zip_format)
    assert loaded.device == torch.device("trn", 1)
    assert torch.equal(loaded.cpu(), x)


def test_a_mapped_file_loads_too(tmp_path):
    x = torch.randn(3)
    torch.save(x, tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", mmap=True, map_location="trn").cpu(), x)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int8,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ],
    ids=str,
)
def test_every_dtype_survives(dtype):
    x = torch.randn(8).mul(3).to(dtype)
    assert torch.equal(through(x.to("trn")).cpu().view(torch.uint8), x.view(torch.uint8))


def test_views_still_share_after_loading():
    x = torch.arange(6.0, device="trn")
    a, b, c = through([x, x.view(2, 3), x[2:]])
    a[2] = 50
    assert b[0, 2] == c[0] == 50


def test_strides_survive():
    x = torch.randn(2, 3, 4, 5, device="trn").to(memory_format=torch.channels_last)
    assert through(x).stride() == x.stride()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.14
def test_sparse_tensors_survive():
    x = torch.eye(3, device="trn").to_sparse()
    for location, device in ((None, "trn"), ("cpu", "cpu")):
        loaded = through(x, map_location=location)
        assert loaded.device.type == device
        assert torch.equal(loaded.to_dense().cpu(), torch.eye(3))


def test_an_index_that_does_not_exist_here_is_told_with_the_remedy():
    with pytest.raises(RuntimeError, match=r"TRN device 77 .* map_location"):
        through(torch.ones(1, device="trn"), map_location="trn:77")


def test_pickle_keeps_device_and_values():
    x = torch.randn(3, device="trn:1", requires_grad=True)
    y = pickle.loads(pickle.dumps(x))
    assert y.device == x.device
    assert y.requires_grad
    assert torch.equal(x, y)
    assert pickle.loads(pickle.dumps(torch.device("trn", 1))) == torch.device("trn", 1)


def test_modules_and_optimizers_go_between_host_and_trn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to("trn")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3, device="trn")).sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    for device in ("cpu", "trn:1"):
        loaded = through(saved, map_location=device)
        other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(device)
        other.load_state_dict(loaded["model"])
        other_optimizer = torch.optim.AdamW(other.parameters())
        other_optimizer.load_state_dict(loaded["optimizer"])
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name].cpu(), value.cpu())
        moments = [s["exp_avg"] for s in other_optimizer.state.values()]
        assert {m.device for m in moments} == {torch.device(device)}


def test_a_whole_module_can_be_saved():
    model = through(nn.Linear(2, 2).to("trn:1"), weights_only=False)
    assert model.weight.device == torch.device("trn", 1)


def test_random_state_in_a_checkpoint_goes_on_alike():
    torch.manual_seed(3)
    torch.randn(5, device="trn")
    state = through({"rng": torch.trn.get_rng_state()})["rng"]
    expected = torch.randn(5, device="trn")
    torch.trn.set_rng_state(state)
    assert torch.equal(torch.randn(5, device="trn"), expected)
