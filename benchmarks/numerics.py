"""Ratios of the kernels in csrc/numerics to PyTorch's on the same host, interleaved in one process.

    python benchmarks/numerics.py [quantize] [gemm] [attention] [--isa avx2] [--threads 2]

A ratio below 1 is faster than PyTorch. Each is a median over interleaved pairs of calls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "numerics"))
from numerics_library import ISAS, Mx, Numerics, Op, build

Call = Callable[[], Any]


def ratio(ours: Call, theirs: Call, seconds: float = 1.0) -> tuple[float, float, float]:
    """Median times of both in milliseconds, and the median ratio of neighbouring calls."""
    # On one thread CPU time is as good as a clock, and other processes do not show in it.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(2):
        ours(), theirs()
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


def show(name: str, result: tuple[float, float, float], note: str = "") -> None:
    ours, theirs, r = result
    print(f"{name:58s} {ours:9.3f} ms {theirs:9.3f} ms   ratio {r:5.2f}  {note}", flush=True)


def view(x: torch.Tensor) -> Any:
    """The tensor as a numpy array on the same memory; bfloat16 by way of its bits."""
    import ml_dtypes

    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def quantize(lib: Numerics) -> None:
    from ctypes import byref, c_int, c_int64

    from numerics_library import pointer

    print("# quantize 4096 x 4096 against a warm copy_ of the source")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4096, 4096).to(dtype)
        y = torch.empty_like(x)
        source = lib.matrix(view(x))
        codes = torch.empty(4096, 4096, dtype=torch.uint8).numpy()
        scales = torch.empty(4096 * 128, dtype=torch.uint8).numpy()
        out = torch.empty(4096, 4096).numpy()
        for element in ("float8_e4m3fn", "float4_e2m1fn"):
            for axis in (1, 0):
                mx = Mx(element=element).c()
                stride = 4096 if axis == 0 or "8" in element[:6] else 2048
                args = (c_int(0), byref(source), c_int(axis), byref(mx), pointer(codes),
                        c_int64(stride), pointer(scales),
                        c_int64(128 if axis == 1 else 4096))  # fmt: skip
                name = f"{str(dtype)[6:]} -> {element} axis {axis}"
                show(name, ratio(lambda a=args: lib.c.trn_quantize(*a), lambda: y.copy_(x)))
        for axis in (1, 0):
            mx = Mx().c()
            args = (byref(source), c_int(axis), byref(mx), c_int(0), pointer(out), c_int64(4096))
            name = f"{str(dtype)[6:]} -> qdq float32 axis {axis}"
            show(name, ratio(lambda a=args: lib.c.trn_quantize_dequantize(*a), lambda: y.copy_(x)))


def gemm(lib: Numerics) -> None:
    print("# C = A B, both operands rounded while packed, against torch.mm in float32")
    shapes = [(n, n, n) for n in (64, 128, 256, 512, 1024, 2048)]
    shapes += [(2048, 384, 1152), (2048, 384, 1536), (2048, 1536, 384)]
    shapes += [(1, 2048, 2048), (2048, 2048, 1), (8, 2048, 2048)]
    ops = {"mx": Op(kind="mx"), "bf16": Op(kind="bfloat16"), "fp32": Op()}
    ops["mx4"] = Op(kind="mx", mx=Mx(element="float4_e2m1fn"))
    cases = [("mx", "nn", s, torch.float32) for s in shapes]
    cases += [("mx", t, s, torch.float32) for s in shapes[6:9] for t in ("nt", "tn")]
    cases += [("mx", "nn", s, torch.bfloat16) for s in shapes[2:9]]
    cases += [(o, "nn", s, torch.float32) for o in ("mx4", "bf16", "fp32") for s in shapes[2:7]]
    for op, layout, (m, k, n), dtype in cases:
        a, b = torch.randn(m, k), torch.randn(k, n)
        if layout[0] == "t":
            a = a.t().contiguous().t()
        if layout[1] == "t":
            b = b.t().contiguous().t()
        out = torch.empty(m, n)
        c = torch.empty(1, m, n, dtype=dtype)
        left, right, result = view(a.to(dtype)[None]), view(b.to(dtype)[None]), view(c)
        name = f"{op} {layout} {str(dtype)[6:]} [{m} x {k}] x [{k} x {n}]"
        ours = lib.prepare_gemm(left, right, a_op=ops[op], b_op=ops[op], c=result)
        timed = ratio(
            ours,
            lambda: torch.mm(a, b, out=out),
            0.6,
        )
        show(name, timed, f"{2e-6 * m * n * k / timed[0]:6.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["quantize", "gemm"])
    parser.add_argument("--isa", choices=ISAS, default=ISAS[-1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lib = Numerics(build())
    lib.threads(args.threads)
    lib.limit_isa(ISAS.index(args.isa))
    level = ISAS[lib.c.trn_isa()]
    print(f"# {args.threads} threads, {level}, torch {torch.__version__}")
    for what in args.what:
        globals()[what](lib)


if __name__ == "__main__":
    main()
