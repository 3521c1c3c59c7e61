"""Producers of operands that round their own result: where, with what values, at what price."""

import json
import os
import subprocess
import sys

import pytest
import torch
from comparing import TORCHS_OWN, leaf, results
from torch.nn import functional as F

from torch_trn_emu import compiler, precision
from torch_trn_emu.host import host_name

pytestmark = TORCHS_OWN
FUSED, PLAIN = ({"fuse_producers": on, "strict": True} for on in (True, False))


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()
    compiler.reset()
    torch.manual_seed(0)
    with precision("mxfp8"):
        yield


def fused(kind):
    """How many producers the graphs of a kind have lost to operators of ours."""
    return sum(record.fused for record in compiler.report() if record.kind == kind)


def written_rms_norm(x, weight):
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * wide.to(x.dtype)


def chunked(x):
    first, second = x.chunk(2, -1)
    return F.silu(first) * second


PRODUCERS = {
    "gelu": lambda x, w, b: F.gelu(x),
    "gelu tanh": lambda x, w, b: F.gelu(x, approximate="tanh"),
    "silu": lambda x, w, b: F.silu(x),
    "gated gelu": lambda x, w, b: F.gelu(x) * b,
    "gated gelu tanh": lambda x, w, b: b * F.gelu(x, approximate="tanh"),
    "gated silu": lambda x, w, b: F.silu(x) * (x + 1),
    "gate of a halved tensor": lambda x, w, b: chunked(torch.cat([x, x + 1], -1)),
    "layer_norm": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, w),
    "layer_norm without bias": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, eps=0.1),
    "layer_norm alone": lambda x, w, b: F.layer_norm(x, x.shape[-1:]),
    "rms_norm": lambda x, w, b: F.rms_norm(x, x.shape[-1:], w),
    "rms_norm alone": lambda x, w, b: F.rms_norm(x, x.shape[-1:], eps=0.1),
    "rms_norm written out": lambda x, w, b: written_rms_norm(x, w),
}


def all_of_them(x, w, b, into):
    """A product of each producer's result, along a ragged last axis."""
    made = (producer(x[i], w, b) for i, producer in enumerate(PRODUCERS.values()))
    return [F.linear(y, into) for y in made]


def weight(*shape, dtype=torch.float32):
    """Of products whose results are of the order of their inputs."""
    return (torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5).to("trn").requires_grad_()


def operands(dtype, shape=(2, 5, 70)):
    column, into = leaf(shape[-1], dtype=dtype), weight(9, shape[-1], dtype=dtype)
    return [leaf(len(PRODUCERS), *shape, dtype=dtype), column, leaf(*shape, dtype=dtype), into]


def assert_as_eager(got, want, of_outputs):
    """Outputs have eager's bits where the same host kernels run, gradients differ by roundings."""
    for number, ((_, one), (_, other)) in enumerate(zip(got, want, strict=True)):
        if number < of_outputs and host_name() == "cpu":
            assert torch.equal(one, other), number
        scale = float(other.abs().max()) + 1e-9
        assert float((one.float() - other.float()).abs().max()) <= 0.05 * scale, number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_every_producer_gives_the_values_of_eager(backward, dtype):
    given = operands(dtype)
    compiled = torch.compile(all_of_them, backend="trn", options=FUSED)
    with torch.set_grad_enabled(backward):
        want, got = results(all_of_them, given, backward), results(compiled, given, backward)
    assert fused("forward" if backward else "inference") == len(PRODUCERS)
    assert_as_eager(got, want, len(PRODUCERS))


def block(x, norm, qkv, up, down):
    """Three products read one norm, one an activation; the residual reads neither."""
    h = F.layer_norm(x, x.shape[-1:], norm, norm)
    q, k, v = (F.linear(h, w) for w in qkv)
    x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)
    h = F.layer_norm(x, x.shape[-1:], norm)
    return x + F.linear(F.gelu(F.linear(h, up), approximate="tanh"), down)


def block_operands(dtype=torch.float32):
    qkv = [weight(64, 64, dtype=dtype) for _ in range(3)]
    mlp = weight(128, 64, dtype=dtype), weight(64, 128, dtype=dtype)
    return [leaf(2, 9, 64, dtype=dtype), leaf(64, dtype=dtype), qkv, *mlp]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_of_a_transformer(dtype):
    given = block_operands(dtype)
    want = results(block, given)
    got = results(torch.compile(block, backend="trn", options=FUSED), given)
    assert fused("forward") == 3
    assert_as_eager(got, want, 0)


def test_time_and_counters_are_those_of_the_graph():
    given = block_operands()
    counters = []
    for options in (PLAIN, FUSED):
        torch._dynamo.reset()
        compiled = torch.compile(block, backend="trn", options=options)
        results(compiled, given)
        torch.trn.reset_counters()
        results(compiled, given)
        counters.append(dict(torch.trn.counters()))
    assert fused("forward") == 3
    assert counters[0] == counters[1]
    assert counters[0]["launch_count"] > 0


def test_autocast_norms_round_from_float32():
    x, w, _, into = operands(torch.float32)

    def function(x, w, into):
        with torch.autocast("trn", torch.bfloat16):
            return F.linear(F.layer_norm(x, x.shape[-1:], w), into)

    want = results(function, [x, w, into])
    got = results(torch.compile(function, backend="trn", options=FUSED), [x, w, into])
    assert fused("forward") == 1
    assert_as_eager(got, want, 1)


def test_sizes_may_be_symbols():
    x, w, b, into = operands(torch.float32)
    compiled = torch.compile(all_of_them, backend="trn", options=FUSED, dynamic=True)
    with torch.no_grad():
        for rows in (2, 3):
            x = torch.randn(len(PRODUCERS), rows, 5, 70).to("trn")
            b = torch.randn(rows, 5, 70).to("trn")
            for got, want in zip(compiled(x, w, b, into), all_of_them(x, w, b, into), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    assert fused("inference") >= len(PRODUCERS) - 1  # halves of an odd symbol need not match


def test_a_result_is_stored_only_where_something_reads_it():
    from torch.fx.experimental.proxy_tensor import make_fx

    from torch_trn_emu.compiler.apply_precision import apply_precision
    from torch_trn_emu.compiler.decompositions import decompositions
    from torch_trn_emu.compiler.fuse_producers import fuse_producers

    def function(x, w):
        read_twice = F.gelu(x)
        return read_twice, read_twice @ w, F.silu(x) @ w

    x, w = torch.randn(3, 64), torch.randn(64, 4)
    gm = make_fx(function, decompositions(), tracing_mode="fake")(x, w)
    apply_precision(gm.graph, "mxfp8")
    gm.recompile()
    want = gm(x, w)
    assert fuse_producers(gm.graph) == 2
    gm.graph.lint()
    gm.recompile()
    keeps = {n.target: n.kwargs["keep"] for n in gm.graph.nodes if "keep" in n.kwargs}
    trn = torch.ops.trn
    assert keeps == {trn.gelu_operand.default: True, trn.silu_operand.default: False}
    for got, wanted in zip(gm(x, w), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)


def test_a_producer_of_a_producer():
    def function(x, w):
        first = F.gelu(x)
        second = F.layer_norm(first, first.shape[-1:])
        return F.linear(first, w), F.linear(second, w), F.linear(F.silu(second) * first, w)

    given = [leaf(6, 70), weight(9, 70)]
    for backward in (False, True):
        with torch.set_grad_enabled(backward):
            want = results(function, given, backward)
            compiled = torch.compile(function, backend="trn", options=FUSED)
            assert_as_eager(results(compiled, given, backward), want, 3)
    assert (fused("inference"), fused("forward")) == (3, 3)


LEFT_ALONE = {
    "another axis is contracted": lambda x, w: F.gelu(x).transpose(-1, -2) @ x,
    "a part is read elsewhere": lambda x, w: (F.linear(torch.erf(x * 0.7071067811865476) + 1, w),),
    "the norm is over two axes": lambda x, w: F.linear(F.layer_norm(x, x.shape), w),
    "its statistics are of another axis": lambda x, w: F.linear(x - x.mean(0, keepdim=True), w),
    "the view cuts rows": lambda x, w: F.linear(F.gelu(x).view(-1, 35), w[:, :35]),
    "the activation is another": lambda x, w: F.linear(F.relu(x), w),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_it_must_leave_alone(name):
    given = [leaf(6, 70), leaf(9, 70)]
    function = LEFT_ALONE[name]
    want = results(function, given, backward=False)
    with torch.no_grad():
        got = results(torch.compile(function, backend="trn", options=FUSED), given, backward=False)
    assert fused("inference") == 0
    assert_as_eager(got, want, 0)


@pytest.mark.parametrize("policy", ["fp32", "bf16"])
def test_no_policy_but_mx_asks_for_it(policy):
    x, w = leaf(6, 70), leaf(9, 70)
    with precision(policy), torch.no_grad():
        torch.compile(lambda x, w: F.linear(F.gelu(x), w), backend="trn", options=FUSED)(x, w)
    assert fused("inference") == 0


def test_only_a_gpu_is_asked_unless_an_option_says_so():
    from torch_trn_emu.compiler.options import read_options

    assert read_options(None, None).fuse_producers == (host_name() == "cuda")
    assert read_options(None, {"fuse_producers": True}).fuse_producers
    with pytest.raises(TypeError, match="option 'fuse_producers' of backend 'trn' is a bool"):
        read_options(None, {"fuse_producers": 1})


# A process of its own: caches, hosts and kernels are a process's.
PROGRAM = """
import json, os, torch
from torch import nn
from torch._dynamo.utils import counters
import torch_trn_emu
if os.environ.get("KERNELS") == "triton":
    from torch_trn_emu.triton import register
    register("CPU")
torch.manual_seed(0)
model = nn.Sequential(
    nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.RMSNorm(32),
    nn.Linear(32, 8),
).to("trn")
x = torch.randn(5, 32).to("trn")
options = {"fuse_producers": os.environ["FUSE"] == "1", "strict": True}
compiled = torch.compile(model, backend="trn", options=options)
torch.trn.reset_counters()
loss = compiled(x).square().sum()
loss.backward()
print(json.dumps({
    "loss": loss.item(),
    "gradients": [p.grad.float().norm().item() for p in model.parameters()],
    "hits": counters["aot_autograd"]["autograd_cache_hit"],
    "fused": sum(r.fused for r in torch_trn_emu.compiler.report()),
    "counters": torch.trn.counters(),
}))
"""


def run(folder, **environment):
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRN_EMU_MATMUL": "mxfp8", "FUSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="module")
def first(folder):
    return run(folder)


@pytest.mark.conformance  # compiles in four processes
def test_caches_tell_the_option_apart(folder, first):
    second, without = run(folder), run(folder, FUSE="0")
    assert (first["hits"], second["hits"], without["hits"]) == (0, 1, 0)
    assert (first["fused"], second["fused"], without["fused"]) == (3, 3, 0)
    for key in ("loss", "gradients", "counters"):
        assert first[key] == second[key], key
    assert without["counters"] == first["counters"]
    assert without["loss"] == pytest.approx(first["loss"], rel=2e-2)


@pytest.mark.skipif(host_name() == "cuda", reason="the CPU stands for the other host")
def test_a_foreign_host_runs_the_kernels_of_triton(folder, first):
    """And does not take the code of a CPU host from the cache."""
    there = run(folder, TRN_EMU_HOST="foreign", KERNELS="triton", TRITON_INTERPRET="1")
    assert (there["hits"], there["fused"]) == (0, 3)
    assert there["counters"] == first["counters"]
    assert there["loss"] == pytest.approx(first["loss"], rel=2e-2)
    assert there["gradients"] == pytest.approx(first["gradients"], rel=5e-2)
