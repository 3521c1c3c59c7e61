"""The graphs of benchmarks/data/measured_compiled.csv, priced by the compiler's engine programs.

The measured kernels are the first ones of NKIBench, trn1: a graph of float32 operators each. Names
in them (`_spill_163`, `_reload_166`) show that the vendor's compiler made them (*inferred*). One
graph of the benchmark, a scan of 7168 steps, is a loop in Python and has no row here.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.estimate import pricing_backend
from torch_trn_emu.compiler.pieces import Launch
from torch_trn_emu.estimation import AttentionOfTheDevice
from torch_trn_emu.lowering.call import Target

__all__ = ["GRAPHS", "graph_us"]

Shape = tuple[int, ...]


def _rms_norm(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _swiglu(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
    return (F.silu(x @ gate) * (x @ up)) @ down


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = (t.repeat_interleave(2, 2).transpose(1, 2) for t in (k, v))
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos])


def _adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-5 * p - 0.01 * m / ((v * 1000).sqrt() + 1e-8)


# fmt: off
GRAPHS: Mapping[str, tuple[Callable[..., Tensor], tuple[Shape, ...]]] = MappingProxyType({
    "com01": (F.silu, ((4096, 7168),)),
    "com02": (lambda x, w: _rms_norm(x) @ w, ((4096, 1024), (1024, 2048))),
    "com03": (lambda x, w, z, g: _rms_norm(x + z, g) @ w,
              ((4096, 1024), (1024, 2048), (4096, 1024), (1024,))),
    "com04": (lambda x, w, z, g: _rms_norm(x @ w + z, g),
              ((4096, 2048), (2048, 2048), (4096, 2048), (2048,))),
    "com05": (_swiglu, ((4096, 1024), (1024, 3072), (3072, 1024), (1024, 3072))),
    "com06": (lambda x, w, a, b: x @ w + (x @ a) @ b,
              ((4096, 5120), (5120, 12288), (5120, 128), (128, 12288))),
    "com07": (torch.mm, ((4096, 5120), (5120, 12288))),
    "com08": (lambda a, b: a.t() @ b, ((2048, 4096), (2048, 10944))),
    "com09": (torch.bmm, ((16, 4096, 64), (16, 64, 4096))),
    "com10": (lambda a, b: torch.softmax(a @ b, -1), ((16, 4096, 64), (16, 64, 4096))),
    "com11": (_attention, ((1, 4096, 16, 128), (1, 4096, 8, 128), (1, 4096, 8, 128))),
    "com12": (_rotated, ((128, 262144), (64, 262144), (64, 262144))),
    "com13": (_adamw, ((10944, 2048),) * 4),
})
# fmt: on


def graph_us(name: str) -> float:
    """What the graph's engine program takes on one core of trn1, without its launch."""
    function, shapes = GRAPHS[name]
    launched: list[Launch] = []

    def told(launches: Sequence[Launch], run: Callable[[], tuple[Tensor, object]]) -> Tensor:
        launched.extend(launches)
        return run()[0]

    torch._dynamo.reset()
    backend = pricing_backend("fp32", Target(get_chip("trn1"), 1), told)
    with torch.no_grad(), AttentionOfTheDevice():
        torch.compile(function, backend=backend)(*(torch.empty(s, device="meta") for s in shapes))
    return sum(one.priced.price.seconds for one in launched) * 1e6
