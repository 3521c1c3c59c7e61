"""Random numbers: equal seeds give equal tensors on the host and on trn."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from parity import assert_same_on_trn
from torch import distributions, nn
from torch.utils.checkpoint import checkpoint

DRAWS = {
    "rand": lambda d: torch.rand(101, device=d),
    "randn": lambda d: torch.randn(101, device=d),
    "randn odd size": lambda d: (torch.randn(3, device=d), torch.randn(3, device=d)),
    "randn double": lambda d: torch.randn(37, device=d, dtype=torch.float64),
    "randn half": lambda d: torch.randn(37, device=d, dtype=torch.float16),
    "randn bfloat16": lambda d: torch.randn(37, device=d, dtype=torch.bfloat16),
    "randn complex": lambda d: torch.randn(37, device=d, dtype=torch.complex64),
    "randint": lambda d: torch.randint(-5, 1000, (101,), device=d),
    "randperm": lambda d: torch.randperm(101, device=d),
    "rand_like": lambda d: torch.rand_like(torch.empty(7, 3, device=d)),
    "randn_like": lambda d: torch.randn_like(torch.empty(7, 3, device=d)),
    "randint_like": lambda d: torch.randint_like(torch.empty(7, 3, device=d), 9),
    "normal_": lambda d: torch.empty(50, device=d).normal_(2, 3),
    "normal of tensors": lambda d: torch.normal(torch.ones(9, device=d), torch.ones(9, device=d)),
    "normal of numbers": lambda d: torch.normal(0.0, 2.0, (9,), device=d),
    "uniform_": lambda d: torch.empty(50, device=d).uniform_(-1, 3),
    "random_": lambda d: torch.empty(50, device=d, dtype=torch.int64).random_(10),
    "bernoulli": lambda d: torch.bernoulli(torch.full((50,), 0.3, device=d)),
    "bernoulli_": lambda d: torch.empty(50, device=d).bernoulli_(0.3),
    "bernoulli_ of a tensor": lambda d: torch.empty(9, device=d).bernoulli_(torch.ones(9, device=d) / 2),
    "multinomial": lambda d: torch.multinomial(torch.ones(4, 9, device=d), 5),
    "multinomial again": lambda d: torch.multinomial(torch.ones(9, device=d), 20, replacement=True),
    "poisson": lambda d: torch.poisson(torch.full((50,), 3.0, device=d)),
    "binomial": lambda d: torch.binomial(torch.full((9,), 9.0, device=d), torch.ones(9, device=d) / 2),
    "exponential_": lambda d: torch.empty(50, device=d).exponential_(2),
    "geometric_": lambda d: torch.empty(50, device=d).geometric_(0.4),
    "cauchy_": lambda d: torch.empty(50, device=d).cauchy_(),
    "log_normal_": lambda d: torch.empty(50, device=d).log_normal_(),
    "gamma": lambda d: torch._standard_gamma(torch.ones(9, device=d)),
    "dirichlet": lambda d: torch._sample_dirichlet(torch.ones(4, 3, device=d)),
    "dropout": lambda d: F.dropout(torch.ones(100, device=d), 0.3),
    "native_dropout": lambda d: torch.native_dropout(torch.ones(100, device=d), 0.3, True),
    "dropout1d": lambda d: F.dropout1d(torch.ones(2, 9, 4, device=d), 0.3),
    "dropout2d": lambda d: F.dropout2d(torch.ones(2, 9, 4, 4, device=d), 0.3),
    "alpha_dropout": lambda d: F.alpha_dropout(torch.ones(100, device=d), 0.3, training=True),
    "feature_alpha_dropout": lambda d: F.feature_alpha_dropout(torch.ones(3, 9, 2, device=d), 0.3, True),
    "rrelu": lambda d: F.rrelu(-torch.ones(100, device=d), training=True),
    "gumbel_softmax": lambda d: F.gumbel_softmax(torch.zeros(4, 9, device=d)),
    "fractional pooling": lambda d: F.fractional_max_pool2d(torch.ones(1, 2, 9, 9, device=d), 3, 4),
    "attention dropout": lambda d: F.scaled_dot_product_attention(
        *torch.ones(3, 1, 2, 5, 4, device=d), dropout_p=0.5
    ),
    "sparse dropout of a layer": lambda d: nn.Dropout(0.4)(torch.ones(3, 40, device=d)),
    "distribution": lambda d: distributions.Normal(torch.zeros(9, device=d), 1.0).rsample(),
    "beta distribution": lambda d: distributions.Beta(torch.ones(3, device=d), torch.ones(3, device=d)).rsample(),
    "init": lambda d: nn.init.trunc_normal_(torch.empty(9, 9, device=d)),
    "init of a layer": lambda d: nn.TransformerEncoderLayer(8, 2, device=d).linear1.weight.detach(),
    "mixture": lambda d: [
        torch.randn(5, device=d),
        F.dropout(torch.ones(9, device=d)),
        torch.rand(5, device=d),
        torch.randn(17, device=d),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_equal_seeds_draw_equal_numbers(name):
    assert_same_on_trn(DRAWS[name])


@pytest.mark.parametrize("name", DRAWS)
def test_drawing_on_trn_leaves_the_host_generator_alone(name):
    torch.manual_seed(0)
    host = torch.get_rng_state()
    state = torch.trn.get_rng_state()
    DRAWS[name]("trn")
    assert torch.equal(torch.get_rng_state(), host)
    assert not torch.equal(torch.trn.get_rng_state(), state)


def test_manual_seed_seeds_every_device():
    torch.manual_seed(7)
    first = [torch.rand(3, device=f"trn:{i}").cpu() for i in range(4)]
    torch.trn.manual_seed_all(7)
    again = [torch.rand(3, device=f"trn:{i}").cpu() for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], first[3])


def test_seeding_one_device_leaves_the_others():
    torch.manual_seed(0)
    other = torch.trn.get_rng_state(1)
    torch.trn.manual_seed(5)
    assert torch.trn.initial_seed() == 5
    assert torch.equal(torch.trn.get_rng_state(1), other)
    with torch.trn.device(1):
        torch.trn.manual_seed(6)
        assert torch.trn.initial_seed() == 6
    assert torch.trn.initial_seed() == 5


def test_entropy_seeds_differ():
    first, second = torch.trn.seed(), torch.trn.seed()
    assert first != second
    assert torch.trn.initial_seed() == second
    torch.trn.seed_all()
    assert (
        torch.trn.default_generators[0].initial_seed()
        == torch.trn.default_generators[3].initial_seed()
    )
    assert torch.seed() == torch.trn.initial_seed()
    torch.manual_seed(-1)  # wraps, as on the host
    assert torch.trn.initial_seed() == torch.initial_seed()


def test_state_can_be_read_and_set():
    state, states = torch.trn.get_rng_state("trn:1"), torch.trn.get_rng_state_all()
    assert state.device.type == "cpu"
    assert state.dtype == torch.uint8
    assert len(states) == 4
    expected = torch.randn(9, device="trn:1")
    torch.trn.set_rng_state(state, "trn:1")
    assert torch.equal(torch.randn(9, device="trn:1"), expected)
    torch.trn.set_rng_state_all(states)
    assert torch.equal(torch.randn(9, device="trn:1"), expected)
    with pytest.raises((RuntimeError, TypeError)):
        torch.trn.set_rng_state(torch.zeros(3, dtype=torch.uint8))


def test_fork_rng_restores():
    before = torch.trn.get_rng_state(), torch.trn.get_rng_state(1)
    with torch.random.fork_rng(devices=[0, 1], device_type="trn"):
        torch.randn(4, device="trn")
        torch.randn(4, device="trn:1")
        torch.manual_seed(4)
    assert torch.equal(torch.trn.get_rng_state(), before[0])
    assert torch.equal(torch.trn.get_rng_state(1), before[1])
    with torch.random.fork_rng(devices=range(4), device_type="trn"):
        torch.manual_seed(5)
    assert torch.equal(torch.trn.get_rng_state(), before[0])


def test_generators_belong_to_a_device():
    generator = torch.Generator("trn:1")
    assert generator.device == torch.device("trn", 1)
    assert torch.Generator("trn").device == torch.device("trn", 0)
    generator.manual_seed(3)
    a = torch.randn(5, device="trn:1", generator=generator)
    generator.manual_seed(3)
    b = torch.empty(5, device="trn:1").normal_(generator=generator)
    assert torch.equal(a, b)
    assert torch.equal(a.cpu(), torch.randn(5, generator=torch.Generator().manual_seed(3)))
    assert generator.initial_seed() == 3
    clone = generator.clone_state()
    assert torch.equal(
        torch.rand(3, device="trn:1", generator=clone),
        torch.rand(3, device="trn:1", generator=generator),
    )
    assert generator.seed() == generator.initial_seed()
    generator.set_state(clone.get_state())


def test_the_default_generators_are_those_of_the_devices():
    assert len(torch.trn.default_generators) == 4
    assert torch.trn.default_generators[2].device == torch.device("trn", 2)
    assert [g.device.index for g in torch.trn.default_generators[:2]] == [0, 1]
    torch.trn.default_generators[0].manual_seed(11)
    assert torch.trn.initial_seed() == 11


@pytest.mark.parametrize(
    ("device", "generator"),
    [("trn", "cpu"), ("cpu", "trn"), ("trn:1", "trn:0"), ("trn:0", "trn:1")],
)
@pytest.mark.parametrize(
    "draw",
    [
        lambda d, g: torch.randn(3, device=d, generator=g),
        lambda d, g: torch.randperm(3, device=d, generator=g),
        lambda d, g: torch.empty(3, device=d).uniform_(generator=g),
        lambda d, g: torch.bernoulli(torch.ones(3, device=d), generator=g),
        lambda d, g: torch.multinomial(torch.ones(3, device=d), 2, generator=g),
    ],
)
def test_a_generator_of_another_device_is_refused(device, generator, draw):
    with pytest.raises(RuntimeError, match=r"(?i)generator"):
        draw(device, torch.Generator(generator))


def test_checkpointing_repeats_the_same_dropout():
    x = torch.ones(100, device="trn", requires_grad=True)
    for reentrant in (True, False):
        torch.manual_seed(0)
        x.grad = None
        y = checkpoint(lambda t: F.dropout(t, 0.5), x, use_reentrant=reentrant)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach())


def test_a_generator_can_be_pickled():
    generator = torch.Generator("trn:1").manual_seed(5)
    torch.randn(3, generator=generator, device="trn:1")
    copied = pickle.loads(pickle.dumps(generator))
    assert copied.device == generator.device
    assert copied.initial_seed() == 5
    expected = torch.randn(3, generator=generator, device="trn:1")
    assert torch.equal(torch.randn(3, generator=copied, device="trn:1"), expected)
    with pytest.raises(RuntimeError, match="does not use offset"):
        generator.set_offset(4)


def test_generators_can_share_a_state():
    one, other = torch.Generator("trn"), torch.Generator("trn")
    shared = one.manual_seed(3).graphsafe_get_state()
    other.graphsafe_set_state(shared)
    drawn = [torch.rand(3, device="trn", generator=g) for g in (one, other, shared)]
    alone = torch.Generator("trn").manual_seed(3)
    assert torch.equal(
        torch.stack(drawn),
        torch.stack([torch.rand(3, device="trn", generator=alone) for _ in drawn]),
    )
    with pytest.raises(RuntimeError, match="was given a generator of trn:1"):
        one.graphsafe_set_state(torch.Generator("trn:1"))
    with pytest.raises(RuntimeError, match="expects a generator of trn"):
        one.graphsafe_set_state(torch.Generator())
