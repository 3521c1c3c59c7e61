"""What a coarser policy costs each module, and the policy proposed."""

import json

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu import sensitivity
from torch_trn_emu.errors import Unsupported


class Uneven(nn.Module):
    """`quiet` adds a thousandth of what `loud` does."""

    def __init__(self):
        super().__init__()
        self.loud, self.quiet = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.loud(x) + 1e-3 * self.quiet(x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Uneven()


X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))


def test_modules_are_ranked_by_what_they_cost(model):
    found = sensitivity(model, X)
    order = [(row.module, row.policy) for row in found.rows]
    assert order == [("loud", "mxfp4"), ("loud", "mxfp8"), ("quiet", "mxfp4"), ("quiet", "mxfp8")]
    for name in ("loud", "quiet"):
        assert name in found.text
        assert name in found.to_html()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][0]["module"] == "loud"


@pytest.mark.parametrize(
    ("target_db", "proposal"),
    [
        (10, {"loud": "mxfp4", "quiet": "mxfp4"}),
        (25, {"loud": "mxfp8", "quiet": "mxfp4"}),
        (60, {"loud": "fp32", "quiet": "mxfp4"}),
    ],
)
def test_the_proposal_keeps_its_target(model, target_db, proposal):
    found = sensitivity(model, X, target_db=target_db)
    assert found.proposal == proposal
    assert found.predicted_db >= target_db
    assert found.measured.sqnr_db == pytest.approx(found.predicted_db, abs=2)


def test_the_proposal_can_be_applied(model):
    found = sensitivity(model, X, target_db=25)
    found.apply(model)
    x = X.to("trn")
    with torch_trn_emu.precision("fp32"):
        assert torch.equal(model.to("trn")(x).cpu(), expected(model, x))


def expected(model, x):
    with torch_trn_emu.precision("mxfp8"):
        loud = nn.functional.linear(x, model.loud.weight, model.loud.bias)
    with torch_trn_emu.precision("mxfp4"):
        quiet = nn.functional.linear(x, model.quiet.weight, model.quiet.bias)
    return (loud + 1e-3 * quiet).cpu()


def test_the_given_model_is_left_as_it_was(model):
    torch_trn_emu.set_precision(model.loud, "bf16")
    sensitivity(model, X)
    assert "_trn_precision_hooks" in model.loud.__dict__
    assert next(model.parameters()).device.type == "cpu"


def test_products_of_the_model_itself_count(model):
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(64, 64)

        def forward(self, x):
            return x @ self.project(x).t()

    found = sensitivity(Scores(), X, ["mxfp8"])
    assert {row.module for row in found.rows} == {"project", ""}


def test_wrong_requests(model):
    with pytest.raises(ValueError, match="fp7"):
        sensitivity(model, X, ["fp7"])
    with pytest.raises(ValueError, match="choose"):
        sensitivity(model, X, [])
    with pytest.raises(Unsupported, match="compare"):
        sensitivity(nn.ReLU(), X)
