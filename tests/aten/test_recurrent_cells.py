"""The fused recurrent cells: operands in contiguous rows take loops of the same bits as the host's
operators, which compute what is laid out otherwise.
"""

import itertools

import pytest
import torch
from torch import Tensor

import torch_trn_emu

BATCHES, WIDTHS = (1, 3, 16), (1, 5, 16, 33, 130)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LSTM, GRU = torch.ops.aten._thnn_fused_lstm_cell, torch.ops.aten._thnn_fused_gru_cell
LSTM_BACKWARD = torch.ops.aten._thnn_fused_lstm_cell_backward_impl
GRU_BACKWARD = torch.ops.aten._thnn_fused_gru_cell_backward


def scattered(x: Tensor) -> Tensor:
    """The same values, in rows that are not side by side: the host's operators take them."""
    wider = torch.zeros(x.shape[0], x.shape[1] + 3, dtype=x.dtype, device=x.device)
    wider[:, : x.shape[1]] = x
    return wider[:, : x.shape[1]]


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(
        (a is None and b is None) or torch.equal(a.cpu(), b.cpu())
        for a, b in zip(found, wanted, strict=True)
    )


def operands(gates: int, batch: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = ((batch, gates * width),) * 2 + ((batch, width),) + ((gates * width,),) * 2
    return [torch.randn(shape, dtype=torch.float64).to(dtype).to("trn") for shape in shapes]


def grad(batch: int, width: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, width, dtype=torch.float64).to(dtype).to("trn")


CASES = list(itertools.product(BATCHES, WIDTHS, DTYPES))


@pytest.mark.parametrize(("batch", "width", "dtype"), CASES)
def test_lstm_cells_have_the_bits_of_the_hosts_operators(batch, width, dtype):
    torch.manual_seed(0)
    x, h, c, b, d = operands(4, batch, width, dtype)
    for biases in ((b, d), (b, None), (None, d), (None, None)):
        fused = LSTM(x, h, c, *biases)
        assert same(fused, LSTM(x, h, scattered(c), *biases))
    dh, dc, (_, cy, workspace) = grad(batch, width, dtype), grad(batch, width, dtype), fused
    for grads in ((dh, dc), (dh, None), (None, dc)):
        for has_bias in (False, True):
            found = LSTM_BACKWARD(*grads, c, cy, workspace, has_bias)
            assert same(found, LSTM_BACKWARD(*grads, scattered(c), cy, workspace, has_bias))


@pytest.mark.parametrize(("batch", "width", "dtype"), CASES)
def test_gru_cells_have_the_bits_of_the_hosts_operators(batch, width, dtype):
    torch.manual_seed(0)
    x, h, c, b, d = operands(3, batch, width, dtype)
    for biases in ((b, d), (b, None), (None, d), (None, None)):
        fused = GRU(x, h, c, *biases)
        assert same(fused, GRU(x, h, scattered(c), *biases))
    g, workspace = grad(batch, width, dtype), fused[1]
    for has_bias in (False, True):
        found = GRU_BACKWARD(g, workspace, has_bias)
        assert same(found, GRU_BACKWARD(scattered(g), workspace, has_bias))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # of the CPU, about oneDNN
@pytest.mark.parametrize("packed", [False, True])
def test_layers_are_those_of_the_cpu(kind, packed):
    torch.manual_seed(0)
    options = {"num_layers": 2, "bidirectional": True} | (
        {"proj_size": 7} if kind == "LSTM" else {}
    )
    there = getattr(torch.nn, kind)(6, 19, **options)
    here = getattr(torch.nn, kind)(6, 19, **options).to("trn")
    here.load_state_dict(there.state_dict())
    x = torch.randn(5, 3, 6)
    results = []
    for module, device in ((there, "cpu"), (here, "trn")):
        given = x.clone().to(device).requires_grad_()
        inside = torch.nn.utils.rnn.pack_padded_sequence(given, torch.tensor([5, 4, 2]))
        with torch_trn_emu.precision("fp32"):
            out = module(inside if packed else given)[0]
            (out.data if packed else out).square().sum().backward()
        results.append(
            [(out.data if packed else out).detach(), given.grad]
            + [p.grad for p in module.parameters()]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b.cpu(), a)
