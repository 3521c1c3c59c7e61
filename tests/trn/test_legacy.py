"""Legacy tensor and storage types: torch.trn.FloatTensor and its kin."""

import pytest
import torch

from torch_trn_emu.trn.legacy import SPARSE, STORAGES, TENSORS

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_type(name):
    kind = getattr(torch.trn, name)
    x = torch.ones(2, 3).type(kind)
    assert x.device == torch.device("trn", 0)
    assert x.type() == f"torch.trn.{name}"
    assert torch.ones(2).type(x.type()).dtype == x.dtype == kind.dtype
    assert isinstance(x, kind)
    assert not isinstance(x.cpu(), kind)
    assert kind(2, 3).shape == (2, 3)
    assert torch.equal(kind([1, 0, 1]), torch.tensor([1, 0, 1], dtype=kind.dtype, device="trn"))
    assert kind(x).data_ptr() == x.data_ptr()
    with pytest.raises(TypeError, match="convert it"):
        kind(x.cpu())


def test_a_sparse_tensor_type():
    x = torch.eye(2, device="trn").to_sparse()
    assert x.type() == "torch.trn.sparse.FloatTensor"
    assert isinstance(x, SPARSE.FloatTensor)
    assert not isinstance(x, torch.trn.FloatTensor)


@pytest.mark.parametrize("name", STORAGES)
def test_a_storage_type(name):
    kind = getattr(torch.trn, name)
    storage = torch.ones(4, dtype=kind._dtype, device="trn:1").storage()
    assert isinstance(storage, kind)
    assert storage.type() == f"torch.trn.{name}"
    assert kind(3).device.type == "trn"


def test_the_type_of_a_storage():
    assert torch.ones(1, device="trn").storage_type() is torch.trn.FloatStorage


@pytest.fixture
def default_type():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type:UserWarning")
@pytest.mark.parametrize("kind", ["torch.trn.DoubleTensor", torch.trn.DoubleTensor], ids=str)
def test_the_default_type_can_be_on_trn(default_type, kind):
    torch.set_default_tensor_type(kind)
    made = torch.ones(1)
    assert (made.device.type, made.dtype) == ("trn", torch.float64)
    torch.set_default_tensor_type(torch.FloatTensor)
    assert torch.ones(1).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:torch.set_default_tensor_type:UserWarning")
def test_a_type_of_the_host_leaves_a_chosen_device(default_type):
    torch.set_default_device("trn")
    torch.set_default_tensor_type(torch.DoubleTensor)
    assert torch.get_default_device().type == "trn"
    assert torch.ones(1).dtype == torch.float64
