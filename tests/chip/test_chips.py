"""The data sheet holds together: peaks follow from the parts, every figure has a source."""

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest

from torch_trn_emu.chip import (
    CHIPS,
    SYSTEMS,
    Figure,
    Status,
    chips,
    documented,
    get_chip,
    get_system,
)
from torch_trn_emu.errors import ChipLimit
from torch_trn_emu.settings import read

# Peaks of one core as the architecture guides print them, in whole TFLOPS.
GUIDE_PEAKS = [
    ("trn1", "bfloat16", 92),
    ("trn1", "float32", 23),
    ("trn2", "bfloat16", 79),
    ("trn2", "float8_e5m2", 158),
    ("trn2", "float32", 20),
    ("trn3", "bfloat16", 79),
    ("trn3", "mxfp8", 315),
    ("trn3", "float32", 20),
]
GiB = 1024**3


@pytest.mark.parametrize(("name", "operand", "tflops"), GUIDE_PEAKS)
def test_core_peak_follows_from_the_array_and_its_clock(
    name: str, operand: str, tflops: float
) -> None:
    assert get_chip(name).peak_flops(operand) / 1e12 == pytest.approx(tflops, rel=0.02)


def test_mx_peak_of_the_chip_is_the_marketing_one() -> None:
    trn3 = get_chip("trn3")
    peak = trn3.physical_cores * trn3.peak_flops("mxfp8")
    assert peak == pytest.approx(trn3.marketing_peak_flops["mxfp8"], rel=0.001)


@pytest.mark.parametrize(
    ("name", "lnc", "devices", "gib"),
    [("trn1", 1, 2, 16), ("trn2", 2, 4, 24), ("trn2", 1, 8, 12), ("trn3", 2, 4, 36)],
)
def test_logical_cores_share_the_hbm(name: str, lnc: int, devices: int, gib: int) -> None:
    chip = get_chip(name)
    assert chip.logical_cores(lnc) == devices
    assert chip.hbm_bytes_per_logical_core(lnc) == gib * GiB


@pytest.mark.parametrize(
    ("name", "sbuf_mib", "psum_mib"), [("trn1", 24, 2), ("trn2", 28, 2), ("trn3", 32, 2)]
)
def test_memories_have_the_documented_size(name: str, sbuf_mib: int, psum_mib: int) -> None:
    chip = get_chip(name)
    assert chip.sbuf.capacity_bytes == sbuf_mib * 1024**2
    assert chip.psum.capacity_bytes == psum_mib * 1024**2
    assert chip.psum.bank_bytes_per_partition == 512 * 4


def test_lnc_of_trn1_is_one() -> None:
    assert get_chip("trn1").default_lnc == 1
    with pytest.raises(ChipLimit, match="LNC=2: trn1"):
        get_chip("trn1").check_lnc(2)


def test_mx_needs_trn3() -> None:
    with pytest.raises(ChipLimit, match=r"mxfp8.*trn2"):
        get_chip("trn2").peak_flops("mxfp8")


def _peak(name: str, operand: str) -> float:
    chip = get_chip(name)
    return chip.physical_cores * chip.peak_flops(operand)


def test_trn4_has_the_announced_ratios_to_trn3() -> None:
    trn3, trn4 = get_chip("trn3"), get_chip("trn4")
    assert _peak("trn4", "mxfp4") == pytest.approx(6 * _peak("trn3", "mxfp4"))
    assert _peak("trn4", "mxfp8") == pytest.approx(3 * _peak("trn3", "mxfp8"))
    assert _peak("trn4", "mxfp4") == pytest.approx(trn4.marketing_peak_flops["mxfp4"], rel=0.001)
    bandwidth = [float(chip.hbm.bandwidth_bytes_per_s) for chip in (trn3, trn4)]
    assert bandwidth[1] == pytest.approx(4 * bandwidth[0])
    assert trn4.dma.engine_bytes_per_s == pytest.approx(4 * trn3.dma.engine_bytes_per_s)


def test_every_figure_of_trn4_is_a_projection() -> None:
    trn4 = get_chip("trn4")
    found = list(_floats(trn4, "trn4"))
    assert len(found) > 30
    for path, value in found:
        assert isinstance(value, Figure)
        assert value.status is Status.PROJECTED, path
    assert "projection" in trn4.basis
    for level in get_system("", "trn4").levels:
        assert level.bytes_per_s.status is Status.PROJECTED
    for chip in CHIPS.values():
        if chip is not trn4:
            assert all(v.status is not Status.PROJECTED for _, v in _floats(chip, chip.name))  # type: ignore[attr-defined]


def test_a_product_on_trn4_takes_a_third_and_a_sixth_of_the_array() -> None:
    from torch_trn_emu.engines import cycles
    from torch_trn_emu.kernels.matmul import matmul

    took = {}
    for name in ("trn3", "trn4"):
        for compute in ("mxfp8", "mxfp4"):
            chip = get_chip(name)
            program = matmul(1024, 2048, 1024, chip=chip, compute=compute)
            took[name, compute] = sum(
                cycles(i, chip) for i in program.instructions() if i.opcode == "nc_matmul_mx"
            )
    assert took["trn3", "mxfp8"] == took["trn3", "mxfp4"]
    assert took["trn4", "mxfp8"] == pytest.approx(took["trn3", "mxfp8"] / 3, rel=0.01)
    assert took["trn4", "mxfp4"] == pytest.approx(took["trn3", "mxfp4"] / 6, rel=0.01)


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_system(name: str) -> None:
    assert get_system("", name).chip == name
    assert get_chip(name).default_system in [system.name for system in SYSTEMS]


def test_default_precision_is_the_fastest_training_format() -> None:
    assert {c.name: c.default_matmul_precision for c in CHIPS.values()} == {
        "trn1": "bf16",
        "trn2": "bf16",
        "trn3": "mxfp8",
        "trn4": "mxfp8",
    }


def _floats(value: object, path: str) -> Iterator[tuple[str, float]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _floats(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, float):
        yield path, value


@pytest.mark.parametrize("name", CHIPS)
def test_every_figure_has_a_source(name: str) -> None:
    for path, value in _floats(get_chip(name), name):
        assert isinstance(value, Figure), path
        assert value.source, path
        assert bool(value.rows) == (value.status is Status.CALIBRATED), path


def test_a_figure_is_a_float_and_arithmetic_forgets() -> None:
    figure = documented(2.4e9, "[guide]")
    assert figure == 2.4e9
    assert type(figure * 2) is float
    assert figure.describe() == "2.4e+09 (documented: [guide])"
    copy = pickle.loads(pickle.dumps(figure))
    assert (copy, copy.status, copy.source) == (figure, figure.status, figure.source)


@pytest.mark.parametrize(
    "modules",
    ["torch_trn_emu.chip", "torch_trn_emu.counters, torch_trn_emu.kernels.matmul"],
    ids=["chips", "pricing"],
)
def test_neither_torch_nor_numpy_is_imported(modules: str) -> None:
    # The package's own __init__ may be heavier; what these need of it must not be.
    code = (
        "import sys, types, pathlib;"
        "p = types.ModuleType('torch_trn_emu');"
        "p.__path__ = [str(pathlib.Path('torch_trn_emu').resolve())];"
        "sys.modules['torch_trn_emu'] = p;"
        f"import {modules};"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_chip_that_no_system_has_says_what_to_add(monkeypatch) -> None:
    added = dataclasses.replace(get_chip("trn2"), name="trn2x")
    monkeypatch.setattr(chips, "CHIPS", {**CHIPS, "trn2x": added})
    with pytest.raises(ValueError, match=r"chip/systems.py: no system has trn2x: add a row"):
        read({"TRN_EMU_CHIP": "trn2x"})
