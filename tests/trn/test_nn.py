"""Layers and functions of torch.nn, forward and backward, bit for bit as on the host."""

import pytest
import torch
import torch.nn.functional as F
from parity import assert_same_on_trn, attention_bound, leaf, with_gradients
from torch import nn
from torch.nn.utils import rnn

# ---- layers: (how to make one, shapes of its inputs) ----

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), [(3, 5)]),
    "linear of one row": (lambda: nn.Linear(5, 7), [(5,)]),
    "linear without bias, batched": (lambda: nn.Linear(5, 7, bias=False), [(2, 3, 5)]),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)]),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), [(2, 4, 9)]),
    "conv1d grouped, dilated": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2), [(2, 4, 9)]),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3), [(2, 3, 8, 8)]),
    "conv2d unbatched": (lambda: nn.Conv2d(3, 6, 3), [(3, 8, 8)]),
    "conv2d strided, same padding": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), [(2, 3, 8, 9)]),
    "conv2d same": (lambda: nn.Conv2d(3, 6, (3, 5), padding="same"), [(2, 3, 8, 9)]),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), [(2, 4, 9, 9)]),
    "conv2d reflecting": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), [(2, 2, 6, 6)]),
    "conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1), [(1, 2, 5, 5, 5)]),
    "conv3d grouped": (lambda: nn.Conv3d(2, 4, 2, groups=2, dilation=2), [(1, 2, 5, 5, 5)]),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), [(2, 4, 7)]),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), [(2, 4, 5, 5)]),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 3, dilation=2), [(1, 2, 4, 4, 4)]),
    "unfold": (lambda: nn.Unfold(3, padding=1), [(2, 3, 6, 6)]),
    "fold": (lambda: nn.Fold((6, 6), 3), [(2, 18, 16)]),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), [(4, 5)]),
    "batch norm 2d": (lambda: nn.BatchNorm2d(5), [(4, 5, 3, 3)]),
    "batch norm 3d": (lambda: nn.BatchNorm3d(2), [(2, 2, 3, 3, 3)]),
    "batch norm, evaluating": (lambda: nn.BatchNorm2d(5).eval(), [(4, 5, 3, 3)]),
    "group norm": (lambda: nn.GroupNorm(2, 6), [(3, 6, 4)]),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), [(2, 3, 4, 4)]),
    "layer norm": (lambda: nn.LayerNorm(6), [(2, 3, 6)]),
    "rms norm": (lambda: nn.RMSNorm(6), [(2, 3, 6)]),
    "local response norm": (lambda: nn.LocalResponseNorm(2), [(2, 4, 5, 5)]),
    "max pool": (lambda: nn.MaxPool2d(2), [(2, 3, 6, 6)]),
    "max pool 3d": (lambda: nn.MaxPool3d(2), [(1, 2, 4, 4, 4)]),
    "average pool": (lambda: nn.AvgPool2d(3, stride=1, padding=1), [(2, 3, 6, 6)]),
    "average pool 1d": (lambda: nn.AvgPool1d(2), [(2, 3, 6)]),
    "adaptive average pool": (lambda: nn.AdaptiveAvgPool2d((2, 3)), [(2, 3, 7, 7)]),
    "adaptive max pool": (lambda: nn.AdaptiveMaxPool1d(3), [(2, 3, 7)]),
    "lp pool": (lambda: nn.LPPool2d(2, 2), [(2, 3, 6, 6)]),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), [(1, 8, 3, 3)]),
    "padding": (lambda: nn.ReplicationPad2d(2), [(1, 2, 4, 4)]),
    "circular padding": (lambda: nn.CircularPad1d(2), [(1, 2, 4)]),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), [(1, 2, 4, 4)]),
    "multi-head attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [(2, 5, 8)] * 3),
    "transformer encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.1), [(5, 2, 8)]),
    "transformer encoder layer, evaluating": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), [(2, 5, 8)]),
    "transformer decoder layer": (lambda: nn.TransformerDecoderLayer(8, 2, 16, 0.0), [(5, 2, 8)] * 2),
    "rnn cell": (lambda: nn.RNNCell(4, 6), [(3, 4)]),
    "dropout, evaluating": (lambda: nn.Dropout(0.5).eval(), [(3, 4)]),
    "prelu": (lambda: nn.PReLU(3), [(2, 3, 4)]),
    "softmax": (lambda: nn.Softmax(-1), [(2, 3, 4)]),
    "log softmax": (lambda: nn.LogSoftmax(1), [(2, 3, 4)]),
    "cosine similarity": (lambda: nn.CosineSimilarity(), [(3, 4), (3, 4)]),
    "pairwise distance": (lambda: nn.PairwiseDistance(), [(3, 4), (3, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name):
    make, shapes = LAYERS[name]

    def step(device):
        layer = make().to(device)
        inputs = [leaf(device, *shape) for shape in shapes]
        torch.manual_seed(1)  # dropout: the layer was made with the host's numbers
        results = with_gradients(layer(*inputs), *inputs, *layer.parameters())
        return results, list(layer.buffers())

    assert_same_on_trn(step, bound=attention_bound() if "transformer" in name else 0.0)


ACTIVATIONS = (
    nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.ELU(), nn.CELU(), nn.SELU(),
    nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.LeakyReLU(), nn.LogSigmoid(), nn.Sigmoid(),
    nn.Softplus(), nn.Softshrink(), nn.Hardshrink(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.GLU(),
    nn.Threshold(0.1, 20),
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_an_activation(activation, dtype):
    def step(device):
        x = leaf(device, 33, 8, dtype=dtype)
        return with_gradients(activation(x), x)

    assert_same_on_trn(step)


# ---- recurrent networks ----


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first"), [(1, False, False), (2, True, True)]
)
def test_a_recurrent_network(kind, layers, bidirectional, batch_first):
    def step(device):
        net = kind(4, 5, layers, bidirectional=bidirectional, batch_first=batch_first).to(device)
        x = leaf(device, 6, 3, 4)
        return with_gradients(net(x), x, *net.parameters())

    assert_same_on_trn(step, bound=1e-6)  # fused cells: gradients are summed in another order


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_a_fused_cell(kind):
    def step(device):
        cell = kind(4, 6).to(device)
        x = leaf(device, 3, 4)
        return with_gradients(cell(x), x, *cell.parameters())

    assert_same_on_trn(step, bound=1e-6)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_packed_sequence(kind):
    lengths = [5, 3, 2]

    def step(device):
        net = kind(4, 5, bidirectional=True, batch_first=True).to(device)
        x = leaf(device, 3, 5, 4)
        packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True)
        output, _ = net(packed)
        padded, back = rnn.pad_packed_sequence(output, batch_first=True)
        assert back.tolist() == lengths
        return with_gradients(padded, x, *net.parameters())

    assert_same_on_trn(step, bound=1e-6)


def test_sequences_are_packed_padded_and_unpadded():
    def step(device):
        sequences = [torch.randn(n, 2).to(device) for n in (2, 4, 3)]
        packed = rnn.pack_sequence(sequences, enforce_sorted=False)
        padded = rnn.pad_sequence(sequences, batch_first=True, padding_value=-1)
        lengths = torch.tensor([2, 4, 3])
        return (
            packed.data,
            packed.unsorted_indices,
            padded,
            rnn.unpad_sequence(padded, lengths, batch_first=True),
            rnn.unpack_sequence(packed),
        )

    assert_same_on_trn(step)


@pytest.mark.filterwarnings("ignore:.*not supported with oneDNN")  # on the host
def test_lstm_with_projection_and_dropout():
    def step(device):
        net = nn.LSTM(4, 6, 2, proj_size=3, dropout=0.5).to(device)
        x = leaf(device, 5, 2, 4)
        torch.manual_seed(1)
        return with_gradients(net(x), x, *net.parameters())

    assert_same_on_trn(step, bound=1e-6)


# ---- attention ----

MASKS = {
    "none": lambda d: None,
    "bool": lambda d: torch.ones(6, 6, dtype=torch.bool).tril().to(d),
    "bool, batched": lambda d: (torch.rand(2, 1, 6, 6) > 0.2).logical_or(torch.eye(6).bool()).to(d),
    "float": lambda d: torch.randn(6, 6).to(d),
    "float, heads": lambda d: torch.randn(2, 4, 6, 6).to(d),
    "float with gradient": lambda d: torch.randn(6, 6).to(d).requires_grad_(),
    "hidden row": lambda d: torch.tensor([[True] * 6] * 5 + [[False] * 6]).to(d),
}  # fmt: skip


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_with_a_mask(mask, dtype):
    def step(device):
        q, k, v = (leaf(device, 2, 4, 6, 8, dtype=dtype) for _ in range(3))
        m = MASKS[mask](device)
        if m is not None and m.is_floating_point():
            m = m.detach().to(dtype).requires_grad_(m.requires_grad)
        return with_gradients(F.scaled_dot_product_attention(q, k, v, attn_mask=m), q, k, v)

    assert_same_on_trn(step, bound=attention_bound(dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.7},
        {"dropout_p": 0.3},
        {"dropout_p": 0.3, "is_causal": True},
        {"enable_gqa": True},
        {"enable_gqa": True, "is_causal": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", [(6, 6), (1, 9), (7, 3)], ids=str)
def test_attention_with_options(options, sizes):
    queries, keys = sizes
    key_heads = 2 if "enable_gqa" in options else 4

    def step(device):
        q = leaf(device, 2, 4, queries, 8)
        k, v = leaf(device, 2, key_heads, keys, 8), leaf(device, 2, key_heads, keys, 8)
        torch.manual_seed(1)
        return with_gradients(F.scaled_dot_product_attention(q, k, v, **options), q, k, v)

    assert_same_on_trn(step, bound=attention_bound())


@pytest.mark.parametrize("shape", [(6, 8), (3, 6, 8), (2, 3, 4, 6, 8), (2, 4, 0, 8)], ids=str)
def test_attention_of_any_rank(shape):
    def step(device):
        q, k, v = (leaf(device, *shape) for _ in range(3))
        return with_gradients(F.scaled_dot_product_attention(q, k, v), q, k, v)

    assert_same_on_trn(step)


def test_the_attention_kernel_can_be_chosen():
    q = torch.randn(1, 2, 4, 8, device="trn")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = F.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), plain)


# ---- embeddings ----


@pytest.mark.parametrize(
    "options",
    [{}, {"padding_idx": 1}, {"sparse": True}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}],
    ids=str,
)
def test_an_embedding(options):
    def step(device):
        net = nn.Embedding(9, 4, **options).to(device)
        return with_gradients(net(torch.tensor([[1, 2, 2], [0, 8, 1]]).to(device)), net.weight)

    assert_same_on_trn(step)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag(mode, sparse):
    if mode == "max" and sparse:
        pytest.skip("torch has no sparse gradient for max")

    def step(device):
        net = nn.EmbeddingBag(9, 4, mode=mode, sparse=sparse).to(device)
        index = torch.tensor([1, 2, 2, 0, 8, 1]).to(device)
        return with_gradients(net(index, torch.tensor([0, 3, 3]).to(device)), net.weight)

    assert_same_on_trn(step)


def test_a_sparse_gradient_trains():
    def step(device):
        net = nn.Embedding(9, 4, sparse=True).to(device)
        optimizer = torch.optim.SparseAdam(net.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.tensor([1, 2, 2]).to(device)).square().sum().backward()
            assert net.weight.grad.is_sparse
            optimizer.step()
        return net.weight

    assert_same_on_trn(step)


# ---- losses, interpolation, sampling ----

LOSSES = {
    "mse": lambda x, y, c: F.mse_loss(x, y),
    "l1": lambda x, y, c: F.l1_loss(x, y),
    "smooth l1": lambda x, y, c: F.smooth_l1_loss(x, y),
    "huber": lambda x, y, c: F.huber_loss(x, y),
    "cross entropy": lambda x, y, c: F.cross_entropy(x, c),
    "smoothed cross entropy": lambda x, y, c: F.cross_entropy(x, c, label_smoothing=0.1, ignore_index=2),
    "weighted cross entropy": lambda x, y, c: F.cross_entropy(x, c, weight=y[0].abs().detach()),
    "soft cross entropy": lambda x, y, c: F.cross_entropy(x, y.softmax(1)),
    "nll": lambda x, y, c: F.nll_loss(x.log_softmax(1), c),
    "binary": lambda x, y, c: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
    "binary of logits": lambda x, y, c: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "kl": lambda x, y, c: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "poisson": lambda x, y, c: F.poisson_nll_loss(x, y.exp()),
    "gaussian": lambda x, y, c: F.gaussian_nll_loss(x, y, y.exp()),
    "hinge": lambda x, y, c: F.hinge_embedding_loss(x, y.sign()),
    "margin": lambda x, y, c: F.multi_margin_loss(x, c),
    "soft margin": lambda x, y, c: F.soft_margin_loss(x, y.detach().sign()),
    "triplet": lambda x, y, c: F.triplet_margin_loss(x, y, x.flip(0)),
    "cosine": lambda x, y, c: F.cosine_embedding_loss(x, y, torch.ones_like(c)),
    "ctc": lambda x, y, c: F.ctc_loss(
        x[:, None].log_softmax(-1), c[None, :2] + 1, torch.tensor([4]), torch.tensor([2])),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss(name):
    def step(device):
        x, y = leaf(device, 4, 5), leaf(device, 4, 5)
        classes = torch.tensor([1, 2, 3, 0]).to(device)
        return with_gradients(LOSSES[name](x, y, classes), x)

    assert_same_on_trn(step)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 5), {"size": 8, "mode": "linear"}),
        ((1, 2, 5, 6), {"scale_factor": 2, "mode": "nearest"}),
        ((1, 2, 5, 6), {"scale_factor": 1.5, "mode": "nearest-exact"}),
        ((1, 2, 5, 6), {"size": (3, 9), "mode": "bilinear", "align_corners": True}),
        ((1, 2, 5, 6), {"size": (3, 9), "mode": "bilinear", "antialias": True}),
        ((1, 2, 5, 6), {"size": (9, 9), "mode": "bicubic"}),
        ((1, 2, 3, 4, 5), {"size": (4, 4, 4), "mode": "trilinear"}),
        ((1, 2, 5, 6), {"size": (2, 2), "mode": "area"}),
    ],
    ids=str,
)
def test_interpolation(shape, options):
    def step(device):
        x = leaf(device, *shape)
        return with_gradients(F.interpolate(x, **options), x)

    assert_same_on_trn(step)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sampling(mode):
    def step(device):
        x, theta = leaf(device, 1, 2, 5, 5), leaf(device, 1, 2, 3)
        grid = F.affine_grid(theta, (1, 2, 4, 4), align_corners=False)
        return with_gradients(F.grid_sample(x, grid, mode=mode, align_corners=False), x, theta)

    assert_same_on_trn(step)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_layers_in_other_formats(dtype):
    def step(device):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 5)
        ).to(device, dtype)  # fmt: skip
        x = leaf(device, 2, 3, 6, 6, dtype=dtype)
        return with_gradients(net(x), x, *net.parameters())

    assert_same_on_trn(step)


def test_channels_last_is_kept():
    def step(device):
        net = nn.Conv2d(3, 4, 3).to(device, memory_format=torch.channels_last)
        y = net(torch.randn(2, 3, 6, 6).to(device, memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        return with_gradients(y, net.weight)

    assert_same_on_trn(step)
