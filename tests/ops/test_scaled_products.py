"""Products of codes and of groups as programs: the MX array, and nothing quantized on the way."""

import pytest

from torch_trn_emu.calls import Call, Target, TensorArg
from torch_trn_emu.chip import CHIPS
from torch_trn_emu.ops import OPS
from torch_trn_emu.ops.op import dense
from torch_trn_emu.pricing import price_call

TARGET = Target(CHIPS["trn3"], 2)
FLOAT8, FLOAT4, E8M0 = "Float8_e4m3fn", "Float4_e2m1fn_x2", "Float8_e8m0fnu"


def column_major(dtype, rows, columns):
    return TensorArg(dtype, (rows, columns), (1, rows))


def scaled(size, dtype=FLOAT8):
    """_scaled_mm_v2 of square operands with MX scales."""
    stored = size // 2 if dtype == FLOAT4 else size
    scales = (dense((size, size // 32), E8M0),)
    first, second = dense((size, stored), dtype), column_major(dtype, stored, size)
    arguments = (first, second, scales, (3,), (), scales, (3,), (), None, "bfloat16", (), False)
    return Call("aten::_scaled_mm_v2", arguments, (dense((size, size), "BFloat16"),), "mxfp8")


def opcodes(nodes):
    for node in nodes:
        if hasattr(node, "opcode"):
            yield node.opcode
        else:
            yield from opcodes(getattr(node, "body", ()))


@pytest.mark.parametrize("dtype", [FLOAT8, FLOAT4])
def test_codes_go_to_the_mx_array_as_they_are(dtype):
    (program,) = OPS["_scaled_mm_v2"].lower(scaled(512, dtype), TARGET)
    found = set(opcodes(program.body))
    assert "nc_matmul_mx" in found
    assert not found & {"quantize_mx", "nc_transpose", "nc_matmul"}


def test_codes_cost_less_than_quantizing_and_less_than_bfloat16():
    size = 2048
    a, b = dense((size, size), "BFloat16"), column_major("BFloat16", size, size)
    result = (dense((size, size), "BFloat16"),)
    codes = price_call(scaled(size), TARGET)
    quantized, rounded = (
        price_call(Call("aten::mm", (a, b), result, policy), TARGET) for policy in ("mxfp8", "bf16")
    )
    assert codes.row == "_scaled_mm_v2"
    assert codes.seconds < quantized.seconds < rounded.seconds


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (dense((512, 256), "BFloat16"), dense((8, 256, 128), "BFloat16")),
        (dense((8, 64, 256), "BFloat16"), dense((8, 256, 128), "BFloat16")),
        (dense((8, 64, 256), "BFloat16"), dense((256, 512), "BFloat16")),
        (dense((64, 512), "BFloat16"), dense((512, 128), "BFloat16")),
    ],
)
def test_groups_are_a_product_each(a, b):
    offs = None if len(a.shape) == len(b.shape) == 3 else dense((8,), "Int")
    out = dense((8, 64, 128), "BFloat16")
    call = Call("aten::_grouped_mm", (a, b, offs, None, None), (out,), "mxfp8")
    programs = OPS["_grouped_mm"].lower(call, TARGET)
    assert len(programs) == 8
    assert price_call(call, TARGET).row == "_grouped_mm"
