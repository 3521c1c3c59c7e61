"""Ratios of the kernels in csrc/numerics to PyTorch's on the same host, interleaved in one process.

    python benchmarks/numerics.py [quantize] [gemm] [attention] [--isa avx2] [--threads 2]

A ratio below 1 is faster than PyTorch. Each is a median over interleaved pairs of calls; on one
thread CPU time is measured, which other processes on the machine disturb least.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "numerics"))
library: Any = importlib.import_module("numerics_library")

Call = Callable[[], Any]


def ratio(ours: Call, theirs: Call, seconds: float = 1.0) -> tuple[float, float, float]:
    """Median times of both in milliseconds, and the median ratio of neighbouring calls."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(2):
        ours()
        theirs()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(pairs) < 7:
        t0 = clock()
        ours()
        t1 = clock()
        theirs()
        t2 = clock()
        pairs.append((t1 - t0, t2 - t1))
    a = statistics.median(p[0] for p in pairs)
    b = statistics.median(p[1] for p in pairs)
    return a * 1e3, b * 1e3, statistics.median(p[0] / p[1] for p in pairs)


def show(name: str, ours: Call, theirs: Call, flops: float = 0) -> None:
    """Time both and print a line."""
    mine, other, r = ratio(ours, theirs)
    rate = f"{flops / mine * 1e-6:6.0f} GFLOP/s" if flops else ""
    print(f"{name:58s} {mine:9.3f} ms {other:9.3f} ms   ratio {r:5.2f}  {rate}", flush=True)


def view(x: torch.Tensor) -> Any:
    """The tensor as a numpy array on the same memory; bfloat16 by way of its bits."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def quantize(lib: Any) -> None:
    """Codes and scales, and values in place of them."""
    print("# quantize 4096 x 4096 against a warm copy_ of the source")
    n = 4096
    room = torch.empty(2, n * n, dtype=torch.uint8).numpy()
    codes, scales = library.pointer(room[0]), library.pointer(room[1])
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(n, n).to(dtype)
        copy = partial(torch.empty_like(x).copy_, x)
        source = lib.matrix(view(x))
        name = str(dtype)[6:]
        for element in ("float8_e4m3fn", "float4_e2m1fn"):
            for axis in (1, 0):
                stride = n // 2 if element == "float4_e2m1fn" and axis == 1 else n
                call = partial(
                    lib.c.trn_quantize, ctypes.c_int(0), ctypes.byref(source), ctypes.c_int(axis),
                    ctypes.byref(library.Mx(element=element).c()), codes, ctypes.c_int64(stride),
                    scales, ctypes.c_int64(n // 32 if axis == 1 else n),
                )  # fmt: skip
                show(f"{name} -> {element} axis {axis}", call, copy)
        for out in (torch.float32, torch.bfloat16):
            y = torch.empty(n, n, dtype=out)
            for axis in (1, 0):
                call = partial(
                    lib.c.trn_quantize_dequantize, ctypes.byref(source), ctypes.c_int(axis),
                    ctypes.byref(library.Mx().c()), ctypes.c_int(out == torch.bfloat16),
                    library.pointer(view(y)), ctypes.c_int64(n),
                )  # fmt: skip
                show(f"{name} -> values in {str(out)[6:]} axis {axis}", call, copy)


def gemm(lib: Any) -> None:
    """Square products, those of a small GPT in all three layouts, and thin ones."""
    print("# C = A B, both operands rounded while packed, against torch.mm in float32")
    square = [(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)]
    gpt = [(2048, 384, 1152), (2048, 384, 1536), (2048, 1536, 384)]
    thin = [(1, 2048, 2048), (2048, 2048, 1), (8, 2048, 2048)]
    mxfp4 = library.Mx(element="float4_e2m1fn")
    ops = {
        "mxfp8": library.Op(kind="mx"),
        "mxfp4": library.Op(kind="mx", mx=mxfp4),
        "bfloat16": library.Op(kind="bfloat16"),
        "float32": library.Op(),
    }
    cases = [("mxfp8", "nn", s, torch.float32) for s in square + gpt + thin]
    cases += [("mxfp8", t, s, torch.float32) for s in gpt for t in ("nt", "tn")]
    cases += [("mxfp8", "nn", s, torch.bfloat16) for s in square[2:] + gpt]
    cases += [(op, "nn", s, torch.float32) for op in list(ops)[1:] for s in square[2:] + gpt[:1]]
    for op, layout, (m, k, n), dtype in cases:
        a, b = torch.randn(m, k), torch.randn(k, n)
        a = a.t().contiguous().t() if layout[0] == "t" else a
        b = b.t().contiguous().t() if layout[1] == "t" else b
        result = torch.empty(1, m, n, dtype=dtype)
        keep = view(a.to(dtype)[None]), view(b.to(dtype)[None]), view(result)
        show(
            f"{op} {layout} {str(dtype)[6:]} [{m} x {k}] x [{k} x {n}]",
            lib.prepare_gemm(*keep, a_op=ops[op], b_op=ops[op]),
            partial(torch.mm, a, b, out=torch.empty(m, n)),
            2.0 * m * n * k,
        )


def attention(lib: Any) -> None:
    """Causal attention, forward and backward."""
    print("# attention on bfloat16 operands, causal, against torch's flash kernel in float32")
    aten = torch.ops.aten
    for shape in ((8, 6, 256, 64), (1, 8, 1024, 64), (4, 16, 128, 128)):
        tensors = [torch.randn(shape) for _ in range(3)]
        grad = torch.randn(shape)
        forward = partial(aten._scaled_dot_product_flash_attention_for_cpu, is_causal=True)
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        theirs = forward(*tensors)
        arrays = [x.numpy() for x in tensors]
        ours = lib.attention_forward(*arrays, causal=True)
        show(
            f"forward [B, H, T, D] = {list(shape)}",
            partial(lib.attention_forward, *arrays, causal=True),
            partial(forward, *tensors),
        )
        show(
            f"backward [B, H, T, D] = {list(shape)}",
            partial(lib.attention_backward, grad.numpy(), *arrays, *ours, causal=True),
            partial(backward, grad, *tensors, *theirs, 0.0, True),
        )


def main() -> None:
    """Run what the command line names."""
    groups = {"quantize": quantize, "gemm": gemm, "attention": attention}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", metavar="{quantize,gemm,attention}")
    parser.add_argument("--isa", choices=library.ISAS, default=library.ISAS[-1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lib = library.Numerics(library.build())
    lib.threads(args.threads)
    lib.limit_isa(library.ISAS.index(args.isa))
    level = library.ISAS[lib.c.trn_isa()]
    print(f"# {args.threads} threads, {level}, torch {torch.__version__}")
    for what in args.what or groups:
        groups[what](lib)


if __name__ == "__main__":
    main()
