"""Modes and subclasses that stand between the user and the device; fake and meta tensors."""

import pytest
import torch
from torch import library, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode


class Log(TorchDispatchMode):
    def __init__(self):
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_every_operator_and_device():
    x = torch.randn(3, 3, device="trn", requires_grad=True)
    with Log() as log:
        y = (x @ x).relu()
        y.sum().backward()
    assert y.is_trn
    assert {"aten.mm.default", "aten.relu.default", "aten.sum.default"} <= set(log.seen)
    assert log.seen.count("aten.mm.default") == 3


def test_a_function_mode_sees_calls():
    seen = []

    class Names(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    with Names():
        torch.add(torch.ones(2, device="trn"), 1)
    assert seen[-1] == "add"


class Named(torch.Tensor):
    pass


def test_subclasses_travel_through_functions():
    x = torch.ones(2, device="trn").as_subclass(Named)
    y = x * 2 + torch.ones(2, device="trn")
    assert type(y) is Named
    assert y.is_trn
    assert type(y.cpu()) is Named
    assert type(torch.ones(2).as_subclass(Named).to("trn")) is Named


class Wrapped(torch.Tensor):
    """A tensor that holds another and computes on it."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        unwrap = lambda t: t.inner if isinstance(t, cls) else t  # noqa: E731
        result = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, torch.Tensor) else t, result)


def test_wrapper_subclasses_compute_on_trn():
    x = Wrapped(torch.randn(2, 3, device="trn"))
    assert x.is_trn
    y = (x @ x.t()).softmax(-1)
    assert isinstance(y, Wrapped)
    torch.testing.assert_close(y.inner, (x.inner @ x.inner.t()).softmax(-1), rtol=0, atol=0)
    assert x.to("cpu").inner.device.type == "cpu"


def test_fake_tensors_take_no_memory_and_say_trn():
    allocated = torch.trn.memory_allocated()
    with FakeTensorMode() as mode:
        x = torch.empty(1 << 40, device="trn")
        assert isinstance(x, FakeTensor)
        assert x.device == torch.device("trn", 0)
        y = nn.Linear(1024, 4096, device="trn:1")(torch.empty(7, 1024, device="trn:1"))
        assert y.shape == (7, 4096)
        assert y.device == torch.device("trn", 1)
        assert y.to("cpu").device.type == "cpu"
        q = torch.empty(2, 4, 16, 8, device="trn")
        assert nn.functional.scaled_dot_product_attention(q, q, q).shape == q.shape
    real = mode.from_tensor(torch.ones(3, device="trn"))
    with mode:
        assert (real + real).device.type == "trn"
    assert torch.trn.memory_allocated() <= allocated + 1024


def test_fake_tensors_find_mixed_devices():
    with FakeTensorMode():
        a, b = torch.empty(2, device="trn"), torch.empty(2)
        with pytest.raises(RuntimeError, match="trn:0"):
            a + b


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.TransformerEncoderLayer, nn.Conv2d])
def test_layers_run_on_fake_tensors(kind):
    arguments = (3, 4, 3) if kind is nn.Conv2d else (8, 2)
    shape = (2, 3, 9, 9) if kind is nn.Conv2d else (5, 2, 8)
    with FakeTensorMode():
        layer = kind(*arguments, device="trn")
        output = layer(torch.empty(shape, device="trn"))
        output = output[0] if isinstance(output, tuple) else output
        assert output.device.type == "trn"
        output.sum().backward()
        assert next(layer.parameters()).grad.device.type == "trn"


def test_meta_and_trn_meet_at_the_boundary_only():
    x = torch.ones(2, device="trn")
    assert x.to("meta").device.type == "meta"
    assert torch.empty_like(torch.empty(3, device="meta"), device="trn").is_trn
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(2, device="meta").to("trn")
    with pytest.raises(RuntimeError):
        x + torch.empty(2, device="meta")


def test_flops_are_counted():
    x = torch.ones(16, 32, device="trn")
    with FlopCounterMode(display=False) as counter:
        x @ x.T
    assert counter.get_total_flops() == 2 * 16 * 16 * 32


def test_custom_operators_run_on_trn():
    @library.custom_op("tests_trn::double", mutates_args=(), device_types="trn")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_fake(torch.empty_like)
    double.register_autograd(lambda ctx, grad: grad * 2)
    x = torch.ones(2, device="trn", requires_grad=True)
    double(x).sum().backward()
    assert x.grad.tolist() == [2, 2]
    with pytest.raises(NotImplementedError, match="CPU"):
        double(torch.ones(2))
    library.opcheck(double, (torch.ones(2, device="trn"),))


def test_an_operator_without_a_kernel_for_any_device_says_so():
    made = library.Library("tests_trn_missing", "DEF")
    made.define("nothing(Tensor x) -> Tensor")
    with pytest.raises(NotImplementedError, match=r"nothing|trn"):
        torch.ops.tests_trn_missing.nothing(torch.ones(1, device="trn"))


def test_an_operator_of_the_host_runs_on_trn():
    @library.custom_op("tests_trn::triple", mutates_args=(), device_types="cpu")
    def triple(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    y = triple(torch.ones(2, device="trn"))
    assert y.is_trn
    assert y.tolist() == [3, 3]
