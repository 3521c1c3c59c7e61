"""Kernels of C++ that are compiled together: torch_trn_emu/compiler/one_kernel_file.py."""

import pytest
import torch

import torch_trn_emu.compiler.one_kernel_file as together
from torch_trn_emu.compiler.one_kernel_file import in_one_file

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")

HEADER = "#include <torch/csrc/inductor/cpp_prefix.h>\n"

# Each defines a constant of the same name beside its `kernel`.
SCALE = (
    HEADER
    + """static const float by = {by};
extern "C" void kernel(const float* x, float* y, const int64_t n)
{{
    for (int64_t i = 0; i < n; ++i) y[i] = by * x[i];
}}
"""
)
FAILS = HEADER + 'extern "C" void kernel(float* x)\n{ throw std::runtime_error("no such x"); }\n'
POINTERS = ["const float*", "float*", "const int64_t"]


def compiled(*kernels):
    """What the module of a graph with these kernels has in its scope."""
    with in_one_file():
        from torch._inductor.async_compile import AsyncCompile
    asked = AsyncCompile()
    scope = {f"f{i}": asked.cpp_pybinding(*kernel) for i, kernel in enumerate(kernels)}
    asked.wait(scope)
    return list(scope.values())


@pytest.mark.parametrize("per_file", [2, 16])
def test_each_kernel_is_its_own(per_file, monkeypatch):
    monkeypatch.setattr(together, "KERNELS_PER_FILE", per_file)
    kernels = compiled(*((POINTERS, SCALE.format(by=by)) for by in (2, 3, 5)))
    x, y = torch.arange(4.0), torch.empty(4)
    for kernel, by in zip(kernels, (2, 3, 5), strict=True):
        assert kernel(x, y, 4) is None
        assert torch.equal(y, by * x)


def test_a_kernel_that_throws_and_a_call_with_too_few_arguments():
    scale, fails = compiled((POINTERS, SCALE.format(by=7)), (["float*"], FAILS))
    with pytest.raises(RuntimeError, match="no such x"):
        fails(torch.zeros(1))
    with pytest.raises(RuntimeError, match="requires 3 args"):
        scale(torch.zeros(1))


def test_a_graph_without_kernels():
    assert compiled() == []


def test_a_graph_of_more_kernels_than_a_file_takes(monkeypatch):
    monkeypatch.setattr(together, "KERNELS_PER_FILE", 1)

    def between_products(x, w):
        for _ in range(3):
            x = torch.tanh(x @ w) + 1
        return x

    x, w = torch.randn(4, 4, device="trn"), torch.randn(4, 4, device="trn")
    expected = between_products(x, w)
    assert torch.allclose(torch.compile(between_products, backend="trn")(x, w), expected, atol=1e-5)
