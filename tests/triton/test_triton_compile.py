"""The kernels compile for Hopper, where there is no GPU too: what the interpreter cannot show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = ("quantize", "rounding", "activations", "norms", "matmul", "attention")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), "90", *MODULES],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_exact_arithmetic_stays_exact(rows):
    """No subnormal is flushed but inside erf and log, and nothing is computed in double."""
    approximate = {"activation_kernel", "forward_kernel"}
    assert {row["kernel"] for row in rows if row["flushes"]} <= approximate
    assert [row for row in rows if row["double"]] == []


def test_products_run_on_the_tensor_cores_in_bfloat16(rows):
    products = [row for row in rows if row["kernel"] == "gemm_kernel"]
    assert len(products) == 4
    for row in products + [row for row in rows if "forward" in row["kernel"]]:
        assert row["matrix"], row
        assert all("wgmma" in name and name.endswith("f32.bf16.bf16") for name in row["matrix"])


def test_tiles_fit_shared_memory(rows):
    assert max(row["shared_bytes"] for row in rows) <= 227 << 10  # of one block on Hopper


def test_grids_have_the_one_axis_that_does_not_end_at_65535(rows):
    assert {row["axes"] for row in rows} == {1}


def test_no_register_spills(rows):
    assert {row["kernel"]: row["stack_bytes"] for row in rows if row["stack_bytes"]} == {}


def test_codes_are_stored_several_bytes_at_once(rows):
    """A byte alone is a scale, one to 32 elements."""
    assert {row["kernel"]: row["byte_stores"] for row in rows if row["byte_stores"] > 1} == {}
