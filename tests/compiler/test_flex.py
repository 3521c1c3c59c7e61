"""FlexAttention on trn: the CPU's values eagerly and compiled, gradients, and its price."""

import pytest
import torch
from comparing import TORCHS_OWN
from torch.nn.attention import flex_attention as flex

import torch_trn_emu

pytestmark = [
    *TORCHS_OWN,
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
SIZE = 128


@pytest.fixture(autouse=True)
def float32():
    with torch_trn_emu.precision("fp32"):
        yield


def causal(batch, head, row, column):
    return row >= column


def operands(device="trn", kv_heads=4, size=SIZE, grad=False):
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, size, 16), (2, kv_heads, size, 16), (2, kv_heads, size, 16)
    made = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    return [t.requires_grad_(grad) for t in made]


def mask(device="trn", size=SIZE, kind=causal, block=128):
    return flex.create_block_mask(kind, None, None, size, size, device=device, BLOCK_SIZE=block)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_values_are_the_cpus(kv_heads, masked):
    def attend(device):
        slope = torch.tensor([0.1, -0.2, 0.3, 0.4], device=device)

        def distance(score, batch, head, row, column):
            return score + slope[head] * (row - column)

        return flex.flex_attention(
            *operands(device, kv_heads), score_mod=distance,
            block_mask=mask(device) if masked else None, enable_gqa=kv_heads != 4,
        ).cpu()  # fmt: skip

    assert torch.equal(attend("trn"), attend("cpu"))


def reference(q, k, v, slope):
    """Attention as products in float64, with the gradients of a sum of squares."""
    leaves = [t.detach().cpu().double().requires_grad_() for t in (q, k, v, slope)]
    places = torch.arange(q.shape[-2])
    away = places[:, None] - places
    k, v = (t.repeat_interleave(2, 1) for t in leaves[1:3])
    scores = leaves[0] @ k.mT / 4 + leaves[3][None, :, None, None] * away
    out = scores.masked_fill(away < 0, -torch.inf).softmax(-1) @ v
    out.square().sum().backward()
    return [out, *(t.grad for t in leaves)]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_operands_and_of_what_the_score_function_captures(compiled):
    q, k, v = operands(kv_heads=2, grad=True)
    slope = torch.tensor([0.1, -0.2, 0.3, 0.4]).to("trn").requires_grad_()
    blocks = mask()

    def attend(q, k, v):
        def distance(score, batch, head, row, column):
            return score + slope[head] * (row - column)

        return flex.flex_attention(q, k, v, distance, blocks, enable_gqa=True)

    run = torch.compile(attend, fullgraph=True) if compiled else attend
    out = run(q, k, v)
    out.square().sum().backward()
    expected = reference(q, k, v, slope)
    for got, wanted in zip([out, *(t.grad for t in (q, k, v, slope))], expected, strict=True):
        assert (got.cpu() - wanted).abs().max() < 2e-5 * wanted.abs().max().clamp(min=1)


def test_the_price_is_one_launch_of_the_blocks_that_the_mask_keeps():
    def documents(batch, head, row, column):
        return row // 32 == column // 32

    shares, times = [], []
    for kind in (None, causal, documents):
        q, k, v = operands(size=512)
        blocks = mask(size=512, kind=kind, block=32) if kind else None
        torch_trn_emu.reset_op_counts()
        flex.flex_attention(q, k, v, block_mask=blocks)
        (row,) = [row for row in torch_trn_emu.launches() if "flex" in row.op]
        assert row.launches == 1
        times.append(row.device_ns)
        shares.append(float(row.signature.split("], ")[-1].split()[0]))
    assert shares == [1.0, 0.531, 0.062]
    assert times[0] > times[1] > times[2]


def test_a_compiled_call_is_priced_by_its_blocks_too():
    def window(batch, head, row, column):
        return (row >= column) & (row - column < 32)

    times = []
    for kind in (None, causal, window):
        torch._dynamo.reset()
        blocks = mask(size=512, kind=kind, block=32) if kind else None
        q, k, v = operands(size=512, grad=True)
        torch_trn_emu.reset_op_counts()
        torch.compile(flex.flex_attention)(q, k, v, block_mask=blocks).sum().backward()
        rows = [row for row in torch_trn_emu.launches() if "graph" in row.op]
        assert [row.launches for row in rows] == [1, 1]
        times.append([row.device_ns for row in rows])
    for whole, half, few in zip(*times, strict=True):
        assert whole > half > few


def test_what_goes_beside_the_result():
    q, k, v = operands()
    out, aux = flex.flex_attention(q, k, v, return_aux=flex.AuxRequest(lse=True, max_scores=True))
    expected = (q @ k.mT / 4).logsumexp(-1)
    torch.testing.assert_close(aux.lse, expected)
    assert aux.max_scores.shape == (2, 4, SIZE)
    with torch.autocast("trn", dtype=torch.bfloat16):
        assert flex.flex_attention(q, k, v).dtype == torch.bfloat16
    assert out.dtype == torch.float32
