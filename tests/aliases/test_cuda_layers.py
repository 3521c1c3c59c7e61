"""Layers of attention in a script that says cuda: paths, TorchScript and compiled masks."""

from .test_cuda import run_as_cuda

SCRIPT = """
import warnings
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

warnings.filterwarnings("ignore", ".*nested tensors is in prototype")
torch.manual_seed(0)


def fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, hidden = torch.randn(2, 5, 16), torch.arange(5) >= torch.tensor([[5], [3]])
    with torch.no_grad():
        wanted = encoder(x, src_key_padding_mask=hidden)
        encoder, x, hidden = encoder.cuda(), x.cuda(), hidden.cuda()
        name = "torch._transformer_encoder_layer_fwd"
        with mock.patch(name, wraps=torch._transformer_encoder_layer_fwd) as called:
            assert torch.equal(encoder(x, src_key_padding_mask=hidden).cpu(), wanted)
        assert called.call_args[0][0].is_nested
        scripted = torch.jit.script(encoder)
        assert torch.equal(scripted(x, src_key_padding_mask=hidden).cpu(), wanted)


def overrides_are_still_seen():
    class Wrapped(torch.Tensor):
        pass

    plain, wrapped = torch.ones(2).cuda(), torch.ones(2).as_subclass(Wrapped)
    assert not torch.overrides.has_torch_function((plain, nn.Parameter(plain), None, 1))
    assert torch.overrides.has_torch_function((plain, wrapped))
    with torch.overrides.BaseTorchFunctionMode():
        assert torch.overrides.has_torch_function((plain,))


def causal_bias():
    q, kv = torch.randn(1, 2, 3, 8).cuda(), torch.randn(1, 2, 5, 8).cuda()
    bias = causal_lower_right(3, 5)
    compiled = torch.compile(F.scaled_dot_product_attention, backend="aot_eager", fullgraph=True)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2).cuda()
    wanted = F.scaled_dot_product_attention(q, kv, kv, attn_mask=mask)
    torch.testing.assert_close(F.scaled_dot_product_attention(q, kv, kv, bias), wanted)
    torch.testing.assert_close(compiled(q, kv, kv, bias), wanted)


for check in (fast_path, overrides_are_still_seen, causal_bias):
    check()
"""


def test_layers_of_attention(tmp_path):
    ran = run_as_cuda(tmp_path, SCRIPT)
    assert ran.returncode == 0, ran.stderr
