"""Fused recurrent cells: no bit depends on how many threads share their rows."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

aten = torch.ops.aten


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Cells and gradients, of the same operands at each call."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).trn()

    found = []
    cx, grad_h, grad_c = (draw(rows, width) for _ in range(3))
    gates, hidden, bias = draw(rows, 4 * width), draw(rows, 4 * width), draw(4 * width)
    found += aten._thnn_fused_lstm_cell(gates, hidden, cx, bias, bias)
    cy, workspace = found[1:]
    for given in ((grad_h, grad_c), (None, grad_c), (grad_h, None)):
        found += aten._thnn_fused_lstm_cell_backward_impl(*given, cx, cy, workspace, True)
    gates, hidden, bias = draw(rows, 3 * width), draw(rows, 3 * width), draw(3 * width)
    cell = aten._thnn_fused_gru_cell(gates, hidden, cx, bias, bias)
    found += [*cell, *aten._thnn_fused_gru_cell_backward(grad_h, cell[1], True)]
    return [x.cpu() for x in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("threads")
def test_no_bit_depends_on_threads(dtype: torch.dtype) -> None:
    for rows, width in itertools.product((1, 2, 7, 16, 33, 130), (8, 31, 64, 100, 256, 257)):
        torch.set_num_threads(1)
        alone = results(rows, width, dtype)
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            shared = results(rows, width, dtype)
            assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
