"""What stays in 16 bits between the steps of a row program, and what does not."""

from torch_trn_emu.kernels.rows.keep_short import kept_short
from torch_trn_emu.kernels.rows.values import Input, Kind, RowStep, step

B2 = "bfloat16"
INPUTS = [Input("x", B2), Input("c", B2), Input("wide", "float32"), Input("row", B2, Kind.ROW)]


def _dtypes(*steps: RowStep) -> list[str]:
    every = {s.name: B2 for s in steps}
    return [s.dtype for s in kept_short(INPUTS, steps, [steps[-1].name], every)]


def _multiplied(name: str, *reads: str) -> RowStep:
    return step(name, "tensor_tensor", *reads, op="multiply")


def test_sums_and_products_of_16_bit_tensors_stay_short() -> None:
    rotated = step("r", "tensor_tensor", "p", "q", op="subtract")
    assert _dtypes(_multiplied("p", "x", "c"), _multiplied("q", "c", "x"), rotated) == [B2] * 3


def test_what_activations_read_or_make_does_not() -> None:
    silu = step("s", "activation", "p", op="silu")
    assert _dtypes(_multiplied("p", "x", "c"), silu, _multiplied("q", "s", "x")) == [""] * 3


def test_wide_operands_rows_and_divisions_do_not() -> None:
    for other in ("wide", "row"):
        assert _dtypes(_multiplied("p", "x", other)) == [""]
    assert _dtypes(step("p", "tensor_tensor", "x", "c", op="divide")) == [""]
