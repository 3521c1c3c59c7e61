"""torch.compile without a backend: `trn` for trn tensors, Inductor as ever for the CPU's."""

import pytest
import torch
from comparing import TORCHS_OWN, leaf, results

from torch_trn_emu import compiler

pytestmark = TORCHS_OWN


def test_trn_tensors_are_compiled_by_trn_and_it_is_said_once(capsys):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).to("trn")
    x = leaf(4, 8)
    expected = results(model, [x])
    assert all(torch.equal(a, b) for (_, a), (_, b) in
               zip(results(torch.compile(model), [x]), expected, strict=True))  # fmt: skip
    torch.compile(lambda x: x + 1, backend="inductor")(x)
    assert capsys.readouterr().err.count("uses backend 'trn'") == 1
    assert {row.status for row in compiler.report()} == {"compiled", "note"}


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_pass_through(mode):
    x = torch.randn(4, 4, device="trn")
    assert torch.allclose(torch.compile(torch.sin, mode=mode)(x), x.sin())


def test_cpu_tensors_are_compiled_as_ever():
    x = torch.rand(4)  # the sine of a negative number may cancel with 1
    assert torch.allclose(torch.compile(lambda x: x.sin() + 1)(x), x.sin() + 1)
    assert compiler.report() == []
    assert torch.compiler.get_default_backend() == "inductor"


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_aot_inductor_refuses_by_name(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 4).to("trn"), (torch.ones(1, 4).to("trn"),))
    with pytest.raises(Exception, match="AOTInductor"):
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
