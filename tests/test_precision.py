"""The policy: process, block and module."""

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import torch_trn_emu
from torch_trn_emu.precision import POLICIES


@pytest.fixture(autouse=True)
def restore():
    before = torch.backends.trn.matmul.precision
    yield
    torch.backends.trn.matmul.precision = before


def run(code: str, **environ: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "import torch; torch.trn.init(); print(torch.backends.trn.matmul.precision)"


@pytest.mark.parametrize(
    ("chip", "policy"), [("trn1", "bf16"), ("trn2", "bf16"), ("trn3", "mxfp8")]
)
def test_the_chip_sets_the_default(chip, policy):
    assert run(SHOW, TRN_EMU_CHIP=chip, TRN_EMU_MATMUL="") == policy


def test_the_environment_sets_the_policy():
    assert run(SHOW, TRN_EMU_MATMUL="mxfp4") == "mxfp4"


def test_a_wrong_name_in_the_environment_is_an_error_of_the_first_use():
    code = """
import torch
try: torch.ones(1, device="trn")
except ValueError as error: print(error)
"""
    assert "unknown precision 'fp7'; choose from fp32, bf16" in run(code, TRN_EMU_MATMUL="fp7")


def test_the_process_wide_switch_holds_for_every_thread():
    torch.backends.trn.matmul.precision = "fp32"
    assert torch_trn_emu.current_precision() == "fp32"
    with pytest.raises(ValueError, match="choose from"):
        torch.backends.trn.matmul.precision = "fp16"


def test_blocks_nest_and_restore():
    torch.backends.trn.matmul.precision = "mxfp8"
    with torch_trn_emu.precision("bf16"):
        with torch_trn_emu.precision("fp32"):
            assert torch_trn_emu.current_precision() == "fp32"
        assert torch_trn_emu.current_precision() == "bf16"
    assert torch_trn_emu.current_precision() == "mxfp8"


def test_it_decorates_functions():
    @torch_trn_emu.precision("mxfp4")
    def inside() -> str:
        return torch_trn_emu.current_precision()

    torch.backends.trn.matmul.precision = "bf16"
    assert inside() == "mxfp4"
    assert torch_trn_emu.current_precision() == "bf16"


def test_a_block_is_left_when_an_error_passes():
    torch.backends.trn.matmul.precision = "bf16"
    with pytest.raises(ZeroDivisionError), torch_trn_emu.precision("fp32"):
        raise ZeroDivisionError
    assert torch_trn_emu.current_precision() == "bf16"


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_a_block_holds_in_the_backward_called_inside():
    model, x = nn.Linear(64, 32).trn(), torch.randn(8, 64).trn()
    host = nn.Linear(64, 32)
    host.load_state_dict(model.state_dict())
    torch.backends.trn.matmul.precision = "mxfp4"
    with torch_trn_emu.precision("fp32"):
        got = gradients(model, x)
    for a, b in zip(got, gradients(host, x.cpu()), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-4)


def test_a_module_keeps_its_own_policy_forward_and_backward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).trn()
    x = torch.randn(16, 64).trn()
    torch.backends.trn.matmul.precision = "mxfp4"
    low = gradients(model, x)
    torch.backends.trn.matmul.precision = "fp32"
    exact = gradients(model, x)
    torch.backends.trn.matmul.precision = "mxfp4"
    torch_trn_emu.set_precision(model, "fp32")
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, x), exact, strict=True))
    torch_trn_emu.set_precision(model, None)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, x), low, strict=True))


def test_an_inner_module_wins_over_an_outer_one():
    seen = []

    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch_trn_emu.current_precision())
            return x

    model = nn.Sequential(Probe(), Probe())
    torch_trn_emu.set_precision(model, "bf16")
    torch_trn_emu.set_precision(model[1], "fp32")
    model(torch.ones(1))
    assert seen == ["bf16", "fp32"]


def test_float32_matmul_precision_has_no_effect():
    a = torch.randn(33, 70).trn()
    before = torch.mm(a, a.t())
    was = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(torch.mm(a, a.t()), before)
    finally:
        torch.set_float32_matmul_precision(was)


def test_the_policies_are_those_of_the_docs():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs" / "fidelity.md").read_text()
    assert all(f"| `{policy}` " in text for policy in POLICIES)


def test_threads_put_back_their_own_policies():
    """One object entered by two threads, which leave it in the order they entered."""
    shared, inside, found = torch_trn_emu.precision("bf16"), threading.Barrier(2), {}

    def run(policy, first):
        with torch_trn_emu.precision(policy):
            if not first:
                inside.wait()
            with shared:
                if first:
                    inside.wait()
                inside.wait()
                assert torch_trn_emu.current_precision() == "bf16"
            found[policy] = torch_trn_emu.current_precision()

    threads = [
        threading.Thread(target=run, args=(policy, k == 0))
        for k, policy in enumerate(("fp32", "mxfp8"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"fp32": "fp32", "mxfp8": "mxfp8"}


def test_a_backward_that_raises_leaves_the_policies_alone():
    """A hook of the failing node that puts back the policy does not run."""

    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ArithmeticError("planted")

    class MmBackwardRaises(Raises):  # by its name a product, whose backward has the policy
        pass

    class Layer(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function.apply(x)

    calls = [lambda y: y.backward(), lambda y: torch.autograd.grad(y, x)]
    x = torch.ones(3, device="trn", requires_grad=True)
    for function in (Raises, MmBackwardRaises):
        layer = Layer(function)
        torch_trn_emu.set_precision(layer, "fp32")
        for call in calls:
            with torch_trn_emu.precision("mxfp8_all"):
                with pytest.raises(ArithmeticError, match="planted"):
                    call(layer(x).sum())
                assert torch_trn_emu.current_precision() == "mxfp8_all"
    # A product that fails: its gradient has another shape than what was saved.
    layer = torch.nn.Linear(4, 4, bias=False).to("trn")
    torch_trn_emu.set_precision(layer, "fp32")
    before = torch_trn_emu.current_precision()
    out = layer(torch.ones(2, 4, device="trn", requires_grad=True))
    out.register_hook(lambda grad: grad.new_ones(3, 5))
    with pytest.raises(RuntimeError):
        out.sum().backward()
    assert torch_trn_emu.current_precision() == before
