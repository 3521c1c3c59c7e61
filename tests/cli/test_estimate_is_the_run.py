"""`trn-emu estimate` prices the launches that the device counts, operator by operator."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

import torch_trn_emu
from torch_trn_emu.calls import Target
from torch_trn_emu.cli.estimate import ShapesOnly
from torch_trn_emu.estimation import Recorder
from torch_trn_emu.settings import settings


class Block(nn.Module):
    """Embedding, attention, SwiGLU and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.norm, self.gate = nn.RMSNorm(32), nn.Linear(32, 64)
        self.down = nn.Linear(32, 32)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        x = self.layer(self.embed(tokens), src_mask=mask, is_causal=True)
        a, b = self.gate(self.norm(x)).chunk(2, -1)
        return (x + self.down(functional.silu(a) * b)) @ self.embed.weight.t()


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(36, 4),
    )  # fmt: skip


def optimizer(name, **options):
    return lambda parameters: getattr(torch.optim, name)(parameters, lr=0.01, **options)


IMAGES, TOKENS = torch.randn(2, 3, 8, 8), torch.randint(0, 64, (2, 8))
CASES = {
    "sgd": (convolutional, IMAGES, optimizer("SGD", momentum=0.9), False),
    "one by one": (convolutional, IMAGES, optimizer("AdamW", foreach=False), False),
    "fused": (convolutional, IMAGES, optimizer("AdamW", fused=True), False),
    "transformer": (Block, TOKENS, optimizer("AdamW"), False),
    "autocast": (Block, TOKENS, optimizer("AdamW"), True),
    "recurrent": (lambda: nn.GRU(8, 8), torch.randn(3, 2, 8), optimizer("RMSprop"), False),
    "LSTM": (
        lambda: nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True, dropout=0.1),
        torch.randn(3, 2, 8),
        optimizer("SGD"),
        True,
    ),
}


def training(case):
    make, inputs, make_optimizer, autocast = CASES[case]
    torch.manual_seed(0)
    model = make().to("trn")
    chosen, x = make_optimizer(model.parameters()), inputs.to("trn")

    def steps():
        for _ in range(2):
            with torch.autocast("trn", dtype=torch.bfloat16, enabled=autocast):
                out = model(x)
                loss = (out[0] if isinstance(out, tuple) else out).float().square().mean()
            chosen.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            chosen.step()
            loss.item()

    return steps


def counted(run):
    torch.trn.reset_counters()
    run()
    calls = Counter()
    for row in torch_trn_emu.op_report():
        calls[row.op.replace("_.", ".")] += row.calls
    return calls, torch.trn.counters()["launch_count"]


def estimated(run):
    recorder = Recorder(Target(settings().chip, settings().lnc), only="trn")
    with recorder, ShapesOnly(recorder):
        run()
    calls = Counter()
    for price, count in recorder.priced.values():
        calls[price.op.replace("_.", ".")] += count
    return calls, recorder.launches


@pytest.mark.parametrize("case", CASES)
def test_the_launches_are_those_of_the_device(case):
    assert estimated(training(case)) == counted(training(case))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.isclose(x, x).all(),
        lambda x: torch.addr(x, x[0], x[0]),
        lambda x: functional.pad(x, (1, 2)).index_fill(0, x.argmax(0)[:1], 2.0),
        lambda x: torch.diag_embed(x).masked_fill(torch.diag_embed(x) > 0, 1.0),
        lambda x: functional.bilinear(x, x, torch.ones(2, 3, 3, device="trn")),
        lambda x: functional.soft_margin_loss(x, x.sign()),
        lambda x: torch.linalg.pinv(x),
        lambda x: torch._foreach_addcmul([x, x], [x, x], [x, x], value=2),
    ],
    ids=["isclose", "addr", "pad", "diag", "bilinear", "margin", "pinv", "foreach"],
)
def test_what_the_device_makes_of_other_operators_is_made_of_them_here(call):
    x = torch.rand(3, 3, device="trn") + 1
    assert estimated(lambda: call(x)) == counted(lambda: call(x))
