"""A script that says cuda throughout runs on trn."""

import os
import subprocess
import sys

import pytest

from torch_trn_emu.aliases.cuda_refusals import refusing, refusing_class
from torch_trn_emu.errors import Unsupported

SCRIPT = """
import _thread
import pickle
import tempfile
import threading
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

assert torch.cuda.is_available()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True
torch.backends.cuda.matmul.allow_tf32 = True
torch.manual_seed(0)
torch.cuda.manual_seed_all(0)
assert torch.cuda.get_device_name(0) == "AWS Trainium3 (emulated)"
assert torch.cuda.get_device_properties(device).total_memory == 36 * 2**30

model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4)).to(device)
weight = next(model.parameters())
assert weight.is_cuda and weight.device == torch.device("cuda:0") and weight.is_trn
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
scaler = torch.amp.GradScaler("cuda")
default = torch.amp.GradScaler()
start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
data = TensorDataset(torch.randn(64, 16), torch.randint(0, 4, (64,)))
start.record()
for x, y in DataLoader(data, 32, shuffle=True, pin_memory=True):
    assert x.is_pinned()
    x, y = x.to(device, non_blocking=True), y.cuda(non_blocking=True)
    with torch.autocast(device_type="cuda", dtype=torch.float16):
        out = model(x)
        loss = F.cross_entropy(out, y)
    assert out.dtype == torch.float16
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
end.record()
torch.cuda.synchronize()
assert start.elapsed_time(end) > 0
assert torch.cuda.max_memory_allocated() > 0
with torch.autocast(x.device.type, dtype=torch.bfloat16):
    assert torch.is_autocast_enabled("cuda") and model(x).dtype == torch.bfloat16

assert torch.zeros(2, device="cuda").is_trn
for index in (None, 1):
    one, other = (torch.device(kind, index) for kind in ("trn", "cuda"))
    assert one == other and not one != other and hash(one) == hash(other) and {one} == {other}
assert torch.device("trn:0") != torch.device("cuda:1") and torch.device("cpu") != device != "cuda"

class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError

assert Wrapper(weight).is_trn and Wrapper(weight).device == weight.device
assert torch.zeros(2, device=1).device == torch.device("cuda", 1)
assert torch.zeros(2, device=x.device).is_trn
assert torch.accelerator.current_accelerator() == device
assert torch.device(1) == torch.device("cuda:1") and torch.zeros(1, device=torch.device(1)).is_cuda
assert torch.cat([x, x]).is_cuda and not torch.zeros(1).is_cuda
with tempfile.TemporaryFile() as file:
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert torch.load(file, map_location="cuda:1")["0.weight"].device == torch.device("cuda:1")
model.cuda().half()
generator = torch.Generator(device="cuda").manual_seed(1)
assert isinstance(torch.default_generator, torch.Generator)
assert torch.randn(2, generator=generator, device="cuda").is_trn
for g in (generator, generator.clone_state(), torch.cuda.default_generators[0]):
    assert g.device == torch.device("cuda", 0), g.device
    assert torch.Generator(g.device).device.type == "cuda"
    drawn = pickle.loads(pickle.dumps(g))
    assert drawn.device == g.device and torch.equal(drawn.get_state(), g.get_state())
assert torch.Generator().device.type == torch.default_generator.device.type == "cpu"
with torch.device("cuda"):
    assert torch.zeros(1).is_trn
torch.set_default_device("cuda")
assert torch.zeros(1).is_trn
torch.set_default_device("cpu")
stream = torch.cuda.Stream()
assert isinstance(stream, torch.cuda.Stream)
with torch.cuda.stream(stream):
    torch.ones(3, device="cuda") + 1
torch.cuda.current_stream().wait_stream(stream)
with torch.cuda.device(1):
    assert torch.ones(1, device="cuda").get_device() == 1
torch.cuda.set_device("cuda:0")
ones = torch.ones(2, 2, device="cuda", requires_grad=True)
ended = threading.Event()
heard = []

def hear_device():
    heard.append(torch.ones(1).to("cuda").device.type)
    ended.set()

_thread.start_new_thread(hear_device, ())
assert ended.wait(60) and heard == ["cuda"]
with torch.random.fork_rng(devices=["cuda:0", torch.device("cuda", 1)]):
    drawn = torch.rand(4, device="cuda")
assert torch.equal(drawn, torch.rand(4, device="cuda"))
for reentrant in (True, False):
    noise = torch.ones(64, device="cuda", requires_grad=True)
    kept = checkpoint(F.dropout, noise, use_reentrant=reentrant)
    kept.sum().backward()
    assert torch.equal(kept, noise.grad)  # the same mask again
assert torch.equal(torch.compile(lambda t: t * 2)(ones.detach()), ones * 2)
nn.LSTM(4, 4).cuda()(torch.ones(2, 1, 4).cuda())
def may_be_named(graph: torch.cuda.CUDAGraph | None, weight: object) -> bool:
    return isinstance(graph, torch.cuda.CUDAGraph)

assert not may_be_named(None, weight)
graph, held = torch.cuda.CUDAGraph(), torch.zeros(2).cuda()
with torch.cuda.graph(graph):
    held.add_(1)
graph.replay()
assert held.tolist() == [1, 1]
kernel = torch.cuda.jiterator._create_jit_fn("template <typename T> T twice(T x) { return x * 2; }")
runtime = torch.cuda.cudart()
assert runtime.cudaHostRegister(1024, 64, 1) == runtime.cudaHostUnregister(1024) == 0
assert runtime.cudaProfilerStart() == runtime.cudaProfilerStop() == 0
assert runtime.cudaMemGetInfo(1) == torch.cuda.mem_get_info(1)
for refused, reason in (
    (runtime.cudaDeviceEnablePeerAccess, "--as-cuda cannot map it: it accesses a CUDA library"),
    (lambda: kernel(weight), "kernels written in CUDA"),
):
    try:
        refused()
    except NotImplementedError as error:
        assert reason in str(error)
    else:
        raise AssertionError(refused)
one = nn.DataParallel(nn.Linear(2, 2).cuda(), device_ids=[0])
assert one(torch.ones(1, 2)).is_cuda
several = nn.DataParallel(one.module, device_ids=[0, 1])
rows = torch.randn(5, 2, dtype=torch.float32).cuda()
assert torch.equal(several(rows), one.module(rows))
by_one, by_two = (
    torch.autograd.grad(net(rows).sum(), one.module.weight)[0] for net in (one, several)
)
assert torch.allclose(by_one, by_two) and by_two.get_device() == 0
print("loss", loss.item())
"""


THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def check(index):
    torch.cuda.set_device(index)
    device = torch.device("cuda", index)
    model = nn.Linear(4, 4).cuda()
    loss = model(torch.ones(2, 4, device=device)).sum()
    loss.backward()
    assert model.weight.grad.is_cuda and model.weight.grad.device == device
    assert torch.randn(2, device="cuda").device == device
    torch.cuda.synchronize()
    return index

class Prefetcher(threading.Thread):
    def __init__(self, source, queue):
        super().__init__(daemon=True)
        self.source, self.queue = source, queue

    def run(self):
        for item in self.source:
            self.queue.put(item.pin_memory().to("cuda", non_blocking=True))
        self.queue.put(None)

queue = Queue()
prefetcher = Prefetcher([torch.full((2,), float(i)) for i in range(3)], queue)
prefetcher.start()
found = list(iter(queue.get, None))
prefetcher.join()
assert [x.sum().item() for x in found] == [0, 2, 4] and all(x.is_cuda for x in found)

with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(check, [0, 1, 2, 3])) == [0, 1, 2, 3]

failed = []
threading.excepthook = lambda args: failed.append(args.exc_type)
odd = threading.Thread(target=lambda: torch.ones(1, device="cuda") / None)
odd.start()
odd.join()
assert failed == [TypeError] and not odd.is_alive()
try:
    odd.start()
except RuntimeError as error:
    assert "only be started once" in str(error)

timer = threading.Timer(0, lambda: found.append(torch.zeros(1, device="cuda")))
timer.start()
timer.join()
assert found[-1].is_cuda

data = TensorDataset(torch.arange(8.0))
loader = DataLoader(data, 4, num_workers=1, pin_memory=True)
assert [x.cuda().sum().item() for (x,) in loader] == [6, 22]
print("done")
"""


def run_as_cuda(folder, script, **environment):
    path = folder / "script.py"
    path.write_text(script)
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]  # torch's own, as it compiles
    command = [sys.executable, *warnings, "-m", "torch_trn_emu", "run", "--as-cuda", str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return run_as_cuda(tmp_path_factory.mktemp("cuda"), SCRIPT)


def test_the_script_runs(done):
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")


def test_it_is_said_once_what_was_mapped(done):
    assert done.stderr.count("trn-emu: cuda is mapped to trn") == 1
    assert "others raise an error" in done.stderr


def test_threads_of_the_script_see_cuda_too(tmp_path):
    done = run_as_cuda(tmp_path, THREADS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


COMPILED_AT_ONCE = """
import threading
import torch

assert not torch.cuda.is_initialized()
found = []

def compile_one():
    ready.wait()
    found.append(torch.compile(lambda x: x + 1)(torch.ones(2, device="cuda")).tolist())

ready = threading.Barrier(3)
threads = [threading.Thread(target=compile_one) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(found)
"""


def test_threads_compile_at_once_and_nothing_is_initialized_before(tmp_path):
    done = run_as_cuda(tmp_path, COMPILED_AT_ONCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]\n", done.stderr


PROFILED = """
import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

x = torch.randn(64, 64, device="cuda")
both = {ProfilerActivity.CPU, ProfilerActivity.CUDA}
assert supported_activities() == torch.profiler.supported_activities() == both
for activities in (both, [ProfilerActivity.CUDA], None):
    with profile(activities=activities, profile_memory=True) as run:
        x @ x
    rows = run.key_averages()
    assert sum(row.device_time_total for row in rows) > 0
    assert rows.table(sort_by="cuda_time_total")
table = run.key_averages().table(sort_by="cuda_time_total")
assert "Self CUDA time total" in table and "TRN" not in table
with torch.autograd.profiler.profile(use_device="cuda") as run:
    x @ x
assert {row.key: row.device_time_total for row in run.key_averages()}["aten::mm"] > 0
with torch.autograd.profiler.emit_nvtx():
    x @ x
print("done")
"""


def test_profilers_asked_for_cuda_have_device_time(tmp_path):
    done = run_as_cuda(tmp_path, PROFILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert "Exception in RecordFunction callback" not in done.stderr


INTERNALS = """
import warnings

import torch
from torch.utils.checkpoint import checkpoint

warnings.filterwarnings("ignore", ".*autocast_gpu_dtype.*")
stream = torch.cuda.Stream()
torch._C._cuda_setStream(
    stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type
)
assert torch.cuda.current_stream() == stream
assert torch._C._cuda_getCurrentRawStream(0) == stream.stream_id == stream.cuda_stream
for made in (stream, torch.Stream("cuda"), torch.Stream(device="cuda:0"), torch.Stream(0)):
    assert made.device == torch.device("cuda:0") and "torch.cuda.Stream device=cuda:0" in repr(made)
    assert isinstance(made, torch.Stream) and made.device_index == 0
assert stream.__cuda_stream__() == (0, stream.stream_id) and stream.priority == 0
for made in (torch.cuda.Event(), torch.Event("cuda"), torch.Event(device="cuda")):
    assert made.cuda_event == 0 and repr(made) == "<torch.cuda.Event uninitialized>"
    made.record(stream)
    assert made.device.type == "cuda" and isinstance(made, torch.cuda.Event)
    assert made.cuda_event == made.event_id != 0 and repr(made).startswith("<torch.cuda.Event 0x")
assert torch._C._cuda_getDefaultStream(1)[:2] == (0, 1)
assert torch.cuda._exchange_device(1) == 0 and torch._C._cuda_exchangeDevice(-1) == -1
assert torch._C._cuda_getDevice() == torch.cuda.current_device() == 1
torch._C._cuda_setDevice(0)
assert torch._C._cuda_getDeviceCount() == torch.cuda.device_count() == 2
torch._C._cuda_setMemoryFraction(0.5, 0)
assert torch._C._cuda_getMemoryFraction(0) == torch.cuda.get_per_process_memory_fraction() == 0.5
torch._C._cuda_clearCublasWorkspaces()

seen = []

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        seen.append((gradient.device, gradient.is_cuda, torch.ones(1, device="cuda").is_cuda))
        return gradient.cuda() * 2

x = torch.ones(3, device="cuda", requires_grad=True)
x.register_hook(lambda g: seen.append((g.device, g.is_cuda, torch.ones(1, device="cuda").is_cuda)))
Doubled.apply(x).sum().backward()
torch.autograd.grad(Doubled.apply(x).sum(), x)
assert seen == [(torch.device("cuda:0"), True, True)] * 4

graph, x.grad, factor = torch.cuda.CUDAGraph(), None, torch.ones(3, device="cuda")
graph.capture_begin()
(Doubled.apply(x) * factor).sum().backward()
graph.capture_end()
factor.fill_(5)
graph.replay()
assert x.grad.tolist() == [10, 10, 10]

with torch.autocast("cuda"):
    assert torch.is_autocast_enabled() and torch.get_autocast_gpu_dtype() == torch.float16
    torch.set_autocast_enabled(False)
    assert not torch.is_autocast_enabled("cuda")
assert not torch.is_autocast_enabled()

with torch.device("cuda:1"):
    y = torch.ones(2, requires_grad=True)
    z = checkpoint(lambda t: t * torch.ones(2), y, use_reentrant=False)
z.sum().backward()
assert y.grad.device == torch.device("cuda:1")

torch.accelerator.synchronize("cuda:1")
torch.accelerator.set_device_index("cuda:1")
assert torch.accelerator.current_stream("cuda").device == torch.device("cuda:1")
assert torch.accelerator.memory_allocated(torch.device("cuda", 0)) > 0
with torch.accelerator.device_index(0):
    assert torch.cuda.current_device() == 0
torch.cuda.set_device(0)
torch._C._cuda_sleep(1000)
assert not stream.query()
torch._C._cuda_synchronize()
assert stream.query()
"""


def test_functions_of_torch_c_do_what_torch_cuda_does(tmp_path):
    ran = run_as_cuda(tmp_path, INTERNALS, CUDA_VISIBLE_DEVICES="2,0,9")
    assert ran.returncode == 0, ran.stderr


FAKES = """
import warnings
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining import SplitPoint, pipeline

model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).cuda()
x = torch.randn(2, 3, device="cuda")
with FakeTensorMode() as mode:
    made = [mode.from_tensor(x), torch.empty(3, 4, device="cuda")]
    made.append(made[0] @ mode.from_tensor(model[0].weight).t())
    made.append(torch.zeros_like(made[0], device=made[0].device))
with torch.device("cpu"):  # a mode above the alias
    made.append(mode.from_tensor(x))
for fake in made:
    assert fake.device == torch.device("cuda:0") and fake.fake_device.type == "trn"
exported = torch.export.export(model, (x,)).module()
assert torch.equal(exported(x), model(x))
exported(x).sum().backward()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, of its graphs
    pipe = pipeline(model, (x,), split_spec={"1": SplitPoint.BEGINNING})
assert pipe.num_stages == 2 and torch.equal(pipe(x)[0], model(x))
"""


def test_fake_tensors_export_and_the_pipeline_of_a_model(tmp_path):
    ran = run_as_cuda(tmp_path, FAKES)
    assert ran.returncode == 0, ran.stderr


CONSTRUCTORS = """
import warnings
import torch
from torch import nested
from torch.utils._device import _device_constructors

warnings.simplefilter("ignore")  # torch's own, of nested and sparse tensors
rows = [torch.randn(n, 4, device="cuda") for n in (2, 3)]
given = {
    "tensor": ([1.0],), "as_tensor": ([1.0],), "asarray": ([1.0],), "full": ((2,), 1.0),
    "linspace": (0, 1, 3), "logspace": (0, 1, 3), "range": (0, 3), "randint": (3, (2,)),
    "tril_indices": (3, 3), "triu_indices": (3, 3), "empty_strided": ((2,), (1,)),
    "empty_permuted": ((2, 3), (1, 0)), "nested_tensor": (rows,), "empty_quantized": None,
    "sparse_coo_tensor": ([[0]], [1.0], (2,)), "sparse_csr_tensor": ([0, 1], [0], [1.0]),
    "sparse_csc_tensor": ([0, 1], [0], [1.0]), "sparse_bsr_tensor": ([0, 1], [0], [[[1.0]]]),
    "sparse_bsc_tensor": ([0, 1], [0], [[[1.0]]]), "sparse_compressed_tensor": None,
}
for make in _device_constructors():
    arguments = given.get(make.__name__, (3,))
    for device in ("cuda", "cuda:0", torch.device("cuda")) if arguments else ():
        made = make(*arguments, device=device)
        assert made.device == torch.device("cuda:0"), make
for made in (
    nested.nested_tensor([[1.0], [2.0, 3.0]], device="cuda"),
    nested.nested_tensor(rows, layout=torch.jagged, device="cuda"),
    nested.as_nested_tensor(rows, device="cuda"),
):
    assert made.device == torch.device("cuda:0")
row = torch.arange(60.0, device="cuda")
assert torch.equal(torch.tensor(row.storage(), device="cuda"), row)
assert row.storage()[7] == 7 and row.storage().device == torch.device("cuda:0")
"""


def test_every_constructor_takes_cuda(tmp_path):
    ran = run_as_cuda(tmp_path, CONSTRUCTORS)
    assert ran.returncode == 0, ran.stderr


COMPILED_AUTOGRAD = """
import torch
from torch import nn

def double(p):
    p.grad.mul_(2)

for device, backend in (("cpu", "eager"), ("cuda", "trn")):
    grads = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(device)
        model[2].weight.register_post_accumulate_grad_hook(double)
        x = torch.ones(2, 3, device=device)
        compiled = torch.compile(model, backend=backend) if enabled else model
        with torch._dynamo.config.patch(compiled_autograd=enabled):
            compiled(x).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
"""


def test_compiled_autograd_traces_the_alias(tmp_path):
    ran = run_as_cuda(tmp_path, COMPILED_AUTOGRAD, TRN_EMU_MATMUL="fp32")
    assert ran.returncode == 0, ran.stderr


def test_a_refused_name_has_a_function_behind_it() -> None:
    """torch.compile of 2.14 asks for torch.cuda.use_mem_pool.__wrapped__ when it is imported."""
    name = refusing("use_mem_pool", "the pool is another")
    for call in (name, name.__wrapped__):
        with pytest.raises(Unsupported, match=r"torch\.cuda\.use_mem_pool has no counterpart"):
            call()
    with pytest.raises(Unsupported, match="GreenContext"):
        refusing_class("GreenContext", "it is of CUDA")()
