"""Golden vectors are whole, the same every time, and right by a second opinion."""

import hashlib
import json

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16, float4_e2m1fn, float8_e3m4, float8_e4m3, float8_e4m3fn, float8_e5m2
from safetensors.numpy import load_file

from torch_trn_emu.formats.formats import FORMATS
from torch_trn_emu.formats.mx import MX_FORMATS, SCALE_RULES
from torch_trn_emu.testing.vectors import write_vectors

ORACLES = {
    "bfloat16": bfloat16,
    "float16": np.float16,
    "float8_e5m2": float8_e5m2,
    "float8_e4m3fn": float8_e4m3fn,
    "float8_e4m3": float8_e4m3,
    "float8_e3m4": float8_e3m4,
    "float4_e2m1fn": float4_e2m1fn,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    manifest = write_vectors(folder)
    tensors = (load_file(folder / f"{name}.safetensors") for name in ("casts", "mx"))
    return folder, manifest, *tensors


def entries(manifest, **wanted):
    return [e for e in manifest["entries"] if all(e.get(k) == v for k, v in wanted.items())]


def test_the_manifest_lists_every_format_rule_and_rounding(written):
    folder, manifest, casts, mx = written
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    listed = {(e["format"], e["rounding"]) for e in entries(manifest, kind="cast")}
    roundings = ("nearest_even", "stochastic")
    assert listed == {(f, r) for f in FORMATS if f != "float32" for r in roundings}
    blocks = {(e["format"], e["scale_rule"], e["rounding"]) for e in entries(manifest, kind="mx")}
    assert blocks == {(f, s, r) for f in MX_FORMATS for s in SCALE_RULES for r in roundings}
    tensors = {"casts.safetensors": casts, "mx.safetensors": mx}
    for entry in manifest["entries"]:
        assert any(name.startswith(entry["prefix"]) for name in tensors[entry["file"]])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_two_runs_write_the_same_bytes(written, tmp_path):
    folder, manifest, _, _ = written
    assert write_vectors(tmp_path) == manifest
    for name in manifest["files"]:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ORACLES)
def test_casts_agree_with_another_library(written, name):
    _, _, casts, _ = written
    prefix = f"cast/{name}/nearest_even/special/"
    inputs, codes = casts[prefix + "inputs"], casts[prefix + "codes"]
    finite = np.isfinite(inputs)
    with np.errstate(over="ignore"):
        expected = inputs[finite].astype(ORACLES[name])
    unsigned = np.uint16 if codes.dtype == np.uint16 else np.uint8
    bits = (1 << FORMATS[name].bits) - 1
    np.testing.assert_array_equal(codes[finite] & bits, expected.view(unsigned) & bits)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("float32", "tfloat32")])
def test_stochastic_neighbours_enclose_the_nearest_code(written, name):
    _, _, casts, _ = written
    near = casts[f"cast/{name}/nearest_even/saturate/codes"]
    down, away, share = (
        casts[f"cast/{name}/stochastic/{part}"]
        for part in ("codes_toward_zero", "codes_away", "probability_away")
    )
    assert ((near == down) | (near == away)).all()
    assert ((share >= 0) & (share < 1)).all()
    assert (away.astype(int) - down.astype(int) <= 1).all()
    assert ((share > 0) <= (away != down)).all()


@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("name", ["mxfp8", "mxfp8_e5m2"])
def test_blocks_agree_with_the_device(written, name, rule):
    _, _, _, mx = written
    prefix = f"mx/{name}/{rule}/nearest_even/"
    inputs = torch.from_numpy(mx[prefix + "inputs"]).to("trn")
    codes, scales = torch.ops.trn.quantize_mx(
        inputs, element=MX_FORMATS[name].element.name, scale_rule=rule
    )
    expected = mx[prefix + "scales"]
    np.testing.assert_array_equal(scales.cpu().view(torch.uint8).numpy(), expected)
    numbers = expected[:, 0] != 0xFF  # where the scale is NaN, the codes say nothing
    found = codes.cpu().view(torch.uint8).numpy()
    np.testing.assert_array_equal(found[numbers], mx[prefix + "codes"][numbers])


def test_stochastic_blocks_of_the_device_lie_between_the_neighbours(written):
    _, _, _, mx = written
    prefix = "mx/mxfp8/trn3/stochastic/"
    inputs = torch.from_numpy(mx[prefix + "inputs"]).to("trn")
    away, down = mx[prefix + "codes_away"], mx[prefix + "codes_toward_zero"]
    mean = np.zeros(down.shape)
    for seed in range(50):
        drawn, _ = torch.ops.trn.quantize_mx(inputs, rounding="stochastic", seed=seed)
        codes = drawn.cpu().view(torch.uint8).numpy()
        assert ((codes == away) | (codes == down)).all()
        mean += (codes == away) & (away != down)
    wanted = mx[prefix + "probability_away"]
    assert abs(mean.sum() / 50 - wanted.sum()) < 0.02 * wanted.sum()
