"""`estimate` of causal models of transformers on `meta`: compiled one launch, cache included."""

import pytest
import torch

from torch_trn_emu import estimate

transformers = pytest.importorskip("transformers")
# torch 2.13 and transformers use what they deprecate
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}  # fmt: skip


@pytest.mark.parametrize(("family", "attention"), [("Llama", "sdpa"), ("Qwen3", "eager")])
def test_causal_models_are_priced_in_both_modes(family: str, attention: str) -> None:
    config = getattr(transformers, f"{family}Config")(**SIZES)
    config._attn_implementation = attention
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    tokens = torch.empty(1, 16, dtype=torch.int64, device="meta")
    with torch.no_grad():
        eager, compiled = (estimate(model, tokens, mode=m) for m in ("eager", "compile"))
    assert eager.counters["launch_count"] > 40
    assert compiled.counters["launch_count"] == 1
    assert compiled.counters["model_flops"] == pytest.approx(eager.counters["model_flops"], rel=0.1)
    assert not {row.status for row in (*eager.ops, *compiled.ops)} & {"not modelled"}
    assert compiled.time_us < eager.time_us
