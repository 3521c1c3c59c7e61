"""A mixture of experts gets the same formats however transformers multiplies by its weights."""

import pytest
import torch

import torch_trn_emu

transformers = pytest.importorskip("transformers")
# torch 2.13 and transformers use what they deprecate
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "mixtral": transformers.MixtralConfig(**SIZES),
    # Its experts have biases, and weights that are stored transposed.
    "gpt_oss": transformers.GptOssConfig(
        **SIZES, layer_types=["full_attention"], rope_parameters=None
    ),
}
TOKENS = torch.arange(3, 35).view(2, 16)


def results(config, implementation: str, policy: str, device: str = "trn") -> torch.Tensor:
    """Logits and all gradients, in one row."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, experts_implementation=implementation
    )
    model.to(device)
    tokens = TOKENS.to(device)
    with torch_trn_emu.precision(policy):
        made = model(tokens, labels=tokens)
        made.loss.backward()
    given = [made.logits, *(p.grad for p in model.parameters() if p.grad is not None)]
    return torch.cat([x.detach().cpu().flatten() / x.detach().cpu().norm() for x in given])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_implementation_follows_the_policy_alike(name):
    exact = results(CONFIGS[name], "eager", "fp32")
    for policy in ("mxfp8", "mxfp4"):
        looped = results(CONFIGS[name], "eager", policy)
        by_formats = (looped - exact).norm()
        assert by_formats > 1e-2 * exact.norm()
        for implementation in ("batched_mm", "grouped_mm"):
            apart = (results(CONFIGS[name], implementation, policy) - looped).norm()
            assert apart < 1e-2 * by_formats, (implementation, policy)


@pytest.fixture
def one_thread():
    """With more, the CPU adds gradients of chosen experts in an order that changes by itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_fp32_each_is_the_cpus(name, implementation):
    found = results(CONFIGS[name], implementation, "fp32")
    assert torch.equal(found, results(CONFIGS[name], implementation, "fp32", "cpu"))
