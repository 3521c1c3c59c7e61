"""Functions that are traced, or handed to torch, may name cuda: values are those of the CPU."""

import pytest

from .test_cuda import run_as_cuda

FEW = "ones is_cuda"  # of the literals: a value on the device, and a question of it
START = """
import os
import sys
import warnings
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops.map import map as map_over
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")  # torch's own, of its prototypes

def literals(d):
    return {
        "ones": lambda x: x + torch.ones(4, device=d),
        "tensor": lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0], device=d),
        "scalar": lambda x: x + torch.tensor(3.0, device=torch.device(d)),
        "to": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(d),
        "row": lambda x: x * torch.ones(3, 4, device=d).tril()[1],
        "name": lambda x: x + 2 if x.device.type == d else x,
        "is_cuda": lambda x: x + 2 if x.is_cuda == (d == "cuda") else x,
    }

def compare(programs):
    for name, program in programs.items():
        for literal in os.environ["LITERALS"].split() or literals("cpu"):
            found = []
            for d in ("cpu", "cuda"):
                torch._dynamo.reset()
                made = program(literals(d)[literal], torch.arange(12.0, device=d).view(3, 4) / 7, d)
                made = made if isinstance(made, tuple) else (made,)
                assert all(each.device.type == d for each in made), (name, literal)
                found.append([each.detach().cpu() for each in made])
            for one, other in zip(*found, strict=True):
                assert torch.equal(one, other), (name, literal, one, other)

def with_gradient(function):
    def run(body, x, d):
        x = x.requires_grad_()
        made = function(body, x, d)
        return made, *torch.autograd.grad(made.sum(), x)
    return run

def count(d):
    return torch.zeros((), dtype=torch.int64, device=d)
"""

OPERATORS = """
PROGRAMS = {
    "cond": lambda f, x, d: torch.cond(x.sum() > 0, lambda x: f(x).sin(), torch.sin, (x,)),
    "while_loop": lambda f, x, d: while_loop(
        lambda i, x: i < 3, lambda i, x: (i + 1, f(x).sin()), (count(d), x)
    )[1],
    "test of while_loop": lambda f, x, d: while_loop(
        lambda i, x: f(x).sum() < 90, lambda i, x: (i + 1, x + 1), (count(d), x)
    )[1],
    "map": lambda f, x, d: map_over(lambda x: f(x).sin(), x),
    "scan": lambda f, x, d: scan(lambda c, x: ((c + f(x)).sin(), c * f(x)), x[0] * 0, x),
    "associative_scan": lambda f, x, d: associative_scan(
        lambda a, b: f(a) + b, x, 0, combine_mode="generic"
    ),
}
"""

EAGER = """
compare(PROGRAMS)
compare({name: with_gradient(PROGRAMS[name]) for name in ("cond", "map")})
"""

COMPILED = """
def compiled(program):
    def run(f, x, d):
        return torch.compile(lambda x: program(f, x, d), backend="eager", fullgraph=True)(x)
    return run

compare({name: compiled(program) for name, program in PROGRAMS.items()})
saved = lambda f, x, d: checkpoint(lambda x: f(x).sin(), x, use_reentrant=False)

def regional(f, x, d):
    region = torch.compiler.nested_compile_region(lambda x: f(x).sin())
    return torch.compile(lambda x: region(x) * 2, backend="eager", fullgraph=True)(x)

compare({
    "checkpoint": with_gradient(compiled(saved)),
    "vmap": compiled(lambda f, x, d: vmap(f)(x)),
    "grad": compiled(lambda f, x, d: grad(lambda x: f(x).sin().sum())(x)),
    "region": regional,
})
"""

TRANSFORMED = """
class Module(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.weight = body, nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.body(x).sin() * self.weight

def exported(strict):
    def run(f, x, d):
        program = torch.export.export(Module(f).to(d), (x,), strict=strict)
        return program.module()(x), program.run_decompositions().module()(x)
    return run

def through_vjp(f, x, d):
    made, back = vjp(f, x)
    return made, *back(made)

def linearized(f, x, d):
    made, push = linearize(f, x)
    return made, push(x)

saved = lambda f, x, d: checkpoint(lambda x: f(x).sin(), x, use_reentrant=False)

def reentrant(f, x, d):
    x = x.requires_grad_()
    made = checkpoint(lambda x: f(x).sin(), x, use_reentrant=True)
    made.sum().backward()
    return made, x.grad

compare({
    "vmap": lambda f, x, d: vmap(f)(x),
    "grad": lambda f, x, d: vmap(grad(lambda x: f(x).sin().sum()))(x),
    "jvp": lambda f, x, d: jvp(f, (x,), (x,)),
    "vjp": through_vjp,
    "linearize": linearized,
    "jacrev": lambda f, x, d: jacrev(f)(x[0]),
    "jacfwd": lambda f, x, d: jacfwd(f)(x[0]),
    "hessian": lambda f, x, d: hessian(lambda x: f(x).sin().sum())(x[0]),
    "functional_call": lambda f, x, d: functional_call(Module(f).to(d), {"weight": x[0]}, (x,)),
    "checkpoint": with_gradient(saved),
    "reentrant checkpoint": reentrant,
    "export": exported(False),
    "strict export": exported(True),
})
"""

FLEX = """
def values(d):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 128, 8, generator=generator).to(d) for _ in range(3)]

def scored(f, x, d):
    return flex_attention(*values(d), score_mod=lambda s, *at: s + f(x[0] * 0).sum() * s)

def masked(f, x, d):
    allow = lambda b, h, q, k: q * 9 >= k + f(x[0] * 0).sum()
    mask = create_block_mask(allow, 1, 2, 128, 128, device=d)
    return flex_attention(*values(d), block_mask=mask), mask.to_dense()

compare({"score_mod": scored, "mask_mod": masked})
"""


@pytest.mark.parametrize(
    "script",
    [OPERATORS + EAGER, OPERATORS + COMPILED, TRANSFORMED, FLEX],
    ids=["operators", "compiled", "transformed", "attention"],
)
@pytest.mark.parametrize(
    "chosen", [FEW, pytest.param("", marks=pytest.mark.conformance)], ids=["few", "all"]
)
def test_literal_devices(tmp_path, script, chosen):
    ran = run_as_cuda(tmp_path, START + script, TRN_EMU_MATMUL="fp32", LITERALS=chosen)
    assert ran.returncode == 0, ran.stderr
