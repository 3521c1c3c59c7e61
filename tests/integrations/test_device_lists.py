"""Places where libraries list devices by name: each bridge, and a search for what has none."""

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from torch_trn_emu.integrations.device_lists import PLACES

# Files that name other vendors' devices and need no bridge, by the reason.
NO_BRIDGE = {
    "which kinds of process groups there are: the bridges of accelerate/state.py choose trn's": """
        accelerate/launchers.py accelerate/state.py accelerate/commands/config/cluster.py
        accelerate/commands/config/default.py accelerate/commands/launch.py
        accelerate/utils/launch.py accelerate/utils/environment.py
        transformers/distributed/utils.py""",
    "seeds: torch.manual_seed reaches every trn device": "accelerate/utils/random.py",
    "words for a device where trn takes a number: torch gives it to the accelerator": """
        accelerate/big_modeling.py accelerate/hooks.py accelerate/utils/operations.py""",
    "a kernel or library of that vendor": """
        accelerate/utils/transformer_engine.py accelerate/utils/imports.py
        transformers/integrations/npu_flash_attention.py transformers/integrations/hub_kernels.py
        transformers/integrations/fbgemm_fp8.py transformers/utils/kernel_config.py
        transformers/modeling_flash_attention_utils.py
        transformers/integrations/sdpa_attention.py transformers/quantizers/quantizer_fbgemm_fp8.py
        transformers/quantizers/quantizer_fp_quant.py transformers/quantizers/quantizer_mxfp4.py
        transformers/quantizers/quantizer_finegrained_fp8.py
        transformers/quantizers/quantizer_bnb_4bit.py transformers/quantizers/quantizer_bnb_8bit.py
        transformers/quantizers/quantizers_utils.py
        torchao/quantization/quantize_/workflows/int4/int4_plain_int32_tensor.py
        torchao/quantization/utils.py torchao/optim/cpu_offload.py peft/utils/loftq_utils.py
        accelerate/utils/bnb.py accelerate/utils/megatron_lm.py torchao/ops.py
        torchao/kernel/autotuner.py transformers/quantizers/quantizer_sinq.py
        lightning/fabric/accelerators/cuda.py lightning/pytorch/accelerators/cuda.py""",
    "speed of loading or of generation; values are the same": """
        transformers/integrations/accelerate.py transformers/modeling_utils.py
        transformers/generation/utils.py transformers/masking_utils.py
        transformers/modeling_attn_mask_utils.py
        transformers/generation/continuous_batching/requests.py
        transformers/generation/continuous_batching/initialization.py
        transformers/generation/continuous_batching/input_outputs.py
        transformers/generation/continuous_batching/utils.py""",
    "figures that are logged": "transformers/trainer_utils.py transformers/cli/system.py "
    "accelerate/commands/env.py",
    "asks ACCELERATE_TORCH_DEVICE": "transformers/training_args.py",
    "loads adapters on the host, then moves them": "peft/utils/other.py peft/import_utils.py",
    "names in a help text": "peft/peft_model.py lightning/pytorch/trainer/trainer.py",
    "moves operands to a named device where they are on the host": "peft/tuners/lora/variants.py",
    "a device of its own branch": """
        lightning/pytorch/trainer/connectors/accelerator_connector.py
        lightning/fabric/utilities/device_dtype_mixin.py
        transformers/generation/continuous_batching/continuous_api.py""",
    "weights that DeepSpeed spread over CUDA's devices": "peft/tuners/trainable_tokens/layer.py",
    "passes for Inductor on x86": "torchao/quantization/pt2e/inductor_passes/x86.py",
    "which devices its own tests use": "torchao/utils.py",
}  # fmt: skip
_NAMED = re.compile(
    r"[\"'](xpu|npu|hpu|mlu|musa)[\"']|is_(torch_)?(xpu|npu|hpu|mlu)_available\(\)"
    r"|torch\.cuda\.((default_|current_)?stream|Stream|Event|(set|current)_device)\("
)
_LIBRARIES = ("accelerate", "transformers", "peft", "lightning", "torchao")
_PARTS_LEFT_OUT = ("models", "test_utils", "testing_utils", "testing", "prototype", "tests")


def files_that_name_devices(library):
    (root,) = find_spec(library).submodule_search_locations
    for path in sorted(Path(root).rglob("*.py")):
        place = path.relative_to(Path(root).parent)
        left_out = {part.removesuffix(".py") for part in place.parts} & set(_PARTS_LEFT_OUT)
        if not left_out and _NAMED.search(path.read_text()):
            yield str(place)


@pytest.mark.parametrize("library", _LIBRARIES)
def test_every_list_of_devices_has_a_bridge_or_a_reason(library):
    known = {place.module.replace(".", "/") for place in PLACES}
    known |= {file.removesuffix(".py") for files in NO_BRIDGE.values() for file in files.split()}
    found = {
        file.removesuffix(".py").removesuffix("/__init__")
        for file in files_that_name_devices(library)
    }
    assert found <= known


@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p.module}:{p.name}")
def test_what_stands_at_a_place_is_the_bridge(place):
    module = sys.modules.get(place.module) or importlib.import_module(place.module)
    there = module
    for part in place.name.split("."):
        there = getattr(there, part)
    if not hasattr(there, "_trn_bridge"):  # changed in place
        constants = [c for c in getattr(there, "__code__", run.__code__).co_consts if c]
        names = [c for c in constants if isinstance(c, tuple)]
        names += [getattr(there, "__defaults__", ()) or (), getattr(there, "__members__", ())]
        names += [getattr(there, "__code__", run.__code__).co_names]
        assert any({"trn", "TRN"} & set(some) for some in names)


def run(script, *arguments, **environment):
    command = [sys.executable, "-c", script, *arguments]
    without = {k: v for k, v in os.environ.items() if k != "ACCELERATE_TORCH_DEVICE"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=without | environment
    )


ACCELERATE = """
import tempfile
import torch
from accelerate import Accelerator, init_empty_weights, infer_auto_device_map, dispatch_model
from accelerate.utils import ProfileKwargs, get_max_memory, release_memory
from torch import nn

accelerator = Accelerator(mixed_precision="fp16", dynamo_backend="no")
assert accelerator.device.type == "trn", accelerator.device
assert accelerator.scaler.is_enabled() and accelerator.scaler._device == "trn"
net = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 1))
net, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=1e-2))

def train(steps):
    losses = []
    for _ in range(steps):
        with accelerator.autocast():
            x = torch.randn(16, 8, device="trn")
            loss = net(x).square().mean() + torch.rand(1, device="trn:2").item()
        assert net[0](x).dtype in (torch.float16, torch.float32)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses

train(2)
with tempfile.TemporaryDirectory() as folder:
    accelerator.save_state(folder)
    through = train(3)
    torch.trn.manual_seed_all(9)
    accelerator.load_state(folder)
    assert train(3) == through

memory = get_max_memory()
assert [k for k in memory if isinstance(k, int)] == [0, 1, 2, 3] and "cpu" in memory
assert get_max_memory({1: "1GB", "cpu": "2GB", 0: 5}) == {0: 5, 1: 10**9, "cpu": 2 * 10**9}
big = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
device_map = infer_auto_device_map(big, max_memory={0: 52000, 1: 52000, "cpu": 10**9})
assert set(device_map.values()) == {0, 1}
spread = dispatch_model(big, device_map)
assert {str(p.device) for p in spread.parameters()} == {"trn:0", "trn:1"}
assert spread(torch.ones(1, 64)).device.type == "cpu"
assert ProfileKwargs(activities=["trn"])._get_profiler_activity("trn")
release_memory(big)
from accelerate.utils import DynamoBackend, synchronize_rng_states
before = torch.trn.get_rng_state()
synchronize_rng_states(["torch", "trn"])
assert torch.equal(torch.trn.get_rng_state(), before)
assert DynamoBackend("TRN").value == "TRN" and "TRN" in [b.value for b in DynamoBackend]
print("done")
"""


def test_accelerate():
    done = run(ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


COMPILED = """
import torch
from accelerate import Accelerator
model = Accelerator(dynamo_backend="trn").prepare(torch.nn.Linear(4, 4))
assert model(torch.ones(2, 4, device="trn")).device.type == "trn"
import torch_trn_emu
assert torch_trn_emu.compiler.report()
"""


def test_the_backend_of_accelerate_can_be_trn():
    done = run(COMPILED)
    assert done.returncode == 0, done.stderr


TRAINER = """
import json, sys
import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 1))

    def forward(self, x, labels=None):
        noise = torch.randn(1, device=x.device)
        return {"loss": (self.layers(x) + noise - labels).square().mean()}

set_seed(0)
folder, precision = sys.argv[1:]
rows = [{"x": torch.randn(8), "labels": torch.randn(1)} for _ in range(64)]
losses = []
for resume in (None, f"{folder}/checkpoint-4"):
    set_seed(1)
    arguments = TrainingArguments(
        folder, max_steps=8, save_steps=4, logging_steps=1, per_device_train_batch_size=8,
        report_to=[], disable_tqdm=True, fp16=precision == "fp16", bf16=precision == "bf16",
    )
    assert arguments.device.type == "trn", arguments.device
    trainer = Trainer(model=Net(), args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
assert len(losses[0]) == 8
assert losses[0] == losses[1], losses
print("done")
"""


def test_a_resumed_trainer_repeats_the_unbroken_one(tmp_path):
    done = run(TRAINER, str(tmp_path), "fp16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


TRANSFORMERS = """
import sys
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, pipeline
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import get_available_devices, is_torch_bf16_gpu_available
from transformers.utils.type_validators import device_validator
from safetensors import safe_open
from safetensors.torch import load_file

assert "trn" in get_available_devices() and is_torch_bf16_gpu_available()
device_validator("trn:0")
device_validator(torch.device("trn"))
config = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
)
folder = sys.argv[1]
BertForMaskedLM(config).save_pretrained(folder)
model = BertForMaskedLM.from_pretrained(folder, device_map="auto")
assert {p.device.type for p in model.parameters()} == {"trn"}, model.hf_device_map
assert model(input_ids=torch.ones(1, 4, dtype=torch.long, device="trn")).logits.device.type == "trn"
model = BertForMaskedLM.from_pretrained(folder, device_map="trn:1")
assert {str(p.device) for p in model.parameters()} == {"trn:1"}
for device in ("trn", "trn:2", torch.device("trn", 2), 0, "cpu"):
    wanted = torch.device("trn" if device == 0 else device)
    for value in load_file(folder + "/model.safetensors", device=device).values():
        assert value.device.type == wanted.type and value.device.index in (wanted.index, 0)
with safe_open(folder + "/model.safetensors", "pt", "trn:3") as file:
    assert file.get_tensor(file.keys()[0]).device == torch.device("trn", 3)

from transformers.pipelines.base import Pipeline

class Own(Pipeline):
    def _sanitize_parameters(self, **kwargs): return {}, {}, {}
    def preprocess(self, x): return {"input_ids": torch.ones(1, len(x), dtype=torch.long)}
    def _forward(self, inputs): return self.model(**inputs)
    def postprocess(self, outputs): return outputs.logits.device.type

config.num_labels = 2
model = BertForSequenceClassification(config)
for device in (None, 0, 1, "trn:1", torch.device("trn")):
    own = Own(model=model, device=device)
    assert own.device.type == "trn", own.device
    assert own.device.index in (1, None) or device in (None, 0)
    assert own("two") == "cpu"
assert Own(model=model, device=-1).device.type == "cpu" or model.device.type == "trn"

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=2)
model = LlamaForCausalLM(config).to("trn").eval()
words = torch.arange(1, 6, device="trn")[None]
plain, offloaded = (
    model.generate(words, max_new_tokens=3, do_sample=False, cache_implementation=cache)
    for cache in ("dynamic", "offloaded")
)
assert torch.equal(plain, offloaded)
print("done")
"""


def test_transformers_and_safetensors(tmp_path):
    done = run(TRANSFORMERS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


LIGHTNING = """
import importlib, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

name, precision, folder = sys.argv[1:]
pl = importlib.import_module(name)

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 1))
        self.losses = []

    def training_step(self, batch):
        (x,) = batch
        assert x.device.type == "trn"
        loss = self.layers(x).square().mean() + torch.rand(1, device=x.device)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch):
        torch.randn(3, device=self.device)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

data = TensorDataset(torch.arange(256.0).view(32, 8) / 256)
losses = []
for ckpt in (None, f"{folder}/middle.ckpt"):
    pl.seed_everything(3)
    keep = pl.callbacks.ModelCheckpoint(folder, filename="middle", every_n_epochs=2, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=2 if ckpt is None else 4, logger=False, enable_progress_bar=False,
        enable_model_summary=False, precision=precision, callbacks=[keep], default_root_dir=folder,
    )
    assert trainer.strategy.root_device.type == "trn" or trainer.accelerator.name() == "trn"
    net = Net()
    if ckpt is None:
        trainer.fit(net, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
        trainer = pl.Trainer(
            max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
            precision=precision, callbacks=[], enable_checkpointing=False,
        )
        pl.seed_everything(3)
        net = Net()
        trainer.fit(net, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
        losses.append(net.losses[8:])
    else:
        trainer.fit(net, DataLoader(data, 8, shuffle=True), DataLoader(data, 8), ckpt_path=ckpt)
        losses.append(net.losses)
assert len(losses[0]) == 8 and losses[0] == losses[1], losses
print("done")
"""


def test_a_resumed_lightning_trainer_repeats_the_unbroken_one(tmp_path):
    done = run(LIGHTNING, "lightning.pytorch", "16-mixed", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


FABRIC = """
import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities.seed import isolate_rng

for chosen in ("auto", "trn"):
    fabric = Fabric(accelerator=chosen, devices=1, precision="16-mixed")
    fabric.launch()
    assert fabric.device == torch.device("trn", 0), fabric.device
    model, optimizer = fabric.setup(net := torch.nn.Linear(4, 1), torch.optim.SGD(net.parameters()))
    fabric.backward(model(torch.ones(2, 4, device=fabric.device)).sum())
    optimizer.step()
before = torch.trn.get_rng_state_all()
with isolate_rng():
    torch.randn(3, device="trn:1")
assert all(map(torch.equal, torch.trn.get_rng_state_all(), before))
print("done")
"""


def test_fabric():
    done = run(FABRIC)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


def test_why_the_cpu_was_taken_is_said_once():
    script = "import accelerate.state, transformers.training_args, lightning.pytorch"
    done = run(script, TRN_EMU_CHIP="trn9")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("will not use trn: TRN_EMU_CHIP='trn9'") == 1


def test_a_users_choice_of_device_stays():
    script = "import accelerate, torch; assert accelerate.Accelerator().device.type == 'cpu'"
    assert run(script, ACCELERATE_TORCH_DEVICE="cpu").returncode == 0


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_keep_random_states(tmp_path):
    from torch.distributed import checkpoint

    state = {"rng": torch.trn.get_rng_state(), "w": torch.ones(3, device="trn")}
    checkpoint.save(state, checkpoint_id=tmp_path, no_dist=True)
    expected = torch.rand(3, device="trn")
    state = {"rng": torch.zeros_like(state["rng"]), "w": torch.zeros(3, device="trn")}
    checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)
    torch.trn.set_rng_state(state["rng"])
    assert torch.equal(torch.rand(3, device="trn"), expected)
    assert state["w"].device.type == "trn"
    assert state["w"].sum() == 3
