"""How each row of measured_models, measured_trn3_gemm and measured_llm_decode is predicted.

Through what a user can reach: `torch_trn_emu.estimate` of operators and modules on `meta`, models
of `transformers` where a row is one of those. Ranks of a tensor-parallel model are one rank's share
(`blocks.py`) and the collectives of `torch_trn_emu.collectives`, one after the other. Equal layers
are priced at two depths and extended to the model's. A row without a prediction says why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from blocks import DecodeLayer, DoubleBlock, Experts, Gated, Head, SingleBlock, WanBlock
from torch import Tensor, nn
from torch.nn import functional as F

import torch_trn_emu
from torch_trn_emu.chip import get_chip, get_system
from torch_trn_emu.collectives import duration
from torch_trn_emu.estimation import Estimate

__all__ = ["REASONS", "UNPREDICTED", "WORKLOADS", "Predicted", "product"]

B2 = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Predicted:
    """Microseconds, and the estimate that says the regime."""

    us: float
    found: Estimate
    note: str = ""


Made = Callable[[], Predicted]


def _empty(*shape: int, dtype: torch.dtype = B2) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _estimate(
    function: Callable[..., Any], *inputs: Any, chip: str, lnc: int = 1, mode: str = "eager",
    policy: str = "bf16", grad: bool = False, **named: Any,
) -> Estimate:  # fmt: skip
    with torch.set_grad_enabled(grad), torch_trn_emu.precision(policy):
        return torch_trn_emu.estimate(function, *inputs, chip=chip, lnc=lnc, mode=mode, **named)


def _kernel(function: Callable[..., Any], *inputs: Tensor, **how: Any) -> Made:
    """A kernel on its own: the time of the device."""

    def made() -> Predicted:
        found = _estimate(function, *inputs, **how)
        return Predicted(found.device_us, found)

    return made


def _stream(function: Callable[..., Any], *inputs: Tensor) -> Made:
    """An eager operator of trn2 in a stream of them: the host dispatches while the core works."""

    def made() -> Predicted:
        found = _estimate(function, *inputs, chip="trn2", lnc=2)
        dispatch = get_chip("trn2").launch.eager_dispatch_s * 1e6
        return Predicted(max(dispatch * found.counters["launch_count"], found.device_us), found)

    return made


def _launched(us: float, chip: str) -> float:
    """A graph in a stream of launches."""
    return max(get_chip(chip).launch.graph_launch_s * 1e6, us)


def _exchange(nbytes: float, ranks: int, chip: str, op: str = "all_reduce") -> float:
    """Microseconds of a collective in a graph among the first ranks of a server."""
    system = get_system("", chip)
    cores = get_chip(chip).logical_cores(1 if chip == "trn1" else 2)
    return duration(op, int(nbytes), tuple(range(ranks)), system, cores, "graph").seconds * 1e6


def _at_depth(times: Callable[[int], Estimate], depth: int) -> tuple[float, Estimate]:
    """Device time at a depth, from two and three layers: each further one takes the same."""
    two, three = times(2), times(3)
    return two.device_us + (depth - 2) * (three.device_us - two.device_us), three


class _Repeated(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *states: Any) -> Any:
        for layer in self.layers:
            made = layer(*states)
            made = made if isinstance(made, tuple) else (made,)
            states = (*made, *states[len(made) :])
        return states[0]


def _blocks(make: Callable[[], nn.Module], depth: int, inputs: tuple[Tensor, ...], chip: str,
            lnc: int = 2) -> tuple[float, Estimate]:  # fmt: skip
    def times(layers: int) -> Estimate:
        with torch.device("meta"):
            stack = _Repeated([make().to(B2) for _ in range(layers)]).eval()
        return _estimate(stack, *inputs, chip=chip, lnc=lnc, mode="compile")

    return _at_depth(times, depth)


# --- diffusion transformers: four ranks of one chip -----------------------------------------------


def _wan(blocks: int, chip: str, tokens: int = 4680) -> Predicted:
    table = _empty(tokens, 128)
    inputs = (_empty(1, tokens, 5120), _empty(1, 512, 5120), _empty(1, 6, 5120), table, table)
    us, found = _blocks(lambda: WanBlock(5120, 13824, 4), blocks, inputs, chip)
    return Predicted(us + 3 * blocks * _exchange(tokens * 5120 * 2, 4, chip), found)


def _of_two_streams(double: int, single: int, tokens: int, words: int, chip: str) -> Predicted:
    whole, width = tokens + words, 3072
    table, time = _empty(whole, 128), _empty(1, width)
    pair = (_empty(1, tokens, width), _empty(1, words, width), time, table, table)
    us, found = _blocks(lambda: DoubleBlock(width, 4), double, pair, chip)
    if single:
        joined = (_empty(1, whole, width), time, table, table)
        more, _ = _blocks(lambda: SingleBlock(width, 4), single, joined, chip)
        us += more
    reductions = 2 * double + single
    return Predicted(us + reductions * _exchange(whole * width * 2, 4, chip), found)


# --- one new token a step -------------------------------------------------------------------------


def _decoder(
    layers: int, width: int, heads: int, shared: int, dim: int,
    make: Callable[[], nn.Module | None], words: int, *, chip: str, ranks: int, lnc: int,
    batch: int, cache: int, norms: bool = False,
) -> Predicted:  # fmt: skip
    """heads, shared and words are one rank's."""
    table, at = _empty(1, dim), _empty(1, dtype=torch.int64)
    inputs = (_empty(batch, 1, width), at, table, table)
    us, found = _blocks(
        lambda: DecodeLayer(width, heads, shared, dim, make(), norms, (batch, cache)),
        layers, inputs, chip, lnc,
    )  # fmt: skip
    with torch.device("meta"):
        head = Head(width, words).to(B2)
    us += _estimate(head, inputs[0], chip=chip, lnc=lnc, mode="compile").device_us
    exchange = _exchange(batch * width * 2, ranks, chip)
    return Predicted(_launched(us + 2 * layers * exchange, chip), found)


def _gpt_oss(cache: int, batch: int = 1) -> Predicted:
    return _decoder(24, 2880, 8, 1, 64, lambda: Experts(2880, 360, 32, 4), 25136, chip="trn3",
                    ranks=8, lnc=1, batch=batch, cache=cache)  # fmt: skip


def _qwen_moe(cache: int) -> Predicted:
    return _decoder(48, 2048, 8, 1, 128, lambda: Experts(2048, 192, 128, 8), 37984, chip="trn3",
                    ranks=4, lnc=2, batch=1, cache=cache, norms=True)  # fmt: skip


def _llama(batch: int, cache: int = 4096) -> Predicted:
    return _decoder(32, 4096, 8, 2, 128, lambda: Gated(4096, 3584), 32064, chip="trn2", ranks=4,
                    lnc=2, batch=batch, cache=cache)  # fmt: skip


def _attention_block() -> Predicted:
    inputs = (_empty(1, 1, 2048), _empty(1, dtype=torch.int64), *[_empty(1, 128)] * 2)
    with torch.device("meta"):
        layer = DecodeLayer(2048, 8, 1, 128, None, True, (1, 640)).to(B2)
    found = _estimate(layer, *inputs, chip="trn3", lnc=2, mode="compile")
    return Predicted(found.device_us, found)


# --- models of transformers -----------------------------------------------------------------------


def _built(config: Any, kind: str, dtype: torch.dtype) -> nn.Module:
    import transformers

    with torch.device("meta"):
        made = getattr(transformers, kind)(config) if kind[0].isupper() else None
    assert made is not None
    return made.to(dtype)  # type: ignore[no-any-return]


def _config(name: str, **values: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**values)


def _encoder(depth: int, width: int, batch: int, *, distilled: bool = False) -> Predicted:
    """float32 weights, products in bfloat16, on one core of trn1."""

    def times(layers: int) -> Estimate:
        if distilled:
            config = _config("DistilBertConfig", n_layers=layers, dim=width, n_heads=width // 64)
            model = _built(config, "DistilBertModel", torch.float32)
        else:
            config = _config("BertConfig", num_hidden_layers=layers, hidden_size=width,
                             num_attention_heads=width // 64,
                             intermediate_size=4 * width)  # fmt: skip
            model = _built(config, "BertModel", torch.float32)
        tokens = _empty(batch, 128, dtype=torch.int64)
        return _estimate(model.eval(), tokens, chip="trn1", mode="compile")

    us, found = _at_depth(times, depth)
    return Predicted(_launched(us, "trn1"), found)


def _siglip(policy: str) -> Predicted:
    def times(layers: int) -> Estimate:
        config = _config("SiglipVisionConfig", hidden_size=1152, intermediate_size=4304,
                         num_hidden_layers=layers, num_attention_heads=16, image_size=384,
                         patch_size=14)  # fmt: skip
        model = _built(config, "SiglipVisionModel", torch.float32).eval()
        image = _empty(1, 3, 384, 384, dtype=torch.float32)
        return _estimate(model, image, chip="trn2", lnc=2, mode="compile", policy=policy)

    us, found = _at_depth(times, 27)
    return Predicted(_launched(us, "trn2"), found)


QWEN = {
    "Qwen3-0.6B": ("Qwen3", 28, 1024, 16, 8, 128, 3072),
    "Qwen3-1.7B": ("Qwen3", 28, 2048, 16, 8, 128, 6144),
    "Qwen2.5-0.5B": ("Qwen2", 24, 896, 14, 2, 64, 4864),
}


def _causal(name: str, batch: int, mode: str) -> Predicted:
    """512 tokens of a prompt, with the logits of all."""
    family, depth, width, heads, shared, dim, hidden = QWEN[name]

    def times(layers: int) -> Estimate:
        sizes: dict[str, Any] = {"head_dim": dim} if family == "Qwen3" else {}
        config = _config(f"{family}Config", hidden_size=width, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=shared,
                         intermediate_size=hidden, vocab_size=151936, **sizes)  # fmt: skip
        config._attn_implementation = "eager"
        model = _built(config, f"{family}ForCausalLM", B2).eval()
        tokens = _empty(batch, 512, dtype=torch.int64)
        return _estimate(model, tokens, chip="trn2", lnc=2, mode=mode, use_cache=False)

    if mode == "compile":
        us, found = _at_depth(times, depth)
        return Predicted(_launched(us, "trn2"), found)
    two, three = times(2), times(3)
    return Predicted(two.time_us + (depth - 2) * (three.time_us - two.time_us), three)


def _step(model: nn.Module, *inputs: Tensor, **named: Tensor) -> None:
    model(*inputs, **named).loss.backward()


def _bert_training() -> Predicted:
    def times(layers: int) -> Estimate:
        config = _config("BertConfig", num_hidden_layers=layers, hidden_size=1024,
                         num_attention_heads=16, intermediate_size=4096)  # fmt: skip
        model = _built(config, "BertForPreTraining", B2).train()
        tokens, one = _empty(16, 128, dtype=torch.int64), _empty(16, dtype=torch.int64)
        return _estimate(_step, model, tokens, labels=tokens, next_sentence_label=one,
                         chip="trn1", mode="compile", grad=True)  # fmt: skip

    us, found = _at_depth(times, 24)
    return Predicted(us, found)


def _llama_training() -> Predicted:
    """One of eight ranks: heads, hidden features and words divided."""

    def times(layers: int) -> Estimate:
        config = _config("LlamaConfig", num_hidden_layers=layers, hidden_size=4096,
                         num_attention_heads=4, num_key_value_heads=4, head_dim=128,
                         intermediate_size=1376, vocab_size=4000)  # fmt: skip
        model = _built(config, "LlamaForCausalLM", B2).train()
        tokens = _empty(1, 4096, dtype=torch.int64)
        return _estimate(
            _step, model, tokens, labels=tokens, chip="trn1", mode="compile", grad=True
        )

    us, found = _at_depth(times, 32)
    # two all_reduces a layer forward, two backward
    return Predicted(us + 4 * 32 * _exchange(4096 * 4096 * 2, 8, "trn1"), found)


# --- rows -----------------------------------------------------------------------------------------


def product(m: int, n: int, k: int) -> Predicted:
    """`lhs.t() @ rhs` of bfloat16 on a logical core of trn3, both operands with K outermost."""
    found = _estimate(
        lambda a, b: torch.mm(a.t(), b), _empty(k, m), _empty(k, n), chip="trn3", lnc=2
    )
    return Predicted(found.device_us, found)


def _rope(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return a * cos - b * sin, a * sin + b * cos


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _shared_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _large(*dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(_empty(2**13, 2**13, dtype=dtype) for dtype in dtypes)


_IMAGE = (
    _empty(1, 256, 224, 224, dtype=torch.float16),
    _empty(256, 256, 3, 3, dtype=torch.float16),
)
_TRN2 = {"chip": "trn2"}
_FP32 = {"chip": "trn2", "policy": "fp32"}

WORKLOADS: dict[str, Made] = {
    "mm01": _kernel(lambda x: F.rms_norm(x, (4096,)), _empty(1024, 4096), **_TRN2),
    "mm02": _kernel(lambda x: F.layer_norm(x, (8192,)), _empty(128, 8192), **_TRN2),
    "mm03": _kernel(_rope, *(_empty(128, 32768) for _ in range(4)), mode="compile", **_TRN2),
    "mm04": _kernel(lambda x: x.cumsum(1), _empty(4096, 4096, dtype=torch.float32), **_FP32),
    "mm05": _kernel(lambda x: x.cumsum(1), _empty(128, 128256, dtype=torch.float32), **_FP32),
    "mm06": _kernel(F.scaled_dot_product_attention, *[_empty(1, 1, 1024, 128)] * 3, **_TRN2),
    "mm07": _kernel(lambda x: x.topk(256), _empty(1, 201088), chip="trn3"),
    "mm08": _attention_block,
    "mm09": lambda: _wan(40, "trn2"),
    "mm10": lambda: _wan(40, "trn3"),
    "mm11": lambda: _of_two_streams(19, 38, 4096, 512, "trn2"),
    "mm12": lambda: _of_two_streams(60, 0, 4096, 768, "trn2"),
    "mm13": lambda: _of_two_streams(20, 40, 10240, 256, "trn2"),
    "mm14": lambda: _wan(2, "trn2"),
    "mm15": lambda: _gpt_oss(2048),
    "mm16": lambda: _gpt_oss(2048),
    "mm18": lambda: _siglip("bf16"),
    "mm19": lambda: _siglip("fp32"),
    "mm20": lambda: _causal("Qwen3-0.6B", 1, "compile"),
    "mm21": lambda: _causal("Qwen3-1.7B", 1, "eager"),
    "mm22": lambda: _causal("Qwen3-0.6B", 8, "compile"),
    "mm23": lambda: _causal("Qwen2.5-0.5B", 1, "eager"),
    "mm24": lambda: _encoder(12, 768, 16),
    "mm25": lambda: _encoder(24, 1024, 1),
    "mm26": lambda: _encoder(6, 768, 16, distilled=True),
    "mm27": _bert_training,
    "mm28": _llama_training,
    "mm29": _stream(_causal_attention, *[_empty(1, 80, 4096, 128)] * 3),
    "mm30": _stream(_shared_keys, _empty(16, 80, 1, 128), *[_empty(16, 8, 10240, 128)] * 2),
    "mm31": _stream(torch.sub, *_large(B2, B2)),
    "mm32": _stream(torch.div, *_large(torch.float32, torch.float32)),
    "mm33": _stream(F.gelu, *_large(B2)),
    "mm34": _stream(torch.sin, *_large(torch.float32)),
    "mm35": _kernel(_causal_attention, *[_empty(1, 1, 16384, 128)] * 3, **_TRN2),
    "mm36": _kernel(lambda x, w: F.conv2d(x, w, padding=1), *_IMAGE, chip="trn1"),
    "mm37": _kernel(
        lambda x, w: F.max_pool2d(F.conv2d(x, w, padding=1), 2), *_IMAGE, chip="trn1",
        mode="compile",
    ),
    "llm01": lambda: _llama(32),
    "llm02": lambda: _llama(32),
    "llm04": lambda: _gpt_oss(640),
    "llm05": lambda: _gpt_oss(4096),
    "llm06": lambda: _qwen_moe(640),
}  # fmt: skip

UNPREDICTED = {
    "mm17": "the layers of Qwen3.6-35B-A3B and of its draft head are not described by a public "
    "configuration",
    "llm03": "the length of the prompts is not published",
}

_BETA = "the beta compiles it badly, see docs/timing.md: sub reaches 609 GB/s in the same table"
_DISPATCH = "launches x 93 us are the measured time: an operator's dispatch is priced as 55 us"
_VISION = "timed on the host, image transfer included; the measured time is a seventh of the peak"
# Why a prediction is far from the measured figure, where something public shows it.
REASONS: dict[str, str] = {
    "mm03": "tuned for its shape: its DMAs alone take 137 us; see Far from the measured time",
    "mm07": "DMAs that only synchronize, between the steps of the measured kernel (its source)",
    "mm16": "written as one kernel; the row before is the same step in a graph",
    "llm04": "the source measures the next row, with six times as many keys, to be faster",
    "llm06": "the measured step reads its weights at less than a tenth of the bandwidth",
    "mm18": _VISION,
    "mm19": _VISION,
    "mm21": _DISPATCH,
    "mm23": _DISPATCH,
    "mm27": "rows of the backward pass go through HBM between its regions (inferred)",
    "mm28": "the source's MFU is of model flops; what is computed again is not published",
    "mm30": "keys and values are read at 110 GB/s, a sixth of the bandwidth, in the measured call",
    "mm32": _BETA,
    "mm33": _BETA,
    "mm34": _BETA,
    "mm36": "61 % of the array's peak: one loop without overlap of loads and products",
    "llm02": "128 users share its 32 places: prompts of others are processed between its tokens",
    "llm01": "the server's batch is 32 whatever arrives: one program for this row and the next",
}
