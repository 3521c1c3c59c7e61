"""Numbers that shape a program are part of a launch's signature: a price is that of its own call,
whatever ran before it.
"""

import pytest
import torch

import torch_trn_emu

SHAPE = (96, 160)
NUMBERS = (0, 1, 2, 3, -1, 0.5, 0.3, float("inf"))

# An operator of one number, under which it may be another program.
CALLS = {
    "add": lambda x, y, v: torch.add(x, y, alpha=v),
    "sub": lambda x, y, v: torch.sub(x, y, alpha=v),
    "rsub": lambda x, y, v: torch.rsub(x, y, alpha=v),
    "add_": lambda x, y, v: x.clone().add_(y, alpha=v),
    "add.Scalar": lambda x, y, v: x + v,
    "mul.Scalar": lambda x, y, v: x * v,
    "div.Scalar": lambda x, y, v: x / v,
    "pow": lambda x, y, v: x**v,
    "addmm.beta": lambda x, y, v: torch.addmm(x[:, :96], x, y.t(), beta=v),
    "addmm.alpha": lambda x, y, v: torch.addmm(x[:, :96], x, y.t(), alpha=v),
    "addmv.beta": lambda x, y, v: torch.addmv(x[:, 0], x, y[0], beta=v),
    "baddbmm.beta": lambda x, y, v: torch.baddbmm(x[None, :, :96], x[None], y.t()[None], beta=v),
    "addcmul": lambda x, y, v: torch.addcmul(x, x, y, value=v),
    "addcdiv": lambda x, y, v: torch.addcdiv(x, x, y, value=v),
    "lerp": lambda x, y, v: torch.lerp(x, y, v),
    "clamp_min": lambda x, y, v: x.clamp(min=v),
    "threshold": lambda x, y, v: torch.nn.functional.threshold(x, v, 0.0),
    "leaky_relu": lambda x, y, v: torch.nn.functional.leaky_relu(x, v),
    "elu": lambda x, y, v: torch.nn.functional.elu(x, v),
    "norm": lambda x, y, v: torch.linalg.vector_norm(x, v, dim=1),
    "norm of all": lambda x, y, v: torch.linalg.vector_norm(x, v),
    "full": lambda x, y, v: torch.full_like(x, v),
    "fill_": lambda x, y, v: torch.empty_like(x).fill_(v),
    "masked_fill": lambda x, y, v: x.masked_fill(y > 0, v),
    "eq": lambda x, y, v: x == v,
    "foreach_add": lambda x, y, v: torch._foreach_add([x, y], [y, x], alpha=v),
    "foreach_mul": lambda x, y, v: torch._foreach_mul([x, y], v),
}


def device_s(call, number) -> float:
    x, y = (torch.ones(SHAPE, device="trn") for _ in range(2))
    torch.trn.reset_counters()
    call(x, y, number)
    return sum(row.device_s for row in torch_trn_emu.op_report())


@pytest.mark.parametrize("name", CALLS)
def test_a_price_is_that_of_its_own_number(name):
    """As of an estimate, which prices each call by itself, in both orders."""
    call = CALLS[name]
    alone = {}
    for number in NUMBERS:
        x, y = (torch.ones(SHAPE, device="meta") for _ in range(2))
        alone[number] = torch_trn_emu.estimate(call, x, y, number).device_us * 1e-6
    for number in (*NUMBERS, *reversed(NUMBERS)):
        assert device_s(call, number) == pytest.approx(alone[number], rel=1e-3), number
