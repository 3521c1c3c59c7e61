"""Golden vectors: inputs and the codes they become, for every format, scale rule and rounding.

    write_vectors("vectors/")   # casts.safetensors, mx.safetensors, manifest.json

Made from the numpy definitions in torch_trn_emu.formats, which the device's kernels are tested
against, so that others can hold silicon or another emulator to them. Needs numpy and safetensors.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files import replacing, write_text
from ..formats import FORMATS, MX_FORMATS, FloatFormat, MxFormat
from ..formats.codec import decode, encode, with_sign
from ..formats.mx import SCALE_RULES, dequantize_mx, quantize_mx

__all__ = ["write_vectors"]

SEED = 0
Array = npt.NDArray[Any]
Vectors = dict[str, Array]
Entry = dict[str, Any]

# Whether the vendor or a specification says so; see docs/fidelity.md.
_TRN3_QUANTIZES = ("float8_e4m3fn", "float8_e5m2")


def write_vectors(folder: Path | str, advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write the vectors and return the manifest; `advance` is called after each set.

    Rounding "nearest_even" has `codes`. Rounding "stochastic" has `codes_toward_zero`,
    `codes_away` and `probability_away` (float32): a result is one of the two codes, and over many
    seeds the latter as often as that. The bits that the chip draws are not public.
    """
    from safetensors.numpy import save_file

    entries: list[Entry] = []
    files = {}
    for name, made in (("casts", _casts()), ("mx", _mx())):
        tensors: Vectors = {}
        for entry, vectors in made:
            key = "/".join(str(entry[k]) for k in _KEYS if k in entry)
            tensors |= {f"{key}/{part}": np.ascontiguousarray(v) for part, v in vectors.items()}
            advance()
            entries.append(entry | {"file": f"{name}.safetensors", "prefix": key + "/"})
        path = Path(folder) / f"{name}.safetensors"
        with replacing(path) as draft:
            save_file(tensors, draft)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {
        "what": "inputs (float32) and their codes; one byte per code if 8 bits suffice",
        "block_size": 32,
        "seed": SEED,
        "files": files,
        "formats": {name: _described(format) for name, format in FORMATS.items()},
        "entries": entries,
    }
    write_text(Path(folder) / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return manifest


_KEYS = ("kind", "format", "scale_rule", "rounding", "overflow")


def _described(format: FloatFormat) -> dict[str, Any]:
    return {
        "exponent_bits": format.exponent_bits,
        "mantissa_bits": format.mantissa_bits,
        "bias": format.bias,
        "max": format.max,
        "min_subnormal": format.min_subnormal,
        "nan_code": format.nan_code,
        "inf_code": format.inf_code,
        "specials": format.specials.value,
    }


# --- casts of single values ----------------------------------------------------------------------


def _casts() -> Iterator[tuple[Entry, Vectors]]:
    for name, format in FORMATS.items():
        if name == "float32":
            continue
        values = _values(format)
        for overflow in ("saturate", "special"):
            entry = {"kind": "cast", "format": name, "rounding": "nearest_even"}
            codes = encode(format, values, overflow)
            vectors = {"inputs": values, "codes": _narrow(codes, format)}
            yield entry | {"overflow": overflow, "status": "documented"}, vectors
        entry = {"kind": "cast", "format": name, "rounding": "stochastic", "status": "documented"}
        yield entry, {"inputs": values, **_neighbours(format, values)}


def _values(format: FloatFormat) -> Array:
    """Every value of a small format and every midpoint; of a large one the edges and a sample."""
    magnitudes = np.arange(format.max_code + 1)
    if len(magnitudes) > 256:
        steps = np.random.default_rng(SEED).integers(0, format.max_code, 2048)
        edges = (0, 1, 2, 2**format.mantissa_bits, format.max_code - 1, format.max_code)
        magnitudes = np.unique(np.concatenate((steps, edges)))
    exact = decode(format, magnitudes)
    middle = (exact[:-1] + exact[1:]) / 2
    above = format.max * (1 + 2.0 ** -(format.mantissa_bits + 2))
    positive = np.concatenate((exact, middle, [above, format.max * 1.5], middle * (1 + 2.0**-12)))
    positive = positive[np.abs(positive) <= np.finfo(np.float32).max].astype(np.float32)
    if not format.signed:
        return np.asarray(positive)
    values = np.concatenate((positive, -positive))
    special = [np.inf, -np.inf] + ([np.nan] if format.nan_code is not None else [])
    return np.concatenate((values, np.asarray(special, dtype=np.float32)))


def _neighbours(format: FloatFormat, values: Array) -> Vectors:
    """The codes around each value, saturating; both alike where the format holds the value."""
    near = encode(format, values, "saturate").astype(np.int64)
    real = np.abs(values.astype(np.float64))
    found = np.abs(decode(format, near))
    negative = np.signbit(values) if format.signed else np.zeros(near.shape, bool)
    magnitude = encode(format, np.abs(values), "saturate").astype(np.int64)
    below = np.where(found > real, magnitude - 1, magnitude)
    above = np.where(found < real, magnitude + 1, magnitude)
    above = np.where((above > format.max_code) & np.isfinite(found), format.max_code, above)
    low, high = decode(format, np.maximum(below, 0)), decode(format, above)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (real - low) / (high - low)
    return {
        "codes_toward_zero": _narrow(with_sign(format, np.maximum(below, 0), negative), format),
        "codes_away": _narrow(with_sign(format, above, negative), format),
        "probability_away": np.where(high > low, share, 0.0).astype(np.float32),
    }


def _narrow(codes: Array, format: FloatFormat) -> Array:
    """In the smallest unsigned integers."""
    bits = next(bits for bits in (8, 16, 32) if format.bits <= bits)
    narrow: Array = np.asarray(codes, dtype=f"uint{bits}")
    return narrow


# --- blocks of 32 --------------------------------------------------------------------------------


def _mx() -> Iterator[tuple[Entry, Vectors]]:
    blocks = _blocks()
    for name, format in MX_FORMATS.items():
        for rule in SCALE_RULES:
            codes, scales = quantize_mx(blocks, format, rule)
            entry = {
                "kind": "mx",
                "format": name,
                "element": format.element.name,
                "scale_rule": rule,
            }
            known = rule != "trn3" or format.element.name in _TRN3_QUANTIZES
            status = "documented" if known else "inferred"
            shared: Vectors = {"inputs": blocks, "scales": scales}
            exact: Vectors = {
                "codes": codes.astype(np.uint8),
                "values": dequantize_mx(codes, scales, format),  # float64: may exceed float32
            }
            yield entry | {"rounding": "nearest_even", "status": status}, shared | exact
            finite = np.isfinite(blocks).all(axis=1)
            some = {"inputs": blocks[finite], "scales": scales[finite]}
            stochastic = {"rounding": "stochastic", "status": "chosen"}
            yield entry | stochastic, some | _mx_neighbours(some, format)


def _mx_neighbours(some: Vectors, format: MxFormat) -> Vectors:
    exponent = some["scales"].astype(np.int64) - 127
    scaled = np.ldexp(some["inputs"].astype(np.float64), -exponent)
    return _neighbours(format.element, scaled)


def _blocks() -> Array:
    """[n, 32] that bfloat16 holds: ordinary values, wide ranges, edges, NaN and infinities."""
    random = np.random.default_rng(SEED)
    ordinary = random.standard_normal((128, 32))
    wide = random.standard_normal((64, 32)) * 2.0 ** random.integers(-60, 60, (64, 32))
    scaled = random.standard_normal((64, 32)) * 2.0 ** random.integers(-126, 120, (64, 1))
    zeros, negative_zeros = np.zeros((1, 32)), np.full((1, 32), -0.0)
    powers = 2.0 ** np.arange(-16, 16)[None]
    tiny = np.full((1, 32), 2.0**-126)
    largest = np.full((1, 32), float(FORMATS["bfloat16"].max))
    ties = np.linspace(1, 2, 32)[None] * 1.8125
    odd = ordinary[:3].copy()
    odd[0, 5], odd[1, 6], odd[2, 7] = np.nan, np.inf, -np.inf
    parts = (ordinary, wide, scaled, zeros, negative_zeros, powers, tiny, largest, ties, odd)
    every = np.concatenate(parts).astype(np.float32)
    bfloat16 = FORMATS["bfloat16"]
    return decode(bfloat16, encode(bfloat16, every)).astype(np.float32)
