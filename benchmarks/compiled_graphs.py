"""Graphs that the vendor's compiler compiled and someone timed, priced as torch.compile does.

`comNN`: the first kernels of NKIBench, trn1, each a graph of float32 operators as the benchmark's
reference spells it. Names in them (`_spill_163`, `_reload_166`) show that the vendor's compiler
made them (*inferred*). One graph of the benchmark, a scan of 7168 steps, is a loop in Python and
has no row here. `calNN` and `outNN`: graphs of `torch.compile` on one logical core of trn2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_trn_emu.calls import Target
from torch_trn_emu.chip import get_chip
from torch_trn_emu.compiler.estimate import pricing_backend
from torch_trn_emu.compiler.subgraphs import Launch
from torch_trn_emu.estimation import OperatorsOfTheDevice

__all__ = ["GRAPHS", "Graph", "graph_us", "launched_us"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A function of tensors of one dtype, and where it runs."""

    function: Callable[..., Tensor]
    shapes: tuple[Shape, ...]
    chip: str = "trn1"
    cores: int = 1
    dtype: torch.dtype = torch.float32
    policy: str = "fp32"


def _on_trn2(function: Callable[..., Tensor], *shapes: Shape, cores: int = 2) -> Graph:
    return Graph(function, shapes, "trn2", cores, torch.bfloat16, "bf16")


def _rms_norm(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def _swiglu(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
    return (_silu(x @ gate) * (x @ up)) @ down


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = (t.repeat_interleave(2, 2).transpose(1, 2) for t in (k, v))
    return _softmax(q.transpose(1, 2) @ keys.transpose(2, 3) / q.shape[-1] ** 0.5) @ values


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos])


def _adamw(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> Tensor:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-5 * p - 0.01 * m / ((v * 1000).sqrt() + 1e-8)


def _chain(length: int) -> Callable[[Tensor, Tensor], Tensor]:
    def chain(x: Tensor, b: Tensor) -> Tensor:
        for _ in range(length):
            x = F.silu(x + b)
        return x

    return chain


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _softmax_of_rows(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


SQUARE = (1024, 1024)

# fmt: off
GRAPHS: Mapping[str, Graph] = MappingProxyType({
    "com01": Graph(_silu, ((4096, 7168),)),
    "com02": Graph(lambda x, w: _rms_norm(x) @ w, ((4096, 1024), (1024, 2048))),
    "com03": Graph(lambda x, w, z, g: _rms_norm(x + z, g) @ w,
                   ((4096, 1024), (1024, 2048), (4096, 1024), (1024,))),
    "com04": Graph(lambda x, w, z, g: _rms_norm(x @ w + z, g),
                   ((4096, 2048), (2048, 2048), (4096, 2048), (2048,))),
    "com05": Graph(_swiglu, ((4096, 1024), (1024, 3072), (3072, 1024), (1024, 3072))),
    "com06": Graph(lambda x, w, a, b: x @ w + (x @ a) @ b,
                   ((4096, 5120), (5120, 12288), (5120, 128), (128, 12288))),
    "com07": Graph(torch.mm, ((4096, 5120), (5120, 12288))),
    "com08": Graph(lambda a, b: a.t() @ b, ((2048, 4096), (2048, 10944))),
    "com09": Graph(torch.bmm, ((16, 4096, 64), (16, 64, 4096))),
    "com10": Graph(lambda a, b: _softmax(a @ b), ((16, 4096, 64), (16, 64, 4096))),
    "com11": Graph(_attention, ((1, 4096, 16, 128), (1, 4096, 8, 128), (1, 4096, 8, 128))),
    "com12": Graph(_rotated, ((128, 262144), (64, 262144), (64, 262144))),
    "com13": Graph(_adamw, ((10944, 2048),) * 4),
    "cal05": _on_trn2(lambda a, b: a.t() @ b, (2048, 2048), (2048, 2048), cores=1),
    "cal15": _on_trn2(torch.mm, (1024, 4096), (4096, 4096)),
    "cal16": _on_trn2(torch.mm, (4096, 4096), (4096, 4096)),
    "cal18": _on_trn2(torch.add, SQUARE, SQUARE),
    "out08": _on_trn2(torch.mm, (2048, 4096), (4096, 4096)),
    "out09": _on_trn2(torch.add, (2048, 1024), (2048, 1024)),
    "out10": _on_trn2(_softmax_of_rows, SQUARE),
    "out11": _on_trn2(_softmax_of_rows, (2048, 1024)),
    "out12": _on_trn2(_causal, *[(1, 8, 2048, 128)] * 3),
    "out13": _on_trn2(_causal, *[(1, 8, 4096, 128)] * 3),
    "out14": _on_trn2(_chain(1), SQUARE, SQUARE),
    "out15": _on_trn2(_chain(4), SQUARE, SQUARE),
    "out16": _on_trn2(_chain(16), SQUARE, SQUARE),
    "out17": _on_trn2(_chain(64), SQUARE, SQUARE),
})
# fmt: on


def graph_us(name: str) -> float:
    """What the graph's engine program takes on its logical core, without its launch."""
    graph = GRAPHS[name]
    launched: list[Launch] = []

    def told(run: Callable[[], tuple[Sequence[Launch], Tensor, object]]) -> Tensor:
        launches, result, _ = run()
        launched.extend(launches)
        return result

    torch._dynamo.reset()
    target = Target(get_chip(graph.chip), graph.cores)
    attention = torch.nn.functional.scaled_dot_product_attention
    backend = pricing_backend(graph.policy, target, told, attention)
    inputs = (torch.empty(s, dtype=graph.dtype, device="meta") for s in graph.shapes)
    with torch.no_grad(), OperatorsOfTheDevice():
        torch.compile(graph.function, backend=backend)(*inputs)
    return sum(one.priced.price.seconds for one in launched) * 1e6


def launched_us(name: str) -> float:
    """The same in a stream of launches, which the host gives while the core works."""
    return max(get_chip(GRAPHS[name].chip).launch.graph_launch_s * 1e6, graph_us(name))
