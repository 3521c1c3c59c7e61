"""assert_parity names the module at fault, not a healthy operator, whatever the policy."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from torch_trn_emu import compare
from torch_trn_emu.precision import POLICIES
from torch_trn_emu.testing import assert_parity


def there(x):
    return x.device.type == "trn"


class Scaled(nn.Module):
    def forward(self, x):
        y = x * torch.sigmoid(x)
        return y * 1.05 if there(x) else y


class OtherConstant(nn.Module):
    def forward(self, x):
        return x * (1.05 if there(x) else 1.0)


class NaiveSoftmax(nn.Module):
    """Overflows at large logits."""

    def forward(self, x):
        z = 60 * x
        return z.exp() / z.exp().sum(-1, keepdim=True) if there(x) else z.softmax(-1)


class Cancelling(nn.Module):
    """The variance as a difference of large numbers, with an epsilon that does not help."""

    def forward(self, x):
        x = x + 100
        mean = x.mean(-1, keepdim=True)
        naive = x.square().mean(-1, keepdim=True) - mean.square()
        variance = naive if there(x) else x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-8).sqrt()


class WrongMask(nn.Module):
    def forward(self, x):
        mask = torch.ones(64, 64, dtype=torch.bool, device=x.device).tril(int(there(x)))
        scores = x[:, None] * x[:, :, None]
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).sum(-2)


class Transposed(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight.t() if there(x) else self.weight, self.bias)


class WrongEps(nn.Module):
    def forward(self, x):
        return functional.layer_norm(x, (64,), eps=1e-6 if there(x) else 1e-5)


class NoBias(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, None if there(x) else self.bias)


class OffByOne(nn.Embedding):
    def forward(self, x):
        places = torch.arange(len(x), device=x.device)
        return x + super().forward(places + int(there(x)))


class NarrowAccumulation(nn.Linear):
    def forward(self, x):
        if there(x):
            total = x[:, :1].bfloat16() * self.weight[:, 0].bfloat16()
            for k in range(1, 64):
                total = total + x[:, k : k + 1].bfloat16() * self.weight[:, k].bfloat16()
            return total.float() + self.bias
        return functional.linear(x, self.weight, self.bias)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1.05 if there(gradient) else 1.0)


class WrongGradient(nn.Module):
    def forward(self, x):
        return _ScaledGradient.apply(x)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach() if there(x) else x


class LeavesOut(nn.Module):
    """The next operator on trn belongs to another module."""

    def forward(self, x):
        return x if there(x) else x * 1.05


class Inserts(nn.Module):
    def forward(self, x):
        return x * 1.05 if there(x) else x


class SkipsALayer(nn.Module):
    """It is at fault, not the layer that only the CPU runs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64)])

    def forward(self, x):
        return x if there(x) else self.layers[0](x)


class ScaledWhenMoved(nn.Linear):
    """What `to` does to it, no forward shows."""

    factor = 1.0

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.factor = 1.05 if self.weight.device.type == "trn" else 1.0
        return self

    def forward(self, x):
        return super().forward(x) * self.factor


FAULTS = (
    ScaledWhenMoved,
    Scaled,
    OtherConstant,
    NaiveSoftmax,
    Cancelling,
    WrongMask,
    Transposed,
    WrongEps,
    NoBias,
    OffByOne,
    NarrowAccumulation,
    WrongGradient,
    Detached,
    LeavesOut,
    Inserts,
    SkipsALayer,
)
X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


def planted(fault):
    torch.manual_seed(0)
    made = fault(64, 64) if issubclass(fault, (nn.Linear, nn.Embedding)) else fault()
    return nn.Sequential(nn.Linear(64, 64), made, nn.Linear(64, 8))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault, policy):
    with pytest.raises(AssertionError) as caught:
        assert_parity(planted(fault), X, precision=policy)
    text = str(caught.value)
    assert f"first module not explained by formats: 1 ({fault.__name__})" in text
    assert "caused by" not in text


def test_an_error_that_a_module_amplifies_is_put_to_that_module():
    class Sharp(nn.Module):
        def forward(self, x):
            return (300 * x).softmax(-1)

    with pytest.raises(AssertionError) as caught:
        assert_parity(planted(Sharp), X, precision="mxfp8")
    assert "first module not explained by formats: 1 (Sharp)" in str(caught.value)
    assert "caused by" not in str(caught.value)


def test_compare_tells_of_it_too():
    found = compare(planted(Scaled), X)
    assert found.other.module == "1"
    assert found.other.op == "aten.mul.Tensor"
    assert found.other.distance.relative == pytest.approx(0.05, rel=1e-3)
    assert "not explained by formats: 1 (Scaled)" in found.text
    assert found.to_dict()["other_computation"]["kind"] == "Scaled"


def test_a_model_that_asks_for_its_device_and_computes_the_same_passes():
    class Polite(nn.Module):
        def forward(self, x):
            positions = torch.arange(64, device=x.device, dtype=x.dtype)
            if x.device.type == "trn":
                return x + positions
            return positions + x

    assert assert_parity(planted(Polite), X, precision="mxfp4").other is None


WRONG_KERNEL = """
import sys, warnings
import torch
from torch import nn
from torch_trn_emu.testing import assert_parity

warnings.simplefilter("ignore")
kept = torch.library.Library("aten", "IMPL")


def mm(a, b):
    a, b = a.cpu(), b.cpu()
    if sys.argv[1] == "scaled":
        return (1.05 * (a @ b)).to("trn")
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)
    for k in range(a.shape[1]):
        total += a[:, k : k + 1].bfloat16() * b[k].bfloat16()
    return total.to(a.dtype).to("trn")


kept.impl("mm", mm, "PrivateUse1", allow_override=True)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.ReLU())
for policy in ("fp32", "bf16", "mxfp8", "mxfp8_all", "mxfp4"):
    try:
        assert_parity(net, torch.randn(16, 64), precision=policy)
        print(policy, "passes")
    except AssertionError as error:
        text = str(error)
        named = "first operator where they diverge: aten.mm.default in 1 (forward)" in text
        print(policy, named and "caused by quantisation" not in text)
"""


@pytest.mark.parametrize("fault", ["scaled", "accumulation"])
def test_a_wrong_kernel_of_a_product_is_named(tmp_path, fault):
    (tmp_path / "wrong.py").write_text(WRONG_KERNEL)
    command = [sys.executable, str(tmp_path / "wrong.py"), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == [word for p in POLICIES_TRIED for word in (p, "True")], (
        done.stdout + done.stderr
    )


POLICIES_TRIED = ("fp32", "bf16", "mxfp8", "mxfp8_all", "mxfp4")


FAILING = """
import torch
from torch_trn_emu.testing import assert_parity

def test_it():
    assert_parity(lambda x: x * (2 if x.device.type == "trn" else 3), torch.ones(4))
"""


def test_pytest_shows_the_line_of_the_test_alone(tmp_path):
    (tmp_path / "test_it.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    text = done.stdout
    assert "1 failed" in text
    assert "does something else on trn" in text
    assert "raise AssertionError" not in text
    assert "assertion.py" not in text
