"""Builds csrc/numerics with the C interface of capi.cpp, and wraps it for numpy.

The tests need no installed extension: sources are compiled on first use and kept under build/,
unless the build of the extension has compiled them, with the same options.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_float, c_int, c_int64, c_uint8, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "numerics"
HERE = Path(__file__).resolve().parent
# `make asan` names sanitizers, and a folder for what is built with them.
SANITIZE = os.environ.get("TRN_NUMERICS_SANITIZE", "").split()
BUILD = Path(os.environ.get("TRN_NUMERICS_BUILD") or ROOT / "build" / "numerics")
CXX = os.environ.get("CXX", "g++")  # `make aarch64-test` names a cross compiler
FLAGS = (
    "-O3 -std=c++20 -fPIC -ffp-contract=off -fno-trapping-math -Wall -Wextra -Wconversion -Werror"
).split() + SANITIZE

TABLE = ROOT / "torch_trn_emu" / "formats" / "formats.def"


def names_of(kind: str) -> tuple[str, ...]:
    """The names in the rows of a kind, in the order of its enumeration in C++."""
    return tuple(re.findall(rf"^TRN_{kind}\((\w+)", TABLE.read_text(), re.MULTILINE))


FORMATS = names_of("FORMAT")
# Bits of exponent and mantissa, and the kind of the codes that are no numbers.
BITS = {
    name: (int(exponent), int(mantissa), specials)
    for name, exponent, mantissa, specials in re.findall(
        r"^TRN_FORMAT\((\w+), *(\d+), *(\d+), *(\w+)\)", TABLE.read_text(), re.MULTILINE
    )
}
ELEMENTS = names_of("ELEMENT")
RULES = names_of("SCALE_RULE")
GROUPINGS = ("contiguous", "wrapped")
ROUNDINGS = ("none", "bfloat16", "tfloat32", "mx")
DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
ISAS = ("plain", "avx2", "avx512", "avx512_bf16", "amx_bf16")


class CMatrix(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("rows", c_int64),
        ("cols", c_int64),
        ("row_stride", c_int64),
        ("col_stride", c_int64),
    ]


class CMx(ctypes.Structure):
    _fields_ = [(n, c_int) for n in "element rule grouping through_bf16 stochastic".split()] + [
        ("seed", c_uint64),
        ("offset", c_uint64),
    ]


class COperand(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("row_stride", c_int64),
        ("col_stride", c_int64),
        ("batch_stride", c_int64),
        ("rounding", c_int),
        ("mx", CMx),
    ]


class CResult(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int),
        ("row_stride", c_int64),
        ("col_stride", c_int64),
        ("batch_stride", c_int64),
        ("stochastic", c_int),
        ("seed", c_uint64),
        ("offset", c_uint64),
    ]


class CTensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int)] + [
        (n + "_stride", c_int64) for n in ("batch", "head", "row", "col")
    ]


class CAttention(ctypes.Structure):
    _fields_ = [
        *((n, c_int64) for n in "batch heads kv_heads q_length kv_length head_dim v_dim".split()),
        ("scale", c_float),
        ("causal", c_int),
        ("round_bf16", c_int),
        ("mask", c_void_p),
        ("mask_kind", c_int),
        *((n, c_int64) for n in "mask_batch mask_head mask_row mask_col".split()),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mx:
    element: str = "float8_e4m3fn"
    rule: str = "trn3"
    grouping: str = "contiguous"
    through_bf16: bool = True
    stochastic: bool = False
    seed: int = 0
    offset: int = 0

    def c(self) -> CMx:
        return CMx(
            ELEMENTS.index(self.element),
            RULES.index(self.rule),
            GROUPINGS.index(self.grouping),
            self.through_bf16,
            self.stochastic,
            self.seed,
            self.offset,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """How an operand of a matmul is rounded."""

    kind: str = "none"
    mx: Mx = field(default_factory=Mx)


def _of_the_extension(source: Path, stamp: float) -> Path | None:
    """An object that is newer than the source and its headers."""
    if SANITIZE or {"CXX", "TRN_NUMERICS_BUILD"} & os.environ.keys():
        return None
    name = f"CMakeFiles/trn_numerics.dir/csrc/numerics/{source.name}.o"
    objects = (ROOT / "build").glob(f"cmake-*/{name}")
    return next((o for o in objects if o.stat().st_mtime >= stamp), None)


def build() -> Path:
    """Compile what changed, and return the shared object."""
    folder = BUILD
    folder.mkdir(parents=True, exist_ok=True)
    headers = [TABLE, *(p for p in SOURCES.iterdir() if p.suffix == ".h")]
    newest = max(p.stat().st_mtime for p in headers)
    sources = [*sorted(SOURCES.glob("*.cpp")), HERE / "capi.cpp"]
    library = folder / "libtrn_numerics_test.so"

    def compile_one(source: Path) -> Path:
        target = folder / (source.stem + ".o")
        stamp = max(newest, source.stat().st_mtime)
        if done := _of_the_extension(source, stamp):
            return done
        if not target.exists() or target.stat().st_mtime < stamp:
            partial = target.with_suffix(f".{os.getpid()}.o")
            openmp = ["-fopenmp"] if source.stem == "capi" else []
            command = [CXX, *FLAGS, *openmp, f"-I{SOURCES}", "-c", str(source), "-o"]
            subprocess.run([*command, str(partial)], check=True)
            partial.replace(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    if not library.exists() or library.stat().st_mtime < max(o.stat().st_mtime for o in objects):
        partial = library.with_suffix(f".{os.getpid()}.so")
        command = [CXX, "-shared", "-fopenmp", *SANITIZE, *map(str, objects), "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.replace(library)
    return library


def pointer(x: np.ndarray | None) -> c_void_p:
    return c_void_p(0 if x is None else x.ctypes.data)


def strides(x: np.ndarray) -> tuple[int, ...]:
    return tuple(s // x.itemsize for s in x.strides)


def dtype_index(x: np.ndarray) -> int:
    return DTYPES.index(x.dtype)


class Numerics:
    """The library, with numpy arrays for pointers."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.trn_decode_e8m0.restype = c_float
        self.c.trn_decode_e8m0.argtypes = [c_uint8]
        self.c.trn_encode_e8m0.restype = c_uint8
        self.c.trn_encode_e8m0.argtypes = [c_float]
        self.c.trn_scale_count.restype = c_int64
        self.c.trn_scale_count.argtypes = [c_int64, c_int]
        self.c.trn_limit_isa(len(ISAS) - 1)
        self.host_isa = self.c.trn_isa()

    def limit_isa(self, level: int) -> None:
        self.c.trn_limit_isa(level)

    def threads(self, count: int) -> None:
        self.c.trn_threads(count)

    def isas(self) -> list[int]:
        return list(range(self.host_isa + 1))

    def encode(self, fmt, x, *, special=False, stochastic=False, seed=0, offset=0) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        codes = np.empty(x.size, np.uint8)
        self.c.trn_encode(
            c_int(FORMATS.index(fmt)), pointer(x), pointer(codes), c_int64(x.size),
            c_int(special), c_int(stochastic), c_uint64(seed), c_uint64(offset),
        )  # fmt: skip
        return codes

    def decode(self, fmt, codes) -> np.ndarray:
        return self._decoded(self.c.trn_decode, fmt, np.ascontiguousarray(codes, np.uint8))

    @staticmethod
    def _decoded(function, fmt, codes) -> np.ndarray:
        x = np.empty(codes.size, np.float32)
        function(c_int(FORMATS.index(fmt)), pointer(codes), pointer(x), c_int64(codes.size))
        return x

    def round_to(self, fmt, x, *, special=True, stochastic=False, seed=0, offset=0) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        self.c.trn_round_to(
            c_int(FORMATS.index(fmt)), pointer(x), pointer(y), c_int64(x.size),
            c_int(special), c_int(stochastic), c_uint64(seed), c_uint64(offset),
        )  # fmt: skip
        return y

    def convert(self, x, to, *, stochastic=False, seed=0, offset=0) -> np.ndarray:
        y = np.empty(x.shape, to)
        self.c.trn_convert(
            c_int(dtype_index(x)), pointer(x), c_int(dtype_index(y)), pointer(y), c_int64(x.size),
            c_int(stochastic), c_uint64(seed), c_uint64(offset),
        )  # fmt: skip
        return y

    def random_words(self, seed, offset, first, count, *, reference=False) -> np.ndarray:
        words = np.empty(count, np.uint32)
        function = self.c.trn_reference_random_words if reference else self.c.trn_random_words
        function(c_uint64(seed), c_uint64(offset), c_uint64(first), c_int64(count), pointer(words))
        return words

    def reference_encode(self, fmt, x, *, special=False, random=None) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        codes = np.empty(x.size, np.uint32)
        self.c.trn_reference_encode(
            c_int(FORMATS.index(fmt)), pointer(x), pointer(codes), c_int64(x.size),
            c_int(special), pointer(random),
        )  # fmt: skip
        return codes

    def reference_decode(self, fmt, codes) -> np.ndarray:
        wide = np.ascontiguousarray(codes, np.uint32)
        return self._decoded(self.c.trn_reference_decode, fmt, wide)

    def matrix(self, x: np.ndarray) -> CMatrix:
        return CMatrix(pointer(x), dtype_index(x), *x.shape, *strides(x))

    def quantize(self, x, axis, mx: Mx, *, reference=False) -> tuple[np.ndarray, np.ndarray]:
        shape = list(x.shape)
        if mx.element == "float4_e2m1fn":
            shape[axis] = (shape[axis] + 1) // 2
        codes = np.full(shape, 0xEE, np.uint8)
        shape = list(x.shape)
        shape[axis] = self.c.trn_scale_count(shape[axis], GROUPINGS.index(mx.grouping))
        scales = np.full(shape, 0xEE, np.uint8)
        self.c.trn_quantize(
            c_int(reference), byref(self.matrix(x)), c_int(axis), byref(mx.c()),
            pointer(codes), c_int64(codes.shape[1]), pointer(scales), c_int64(scales.shape[1]),
        )  # fmt: skip
        return codes, scales

    def dequantize(self, codes, scales, axis, mx: Mx, shape, out, *, reference=False):
        y = np.empty(shape, out)
        self.c.trn_dequantize(
            c_int(reference), pointer(codes), c_int64(codes.shape[1]), pointer(scales),
            c_int64(scales.shape[1]), c_int(axis), c_int(ELEMENTS.index(mx.element)),
            c_int(GROUPINGS.index(mx.grouping)), c_int64(shape[0]), c_int64(shape[1]),
            c_int(dtype_index(y)), pointer(y), c_int64(shape[1]),
        )  # fmt: skip
        return y

    def quantize_dequantize(self, x, axis, mx: Mx, out) -> np.ndarray:
        y = np.empty(x.shape, out)
        self.c.trn_quantize_dequantize(
            byref(self.matrix(x)), c_int(axis), byref(mx.c()), c_int(dtype_index(y)), pointer(y),
            c_int64(x.shape[1]),
        )  # fmt: skip
        return y

    def operand(self, x: np.ndarray, op: Op) -> COperand:
        batch, row, col = strides(x)
        return COperand(
            pointer(x), dtype_index(x), row, col, batch, ROUNDINGS.index(op.kind), op.mx.c()
        )

    def gemm(self, a, b, *, out=np.float32, c=None, **options) -> np.ndarray:
        """A [B, M, K], b [B, K, N], addend broadcastable to [B, M, N]; c: where the result goes."""
        if c is None:
            c = np.empty((a.shape[0], a.shape[1], b.shape[2]), out)
        self.prepare_gemm(a, b, c, **options)()
        return c

    def prepare_gemm(
        self, a, b, c, *, a_op=Op(), b_op=Op(), alpha=1.0, beta=1.0, addend=None,
        stochastic=False, seed=0, offset=0, reference=False,
    ):  # fmt: skip
        """The call as a function without arguments, to be timed."""
        (batch, m, k), n = a.shape, b.shape[2]
        c_batch, c_row, c_col = strides(c)
        result = CResult(
            pointer(c), dtype_index(c), c_row, c_col, c_batch, stochastic, seed, offset
        )
        d = None
        if addend is not None:
            d = byref(self.operand(np.broadcast_to(addend, c.shape), Op()))
        return functools.partial(
            self.c.trn_gemm,
            c_int(reference), c_int64(batch), c_int64(m), c_int64(n), c_int64(k),
            byref(self.operand(a, a_op)), byref(self.operand(b, b_op)), byref(result),
            c_float(alpha), c_float(beta), d,
        )  # fmt: skip

    def gemm_stored(self, a, codes, scales, element) -> np.ndarray:
        """A [M, K] by the transpose of codes [N, bytes] and scales [N, blocks]."""
        (m, k), n = a.shape, len(codes)
        c = np.empty((m, n), np.float32)
        self.c.trn_gemm_stored(
            c_int64(m), c_int64(n), c_int64(k), pointer(a), pointer(codes),
            c_int64(codes.shape[1]), pointer(scales), c_int64(scales.shape[1]),
            c_int(ELEMENTS.index(element)), pointer(c),
        )  # fmt: skip
        return c

    def tensor(self, x: np.ndarray) -> CTensor:
        return CTensor(pointer(x), dtype_index(x), *strides(x))

    def attention(self, q, k, v, *, scale=None, causal=False, round_bf16=True, mask=None):
        """The shape struct of q [B, H, T, D], k and v [B, G, S, D]; mask broadcastable."""
        batch, heads, q_length, head_dim = q.shape
        scale = head_dim**-0.5 if scale is None else scale
        shape = CAttention(
            batch, heads, k.shape[1], q_length, k.shape[2], head_dim, v.shape[3],
            scale, causal, round_bf16,
        )  # fmt: skip
        if mask is not None:
            mask = np.broadcast_to(mask, (batch, heads, q_length, k.shape[2]))
            shape.mask = mask.ctypes.data
            shape.mask_kind = 3 if mask.dtype == np.bool_ else DTYPES.index(mask.dtype)
            shape.mask_batch, shape.mask_head, shape.mask_row, shape.mask_col = strides(mask)
        return shape

    def attention_forward(self, q, k, v, *, out=None, **options):
        shape = self.attention(q, k, v, **options)
        y = np.empty((*q.shape[:3], v.shape[3]), q.dtype if out is None else out)
        logsumexp = np.empty(q.shape[:3], np.float32)
        tensors = [byref(self.tensor(x)) for x in (q, k, v, y)]
        self.c.trn_attention_forward(byref(shape), *tensors, pointer(logsumexp))
        return y, logsumexp

    def attention_backward(self, grad, q, k, v, y, logsumexp, **options):
        shape = self.attention(q, k, v, **options)
        inputs = [byref(self.tensor(x)) for x in (grad, q, k, v, y)]
        grads = [np.empty(x.shape, x.dtype) for x in (q, k, v)]
        outputs = [byref(self.tensor(x)) for x in grads]
        self.c.trn_attention_backward(byref(shape), *inputs, pointer(logsumexp), *outputs)
        return grads
