"""The table of names of torch.cuda is complete, and --as-cuda does what it says."""

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest
import torch

from torch_trn_emu.aliases.cuda_names import (
    KEPT,
    MODULES,
    PARTS,
    REFUSED,
    SAME,
    SINCE,
    SPECIAL,
    TENSOR_WORDS,
    reason,
    rows,
)

KNOWN = [name for name, _, _ in rows()]
# Names whose documentation says "device", "CUDA" or "GPU" of something else: determinism, streams.
SPEAK_OF_DEVICES = {
    "backward", "copy_", "index_add_", "index_reduce_", "is_leaf", "scatter_add_",
    "scatter_reduce_",
}  # fmt: skip


def public(module):
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) or "").startswith(module.__name__)
    }
    return own | set(getattr(module, "__all__", ()))


@pytest.mark.parametrize("part", ["", *PARTS, *MODULES])
def test_every_public_name_is_in_the_table(part):
    module = importlib.import_module(f"torch.cuda.{part}".removesuffix("."))
    own = {name.removeprefix(f"{part}.") for name in KNOWN if name.startswith(f"{part}.")}
    assert public(module) <= own | (set(KNOWN) if part not in MODULES else set())


def test_every_module_is_in_the_table():
    found = {module.name for module in pkgutil.iter_modules(torch.cuda.__path__)}
    assert {name for name in found if not name.startswith("_")} <= {*KEPT, *MODULES, *PARTS}


def test_names_are_there_once():
    assert len(KNOWN) == len(set(KNOWN))
    for name in KNOWN:
        value = torch.cuda
        for part in name.split("."):
            value = getattr(value, part)


def test_names_of_a_later_torch_are_left_out_before_it():
    for version, names in SINCE.items():
        assert (names <= set(KNOWN)) == (torch.__version__ >= version)
        assert names.isdisjoint(KNOWN) == (torch.__version__ < version)


@pytest.mark.parametrize("name", SAME)
def test_what_is_mapped_is_in_torch_trn(name):
    value = torch.trn
    for part in name.split("."):
        value = getattr(value, part)


def test_legacy_types_are_in_torch_trn():
    for name in SPECIAL:
        if name.endswith(("Tensor", "Storage")):
            value = torch.trn
            for part in name.split("."):
                value = getattr(value, part)


def test_refused_names_have_a_reason():
    assert reason("MemPool").startswith("there is one memory pool")
    assert reason("Stream") is None
    assert not {name for names in REFUSED.values() for name in names} & {*SAME, *SPECIAL, *KEPT}


def test_every_device_word_of_tensors_is_in_the_table():
    speaks = re.compile(r"\bdevice\b|GPU|CUDA")
    named = re.compile(r"(is_)?(cpu|cuda|hpu|ipu|maia|meta|mps|mtia|vulkan|xla|xpu|trn)")
    words = {
        name
        for name in dir(torch.Tensor)
        if not name.startswith("_")
        and (named.fullmatch(name) or speaks.search(getattr(torch.Tensor, name).__doc__ or ""))
    }
    assert words - SPEAK_OF_DEVICES <= set(TENSOR_WORDS)
    assert not {name for name in TENSOR_WORDS if not hasattr(torch.Tensor, name)}


SCRIPT = """
import io, pickle, copy
import torch
import torch.cuda.comm, torch.cuda.gds
from torch_trn_emu.aliases.cuda_names import FALSE, REFUSED, SAME, SPECIAL
from torch_trn_emu.errors import Unsupported

def at(name):
    value = torch.cuda
    for part in name.split("."):
        value = getattr(value, part)
    return value

for why, names in REFUSED.items():
    for name in names:
        try:
            at(name)()
        except Unsupported as error:
            assert why in str(error) and name in str(error)
        else:
            raise AssertionError(name)
for name in SAME:  # each that can be called without arguments
    if name.startswith(("get_", "is_", "max_", "memory_", "has_", "reset_", "nvtx.range_p")):
        value = at(name)
        value("x") if name == "nvtx.range_push" else callable(value) and value()

def through(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)

x = torch.arange(3.0, device="cuda:1")
for location, lands in (
    (None, "cuda:1"), ("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:2", "cuda:2"), ("trn:2", "cuda:2"),
    (torch.device("cuda", 3), "cuda:3"), (torch.device("cpu"), "cpu"),
    ({"cuda:1": "cuda:0"}, "cuda:0"), ({"cuda:1": "cpu"}, "cpu"), ({"cuda:0": "cpu"}, "cuda:1"),
    (lambda storage, where: storage, "cpu"), (lambda storage, where: storage.cuda(2), "cuda:2"),
    (lambda storage, where: None, "cuda:1"),
):
    for weights_only in (True, False):
        y = through({"x": x}, map_location=location, weights_only=weights_only)["x"]
        assert y.device == torch.device(lands) and y.tolist() == [0, 1, 2], (location, y.device)
asked = []
through(x, map_location=lambda storage, where: asked.append(where))
assert asked == ["cuda:1"]
for zipped in (True, False):
    file = io.BytesIO()
    torch.save(x, file, _use_new_zipfile_serialization=zipped)
    assert b"cuda:1" in file.getvalue() and b"trn" not in file.getvalue()
try:
    through(x, map_location="cuda:9")
except RuntimeError as error:
    assert "device_count() is 4" in str(error) and "map_location" in str(error)
else:
    raise AssertionError
assert pickle.loads(pickle.dumps(x)).device == copy.deepcopy(x).device == x.device
assert str(x) == "tensor([0., 1., 2.], device='cuda:1')"
where = torch.device("cuda", 1)
assert x.untyped_storage().device == x.storage().device == where and x.storage().is_cuda
assert x.untyped_storage().get_device() == 1
assert torch.ones(2).untyped_storage().cuda().device == torch.device("cuda", 0)
assert torch.ones(2).storage().cuda().device.type == "cuda" and not torch.ones(1).storage().is_cuda
assert x.type() == torch.typename(x) == "torch.cuda.FloatTensor"
assert x.storage_type() is torch.cuda.FloatStorage
assert x.type("torch.FloatTensor").device.type == "cpu"
for kind in ("torch.cuda.HalfTensor", torch.cuda.HalfTensor):
    assert torch.ones(2).type(kind).type() == "torch.cuda.HalfTensor"
assert torch.cuda.FloatTensor(2, 3).is_cuda and torch.cuda.LongTensor([1, 2]).tolist() == [1, 2]
assert isinstance(x, torch.cuda.FloatTensor) and not isinstance(x.cpu(), torch.cuda.FloatTensor)
assert isinstance(x.storage(), torch.cuda.FloatStorage) and torch.cuda.FloatStorage(3).is_cuda
assert x.to_sparse().type() == "torch.cuda.sparse.FloatTensor"
assert torch.nn.Linear(2, 2).type(torch.cuda.HalfTensor).weight.dtype == torch.half
for kind in ("torch.cuda.FloatTensor", torch.cuda.DoubleTensor):
    torch.set_default_tensor_type(kind)
    assert torch.ones(1).is_cuda and torch.get_default_device().type == "cuda"
torch.set_default_dtype(torch.float32)
torch.set_default_device("cpu")
ones = torch.ones(2, 2, device="cuda")
with torch.autocast("cuda"):
    assert (ones @ ones).dtype == torch.float16
with torch.cuda.amp.autocast(dtype=torch.bfloat16):
    assert (ones @ ones).dtype == torch.bfloat16
assert torch.amp.GradScaler().is_enabled() and torch.cuda.amp.GradScaler().is_enabled()

class Doubled(torch.autograd.Function):
    @staticmethod
    @torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.cuda.amp.custom_bwd
    def backward(ctx, grad):
        return grad * 2

with torch.autocast("cuda"):
    assert Doubled.apply(ones.half()).dtype == torch.float32
assert torch.from_dlpack(x).data_ptr() == x.data_ptr()
assert torch.from_dlpack(x, device="cuda:0").device == torch.device("cuda", 0)
assert torch.cuda.current_stream().device == torch.device("cuda", 0)
traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
file = io.BytesIO()
torch.jit.save(traced, file)
file.seek(0)
assert next(torch.jit.load(file, map_location="cuda").parameters()).is_cuda
torch.cuda.memory._record_memory_history(enabled=None)
assert torch.cuda.memory._snapshot()["segments"] == torch.cuda.memory_snapshot()
for name in FALSE:
    assert at(name)() is False
with torch.cuda.nvtx.range("step"), torch.cuda.profiler.profile():
    torch.cuda.nvtx.mark("here")
with torch.random.fork_rng(devices=[1]):
    torch.cuda.manual_seed_all(1)
print("done")
"""


def test_a_script_that_uses_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch_trn_emu", "run", "--as-cuda", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_a_file_saved_under_the_own_name_loads_as_cuda(tmp_path):
    torch.save(torch.ones(2, device="trn:1"), tmp_path / "x.pt")
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        f"for mapped, lands in ((None, 'cuda:1'), ({{'cuda:1': 'cuda:2'}}, 'cuda:2')):\n"
        f"    x = torch.load({str(tmp_path / 'x.pt')!r}, map_location=mapped)\n"
        "    assert str(x.device) == lands\n"
    )
    command = [sys.executable, "-m", "torch_trn_emu", "run", "--as-cuda", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
