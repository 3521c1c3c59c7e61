"""Values of eager operators from their programs, on the machine, against the fast kernels."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torch_trn_emu
from torch_trn_emu.trn import executor
from torch_trn_emu.trn.executor import ExecutorRow, MachineExecutor

GENERATOR = torch.Generator().manual_seed(11)
# Sums of up to 200 float32 terms in another order, and the last bits of exponentials; then one
# rounding to the result's dtype. Relative to the largest value.
FLOAT32 = 200 * 2.0**-24
ONE_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def _data(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test has data of its own, whatever ran before it."""
    GENERATOR.manual_seed(0)


@pytest.fixture
def machine() -> Iterator[MachineExecutor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keeps the fast kernel's values")
        mode = MachineExecutor()
        with mode:
            yield mode


def _rows(mode: MachineExecutor) -> dict[str, ExecutorRow]:
    return {name.removeprefix("aten."): row for name, row in mode.rows.items()}


# --- samples -------------------------------------------------------------------------------------

aten = torch.ops.aten
Sample = tuple[str, Callable[..., Any], tuple[tuple[int, ...], ...]]
# fmt: off
SAMPLES: tuple[Sample, ...] = (
    ("mm", torch.mm, ((33, 70), (70, 20))),
    ("mm of turned ones", lambda a, b: a.t() @ b.t(), ((70, 33), (20, 70))),
    ("addmm", lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2), ((20,), (33, 70), (70, 20))),
    ("addmm with a matrix", torch.addmm, ((33, 20), (33, 70), (70, 20))),
    ("bmm", torch.bmm, ((3, 33, 70), (3, 70, 20))),
    ("baddbmm", torch.baddbmm, ((3, 33, 20), (3, 33, 70), (3, 70, 20))),
    ("linear", F.linear, ((2, 33, 70), (20, 70), (20,))),
    ("mv", torch.mv, ((33, 70), (70,))),
    ("add", torch.add, ((4, 9), (4, 9))),
    ("add alpha", lambda a, b: torch.add(a, b, alpha=3), ((4, 9), (4, 9))),
    ("add a number", lambda a: a + 1.5, ((4, 9),)),
    ("add a row", torch.add, ((300, 9), (9,))),
    ("mul a column", torch.mul, ((300, 9), (300, 1))),
    ("mul in the middle", torch.mul, ((3, 5, 7), (3, 1, 7))),
    ("div", torch.div, ((4, 9), (4, 9))),
    ("div by a number", lambda a: a / 3, ((4, 9),)),
    ("compare", lambda a, b: a > b, ((4, 9), (4, 9))),
    ("where", lambda a, b: torch.where(a > 0, a, b), ((4, 9), (4, 9))),
    ("masked_fill", lambda a: a.masked_fill(a > 0, -2.5), ((4, 9),)),
    ("clamp", lambda a: a.clamp(-0.5, 0.25), ((4, 9),)),
    ("clamp_min", lambda a: a.clamp_min(0.25), ((4, 9),)),
    ("exp", torch.exp, ((200, 9),)),
    ("tanh", torch.tanh, ((200, 9),)),
    ("gelu", F.gelu, ((200, 9),)),
    ("softplus", lambda a: F.softplus(a, beta=2.5), ((200, 9),)),
    ("elu", lambda a: F.elu(a, alpha=0.7), ((200, 9),)),
    ("leaky_relu", lambda a: F.leaky_relu(a, 0.3), ((200, 9),)),
    ("remainder", lambda a: torch.remainder(a, 0.75), ((4, 9),)),
    ("div, rounded", lambda a, b: torch.div(a, b, rounding_mode="trunc"), ((4, 9), (4, 9))),
    ("mse_loss", F.mse_loss, ((200, 9), (200, 9))),
    ("huber_loss of each", lambda a, b: F.huber_loss(a, b, reduction="none"), ((4, 9), (4, 9))),
    ("logits", lambda a, b: F.binary_cross_entropy_with_logits(a, b.sigmoid()), ((9, 5), (9, 5))),
    ("topk", lambda a: a.topk(3).values, ((9, 40),)),
    ("sort", lambda a: a.sort(descending=True).values, ((9, 40),)),
    ("kthvalue", lambda a: a.kthvalue(7).values, ((9, 40),)),
    ("median", lambda a: a.median(), ((9, 5),)),
    ("max of rows", lambda a: a.max(1).values, ((9, 40),)),
    ("max of two", torch.max, ((9, 4), (9, 4))),
    ("min of all", torch.min, ((9, 4),)),
    ("aminmax", lambda a: a.aminmax(dim=1).max, ((9, 40),)),
    ("nansum", lambda a: a.nansum(1), ((9, 40),)),
    ("cumprod", lambda a: a.sigmoid().cumprod(1), ((9, 4),)),
    ("cummax", lambda a: a.cummax(1).values, ((9, 40),)),
    ("logcumsumexp", lambda a: a.logcumsumexp(1), ((9, 40),)),
    ("attention by heads of a row", lambda a: F.scaled_dot_product_attention(
        *a.view(2, 10, 3, 4, 16).permute(2, 0, 3, 1, 4)), ((2, 10, 192),)),
    ("arange", lambda a: a + torch.arange(1.0, 9.0, 2.0, device=a.device), ((9, 4),)),
    ("eye", lambda a: a + torch.eye(9, 4, device=a.device), ((9, 4),)),
    ("zeros_like", lambda a: torch.full_like(a, 2.5), ((9, 4),)),
    ("roll", lambda a: a.roll((2, -1), (0, 1)), ((9, 4),)),
    ("slice_scatter", lambda a, b: a.slice_scatter(b, 0, 1, 7, 2), ((9, 4), (3, 4))),
    ("pixel_shuffle", lambda a: F.pixel_shuffle(a, 2), ((2, 8, 3, 5),)),
    ("unfold", lambda a: F.unfold(a, 3, padding=1), ((2, 3, 7, 6),)),
    ("fold", lambda a: F.fold(a, (6, 7), 2), ((2, 12, 30),)),
    ("index", lambda a: a[torch.tensor([3, 0, -1]).to(a.device)], ((9, 4),)),
    ("index_add", lambda a, b: a.index_add(0, torch.tensor([3, 0]).to(a.device), b),
     ((9, 4), (2, 4))),
    ("index_copy", lambda a, b: a.index_copy(0, torch.tensor([3, 0]).to(a.device), b),
     ((9, 4), (2, 4))),
    ("scatter_add", lambda a, b: a.scatter_add(1, torch.tensor([[1], [0], [2]]).to(a.device), b),
     ((3, 4), (3, 1))),
    ("index_put", lambda a, b: a.index_put_((torch.tensor([1, 0]).to(a.device),), b),
     ((3, 4), (2, 4))),
    ("masked_select", lambda a: a.masked_select(a > 0), ((9, 40),)),
    ("masked_scatter", lambda a, b: a.masked_scatter(a > 0, b), ((9, 4), (9, 4))),
    ("foreach", lambda a, b: torch._foreach_add([a, b], [b, a], alpha=2)[1], ((9, 4), (9, 4))),
    ("foreach in place", lambda a, b: (torch._foreach_mul_([a, b], 0.5), a)[1], ((9, 4), (3,))),
    ("foreach_norm", lambda a, b: torch._foreach_norm([a, b])[1], ((9, 4), (3,))),
    ("gelu tanh", lambda a: F.gelu(a, approximate="tanh"), ((200, 9),)),
    ("silu", F.silu, ((200, 9),)),
    ("relu", F.relu, ((200, 9),)),
    ("square", torch.square, ((200, 9),)),
    ("sum of all", torch.sum, ((200, 9),)),
    ("sum of rows", lambda a: a.sum(1), ((200, 9),)),
    ("sum of columns", lambda a: a.sum(0), ((200, 9),)),
    ("sum of two", lambda a: a.sum((0, 2)), ((4, 9, 6),)),
    ("sum in the middle", lambda a: a.sum(1, keepdim=True), ((4, 9, 6),)),
    ("sum of few", lambda a: a.sum(0), ((3, 50),)),
    ("mean", lambda a: a.mean(-1), ((200, 9),)),
    ("amax", lambda a: a.amax(1), ((4, 9, 6),)),
    ("norm", lambda a: torch.linalg.vector_norm(a, dim=1), ((200, 9),)),
    ("softmax", lambda a: a.softmax(-1), ((200, 9),)),
    ("softmax of columns", lambda a: a.softmax(1), ((4, 9, 6),)),
    ("log_softmax", lambda a: a.log_softmax(0), ((9, 20),)),
    ("logsumexp", lambda a: a.logsumexp(1), ((4, 9, 6),)),
    ("layer_norm", lambda a, w, b: F.layer_norm(a, (9,), w, b), ((20, 3, 9), (9,), (9,))),
    ("layer_norm, large eps", lambda a: F.layer_norm(a, (9,), eps=0.3), ((20, 9),)),
    ("rms_norm", lambda a, w: aten._fused_rms_norm(a, [9], w, 1e-3)[0], ((20, 9), (9,))),
    ("clone", torch.clone, ((20, 9),)),
    ("contiguous of runs", lambda a: a.transpose(0, 1).contiguous(), ((20, 3, 9),)),
    ("contiguous of a turned one", lambda a: a.mT.contiguous(), ((2, 40, 30),)),
    ("to", lambda a: a.to(torch.float16), ((20, 9),)),
    ("cat", lambda a, b: torch.cat((a, b), 1), ((4, 9), (4, 3))),
    ("stack", lambda a, b: torch.stack((a, b), 1), ((4, 9), (4, 9))),
    ("pad", lambda a: F.pad(a, (1, 2), value=3.0), ((4, 9),)),
    ("flip", lambda a: a.flip(1), ((4, 9),)),
    ("repeat", lambda a: a.repeat(2, 3), ((4, 9),)),
    ("var", lambda a: a.var(1), ((4, 9, 6),)),
    ("std of rows", lambda a: a.std(-1, correction=0), ((200, 9),)),
    ("cumsum", lambda a: a.cumsum(1), ((200, 9),)),
    ("cumsum of columns", lambda a: a.cumsum(0), ((20, 9),)),
    ("tril", torch.tril, ((20, 9),)),
    ("gather", lambda a: a.gather(1, torch.arange(9, device=a.device).flip(0).expand(20, 9)),
     ((20, 9),)),
    ("index_select", lambda a: a.index_select(1, torch.arange(3, device=a.device)), ((20, 9, 4),)),
    ("embedding", lambda w: F.embedding(torch.arange(6, device=w.device).view(2, 3), w), ((8, 9),)),
)
# fmt: on
WITH_PLACES = frozenset(("sort", "topk", "kthvalue", "median", "max of rows", "cummax"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "call", "shapes"), SAMPLES, ids=[s[0] for s in SAMPLES])
def test_samples(
    name: str, call: Callable[..., Any], shapes: Any, dtype: torch.dtype, machine: MachineExecutor
) -> None:
    tensors = [_data(*shape).to(dtype) for shape in shapes]
    if name in WITH_PLACES:  # those of equal elements are not fixed
        tensors = [t.argsort(-1).to(dtype) - 20 for t in tensors]
    with torch_trn_emu.precision("bf16"):
        result = call(*[t.to("trn") for t in tensors])
    done = [row for row in machine.rows.values() if row.machine]
    kept = {r.op: r.reason for r in machine.rows.values() if not r.machine}
    assert done, kept
    made_of_integers = {"aten.arange.default", "aten.flip.default"}
    assert set(kept) <= made_of_integers, kept
    bound = FLOAT32 + ONE_ROUNDING.get(dtype, 0.0) + ONE_ROUNDING.get(result.dtype, 0.0)
    assert all(row.difference <= bound for row in done), done
    assert all(row.instructions > 0 for row in done)


@pytest.mark.parametrize("policy", ["fp32", "bf16"])
def test_an_image_model_trains_on_the_machine(policy: str, machine: MachineExecutor) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(5), nn.MaxPool2d(2),
        nn.Conv2d(5, 5, 3, stride=2, groups=5), nn.GroupNorm(1, 5), nn.AvgPool2d(2),
    ).to("trn")  # fmt: skip
    with torch_trn_emu.precision(policy):
        model(_data(2, 3, 18, 18).to("trn").requires_grad_()).square().sum().backward()
    fast = {name for name, row in _rows(machine).items() if row.machine < row.calls}
    assert not fast
    differences = {row.op: row.difference for row in machine.rows.values()}
    assert max(differences.values()) <= FLOAT32, differences


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_fused_optimizers_step_on_the_machine(name: str, machine: MachineExecutor) -> None:
    parameters = [_data(*shape).to("trn").requires_grad_() for shape in ((9, 5), (3,))]
    before = [p.detach().cpu() for p in parameters]
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(parameters, lr=0.1, fused=True, **options)
    for _ in range(2):
        for p in parameters:
            p.grad = _data(*p.shape).to("trn")
        optimizer.step()
    (row,) = (row for op, row in _rows(machine).items() if op.startswith("_fused"))
    assert row.machine == row.calls == 2, row
    assert row.difference <= FLOAT32
    assert all(not torch.equal(p.cpu(), b) for p, b in zip(parameters, before, strict=True))


def test_what_leaves_the_device_is_not_counted(machine: MachineExecutor) -> None:
    a = torch.ones(3).to("trn")
    machine.rows.clear()
    assert a.sum().item() == 3
    assert a.cpu().tolist() == [1, 1, 1]
    assert list(_rows(machine)) == ["sum.default"]


@pytest.mark.parametrize("policy", ["fp32", "bf16", "mxfp8"])
def test_products_follow_the_policy(policy: str, machine: MachineExecutor) -> None:
    a, b = _data(40, 96).to("trn"), _data(96, 50).to("trn")
    with torch_trn_emu.precision(policy):
        a @ b
    assert _rows(machine)["mm.default"].difference <= FLOAT32


@pytest.mark.parametrize("policy", ["mxfp4", "mxfp6_e2m3", "mxint8"])
def test_a_product_in_formats_of_which_only_the_price_is_modelled_keeps_its_values(
    policy: str, machine: MachineExecutor
) -> None:
    a, b = _data(40, 96).to("trn"), _data(96, 50).to("trn")
    with torch_trn_emu.precision(policy):
        got = a @ b
    with torch_trn_emu.precision("mxfp8"):
        other = a @ b
    assert not torch.equal(got, other)
    assert _rows(machine)["mm.default"].difference <= FLOAT32


# --- a model -------------------------------------------------------------------------------------

WIDTH, HEADS, TOKENS = 32, 2, 20


class Block(nn.Module):
    """A GPT of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        parts = self.qkv(self.norms[0](x)).split(WIDTH, 2)
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(x)


def _gradients(policy: str) -> tuple[float, list[torch.Tensor]]:
    torch.manual_seed(0)
    model, tokens = Block().to("trn"), torch.randint(0, TOKENS, (2, 41)).to("trn")
    with torch_trn_emu.precision(policy):
        logits = model(tokens[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        loss.backward()
    return loss.item(), [p.grad.cpu() for p in model.parameters()]


# Rounding errors of the operators before can turn the rounding of an operand: one unit of it.
OPERANDS = {"fp32": 0.0, "bf16": 2.0**-8, "mxfp8": 2.0**-4}


@pytest.mark.parametrize("policy", OPERANDS)
def test_a_block_trains_on_the_machine(policy: str) -> None:
    loss, gradients = _gradients(policy)
    mode = MachineExecutor()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keeps the fast kernel's values")
        with mode:
            other_loss, others = _gradients(policy)
    assert other_loss == pytest.approx(loss, rel=FLOAT32 + OPERANDS[policy] / 8)
    for got, want in zip(others, gradients, strict=True):
        bound = (10 * FLOAT32 + OPERANDS[policy]) * float(want.abs().max())
        assert float((got - want).abs().max()) <= bound
    rows = _rows(mode)
    assert all(row.difference <= FLOAT32 for row in rows.values() if row.machine), rows
    fast = {name: row.reason for name, row in rows.items() if row.machine < row.calls}
    # A constant, and a copy of the tokens.
    assert set(fast) <= {"ones_like.default", "clone.default"}, fast
    assert len(rows) > 15


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_with_masks_and_shared_keys(
    dtype: torch.dtype, boolean: bool, machine: MachineExecutor
) -> None:
    q = _data(2, 4, 40, 16).to(dtype).to("trn").requires_grad_()
    k, v = (_data(2, 2, 50, 16).to(dtype).to("trn").requires_grad_() for _ in "kv")
    mask = _data(40, 50)
    mask = mask > -0.5 if boolean else mask.to(dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to("trn"), enable_gqa=True)
    out.sum().backward()
    rows = [row for name, row in _rows(machine).items() if "attention" in name]
    assert [row.machine for row in rows] == [1, 1], rows
    assert all(row.difference <= FLOAT32 + 2 * ONE_ROUNDING[dtype] for row in rows), rows


# --- what it does with results -------------------------------------------------------------------


class _Zeros:
    """A machine that computes nothing but zeros."""

    executed = 0

    def run(self, program: Any, inputs: Any, drawn: int) -> dict[str, Any]:
        outputs = (b for b in program.buffers if b.role.value == "output")
        return {b.name: torch.zeros(b.shape).numpy() for b in outputs}


def test_the_machines_values_are_the_results(
    monkeypatch: pytest.MonkeyPatch, machine: MachineExecutor
) -> None:
    a = _data(4, 9).to("trn")
    into, columns = torch.ones(4, 9).to("trn"), torch.ones(9, 4).to("trn")
    monkeypatch.setattr(executor, "_machine", _Zeros)
    made, before = a + 1, a.clone()
    torch.add(a, 1, out=into)
    columns.t().add_(a)
    a.mul_(2)
    monkeypatch.undo()
    for tensor in (made, before, into, columns, a):
        assert not tensor.cpu().any()


# Calls of which a program was once wrong: each with another kind of operand than the plain one.
EVERY = torch.tensor([True, False, True, False, True, False, True, False, True])
OPERANDS_OF_A_KIND = {
    "a number first": lambda a: (torch.sub(1, a), 2 / (a.abs() + 1), 2 < a),
    "alpha with a number": lambda a: (a.add(2, alpha=3), a.sub(2, alpha=3)),
    "numbers in where": lambda a: (torch.where(a > 0, a, 3.0), torch.where(a > 0, 3.0, a)),
    "a tensor that fills": lambda a: a.masked_fill(a > 0, a.amax()),
    "a truth value": lambda a: (a.bool(), (a * 0.2).bool()),
    "zero divisors": lambda a: (a / 0.0, a / -0.0, a / (a > 0), a.fmod(2.5)),
    "decimals": lambda a: (a * 10).round(decimals=1),
    "thresholds": lambda a: F.softplus(a, 2.0, 1.5),
    "gelu by tanh": lambda a: aten.gelu_backward(a, a, approximate="tanh"),
    "one row of places": lambda a: a.gather(0, torch.zeros(1, 9, dtype=torch.long).to("trn")),
    "places of a vector": lambda a: a[0].gather(0, torch.tensor([3, 1]).to("trn")),
    "a mask that is broadcast": lambda a: a.masked_select(EVERY.to("trn")),
    "rows of -inf": lambda a: aten._safe_softmax((a.relu() - a.relu() + a / 0.0 * -1), -1),
    "maxima of -inf": lambda a: ((a * 0 - torch.inf).amax(0), (a * 0 - torch.inf).amax(1)),
    "logsumexp of two dimensions": lambda a: a.expand(3, 4, 9).logsumexp((0, 2)),
    "logsumexp of leading dimensions": lambda a: a.expand(3, 4, 9).logsumexp((0, 1)),
    "an empty slice": lambda a: aten.slice_backward(a[:, :0], [4, 9], 1, 0, 0, 1),
    "a copy into part of a tensor": lambda a: torch.zeros(4, 18).to("trn")[:, ::2].copy_(a),
}


@pytest.mark.parametrize("name", OPERANDS_OF_A_KIND)
def test_every_kind_of_operand(name: str, machine: MachineExecutor) -> None:
    OPERANDS_OF_A_KIND[name](_data(4, 9).to("trn"))
    assert all(row.difference <= FLOAT32 for row in machine.rows.values()), machine.rows
    assert any(row.machine for row in machine.rows.values())


def test_operands_that_repeat_with_other_rows(machine: MachineExecutor) -> None:
    """[300, 40, 64], [40, 64] and [64]: the last one repeats with rows of its own."""
    a, b, c = (_data(*shape).to("trn") for shape in ((300, 4, 16), (4, 16), (16,)))
    torch.addcmul(a, b, c)
    torch.addcmul(a, _data(300, 1, 1).to("trn"), _data(300, 4, 1).to("trn"))
    (row,) = machine.rows.values()
    assert row.machine == 2
    assert row.difference <= FLOAT32


def test_a_nan_of_any_tile_reaches_the_product(machine: MachineExecutor) -> None:
    """The contraction has several tiles; each of them may hold a NaN, or infinities that cancel."""
    for first, second in ((torch.nan, 1.0), (torch.inf, -torch.inf)):
        a = torch.ones(3, 300)
        a[0, 5], a[0, 200] = first, second
        made = a.to("trn") @ torch.ones(300, 2).to("trn")
        assert made[0].isnan().all()
        assert (made[1:] == 300).all()
    assert _rows(machine)["mm.default"].machine == 2


def test_an_operator_reads_what_it_writes_in_place(machine: MachineExecutor) -> None:
    a = _data(4, 9)
    b = a.to("trn")
    b.add_(b)
    assert torch.equal(b.cpu(), 2 * a)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda a: torch.bucketize(0.5, a[0]), "bucketize of a number"),
        (lambda a: torch.mode(a).values, "its row models only the cost"),
        (lambda a: torch.special.bessel_j0(a), "it has no row"),
        (lambda a: a.double() + 1, "float64 is float32 in the program's"),
    ],
)
def test_what_cannot_be_computed_is_reported(call: Any, reason: str) -> None:
    a, mode = _data(4, 9), MachineExecutor()
    on_trn = a.to("trn")
    with mode, pytest.warns(UserWarning, match="keeps the fast kernel's values"):
        result = call(on_trn)
    torch.testing.assert_close(result.cpu(), call(a))
    assert any(reason in row.reason for row in mode.rows.values()), mode.rows


def test_it_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    a = _data(4, 9).to("trn")
    with MachineExecutor():
        torch.mode(a)
        torch.cummax(a, 1)
        torch.special.bessel_j0(a)
    assert len([w for w in recwarn if "fast kernel's values" in str(w.message)]) == 1


SCRIPT = """
import torch, torch_trn_emu
a = torch.ones(3, 4).to("trn") @ torch.ones(4, 5).to("trn")
a.sum().item()
rows = {row.op: row for row in torch_trn_emu.executor_report()}
assert rows["aten.mm.default"].machine == rows["aten.sum.default"].machine == 1, rows
print("machine", a.cpu().sum().item())
"""


def _python(script: str, value: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRN_EMU_EXECUTOR": value},
        capture_output=True,
        text=True,
    )


def test_the_setting() -> None:
    done = _python(SCRIPT, "machine")
    assert "machine 60.0" in done.stdout, done.stderr
    wrong = _python("import torch; torch.ones(1).to('trn')", "slow")
    assert "TRN_EMU_EXECUTOR='slow' is unknown; choose from fast, machine" in wrong.stderr
    assert torch_trn_emu.executor_report() == []
