"""Architectures of Hugging Face with random weights: eager trn against compiled, a training step.

All of them run with the `conformance` marker, two by default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from comparing import TORCHS_OWN

from torch_trn_emu import compiler, precision

pytestmark = [
    *TORCHS_OWN,
    pytest.mark.filterwarnings("ignore:Dynamo detected a call"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOKENS, WIDTH, HEADS, LENGTH = 96, 32, 2, 16
COMMON = {"vocab_size": TOKENS, "hidden_size": WIDTH, "num_attention_heads": HEADS}
LLAMA = {
    **COMMON,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": LENGTH,
}
BERT = {**COMMON, "intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 32}
IMAGE = {"image_size": 16, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": 64,
         "num_hidden_layers": 1, "num_attention_heads": HEADS}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tokens() -> torch.Tensor:
    return torch.randint(3, TOKENS, (2, LENGTH))


def text() -> dict[str, torch.Tensor]:
    ids = tokens()
    return {"input_ids": ids, "labels": ids}


def sequences() -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(), "labels": tokens()}


def images() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}


def sounds() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 8, 32), "labels": tokens()}


def pairs() -> dict[str, Any]:
    ids = tokens()
    ids[:, -1] = TOKENS - 1  # the end of the text
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16), "return_loss": True}


@dataclass(frozen=True)
class Model:
    config: str
    model: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Any]] = text
    bound: float = 2e-3  # of the largest gradient: sums in another order, before they are quantized


MODELS = {
    "gpt2": Model(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": TOKENS, "n_embd": WIDTH, "n_layer": 1, "n_head": HEADS, "n_positions": 32,
         "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "llama": Model("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "qwen2": Model("Qwen2Config", "Qwen2ForCausalLM", LLAMA),
    "mistral": Model("MistralConfig", "MistralForCausalLM", {**LLAMA, "sliding_window": 8}),
    "mixtral": Model(
        "MixtralConfig",
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1,
         "experts_implementation": "eager"},
    ),
    "bert": Model("BertConfig", "BertForMaskedLM", {**BERT, **NO_DROPOUT}),
    "t5": Model(
        "T5Config",
        "T5ForConditionalGeneration",
        {"vocab_size": TOKENS, "d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 1,
         "num_heads": HEADS, "dropout_rate": 0.0, "decoder_start_token_id": 0},
        sequences,
    ),
    "vit": Model("ViTConfig", "ViTForImageClassification", {**IMAGE, **NO_DROPOUT}, images),
    "whisper": Model(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {"vocab_size": TOKENS, "num_mel_bins": 8, "d_model": WIDTH, "encoder_layers": 1,
         "decoder_layers": 1, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
         "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 16,
         "max_target_positions": 32, "dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
         "begin_suppress_tokens": None},
        sounds,
    ),
    "clip": Model(
        "CLIPConfig",
        "CLIPModel",
        {"text_config": {**BERT, "max_position_embeddings": LENGTH, "eos_token_id": TOKENS - 1,
                         "bos_token_id": 1, "projection_dim": WIDTH},
         "vision_config": {**IMAGE, "projection_dim": WIDTH}, "projection_dim": WIDTH},
        pairs,
    ),
    "mamba": Model(
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": TOKENS, "hidden_size": WIDTH, "state_size": 4, "num_hidden_layers": 1,
         "use_mambapy": False},
    ),
}  # fmt: skip
DEFAULT = ("gpt2", "vit")
CASES = [
    name if name in DEFAULT else pytest.param(name, marks=pytest.mark.conformance)
    for name in MODELS
]


def step(model: torch.nn.Module, inputs: dict[str, Any], run: Callable[..., Any]) -> torch.Tensor:
    """One training step; its loss and the gradients, flat, on the host."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = run(**inputs).loss
    loss.backward()
    optimizer.step()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([loss.detach().reshape(1), *grads]).cpu()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ["fp32"])
def test_a_training_step_equals_eager(name, policy):
    row = MODELS[name]
    torch._dynamo.reset()
    compiler.reset()
    torch.manual_seed(0)
    model = getattr(hf, row.model)(getattr(hf, row.config)(**row.options)).to("trn")
    inputs = {k: v.to("trn") if isinstance(v, torch.Tensor) else v for k, v in row.inputs().items()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with precision(policy):
        expected = step(model, inputs, model)
        after = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        actual = step(model, inputs, torch.compile(model, backend="trn"))
    largest = expected[1:].abs().max()
    assert (actual - expected).abs().max() <= row.bound * max(1.0, float(largest))
    for key, value in model.state_dict().items():
        assert value.sub(after[key]).abs().max() <= 2.5e-3, key  # a step of lr each way
    graphs = [r for r in compiler.report() if r.kind != "break"]
    assert graphs
    assert all(r.status == "compiled" for r in graphs), graphs
