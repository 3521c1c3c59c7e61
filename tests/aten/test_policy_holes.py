"""Operators that multiply follow the policy, fused ones and what is made of products too."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import torch_trn_emu

# --- against the oracle ---------------------------------------------------------------------------

M, K, N = 5, 70, 4
linear = {policy: rows[0] for policy, rows in oracle.POLICIES.items()}
attention = {policy: rows[2] for policy, rows in oracle.POLICIES.items()}
policies = pytest.mark.parametrize("policy", oracle.POLICIES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.5


LINEAR = {
    "mm": torch.mm,
    "matmul": torch.matmul,
    "linear": lambda a, b: F.linear(a, b.t()),
    "linear of three dimensions": lambda a, b: F.linear(a[None], b.t())[0],
    "matmul 3x2": lambda a, b: torch.matmul(a[None], b)[0],
    "tensordot": lambda a, b: torch.tensordot(a, b, 1),
    "inner": lambda a, b: torch.inner(a, b.t().contiguous()),
    "multi_dot": lambda a, b: torch.linalg.multi_dot([a, b]),
    "chain_matmul": lambda a, b: torch.chain_matmul(a, b),
    "addmm": lambda a, b: torch.addmm(torch.zeros(M, N, device="trn"), a, b),
    "mv": lambda a, b: torch.stack([torch.mv(a, b[:, j]) for j in range(N)], 1),
    "dot": lambda a, b: torch.stack(
        [torch.stack([torch.dot(a[i], b[:, j]) for j in range(N)]) for i in range(M)]
    ),
    "bmm of a parameter": lambda a, b: torch.bmm(a[None], nn.Parameter(b[None]))[0].detach(),
    "einsum of a parameter": lambda a, b: torch.einsum(
        "bij,bjk->bik", a[None], nn.Parameter(b[None])
    )[0].detach(),
    "grouped_mm": lambda a, b: F.grouped_mm(
        F.pad(a, (0, 2)), F.pad(b, (0, 0, 0, 2))[None], offs=torch.tensor([M], device="trn").int()
    ),
    "Linear": lambda a, b: _module(nn.Linear(K, N, bias=False), b)(a).detach(),
}  # fmt: skip


def _module(module: nn.Linear, weight: Tensor) -> nn.Linear:
    module = module.to("trn")
    with torch.no_grad():
        module.weight.copy_(weight.t())
    return module


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@policies
@pytest.mark.parametrize("name", LINEAR)
def test_linear_products(name, policy):
    a, b = draw(M, K), draw(K, N, seed=1)
    with torch_trn_emu.precision(policy):
        got = LINEAR[name](a.trn(), b.trn())
    oracle.assert_product(got, *linear[policy].apply(a, b))


@policies
@pytest.mark.parametrize("use_gelu", [False, True])
def test_products_with_an_activation(use_gelu, policy):
    a, b, c = draw(M, K), draw(K, N, seed=1), draw(N, seed=2)
    with torch_trn_emu.precision(policy):
        got = torch._addmm_activation(c.trn(), a.trn(), b.trn(), use_gelu=use_gelu)
    x, y = linear[policy].apply(a, b)
    exact = x @ y + c.double()
    wanted = F.gelu(exact) if use_gelu else F.relu(exact)
    assert float((got.cpu().double() - wanted).abs().max()) <= 2.0**-18


@policies
def test_attention_products(policy):
    a, b = draw(2, M, K), draw(2, K, N, seed=1)
    with torch_trn_emu.precision(policy):
        got = torch.bmm(a.trn(), b.trn()), torch.matmul(a.trn(), b.trn())
    for each in got:
        oracle.assert_product(each, *attention[policy].apply(a, b))


# --- made of products -----------------------------------------------------------------------------


def encoder_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)


COMPOUND = {
    "lstm": lambda: (nn.LSTM(64, 16), (3, 2, 64)),
    "gru": lambda: (nn.GRU(64, 16), (3, 2, 64)),
    "rnn": lambda: (nn.RNN(64, 16), (3, 2, 64)),
    "lstm cell": lambda: (nn.LSTMCell(64, 16), (2, 64)),
    "gru cell": lambda: (nn.GRUCell(64, 16), (2, 64)),
    "bilinear": lambda: (_Twice(nn.Bilinear(64, 64, 8)), (3, 64)),
    "encoder layer": lambda: (encoder_layer(), (2, 5, 64)),
    "multihead attention": lambda: (
        _Thrice(nn.MultiheadAttention(64, 2, batch_first=True)),
        (2, 5, 64),
    ),
    "conv1d": lambda: (nn.Conv1d(8, 4, 3), (2, 8, 9)),
    "conv2d": lambda: (nn.Conv2d(8, 4, 3), (2, 8, 9, 9)),
    "conv3d": lambda: (nn.Conv3d(8, 4, 3), (2, 8, 5, 5, 5)),
    "conv_transpose2d": lambda: (nn.ConvTranspose2d(8, 4, 3), (2, 8, 9, 9)),
}


class _Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


class _Thrice(_Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


@policies
@pytest.mark.parametrize("mode", ["trains", "evaluates", "infers"])
@pytest.mark.parametrize("name", COMPOUND)
def test_what_is_made_of_products_follows_in_every_mode(name, mode, policy):
    """Fused fast paths of inference too: the same values as in training, others than float32's."""
    module, shape = COMPOUND[name]()
    module, x = module.to("trn"), draw(*shape).trn()

    def run(policy: str, mode: str) -> Tensor:
        module.train(mode == "trains")
        infers, trains = torch.inference_mode(mode == "infers"), mode == "trains"
        with torch_trn_emu.precision(policy), infers, torch.set_grad_enabled(trains):
            made = module(x)
        return (made[0] if isinstance(made, tuple) else made).detach().cpu().clone()

    got = run(policy, mode)
    trained = run(policy, "trains")  # other orders of sums round some operands to a neighbour
    assert float((got - trained).norm()) <= 0.1 * float(trained.norm())
    if policy != "fp32":
        assert not torch.allclose(got, run("fp32", "trains"), rtol=1e-5, atol=1e-6)


# --- experts --------------------------------------------------------------------------------------


class Experts(nn.Module):
    """The same layer in the ways that it is written."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 64, 48))

    def forward(self, x: Tensor, how: str) -> Tensor:  # [3, 8, 64]
        if how == "looped":
            return torch.stack([x[e] @ self.w[e] for e in range(3)])
        if how == "looped linear":
            return torch.stack([F.linear(x[e], self.w[e].t()) for e in range(3)])
        if how == "batched":
            return torch.bmm(x, self.w)
        if how == "einsum":
            return torch.einsum("eth,ehi->eti", x, self.w)
        if how == "chosen":
            chosen = self.w[torch.arange(3, device=x.device).repeat_interleave(8)]
            return torch.bmm(x.reshape(24, 1, 64), chosen).view(3, 8, 48)
        if how == "weights first":
            chosen = self.w.mT[torch.arange(3, device=x.device).repeat_interleave(8)]
            return torch.bmm(chosen, x.reshape(24, 64, 1)).view(3, 8, 48)
        if how == "stacked":
            return torch.bmm(x, torch.stack(list(self.w)))
        offs = torch.tensor([8, 16, 24], device=x.device, dtype=torch.int32)
        return F.grouped_mm(x.reshape(24, 64), self.w, offs=offs).view(3, 8, 48)


WAYS = ("looped linear", "batched", "einsum", "chosen", "weights first", "stacked", "grouped")


@policies
@pytest.mark.parametrize("infers", [False, True])
@pytest.mark.parametrize("how", WAYS)
def test_experts_have_the_same_formats_however_they_are_written(how, infers, policy):
    layer, x = Experts().to("trn"), draw(3, 8, 64).trn()
    with torch_trn_emu.precision(policy), torch.inference_mode(infers):
        wanted, got = layer(x, "looped"), layer(x, how)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-4)


@policies
@pytest.mark.parametrize("how", ["looped linear", "batched", "einsum", "stacked", "grouped"])
def test_gradients_of_experts_have_the_same_formats_however_they_are_written(how, policy):
    layer, x, g = Experts().to("trn"), draw(3, 8, 64).trn(), draw(3, 8, 48, seed=2).trn()

    def gradients(how: str) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(layer(leaf, how), (leaf, layer.w), g)

    with torch_trn_emu.precision(policy):
        for mine, wanted in zip(gradients(how), gradients("looped"), strict=True):
            assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-4)


def test_activations_are_no_weights():
    embedding = nn.Embedding(10, 64).to("trn")
    x = embedding(torch.tensor([[1, 2, 3]], device="trn")).detach()
    with torch_trn_emu.precision("mxfp8"), torch.no_grad():
        got = torch.bmm(x, x.mT)
    oracle.assert_product(got, *attention["mxfp8"].apply(x.cpu(), x.mT.cpu()))


def test_memory_of_a_weight_that_is_gone_is_no_weight():
    for _ in range(3):
        w = nn.Parameter(torch.randn(2, 64, 64, device="trn"))
        assert torch_trn_emu._C.is_weight(w)
        del w
        x = torch.randn(2, 64, 64, device="trn")
        assert not torch_trn_emu._C.is_weight(x)


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).trn()


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    made = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    return dict(zip(dict(module.named_parameters()), made, strict=True))


def assert_like_one(got: dict[str, Tensor], at: int, one: dict[str, Tensor]) -> None:
    for name, wanted in one.items():
        error = (got[name][at] - wanted).norm() / wanted.norm()
        assert error < 2e-3, (name, at, float(error))  # another format is at least 1e-2 away


@policies
def test_gradients_under_vmap_have_the_formats_of_one_sample(policy):
    """Products of one sample become batches there, which are still those of linear layers."""
    torch.manual_seed(0)
    module, xs = layers(), draw(3, 7, 64).trn()
    weights = dict(module.named_parameters())

    def loss(weights, x):
        return functional_call(module, weights, (x,)).square().sum()

    with torch_trn_emu.precision(policy):
        per_sample = vmap(grad(loss), in_dims=(None, 0))(weights, xs)
        for i, x in enumerate(xs):
            assert_like_one(per_sample, i, gradients(module, x))


@policies
def test_an_ensemble_under_vmap_has_the_formats_of_its_members(policy):
    torch.manual_seed(0)
    members, x = [layers() for _ in range(3)], draw(7, 64).trn()
    weights, _ = stack_module_state(members)

    def loss(weights, x):
        return functional_call(members[0], weights, (x,)).square().sum()

    with torch_trn_emu.precision(policy):
        together = vmap(grad(loss), in_dims=(0, None))(weights, x)
        for i, member in enumerate(members):
            assert_like_one(together, i, gradients(member, x))


@policies
def test_batched_gradients_have_the_formats_of_one(policy):
    torch.manual_seed(0)
    module, given = layers(), draw(3, 7, 32, seed=1).trn()
    weights = list(module.parameters())
    with torch_trn_emu.precision(policy):
        out = module(draw(7, 64).trn())
        for i, batched in enumerate(
            zip(*torch.autograd.grad(out, weights, given, True, is_grads_batched=True), strict=True)
        ):
            one = torch.autograd.grad(out, weights, given[i], retain_graph=True)
            for got, wanted in zip(batched, one, strict=True):
                assert (got - wanted).norm() <= 2e-3 * wanted.norm()
