"""Products of few rows: the array holds columns of the second factor, and results are turned."""

from functools import partial
from itertools import product

import numpy as np
import pytest

from torch_trn_emu.chip import Chip, get_chip
from torch_trn_emu.engines.machine import Machine
from torch_trn_emu.isa import Engine, Program, validate
from torch_trn_emu.kernels import matmul as kernels
from torch_trn_emu.kernels.matmul import blocking, matmul
from torch_trn_emu.kernels.matmul.epilogue import Epilogue
from torch_trn_emu.kernels.matmul.evacuation import Leaving
from torch_trn_emu.kernels.rows.values import Input, Kind, Output, RowStep
from torch_trn_emu.timing import price

RNG = np.random.default_rng(5)
LAYOUTS = tuple(product(("mk", "km"), ("kn", "nk")))
CHIPS = ("trn1", "trn2", "trn3")


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products too are of few rows, so that the machine runs them quickly."""
    monkeypatch.setattr(blocking, "LEAST_HELD", 1)


def _whole(*shape: int) -> np.ndarray:
    """Integers so small that sums of their products are exact."""
    return RNG.integers(-3, 4, shape).astype(np.float32)


def _run(program: Program, chip: str, **given: np.ndarray) -> dict[str, np.ndarray]:
    validate(program, get_chip(chip))
    return Machine(get_chip(chip)).run(program, given)


def _is_turned(program: Program) -> bool:
    return any(b.name == "turned" for b in program.buffers)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.usefixtures("all_sizes")
def test_random_sizes(chip: str) -> None:
    for _ in range(25):
        batch, m = int(RNG.integers(1, 3)), int(RNG.integers(1, 33))
        k, n = int(RNG.integers(1, 1500)), int(RNG.integers(128, 1400))
        lhs_layout, rhs_layout = LAYOUTS[RNG.integers(len(LAYOUTS))]
        dtype = str(RNG.choice(["bfloat16", "float32"]))
        program = matmul(
            m, k, n, batch=batch, chip=get_chip(chip), compute=dtype, lhs_dtype=dtype,
            rhs_dtype=dtype, out_dtype="float32", lhs_layout=lhs_layout, rhs_layout=rhs_layout,
        )  # fmt: skip
        lhs, rhs = _whole(batch, m, k), _whole(batch, k, n)
        given = {
            "lhs": lhs if lhs_layout == "mk" else lhs.transpose(0, 2, 1),
            "rhs": rhs if rhs_layout == "kn" else rhs.transpose(0, 2, 1),
        }
        assert _is_turned(program)
        np.testing.assert_array_equal(_run(program, chip, **given)["out"], lhs @ rhs)


@pytest.mark.parametrize("chip", CHIPS)
def test_contractions_in_parts(chip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (("kn", "bfloat16", False), ("nk", "bfloat16", True),
             ("kn", "float32", True), ("nk", "float32", False))  # fmt: skip
    for rhs_layout, dtype, longer in kinds:
        plan = partial(blocking._few_in_parts, longer=longer)
        monkeypatch.setattr(kernels, "plan_few", plan)
        m, k, n = (int(RNG.integers(*some)) for some in ((1, 65), (2100, 3500), (128, 600)))
        program = matmul(
            m, k, n, chip=get_chip(chip), compute=dtype, lhs_dtype=dtype, rhs_dtype=dtype,
            out_dtype="float32", rhs_layout=rhs_layout,
        )  # fmt: skip
        lhs, rhs = _whole(1, m, k), _whole(1, k, n)
        given = {"lhs": lhs, "rhs": rhs if rhs_layout == "kn" else rhs.transpose(0, 2, 1)}
        assert _is_turned(program)
        np.testing.assert_array_equal(_run(program, chip, **given)["out"], lhs @ rhs)


@pytest.mark.parametrize("strides", [(0, 0, 1), (0, 700, 1), (0, 1, 0), (0, 0, 0)], ids=str)
@pytest.mark.usefixtures("all_sizes")
def test_what_is_added_on_the_way_out(strides: tuple[int, int, int]) -> None:
    m, k, n = 5, 200, 700
    added = _whole(m * n)
    leaving = Leaving(alpha=2.0, beta=3.0, strides=strides, elements=m * n, function="relu")
    program = matmul(m, k, n, chip=get_chip("trn2"), out_dtype="float32", leaving=leaving)
    lhs, rhs = _whole(1, m, k), _whole(1, k, n)
    rows, columns = np.indices((m, n))
    expected = np.maximum(2 * lhs @ rhs + 3 * added[rows * strides[1] + columns * strides[2]], 0)
    assert _is_turned(program)
    got = _run(program, "trn2", lhs=lhs, rhs=rhs, addend=added)["out"]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [(1, 256, 512), (7, 100, 600), (32, 130, 129)], ids=str)
@pytest.mark.usefixtures("all_sizes")
def test_steps_on_results(size: tuple[int, int, int]) -> None:
    m, k, n = size
    kinds = (("full", Kind.FULL), ("row", Kind.ROW), ("column", Kind.COLUMN), ("one", Kind.ONE))
    shapes = {"full": (1, m, n), "row": (n,), "column": (m,), "one": (1,)}
    inputs = [Input(name, "float32", kind) for name, kind in kinds]
    names = ["product", "s0", "s1", "s2", "s3"]
    steps = [
        RowStep(after, "tensor_tensor", (before, name), {"op": "add"}, Kind.FULL, None, "")
        for before, after, (name, _) in zip(names, names[1:], kinds, strict=False)
    ]
    epilogue = Epilogue(
        product="product", inputs=inputs, steps=steps,
        outputs=[Output("s1", "float32"), Output("s3", "float32")],
    )  # fmt: skip
    program = matmul(m, k, n, chip=get_chip("trn3"), epilogue=epilogue)
    given = {name: _whole(*shape) for name, shape in shapes.items()}
    lhs, rhs = _whole(1, m, k), _whole(1, k, n)
    got = _run(program, "trn3", lhs=lhs, rhs=rhs, **given)
    two = lhs @ rhs + given["full"] + given["row"]
    assert _is_turned(program)
    np.testing.assert_array_equal(got["out s1"], two)
    np.testing.assert_array_equal(got["out s3"], two + given["column"][:, None] + given["one"])


def _as_many(monkeypatch: pytest.MonkeyPatch, *size: int, chip: Chip, cores: int) -> Program:
    """The program that a product of many rows has."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "plan_few", lambda cut: None)
        return matmul(*size, chip=chip, cores=cores)


@pytest.mark.parametrize(
    "size", [(1, 1024, 1024), (16, 2048, 4096), (32, 4096, 3072), (4, 14336, 4096)], ids=str
)
@pytest.mark.parametrize("name", CHIPS)
def test_the_array_takes_less_time(
    name: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = get_chip(name)
    for cores in (1, 2):
        program = matmul(*size, chip=chip, cores=cores)
        few = price(program, chip)
        other = price(_as_many(monkeypatch, *size, chip=chip, cores=cores), chip)
        assert few.total_s <= 1.03 * other.total_s
        if _is_turned(program):
            part = few.engine_busy_s(Engine.TENSOR) / other.engine_busy_s(Engine.TENSOR)
            assert part <= (0.76 if name == "trn3" else 0.95)


@pytest.mark.parametrize("name", CHIPS)
def test_no_step_where_rows_are_no_longer_few(name: str) -> None:
    chip = get_chip(name)
    for k, n in ((1024, 1024), (4096, 4096), (14336, 4096), (1023, 1023)):
        for one, other in (((32, k, n), (33, k, n)), ((1, k, n), (1, k, n + 1)),
                           ((1, k, n), (1, k + 1, n))):  # fmt: skip
            a, b = (price(matmul(*s, chip=chip, cores=2), chip).total_s for s in (one, other))
            assert max(a, b) <= 1.2 * min(a, b) or abs(a - b) < 4e-6, (one, other)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_step_where_columns_are_in_parts(name: str, dtype: str) -> None:
    chip = get_chip(name)

    def seconds(m: int, k: int, n: int, layout: str) -> float:
        program = matmul(m, k, n, chip=chip, cores=2, compute=dtype, lhs_dtype=dtype,
                         rhs_dtype=dtype, out_dtype=dtype, rhs_layout=layout)  # fmt: skip
        assert _is_turned(program)
        return price(program, chip).total_s

    whole = 8192 if dtype == "float32" else 16384  # what SBUF holds
    for k, layout in product((whole, 17_000, 65_536), ("kn", "nk")):
        least = k * 2048 / 2 * np.dtype("f4" if dtype == "float32" else "f2").itemsize
        sizes = ((1, k, 2048), (32, k, 2048), (1, k + 1, 2048), (1, k, 2049), (31, k, 2047))
        times = [seconds(*size, layout) for size in sizes]
        assert min(times) >= least / chip.hbm_bytes_per_s_per_core()
        assert max(times) <= 1.2 * min(times), (k, layout, times)


@pytest.mark.parametrize("name", CHIPS)
def test_sbuf_holds_programs_of_long_contractions(name: str) -> None:
    chip, leaving = get_chip(name), Leaving(beta=1.0, strides=(0, 0, 1), elements=4096)
    for k, layout in product(range(12288, 16640, 512), ("kn", "nk")):
        program = matmul(
            8, k, 4096, chip=chip, compute="float16", lhs_dtype="float16", rhs_dtype="float16",
            out_dtype="float16", rhs_layout=layout, leaving=leaving,
        )  # fmt: skip
        validate(program, chip)
