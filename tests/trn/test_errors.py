"""Wrong programs: the errors of CUDA, naming trn; nothing computes elsewhere in silence."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

TWO_DEVICES = "Expected all tensors to be on the same device, but found at least two devices"

MIXED = {
    "add": lambda a, b: a + b,
    "add_": lambda a, b: a.clone().add_(b),
    "out": lambda a, b: torch.add(a, a, out=b.clone()),
    "mm": lambda a, b: a @ b,
    "bmm": lambda a, b: torch.bmm(a[None], b[None]),
    "linear": lambda a, b: F.linear(a, b),
    "linear bias": lambda a, b: F.linear(a, a, b[0]),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "conv": lambda a, b: F.conv1d(a[None], b[:, :, None]),
    "embedding": lambda a, b: F.embedding(b.long().abs() % 3, a),
    "layer norm": lambda a, b: F.layer_norm(a, (3,), b[0]),
    "batch norm": lambda a, b: F.batch_norm(a, b[0], b[0].abs()),
    "mse": lambda a, b: F.mse_loss(a, b),
    "cross entropy": lambda a, b: F.cross_entropy(a, b[0].long().abs() % 3),
    "attention": lambda a, b: F.scaled_dot_product_attention(a[None, None], b[None, None], b[None, None]),
    "gather": lambda a, b: a.gather(0, b.long().abs() % 3),
    "index_select": lambda a, b: a.index_select(0, b[0].long().abs() % 3),
    "index_add": lambda a, b: a.index_add(0, torch.tensor([0, 1, 2], device=a.device), b),
    "scatter": lambda a, b: a.scatter(0, torch.zeros(3, 3, device=a.device).long(), b),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, 0.0),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.5),
    "equal": lambda a, b: torch.equal(a, b),
    "foreach": lambda a, b: torch._foreach_add([a, a], [a, b]),
    "cdist": lambda a, b: torch.cdist(a, b),
    "solve": lambda a, b: torch.linalg.solve(a, b),
    "put": lambda a, b: a.index_put((torch.tensor([0], device=a.device),), b[:1]),
    "module": lambda a, b: nn.Linear(3, 3).to(a.device)(b),
    "dot": lambda a, b: torch.dot(a[0], b[0]),
    "einsum": lambda a, b: torch.einsum("ij,jk", a, b),
    "lstm": lambda a, b: nn.LSTM(3, 3).to(a.device)(b),
}  # fmt: skip


@pytest.mark.parametrize("order", ["trn first", "host first"])
@pytest.mark.parametrize("name", MIXED)
def test_host_and_trn_tensors_do_not_mix(name, order):
    torch.manual_seed(0)
    a, b = torch.randn(3, 3, device="trn"), torch.randn(3, 3)
    if order == "host first":
        a, b = b, a
    with pytest.raises(RuntimeError, match=r"device") as caught:
        MIXED[name](a, b)
    assert "trn" in str(caught.value)
    assert "frame #" not in str(caught.value)


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_do_not_mix(name):
    torch.manual_seed(0)
    a, b = torch.randn(3, 3, device="trn:0"), torch.randn(3, 3, device="trn:1")
    with pytest.raises(RuntimeError, match=r"device") as caught:
        MIXED[name](a, b)
    assert "trn" in str(caught.value)


def test_the_text_names_both_devices_and_the_operator():
    with pytest.raises(RuntimeError, match=rf"{TWO_DEVICES}, trn:0 and cpu!.*aten::"):
        torch.ones(2, device="trn") + torch.ones(2)
    with pytest.raises(RuntimeError, match=r"trn:0 and trn:1|trn:1 and trn:0"):
        torch.ones(2, device="trn") + torch.ones(2, device="trn:1")


def test_host_numbers_may_join():
    x = torch.ones(2, device="trn")
    two = torch.tensor(2.0)
    for y in (x * two, two * x, x + 1, x.clone().add_(two), torch.where(x > 0, two, x)):
        assert y.is_trn
    assert (x / torch.tensor(2)).tolist() == [0.5, 0.5]
    x[0] = two
    assert x.tolist() == [2, 1]
    with pytest.raises(RuntimeError):
        two.add_(x[0])  # but a host number is not written by the device
    with pytest.raises(RuntimeError):
        torch.ones(2) + torch.ones(2, device="trn")[0].expand(2)


def test_host_indices_may_index():
    x = torch.arange(6.0, device="trn")
    assert x[torch.tensor([4, 1])].tolist() == [4, 1]
    assert x[torch.tensor([True, False] * 3)].tolist() == [0, 2, 4]
    x[torch.tensor([0])] = 9
    assert x[0] == 9
    with pytest.raises(RuntimeError, match="device"):
        torch.arange(6.0)[torch.tensor([1], device="trn")]


WRONG = {
    "shape": (lambda x: x @ torch.ones(5, 2, device="trn"), RuntimeError, "shapes cannot be multiplied"),
    "broadcast": (lambda x: x + torch.ones(7, device="trn"), RuntimeError, "must match the size"),
    "dtype": (lambda x: x @ x.double(), RuntimeError, "same dtype"),
    "index dtype": (lambda x: x.gather(0, x), RuntimeError, "int64"),
    "dim": (lambda x: x.sum(5), IndexError, "Dimension out of range"),
    "index": (lambda x: x[9], IndexError, "out of bounds"),
    "tensor index": (lambda x: x[torch.tensor([9], device="trn")], IndexError, "out of bounds"),
    "gather index": (lambda x: x.gather(0, torch.full((1, 1), 9, device="trn")), RuntimeError, "out of bounds"),
    "embedding index": (lambda x: F.embedding(torch.tensor([9], device="trn"), x), IndexError, "out of range"),
    "class": (lambda x: F.cross_entropy(x, torch.tensor([9, 0, 0], device="trn")), IndexError, "out of bounds"),
    "view": (lambda x: x.t().view(-1), RuntimeError, "view size is not compatible"),
    "reshape": (lambda x: x.reshape(4, 4), RuntimeError, "invalid for input of size"),
    "negative": (lambda x: x.new_empty(-1), RuntimeError, "negative dimension"),
    "negative view": (lambda x: x.view(-2, 9), RuntimeError, "invalid shape dimension"),
    "bool minus": (lambda x: (x > 0) - (x > 0), RuntimeError, "bool"),
    "singular": (lambda x: torch.linalg.inv(torch.zeros_like(x)), RuntimeError, "singular"),
    "item": (lambda x: x.item(), RuntimeError, "Scalar"),
    "integer grad": (lambda x: x.long().requires_grad_(), RuntimeError, "floating point"),
    "no grad": (lambda x: x.sum().backward(), RuntimeError, "does not require grad"),
    "out dtype": (lambda x: torch.add(x, x, out=x.long()), RuntimeError, "can't be cast"),
    "overlap": (lambda x: x[0].expand(3, 3).add_(1), RuntimeError, "single memory location"),
    "cast in place": (lambda x: x.long().add_(1.5), RuntimeError, "can't be cast"),
    "conv channels": (lambda x: F.conv1d(x[None], torch.ones(2, 9, 1, device="trn")), RuntimeError, "channels"),
    "norm shape": (lambda x: F.layer_norm(x, (7,)), RuntimeError, "normalized_shape"),
    "probability": (lambda x: F.dropout(x, 1.5), ValueError, "between 0 and 1"),
    "host numpy": (lambda x: torch.from_numpy(x.numpy()), TypeError, "trn:0 device type tensor to numpy"),
    "deterministic sizes": (lambda x: x.unfold(0, 9, 1), RuntimeError, "size"),
    "complex item": (lambda x: float(x[0, 0] * 1j), RuntimeError, "complex|overflow"),
    "set_ of another device": (lambda x: x.set_(torch.ones(2)), RuntimeError, "device"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_the_error_of_torch(name):
    run, kind, text = WRONG[name]
    with pytest.raises(kind, match=text) as caught:
        run(torch.randn(3, 3, device="trn"))
    assert "frame #" not in str(caught.value)


def test_the_device_goes_on_after_errors():
    gc.collect()  # what earlier tests left behind
    before = torch.trn.memory_allocated()
    x = torch.ones(3, 3, device="trn")
    for run, kind, _ in WRONG.values():
        with pytest.raises(kind):
            run(x)
    assert (x @ x).sum().item() == 27
    del x
    assert torch.trn.memory_allocated() == before


def test_an_unknown_device_is_still_unknown():
    with pytest.raises(RuntimeError, match="Expected one of cpu"):
        torch.device("trm")


@pytest.mark.parametrize("where", ["cpu", "trn:1"])
def test_indices_of_another_core_are_refused_by_name(where):
    index = torch.tensor([0, 1], device="trn:0" if where == "cpu" else "trn:1")
    indexed = torch.zeros(3, device="cpu" if where == "cpu" else "trn:0")
    message = rf"indices should be either on cpu or on the same device .* \({indexed.device}\)"
    with pytest.raises(RuntimeError, match=message):
        indexed[index]
