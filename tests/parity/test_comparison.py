"""Errors are put where they arise: module, operator, pass, and cause."""

import json
import math

import pytest
import torch
from torch import library, nn

from torch_trn_emu import compare, set_precision


def mlp():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 8))
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), inner)


X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


def by_place(found):
    return {(op.op, op.module, op.phase): op for op in found.ops}


def test_under_fp32_nothing_differs():
    found = compare(mlp(), X, b="trn@fp32")
    assert found.first_divergent is None
    assert found.outputs.max_abs == 0
    assert all(d.max_abs == 0 for d in found.gradients.values())
    assert "no operator diverges" in found.text


@pytest.mark.parametrize(
    ("policy", "label"),
    [
        ("bf16", "bfloat16"),
        ("mxfp8", "MXFP8 E4M3"),
        ("mxfp4", "MXFP4 E2M1 and MXFP8 E4M3"),
    ],
)
def test_quantised_operands_are_found_forward_and_backward(policy, label):
    found = compare(mlp(), X, b=f"trn@{policy}")
    assert found.first_divergent.where == "aten.addmm.default in 0 (forward)"
    assert found.first_divergent.cause == f"quantisation to {label}"
    rows = by_place(found)
    assert rows["aten.mm.default", "2.1", "backward"].calls == 2
    assert rows["aten.mm.default", "0", "backward"].diverges
    assert not rows["aten.gelu.default", "1", "forward"].diverges
    assert max(op.excess for op in found.ops) < 0.7  # the formats explain it, with room


def test_the_noise_of_a_product_is_what_its_format_says():
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 256), torch.randn(64, 256)
    policies = ("bf16", "mxfp8", "mxfp4")
    sqnr = {p: compare(layer, x, b=f"trn@{p}").outputs.sqnr_db for p in policies}
    # 4 and 2 more mantissa bits are worth 6 dB each; E2M1 has few exponents besides.
    assert sqnr["bf16"] - sqnr["mxfp8"] == pytest.approx(24, abs=2)
    assert 9 < sqnr["mxfp8"] - sqnr["mxfp4"] < 15


def test_a_module_with_a_policy_of_its_own_is_the_one_that_parts():
    model = mlp()
    set_precision(model[2][1], "mxfp4")
    found = compare(model, X, b="trn@fp32")
    assert {op.module for op in found.ops if op.diverges} == {"2.1"}
    assert found.first_divergent.policy == "mxfp4"
    errors = {m.module: m.distance.max_abs for m in found.modules}
    assert errors["0"] == errors["1"] == errors["2.0"] == 0
    assert errors["2.1"] == errors["2"] == errors[""] > 0


def test_rounding_of_a_16_bit_result_is_told_from_quantisation():
    """Operands that are bfloat16 already lose nothing under bf16: what differs is the last bit."""
    operands = (torch.randn(64, 512).bfloat16(), torch.randn(512, 64).bfloat16())
    found = compare(torch.mm, operands, b="trn@bf16", grads=False)
    assert found.first_divergent is None
    quantised = compare(torch.mm, operands, b="trn@mxfp8", grads=False)
    assert quantised.first_divergent.causes.main == "quantisation"
    twice_rounded = compare(torch.mm, operands, a="trn@fp32", b="trn@bf16", grads=False)
    assert twice_rounded.first_divergent is None


def kernels(name, host, device):
    """An operator of this test with different kernels on the host and on trn."""
    kept = library.Library("parity_test", "FRAGMENT")
    kept.define(f"{name}(Tensor x) -> Tensor")
    kept.impl(name, host, "CPU")
    kept.impl(name, device, "PrivateUse1")
    return kept, getattr(torch.ops.parity_test, name)


def test_accumulation_in_another_order_is_told():
    """One after the other in float32: an error that float64 removes."""

    def one_by_one(x):
        total = x[0]
        for value in x[1:]:
            total = total + value
        return total.clone()

    kept, total = kernels("total", lambda x: x.double().sum().to(x.dtype), one_by_one)
    found = compare(total, torch.tensor([1e8] + [1.0] * 50 + [-1e8]), grads=False)
    assert found.first_divergent.causes.main == "accumulation"
    del kept


def test_another_computation_is_told():
    kept, wrong = kernels("wrong", lambda x: x * 2, lambda x: x * 2.01)
    found = compare(wrong, torch.rand(99), grads=False)
    assert found.first_divergent.cause == "another computation"
    del kept


def test_rounding_of_the_result_is_told():
    """A kernel that rounds a bfloat16 result twice: an error that float32 inputs remove."""

    def coarse(x):
        return (x.float() * 3).half().mul(1.01).bfloat16() if x.dtype == torch.bfloat16 else x * 3

    kept, _ = kernels("thrice", lambda x: x * 3, coarse)
    found = compare(torch.ops.parity_test.thrice, torch.rand(999).bfloat16(), grads=False)
    assert found.first_divergent.causes.main == "rounding"
    del kept


def test_two_policies_can_be_compared():
    found = compare(mlp(), X, a="trn@bf16", b="trn@mxfp8")
    assert found.first_divergent.reference == "trn@bf16"
    assert 0 < found.outputs.relative < 0.2


def test_inputs_are_arguments_keywords_or_one_tensor():
    class Sum(nn.Module):
        def forward(self, x, y):
            return x @ y

    a, b = torch.randn(2, 4, 4)
    results = [compare(Sum(), given, b="trn@fp32") for given in ((a, b), {"x": a, "y": b})]
    assert all(r.outputs.elements == 16 and r.outputs.max_abs == 0 for r in results)
    asking = a.clone().requires_grad_()
    found = compare(Sum(), (asking, b), b="trn@fp32")
    assert set(found.gradients) == {"input 0"}
    assert asking.grad is None


def test_the_model_and_the_random_state_of_both_places_are_left_alike():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = compare(model, torch.randn(16, 8), b="trn@fp32")
    assert found.outputs.max_abs == 0  # the same elements dropped
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_in_place_operators_are_examined_from_the_values_before():
    found = compare(lambda x: x.add_(1).mul_(2), torch.randn(8), b="trn@fp32", grads=False)
    assert {op.op for op in found.ops} >= {"aten.add_.Tensor", "aten.mul_.Tensor"}
    assert all(op.distance.max_abs == 0 for op in found.ops)


def test_an_operator_without_a_kernel_for_the_host_is_held_against_trn():
    found = compare(nn.GRU(8, 8), torch.randn(4, 2, 8), b="trn@bf16")
    cells = [op for op in found.ops if "gru_cell" in op.op]
    assert cells
    assert all(op.reference == "trn@fp32" for op in cells)
    assert found.unexamined == {}


def test_reports_hold_the_same_figures():
    found = compare(mlp(), X, b="trn@mxfp8")
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["first_divergent"]["cause"] == "quantisation"
    assert {m["module"] for m in plain["modules"]} == {"0", "1", "2.0", "2.1", "2", ""}
    page = found.to_html()
    for text in (found.text, page):
        assert "aten.addmm.default in 0 (forward)" in text
        assert f"{found.outputs.sqnr_db:.1f}" in text
    assert "<script" not in page
    assert "aten.addmm.default in 0 (forward)" in found._repr_html_()


@pytest.mark.parametrize("name", ["cuda", "trn@fp7", "cpu@bf16"])
def test_an_unknown_place_is_refused(name):
    with pytest.raises((ValueError, RuntimeError), match=r"trn|device"):
        compare(mlp(), X, b=name)


def test_a_model_on_meta_is_refused():
    with pytest.raises(ValueError, match="meta"):
        compare(nn.Linear(2, 2, device="meta"), torch.zeros(2))


def test_the_tolerance_adds_up_over_operators():
    found = compare(mlp(), X, b="trn@mxfp8")
    assert 0 < found.tolerance("forward") < found.tolerance() <= 0.5
    assert found.outputs.relative < found.tolerance("forward")
    assert math.isclose(
        found.tolerance() ** 2, found.tolerance("forward") ** 2 + found.tolerance("backward") ** 2
    )
