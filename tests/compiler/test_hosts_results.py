"""What the device's operators are on the host, and how their results lie there."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_trn_emu

from .comparing import TORCHS_OWN, leaf, results
from .on_machine import Found, backend_on

pytestmark = TORCHS_OWN


class Cells(nn.Module):
    """An LSTM's and a GRU's, for which the device has fused kernels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(width, width), nn.GRUCell(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = self.first(x)
        return self.second(h, c) + self.first(x, (c, h))[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cells_are_what_eager_makes_of_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cells, x = Cells(5).to("trn", dtype), leaf(3, 5, dtype=dtype)
    given = [x, *cells.parameters()]
    with torch_trn_emu.precision("fp32"):
        wanted = results(lambda *_: cells(x), given)
        compiled = torch.compile(cells, backend="trn")
        made = results(lambda *_: compiled(x), given)
    assert len(made) == 1 + len(given)
    for (_, here), (_, there) in zip(made, wanted, strict=True):
        rounded = 2 * torch.finfo(dtype).eps * float(there.abs().max())  # of two addends of a sum
        torch.testing.assert_close(here, there, rtol=1e-5, atol=rounded)


def test_cells_run_on_the_machine() -> None:
    found = Found()
    with torch_trn_emu.precision("fp32"):
        torch._dynamo.reset()
        made = torch.compile(Cells(7).to("trn"), backend=backend_on(found))(leaf(6, 7))
        made.backward(torch.ones_like(made))
    assert not found.differ
    assert not found.apart
    assert found.agree > 20


@pytest.mark.parametrize("rows", [1, 300])
def test_cells_compiled_take_no_longer(rows: int) -> None:
    found = []
    for mode in ("eager", "compile"):
        torch._dynamo.reset()
        cells, x = Cells(96).to("meta"), torch.empty(rows, 96, device="meta", requires_grad=True)

        def step(x: torch.Tensor, cells: nn.Module = cells) -> None:
            cells(x).backward(x)

        found.append(torch_trn_emu.estimate(step, x, mode=mode).device_us)
    assert 0 < found[1] <= 1.02 * found[0]


def test_gradients_lie_as_the_host_lays_them() -> None:
    """Of paddings in channels-last memory, and of bags whose last offset ends them."""

    def padded(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> object:
        made = [F.pad(x * 2, (1, 2, 2, 0), mode=mode) for mode in ("reflect", "replicate")]
        made += [F.pad(y * 2, (1, 2, 2, 0, 1, 1), mode="replicate")]
        ends = torch.tensor([0, 3, 3, 5], device=w.device)
        places = torch.tensor([1, 0, 1, 3, 2], device=w.device)
        for mode, scale in (("sum", s), ("mean", None), ("max", None)):
            made.append(F.embedding_bag(places, w, ends, mode=mode, per_sample_weights=scale,
                                        include_last_offset=True))  # fmt: skip
        return made

    x, y, w, s = leaf(2, 4, 5, 6), leaf(1, 2, 3, 4, 5), leaf(4, 8), leaf(5)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = y.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    torch._dynamo.reset()
    given = (x, y, w, s)
    wanted = results(padded, given)
    made = results(torch.compile(padded, backend="trn"), given)
    for (_, here), (_, there) in zip(made, wanted, strict=True):
        torch.testing.assert_close(here, there)
