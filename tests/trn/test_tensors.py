"""Making, moving, printing and sharing tensors."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

TRN1 = torch.device("trn", 1)


# ---- making ----

FACTORIES = (
    lambda d: torch.empty(2, 3, device=d),
    lambda d: torch.zeros(2, 3, device=d),
    lambda d: torch.ones(2, 3, device=d),
    lambda d: torch.full((2, 3), 7.0, device=d),
    lambda d: torch.randn(2, 3, device=d),
    lambda d: torch.rand(2, 3, device=d),
    lambda d: torch.randint(5, (2, 3), device=d),
    lambda d: torch.randperm(6, device=d),
    lambda d: torch.arange(6, device=d),
    lambda d: torch.linspace(0, 1, 6, device=d),
    lambda d: torch.logspace(0, 1, 6, device=d),
    lambda d: torch.eye(3, device=d),
    lambda d: torch.tensor([[1, 2], [3, 4]], device=d),
    lambda d: torch.as_tensor(np.ones(3), device=d),
    lambda d: torch.asarray([1.0, 2.0], device=d),
    lambda d: torch.empty_strided((2, 3), (1, 2), device=d),
    lambda d: torch.scalar_tensor(1.0, device=d),
    lambda d: torch.hann_window(5, device=d),
    lambda d: torch.tril_indices(3, 3, device=d),
    lambda d: torch.complex(torch.ones(2, device=d), torch.zeros(2, device=d)),
    lambda d: torch.zeros(1).new_zeros(3, device=d),
    lambda d: torch.ones_like(torch.zeros(3), device=d),
    lambda d: torch.empty(2, 3, 4, 5, device=d, memory_format=torch.channels_last),
)


@pytest.mark.parametrize("number", range(len(FACTORIES)))
def test_factories_take_the_device_in_every_spelling(number):
    make = FACTORIES[number]
    assert make("trn:1").device == TRN1
    assert make(TRN1).device == TRN1
    assert make("trn").device == torch.device("trn", 0)
    with torch.trn.device(1):
        assert make("trn").device == TRN1
    expected = make("cpu")
    assert make("trn").dtype == expected.dtype
    assert make("trn").stride() == expected.stride()


def test_a_number_is_a_device_of_the_accelerator():
    assert torch.ones(2, device=1).device == TRN1
    assert torch.ones(2).to(1).device == TRN1


def test_the_device_context_makes_every_factory_use_trn():
    with torch.device("trn:1"):
        assert torch.ones(2).device == TRN1
        assert torch.tensor([1]).device == TRN1
        assert nn.Linear(2, 2).weight.device == TRN1
        assert torch.ones(2, device="cpu").device.type == "cpu"
    assert torch.ones(2).device.type == "cpu"


def test_the_default_device_can_be_trn():
    torch.set_default_device("trn:1")
    try:
        assert torch.get_default_device() == TRN1
        assert torch.arange(3).device == TRN1
        assert nn.Conv2d(1, 2, 3).bias.device == TRN1
        assert torch.randperm(4).device == TRN1
        assert nn.Dropout()(torch.ones(3)).device == TRN1
        loader = torch.utils.data.DataLoader(
            torch.arange(4), batch_size=2, shuffle=True, generator=torch.Generator("trn:1")
        )
        assert sorted(torch.cat(list(loader)).tolist()) == [0, 1, 2, 3]
    finally:
        torch.set_default_device(None)
    assert torch.ones(1).device.type == "cpu"


def test_a_negative_size_is_refused():
    for make in (torch.empty, torch.zeros, torch.randn):
        with pytest.raises(RuntimeError, match="negative"):
            make(-1, device="trn")


def test_deterministic_mode_fills_fresh_memory():
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(100, device="trn").isnan().all()
        assert (torch.empty(9, dtype=torch.int32, device="trn") == 2**31 - 1).all()
        assert torch.empty_strided((3, 3), (1, 3), device="trn").isnan().all()
        assert torch.ones(2, device="trn").resize_(50)[2:].isnan().all()
        assert torch.ones(2, device="trn").new_empty(5).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


# ---- moving ----


def test_is_trn_says_where_a_tensor_is():
    assert torch.ones(1, device="trn").is_trn
    assert not torch.ones(1).is_trn
    assert nn.Parameter(torch.ones(1, device="trn")).is_trn
    assert torch.ones(1, device="trn").untyped_storage().is_trn
    assert torch.ones(1, device="trn:2").get_device() == 2
    assert torch.ones(1, device="trn").type() == "torch.trn.FloatTensor"


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.trn(1),
        lambda x: x.trn(device="trn:1"),
        lambda x: x.to("trn:1"),
        lambda x: x.to(TRN1),
        lambda x: x.to(device="trn:1", non_blocking=True),
        lambda x: x.to(torch.ones(1, device="trn:1")),
        lambda x: x.pin_memory().to("trn:1", non_blocking=True),
        lambda x: torch.empty_like(x, device="trn:1").copy_(x, non_blocking=True),
    ],
)
def test_a_tensor_moves_to_a_device_and_back(move):
    x = torch.randn(3, 4)
    y = move(x)
    assert y.device == TRN1
    assert torch.equal(y.cpu(), x)
    assert torch.equal(y.to("cpu", non_blocking=True), x)
    assert torch.equal(y.to("trn:3").to("trn").cpu(), x)


def test_moving_to_where_it_is_returns_the_tensor():
    x = torch.ones(2, device="trn")
    assert x.to("trn") is x
    assert x.trn() is x
    assert x.to("trn:0") is x
    assert x.to("trn", copy=True) is not x
    assert x.to("trn:1") is not x


def test_copies_keep_layout_dtype_and_values():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert x.to("trn").stride() == x.stride()
    assert x.to("trn", torch.bfloat16).dtype == torch.bfloat16
    y = torch.randn(5, 7).t().to("trn")
    assert y.stride() == (1, 7)
    z = torch.empty(7, 5, device="trn:1")
    z.copy_(y)  # another layout, another device
    assert torch.equal(z.cpu(), y.cpu())
    z.copy_(y.half())
    assert torch.equal(z.cpu(), y.half().float().cpu())
    z[:, 1:3].copy_(torch.zeros(2))
    assert z[:, 1:3].abs().sum() == 0
    c = torch.randn(3, dtype=torch.complex64)
    assert torch.equal(c.to("trn").conj().cpu(), c.conj())
    assert torch.equal(c.conj().to("trn").cpu(), c.conj())
    assert torch.equal(c.to("trn").conj().to("trn:1").imag.cpu(), -c.imag)


def test_a_copy_between_devices_is_another_memory():
    x = torch.ones(2, device="trn")
    y = x.to("trn:1")
    y.zero_()
    assert x.tolist() == [1, 1]
    host = x.cpu()
    host.zero_()
    assert x.tolist() == [1, 1]


def test_gradients_cross_devices():
    x = torch.randn(3, requires_grad=True)
    (x.to("trn") * 2).to("trn:2").pow(2).cpu().sum().backward()
    assert torch.equal(x.grad, 8 * x.detach())


def test_modules_storages_and_packed_sequences_move():
    module = nn.Linear(2, 2).trn(2)
    assert {p.device.index for p in module.parameters()} == {2}
    assert module.cpu().weight.device.type == "cpu"
    storage = torch.arange(4, dtype=torch.uint8).untyped_storage()
    moved = storage.trn()
    assert moved.device == torch.device("trn", 0)
    assert moved.cpu().tolist() == storage.tolist() == moved.tolist()
    packed = pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    assert packed.trn().is_trn
    assert packed.to("trn:1").data.device == TRN1
    assert not packed.is_trn
    assert packed.trn().batch_sizes.device.type == "cpu"


# ---- reading ----


def test_numpy_is_refused_as_on_cuda():
    x = torch.ones(2, device="trn")
    for read in (lambda: x.numpy(), lambda: np.asarray(x), lambda: x.__array__()):
        with pytest.raises(TypeError, match="can't convert trn:0 device type tensor to numpy"):
            read()
    assert x.numpy(force=True).tolist() == [1, 1]
    with pytest.raises((RuntimeError, BufferError)):
        np.from_dlpack(x)


def test_values_come_back_as_python_numbers():
    x = torch.tensor([[1.5, -2.0], [0.0, 4.0]], device="trn")
    assert x.tolist() == [[1.5, -2.0], [0.0, 4.0]]
    assert x[0, 0].item() == 1.5
    assert float(x[0, 1]) == -2.0
    assert int(x[1, 1]) == 4
    assert not bool(x[1, 0])
    assert 4.0 in x
    assert len(x) == 2
    assert [row.sum().item() for row in x] == [-0.5, 4.0]
    assert f"{x[0, 0]:.2f}" == "1.50"
    assert list(range(9))[torch.tensor(3, device="trn")] == 3
    assert torch.tensor(1 + 2j, device="trn").item() == 1 + 2j
    with pytest.raises(RuntimeError, match="cannot be converted to Scalar"):
        x.item()


def test_tensors_print_with_their_device():
    x = torch.tensor([1.0, 2.0], device="trn:1")
    assert str(x) == "tensor([1., 2.], device='trn:1')"
    assert "dtype=torch.float16" in str(x.half())
    assert "device='trn:1', requires_grad=True" in str(nn.Parameter(x))
    assert "MulBackward0" in str(nn.Parameter(x) * 2)
    assert "..." in str(torch.arange(5000, device="trn"))
    assert "size=(0, 3)" in str(torch.empty(0, 3, device="trn"))
    assert "1.+0.j" in str(torch.ones(1, dtype=torch.complex64, device="trn"))
    assert "sparse_coo" in str(torch.eye(2, device="trn").to_sparse())
    assert "trn:0" in str(torch.ones(2, device="trn").untyped_storage())
    assert "nan" in str(torch.tensor(float("nan"), device="trn"))


# ---- sharing memory ----


def test_dlpack_goes_around():
    x = torch.arange(6.0, device="trn:1").reshape(2, 3)
    y = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x))
    assert y.device == x.device
    assert y.data_ptr() == x.data_ptr()
    del x
    assert y.sum().item() == 15


def test_views_share_and_keep_memory():
    x = torch.zeros(4, 6, device="trn")
    views = (x[1], x.t(), x.reshape(2, 12), x[:, ::2], x.unfold(1, 3, 3), x.diagonal(), x.view(-1))
    for number, view in enumerate(views, start=1):
        assert view.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert view._is_view()
        view.fill_(number)
        assert (x == number).any()
    assert x.view(torch.int32).dtype == torch.int32
    assert torch.view_as_real(torch.view_as_complex(x.view(4, 3, 2))).data_ptr() == x.data_ptr()


def test_storages_resize_fill_and_read():
    x = torch.arange(4.0, device="trn")
    storage = x.untyped_storage()
    assert storage.nbytes() == 16
    storage.resize_(32)
    assert x.tolist() == [0, 1, 2, 3]
    x.resize_(8)[4:] = 9
    assert x.tolist() == [0, 1, 2, 3, 9, 9, 9, 9]
    assert storage.fill_(0)[3] == 0
    y = torch.empty(0, device="trn").set_(storage, 0, (2, 2))
    assert y.data_ptr() == x.data_ptr()
    assert torch.UntypedStorage(8, device="trn:1").device == TRN1
    storage.resize_(0)
    assert storage.nbytes() == 0


def test_set_refuses_the_storage_of_another_device():
    with pytest.raises(RuntimeError, match=r"device|storage"):
        torch.empty(0, device="trn").set_(torch.ones(2).untyped_storage(), 0, (2,))


def test_data_can_be_exchanged():
    x = nn.Parameter(torch.ones(2))
    x.data = torch.zeros(3, device="trn")
    assert x.device.type == "trn"
    assert x.tolist() == [0, 0, 0]
    y = torch.ones(2, device="trn")
    y.data = torch.full((2,), 5.0, device="trn")
    assert y.tolist() == [5, 5]


def test_deepcopy_makes_another_memory_on_the_same_device():
    x = torch.randn(3, device="trn:1")
    pair = copy.deepcopy((x, x[1:]))
    assert pair[0].device == TRN1
    assert pair[0].data_ptr() != x.data_ptr()
    assert pair[1].data_ptr() == pair[0].data_ptr() + 4  # shared as before
    assert torch.equal(pair[0], x)
    assert copy.copy(x).data_ptr() == x.data_ptr()
    module = copy.deepcopy(nn.Linear(2, 2).to("trn"))
    assert module.weight.device.type == "trn"


def test_copy_on_write_clones_are_written_apart():
    x = torch.arange(4.0, device="trn")
    y = torch._lazy_clone(x)
    z = torch._lazy_clone(y)
    y.add_(1)
    assert x.tolist() == [0, 1, 2, 3]
    assert y.tolist() == [1, 2, 3, 4]
    x.zero_()
    assert z.tolist() == [0, 1, 2, 3]
    assert torch.equal(torch._lazy_clone(y[1:]).cpu(), torch.tensor([2.0, 3.0, 4.0]))


def test_swap_tensors_across_devices():
    a, b = torch.ones(2), torch.zeros(3, device="trn")
    torch.utils.swap_tensors(a, b)
    assert a.device.type == "trn"
    assert a.tolist() == [0, 0, 0]
    assert b.tolist() == [1, 1]


def test_a_tensor_type_by_name_moves():
    assert torch.ones(2).type("torch.trn.FloatTensor").device.type == "trn"
    assert torch.ones(2, device="trn").type(torch.float64).dtype == torch.float64


def test_moving_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ones(2).to("trn").cpu()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("device", ["cpu", "trn"])
def test_the_invariants_of_coalesced_indices_are_checked(shape, device):
    x = torch.rand(shape, device=device).to_sparse().coalesce()
    make = partial(torch.sparse_coo_tensor, size=shape, is_coalesced=True, check_invariants=True)
    assert make(x.indices(), x.values()).is_coalesced()
    with pytest.raises(RuntimeError, match="uncoalesced"):
        make(x.indices().flip(1), x.values())
