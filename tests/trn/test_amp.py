"""torch.autocast("trn") and the gradient scaler."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

LOWER = {
    "mm": lambda x: x @ x,
    "linear": lambda x: F.linear(x, x),
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "addmm": lambda x: torch.addmm(x, x, x),
    "matmul": lambda x: torch.matmul(x, x[0]),
    "einsum": lambda x: torch.einsum("ij,jk->ik", x, x),
    "conv": lambda x: F.conv1d(x[None], x[:, :, None]),
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    "prelu": lambda x: F.prelu(x, torch.ones(1, device=x.device)),
    "lstm cell": lambda x: nn.LSTMCell(4, 4).to(x.device)(x)[0],
}  # fmt: skip
SINGLE = {
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "exp": lambda x: x.exp(),
    "pow": lambda x: x**3,
    "sum": lambda x: x.sum(),
    "norm": lambda x: x.norm(),
    "cumsum": lambda x: x.cumsum(0),
    "mse": lambda x: F.mse_loss(x, x),
    "cross entropy": lambda x: F.cross_entropy(x, x.argmax(1)),
    "cdist": lambda x: torch.cdist(x, x),
    "rsqrt": lambda x: x.abs().rsqrt(),
}


def square(dtype=torch.float32, device="trn"):
    torch.manual_seed(0)
    return torch.randn(4, 4).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOWER)
def test_products_are_computed_in_the_lower_format(name, dtype):
    with torch.autocast("trn", dtype=dtype):
        assert LOWER[name](square()).dtype == dtype


@pytest.mark.parametrize("name", SINGLE)
def test_what_needs_range_is_computed_in_float32(name):
    with torch.autocast("trn"):
        assert SINGLE[name](square(torch.bfloat16)).dtype == torch.float32


def test_mixed_arguments_are_promoted():
    a, b = square(), square(torch.bfloat16)
    with torch.autocast("trn"):
        assert torch.cat([a, b]).dtype == torch.float32
        assert torch.stack([a, b]).dtype == torch.float32
        assert torch.addcmul(a, b, b).dtype == torch.float32
        assert (b + b).dtype == torch.bfloat16  # on no list


def test_the_default_is_bfloat16_and_the_state_is_restored():
    assert torch.get_autocast_dtype("trn") == torch.bfloat16
    assert not torch.is_autocast_enabled("trn")
    with torch.autocast("trn"):
        assert torch.is_autocast_enabled("trn")
        assert not torch.is_autocast_enabled("cpu")
        assert (square() @ square()).dtype == torch.bfloat16
        with torch.autocast("trn", dtype=torch.float16):
            assert (square() @ square()).dtype == torch.float16
        with torch.autocast("trn", enabled=False):
            assert (square() @ square()).dtype == torch.float32
        assert (square() @ square()).dtype == torch.bfloat16
    assert (square() @ square()).dtype == torch.float32


def test_other_devices_are_left_alone():
    with torch.autocast("trn"):
        assert (square(device="cpu") @ square(device="cpu")).dtype == torch.float32
    with torch.autocast("cpu"):
        assert (square() @ square()).dtype == torch.float32


def test_a_format_the_device_lacks_is_refused():
    with pytest.warns(UserWarning, match="not supported"):
        region = torch.autocast("trn", dtype=torch.float64)
    with region:
        assert not torch.is_autocast_enabled("trn")
        assert (square() @ square()).dtype == torch.float32


def test_binary_cross_entropy_is_refused_as_unsafe():
    with torch.autocast("trn"), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(square().sigmoid(), square().sigmoid())


def test_autocast_decorates_functions_and_custom_operators():
    @torch.autocast("trn", dtype=torch.bfloat16)
    def f(x):
        return x @ x

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="trn", cast_inputs=torch.float32)
        def forward(ctx, x):
            assert not torch.is_autocast_enabled("trn")
            return x @ x

        @staticmethod
        @torch.amp.custom_bwd(device_type="trn")
        def backward(ctx, grad):
            return grad

    assert f(square()).dtype == torch.bfloat16
    with torch.autocast("trn"):
        assert Product.apply(square(torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_trains_under_autocast(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4)).to("trn")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("trn", enabled=dtype == torch.float16)
    x, y = torch.randn(64, 8, device="trn"), torch.randn(64, 4, device="trn")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("trn", dtype=dtype):
            output = model(x)
            loss = F.mse_loss(output, y)
        assert output.dtype == dtype
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert model[0].weight.grad.dtype == torch.float32
    assert losses[-1] < losses[0]


def test_weights_are_cast_once_in_a_region():
    layer = nn.Linear(4, 4).to("trn")
    with torch.autocast("trn"):
        y = layer(layer(square()))
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
def test_the_scaler_skips_steps_that_overflow(fused):
    p = torch.ones(2, device="trn", requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1.0, fused=fused)
    scaler = torch.amp.GradScaler("trn", init_scale=4.0, growth_interval=1)
    scaler.scale((p * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [1, 1]
    assert scaler.get_scale() == 2
    optimizer.zero_grad()
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert p.tolist() == [0, 0]
    assert scaler.get_scale() == 4
    other = torch.amp.GradScaler("trn")
    other.load_state_dict(scaler.state_dict())
    assert other.get_scale() == 4
