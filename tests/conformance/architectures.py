"""Architectures of transformers with tiny random weights: forward, backward and `generate` on trn.

Configurations are made small by the names of their fields (`SIZES`); `OPTIONS` has what an
architecture needs beside that. A row of the result is one architecture. Values are compared bit for
bit with the CPU, under fp32. NOT_BUILT is what the CPU does not run with these sizes or inputs.

    python tests/conformance/architectures.py --report rows.jsonl [--only llama,t5] [--part 1/4]
"""

import argparse
import copy
import inspect
import json
import math
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRN_EMU_MATMUL", "fp32")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as hf
from torch import Tensor
from transformers.models.auto import modeling_auto as auto

TOKENS, LENGTH, WIDTH = 99, 12, 32
LIMIT_S = 600  # of a process
MOST_PARAMETERS = 20_000_000
IN_A_PROCESS = 12

# The first kind of model that an architecture has is the one that is walked.
HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)

# Sizes by the name of a field; the first pattern that fits a whole name counts.
SIZES: tuple[tuple[str, Any], ...] = (
    (r"(.*_)?vocab_size|n_vocab|.*_vocab_size_.*|vocab_size_or_.*", TOKENS),
    (r"(.*dropout.*|.*drop_rate|.*drop_path.*|.*layerdrop|.*_pdrop|.*jitter.*)", 0.0),
    (r"mask_time_prob|mask_feature_prob", 0.0),
    (r"(.*_)?num_key_value_heads|num_kv_heads|n_head_kv|.*_kv_heads", 2),
    (r"(.*_)?(num_|n_)?(attention_)?heads?(_count)?|.*_num_heads|n_heads?|num_attn_heads", 4),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|(de|en)coder_layers|num_blocks|depth", 2),
    (r".*_(num_)?layers|num_.*_layers|num_hidden_groups|n_.*_layers?|.*_depth", 2),
    (r"(.*_)?(num_)?(local_|routed_)?experts|n_routed_experts|moe_num_experts|.*num_experts", 4),
    (r"num_experts_per_tok|.*top_k|moe_k|num_selected_experts|.*_topk", 2),
    (r"n_group|topk_group|num_shared_experts|n_shared_experts", 1),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|d_inner|inner_dim|n_inner|ffn_hidden_size).*", 64),
    (r"(.*_)?(mlp_dim|feed_forward.*|ffn_embed_dim|.*_ffn_size|ff_expansion_dim)", 64),
    (r"(.*_)?(q_lora_rank|kv_lora_rank|.*_rank)", 16),
    (r"qk_nope_head_dim|v_head_dim|qk_rope_head_dim|d_kv|(.*_)?head_dim|kv_channels", 8),
    (r"(.*_)?(hidden_size|d_model|n_embd|embedding_size|embed_dim|hidden_dim|emb_dim).*", WIDTH),
    (r"(.*_)?(embedding_dim|projection_dim|width|channels|embed_size|output_dim|proj_dim)", WIDTH),
    (r"n_positions|(.*_)?max_position_embeddings|n_ctx|max_seq_len|max_.*_positions", 64),
    (r"(.*_)?image_size|img_size|input_size|pretrain_size", 32),
    (r"(.*_)?patch_size", 8),
    (r"(.*_)?num_mel_bins|feature_size|n_mels", 16),
    (r"(.*_)?state_size|mamba_d_state|ssm_state_size", 8),
    (r"(.*_)?num_queries", 5),
    (r"sliding_window|attention_window|chunk_size", 8),
)  # fmt: skip


# What an architecture needs beside the sizes: fields of its configuration.
_HEADS = {"num_heads": [2, 4, 4, 4]}
OPTIONS: dict[str, dict[str, Any]] = {
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "swin": _HEADS,
    "swinv2": _HEADS,
    "donut-swin": _HEADS,
    "maskformer-swin": _HEADS,
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
    "xlnet": {"d_head": 8},
    "longt5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}

# Differences with a reason; anything else is a failure.
LSTM = "a recurrent layer: tests/conformance/reasons.py, RECURRENT"
DIFFER = {"encodec": LSTM}


def model_class(name: str) -> type | None:
    for mapping in HEADS:
        found = getattr(auto, mapping).get(name)
        if found:
            return getattr(hf, found[0] if isinstance(found, tuple) else found, None)
    return None


def tiny(config: type) -> dict[str, Any]:
    """Fields that make a configuration small."""
    default = config()
    chosen: dict[str, Any] = {}
    special = iter(range(TOKENS - 1, 3, -1))
    for field, parameter in inspect.signature(config).parameters.items():
        value = getattr(default, field, parameter.default)
        if hasattr(value, "to_dict"):
            chosen[field] = tiny(type(value)) | {"model_type": value.model_type}
        elif re.fullmatch(r".*_token(_id|_index|_ids)?|.*_idx", field):
            if isinstance(value, int) and not isinstance(value, bool) and value >= TOKENS:
                chosen[field] = next(special)
        else:
            made = small(field, value)
            if made is not None:
                chosen[field] = made
    if "kv_lora_rank" in chosen and "num_key_value_heads" in chosen:
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        chosen["rope_parameters"] = rope | {"mrope_section": [1, 1, 2]}
    return chosen


def small(field: str, value: Any) -> Any:
    """The value made small; None where the default is to stay."""
    size = next((size for name, size in SIZES if re.fullmatch(name, field)), None)
    if size is None or value is None or isinstance(value, bool | str):
        return None
    if isinstance(value, int | float):
        return min(value, size)
    if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
        return type(value)(min(v, size) for v in value)
    return None


def configuration(name: str) -> Any:
    config = hf.CONFIG_MAPPING[name]
    return config(**(tiny(config) | OPTIONS.get(name, {})))


def inputs_of(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs to try, by the names of the forward's arguments."""
    names = inspect.signature(model.forward).parameters
    text = model.config.get_text_config()
    top = min(TOKENS, getattr(text, "vocab_size", None) or TOKENS) - 40
    ids = torch.randint(4, max(8, top), (2, LENGTH))
    main = getattr(model, "main_input_name", "input_ids")
    kinds = {"pixel_values": _images, "input_features": _features}
    kinds |= dict.fromkeys(("input_values", "audio_values"), _sounds)
    if main in kinds:
        for given, labels in kinds[main](model.config, ids):
            if "decoder_input_ids" in names:
                yield {main: given, "decoder_input_ids": ids, "labels": ids}
            if "labels" in names and labels is not None:
                yield {main: given, "labels": labels}
            yield {main: given}
            if "input_ids" in names:
                yield {main: given, "input_ids": ids}
    labels = {"labels": ids} if "labels" in names else {}
    if "decoder_input_ids" in names:
        yield {"input_ids": ids, "decoder_input_ids": ids, **labels}
    yield {"input_ids": ids, **labels}
    yield {"input_ids": ids}
    if "pixel_values" in names:
        given = next(_images(model.config, ids))[0]
        yield {"pixel_values": given}
        yield {"input_ids": ids, "pixel_values": given}


_Given = Iterator[tuple[Tensor, Tensor | None]]  # what goes in, and labels


def _images(config: Any, _ids: Tensor) -> _Given:
    size = getattr(config, "image_size", None) or 32
    vision = getattr(config, "vision_config", None)
    size = getattr(vision, "image_size", size) or size
    size = size[0] if isinstance(size, list | tuple) else size
    channels = getattr(config, "num_channels", 3) or 3
    frames = getattr(config, "num_frames", 8) or 8
    yield torch.rand(2, channels, size, size), torch.tensor([0, 1])
    yield torch.rand(2, channels, 64, 64), None
    yield torch.rand(2, frames, channels, size, size), None


def _sounds(_config: Any, ids: Tensor) -> _Given:
    for shape in ((2, 4000), (2, 1, 4000), (2, 64, 16)):
        yield torch.randn(shape), ids[:, :4]


def _features(config: Any, ids: Tensor) -> _Given:
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", 16)
    for shape in ((2, bins, 128), (2, 128, bins), (2, 64, bins)):
        yield torch.randn(shape), ids[:, :4]


def tensors_of(made: Any) -> list[Tensor]:
    """The tensors of a result, caches left out."""
    if isinstance(made, hf.utils.ModelOutput):
        made = tuple(made.values())
    if isinstance(made, tuple | list):
        return [tensor for part in made for tensor in tensors_of(part)]
    return [made] if isinstance(made, Tensor) else []


def step(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Results and gradients, on the host."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    made = model(**inputs)
    tensors = tensors_of(made)
    loss = getattr(made, "loss", None)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        floats = [t for t in tensors if t.requires_grad and not t.is_complex()]
        loss = sum(t.float().square().mean() for t in floats)
    loss.sum().backward()
    found = {f"result {i}": t.detach().cpu() for i, t in enumerate(tensors)}
    found |= {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return found


def to(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def differences(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> list[str]:
    found = [f"{n} is missing" for n in expected.keys() ^ actual.keys()]
    for name in expected.keys() & actual.keys():
        a, b = expected[name], actual[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{name}: {a.dtype} {tuple(a.shape)}, {b.dtype} {tuple(b.shape)}")
        elif not torch.equal(bits(a), bits(b)):
            most, of = (t.abs().max().item() for t in (a.double() - b.double(), a.double()))
            found.append(f"{name}: by {most:.3g} of {of:.3g}")
    return found


def bits(t: Tensor) -> Tensor:
    """NaN is NaN, and zeros keep their sign."""
    t = torch.view_as_real(t) if t.is_complex() else t
    if not t.is_floating_point():
        return t
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return torch.where(t.isnan(), torch.full_like(t, math.nan), t).contiguous().view(whole)


def working(model: Any) -> dict[str, Any]:
    """The first inputs with which the CPU gives a result and gradients."""
    errors = []
    for inputs in inputs_of(model):
        try:
            step(model, inputs)
        except Exception as error:
            errors.append(f"{list(inputs)}: {type(error).__name__}: {str(error)[:150]}")
        else:
            return inputs
    raise RuntimeError("; ".join(errors[:4]))


def generated(model: Any, inputs: dict[str, Any]) -> Tensor:
    given = {k: v for k, v in inputs.items() if k not in ("labels", "decoder_input_ids")}
    if model.config.is_encoder_decoder:
        given["decoder_start_token_id"] = 0
    torch.manual_seed(2)
    made = model.generate(
        **given, do_sample=False, max_new_tokens=6, min_new_tokens=6, pad_token_id=0, num_beams=1
    )
    return made.cpu() if isinstance(made, Tensor) else tensors_of(made)[0].cpu()


class Unsuitable(Exception):
    """There is nothing to compare; its arguments are the verdict and why."""


def built(name: str, kind: type) -> tuple[Any, Any, dict[str, Any]]:
    """The model twice, and inputs with which the CPU gives the same results again and again."""
    try:
        torch.manual_seed(0)
        config = configuration(name)
        with torch.device("meta"):
            count = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
        if count > MOST_PARAMETERS:
            raise Unsuitable("TOO_LARGE", f"{count:,} parameters")
        model, twin = kind(copy.deepcopy(config)), kind(config)
        twin.load_state_dict(model.state_dict())
        inputs = working(model)
    except Unsuitable:
        raise
    except Exception as error:
        raise Unsuitable("NOT_BUILT", f"{type(error).__name__}: {str(error)[:600]}") from error
    for train in (True, False):
        model.train(train), twin.train(train)
        step(model, inputs)  # statistics that a forward updates start alike
        model.load_state_dict(twin.state_dict())
        expected = step(model, inputs)
        model.load_state_dict(twin.state_dict())
        if not differences(expected, step(model, inputs)):
            model.load_state_dict(twin.state_dict())
            return model, twin, inputs
    raise Unsuitable("RANDOM", "two runs on the CPU differ")


def row_of(name: str) -> dict[str, Any]:
    """What the walk says of an architecture."""
    kind = model_class(name)
    if kind is None:
        return {"name": name, "verdict": "NOT_BUILT", "why": "it needs a library that is missing"}
    row: dict[str, Any] = {"name": name, "model": kind.__name__}
    try:
        model, twin, inputs = built(name, kind)
    except Unsuitable as found:
        return row | dict(zip(("verdict", "why"), found.args, strict=True))
    row |= {"training": model.training, "inputs": sorted(inputs)}
    expected = step(model, inputs)
    try:
        found = differences(expected, step(twin.to("trn"), to(inputs, "trn")))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {str(error)[:500]} at {place.filename}:{place.lineno}"
        return row | {"verdict": "RAISES", "why": why}
    row["compared"] = len(expected)
    if found:
        return row | {"verdict": "DIFFERS", "why": f"{len(found)} of {len(expected)}: {found[:6]}"}
    return row | {"verdict": "EXACT"} | generation(model, twin, inputs)


def generation(model: Any, device: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    if not model.can_generate():
        return {}
    model.eval(), device.eval()
    try:
        expected = generated(model, inputs)
    except Exception as error:
        return {"generate": f"not on the CPU: {type(error).__name__}: {str(error)[:200]}"}
    try:
        actual = generated(device, to(inputs, "trn"))
    except Exception as error:
        return {"verdict": "GENERATE_RAISES", "why": f"{type(error).__name__}: {str(error)[:300]}"}
    if expected.shape != actual.shape or not torch.equal(bits(expected), bits(actual)):
        return {"verdict": "GENERATE_DIFFERS", "why": f"{expected.tolist()}, {actual.tolist()}"}
    return {"generate": "equal"}


def all_names() -> list[str]:
    return sorted({name for mapping in HEADS for name in getattr(auto, mapping)})


def work(names: list[str]) -> None:
    """In a process of its own: a row a line on stdout."""
    warnings.simplefilter("ignore")
    hf.logging.set_verbosity_error()
    for name in names:
        print(json.dumps({"begun": name}), flush=True)
        print(json.dumps(row_of(name)), flush=True)


def walk(names: list[str], report: Path) -> list[dict[str, Any]]:
    """Rows of all names; a crash or a hang is a row, and the walk goes on behind it."""
    rows: list[dict[str, Any]] = []
    while names:
        command = [sys.executable, __file__, "--work", ",".join(names[:IN_A_PROCESS])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
            out, status = done.stdout, str(done.returncode)
        except subprocess.TimeoutExpired as late:
            out, status = (late.stdout or b"").decode(), "out of time"
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        new = [line for line in lines if "verdict" in line]
        begun = [line["begun"] for line in lines if "begun" in line]
        if len(begun) > len(new):
            new.append({"name": begun[-1], "verdict": "CRASH", "why": status})
        if not new:
            new.append({"name": names[0], "verdict": "CRASH", "why": done.stderr[-300:]})
        for row in new:
            row["reason"] = DIFFER.get(row["name"])
        with report.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        rows += new
        finished = {row["name"] for row in new}
        names = [name for name in names if name not in finished]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", help="names, for the process that walks them")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--part", default="1/1", help="2/4: the second of four parts")
    parser.add_argument("--report", type=Path, default=Path("architectures.jsonl"))
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work.split(","))
        return
    part, parts = map(int, arguments.part.split("/"))
    names = arguments.only.split(",") if arguments.only else all_names()[part - 1 :: parts]
    for row in walk(names, arguments.report):
        print(f"{row['name']:30} {row['verdict']:12} {row.get('why', '')[:200]}")


if __name__ == "__main__":
    main()
