"""assert_parity passes what the formats explain and names what they do not."""

import pytest
import torch
from torch import library, nn

from torch_trn_emu import set_precision
from torch_trn_emu.precision import POLICIES
from torch_trn_emu.testing import assert_parity


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 8))


X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("policy", [*POLICIES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_pass_under_every_policy(policy, dtype):
    assert_parity(model().to(dtype), X.to(dtype), steps=3, precision=policy)


@pytest.mark.parametrize("policy", ["fp32", "mxfp8", "mxfp8_all"])
def test_an_encoder_layer_and_a_convolution_pass(policy):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True)
    assert_parity(layer, torch.randn(4, 16, 64), precision=policy)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert_parity(convolution, torch.randn(4, 3, 8, 8), precision=policy)


def test_functions_and_keyword_inputs_pass():
    x = torch.randn(8, 8, requires_grad=True)
    found = assert_parity(lambda a, b: torch.softmax(a @ b, -1), x, torch.randn(8, 8))
    assert set(found.gradients) == {"input 0"}
    assert_parity(nn.Linear(4, 4), {"input": torch.randn(2, 4)})


def test_the_message_names_operator_module_error_and_format():
    with pytest.raises(AssertionError) as caught:
        assert_parity(model(), X, precision="mxfp8", tolerance=1e-3, steps=2)
    text = str(caught.value)
    assert "aten.addmm.default in 0 (forward), policy mxfp8" in text
    assert "caused by quantisation to MXFP8 E4M3 (quantisation 100.0%" in text
    assert "SQNR 2" in text
    assert "first module beyond the tolerance: 0 (Linear)" in text
    assert "gradient of 3.weight" in text
    assert "step 1: loss" in text


def test_a_module_with_another_policy_is_named():
    wrong = model()
    set_precision(wrong[3], "mxfp4")
    with pytest.raises(AssertionError, match=r"aten.addmm.default in 3 \(forward\), policy mxfp4"):
        assert_parity(wrong, X, precision="fp32", tolerance=1e-5)


def test_a_wrong_kernel_is_found_whatever_the_policy():
    made = library.Library("assertion_test", "DEF")
    made.define("twice(Tensor x) -> Tensor")
    made.impl("twice", lambda x: x * 2, "CPU")
    made.impl("twice", lambda x: x * 2.01, "PrivateUse1")

    class Wrong(nn.Module):
        def forward(self, x):
            return torch.ops.assertion_test.twice(x.detach())

    with pytest.raises(AssertionError) as caught:
        assert_parity(nn.Sequential(nn.Linear(64, 64), Wrong()), X, precision="mxfp4")
    text = str(caught.value)
    assert "first operator where they diverge: assertion_test.twice.default in 1" in text
    assert "caused by another computation" in text


def test_a_model_that_asks_for_the_device_is_found():
    def function(x):
        return x * 3 if x.device.type == "trn" else x * 2

    with pytest.raises(AssertionError, match="the model itself does something else on trn"):
        assert_parity(function, X)


def test_outputs_that_are_no_floats_must_be_equal():
    def winner(x):
        return (x if x.device.type == "cpu" else -x).argmax(-1)

    with pytest.raises(AssertionError, match=r"int64\): 32 of 32 values differ"):
        assert_parity(winner, X)


def test_a_gradient_in_one_place_only_fails():
    class Fickle(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.device.type == "cpu" else x @ self.weight.t()

    with pytest.raises(AssertionError, match="gradient of bias: in one place only"):
        assert_parity(Fickle(64, 64), X)


def test_a_loss_curve_that_parts_fails():
    class Drifting(nn.Linear):
        steps = 0

        def forward(self, x):
            self.steps += 1
            late = self.steps > 2 and x.device.type == "trn"
            return super().forward(x) * (2 if late else 1)

    with pytest.raises(AssertionError, match="step 3: loss"):
        assert_parity(Drifting(64, 64), X, steps=4)


def test_steps_need_a_module():
    with pytest.raises(ValueError, match="no parameters"):
        assert_parity(lambda x: x, X.clone().requires_grad_(), steps=1)
