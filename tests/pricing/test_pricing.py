"""Prices: counted by hand, the same every time, within the invariants, and never an error."""

import math

import pytest

from torch_trn_emu.calls import Call, Target, TensorArg, read_call
from torch_trn_emu.chip import get_chip
from torch_trn_emu.counters import derive
from torch_trn_emu.kernels import windows
from torch_trn_emu.ops import OPS, Op, dense
from torch_trn_emu.pricing import NOT_MODELLED, Price, price_call, report_rows

TRN3, TRN2 = get_chip("trn3"), get_chip("trn2")
CORE, PAIR = Target(TRN3, 1), Target(TRN3, 2)
F = "Float"
X, W = dense((512, 256), "Float"), dense((256, 1024), "Float")
BIG = dense((2048, 2048), "Float")
LOGITS = dense((64, 50257), "Float")
IDS = dense((512,), "Long")
HEADS = dense((8, 4, 200, 64), "BFloat16")
IMAGE, FILTER = dense((4, 16, 28, 28), "Float"), dense((32, 16, 3, 3), "Float")
OUT = dense((4, 32, 28, 28), "Float")
WINDOW = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)

# fmt: off
CALLS = (
    Call("aten::mm", (X, W), (dense((512, 1024), F),), "mxfp8"),
    Call("aten::mm", (X, W), (dense((512, 1024), F),), "fp32"),
    Call("aten::addmm", (dense((1024,), F), X, W, 1, 1), (dense((512, 1024), F),), "bf16"),
    Call("aten::add.Tensor", (X, X, 1), (X,)),
    Call("aten::add.Tensor", (X, dense((256,), F), 1), (X,)),
    Call("aten::gelu_backward", (X, X, "none"), (X,)),
    Call("aten::sum", (X, None), (dense((), F),)),
    Call("aten::sum.dim_IntList", (X, (0,), True, None), (dense((1, 256), F),)),
    Call("aten::native_layer_norm", (X, (256,), None, None, 1e-5), (X, IDS, IDS)),
    Call("aten::_log_softmax", (LOGITS, 1, False), (LOGITS,)),
    Call("aten::embedding", (BIG, IDS, -1, False, False), (dense((512, 2048), F),)),
    Call("aten::embedding_dense_backward", (dense((512, 2048), F), IDS, 2048, -1, False), (BIG,)),
    Call("aten::_scaled_dot_product_flash_attention_for_cpu",
         (HEADS, HEADS, HEADS, 0.0, True, None, None), (HEADS, dense((8, 4, 200), F))),
    Call("aten::_scaled_dot_product_flash_attention_for_cpu_backward",
         (HEADS,) * 5 + (dense((8, 4, 200), F), 0.0, True, None, None), (HEADS,) * 3),
    Call("aten::convolution", (IMAGE, FILTER, None, *WINDOW), (OUT,), "bf16"),
    Call("aten::convolution_backward", (OUT, IMAGE, FILTER, (32,), *WINDOW, (True, True, True)),
         (IMAGE, FILTER, dense((32,), F)), "bf16"),
    Call("aten::native_batch_norm", (IMAGE, None, None, None, None, True, 0.1, 1e-5), (IMAGE,)),
    Call("aten::max_pool2d_with_indices", (IMAGE, (2, 2), (2, 2)), (dense((4, 16, 14, 14), F),)),
    Call("aten::cat", ((X, X), 1), (dense((512, 512), F),)),
    Call("aten::clone", (TensorArg("Float", (512, 256), (1, 512)),), (X,)),
    Call("aten::_fused_adamw_", ((X, W),) * 4, ()),
    Call("aten::_foreach_mul_.Scalar", ((X, W), 0.9), ()),
    Call("aten::topk", (X, 5, -1, True, True), (dense((512, 5), F),)),
    Call("aten::cumsum", (X, 1, None), (X,)),
    Call("aten::normal_", (X, 0.0, 1.0), (X,)),
    Call("aten::lgamma", (X,), (X,)),
)
# fmt: on
NAMES = [f"{k} {call.op}" for k, call in enumerate(CALLS)]


@pytest.mark.parametrize("target", [CORE, PAIR, Target(TRN2, 2)], ids=["trn3", "pair", "trn2"])
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_prices_keep_the_invariants(call: Call, target: Target) -> None:
    price = price_call(call, target)
    assert price.status in ("modelled", "inferred"), price.note
    assert "Error" not in price.note
    values = derive(price.totals, target.chip, target.cores)
    for engine in ("tensor", "vector", "scalar", "gpsimd", "sync"):
        assert values[f"{engine}_engine_active_time"] <= price.seconds
    assert values["dma_active_time"] <= price.seconds
    assert values["mfu_estimated_percent"] <= values["hfu_estimated_percent"] * (1 + 1e-9) <= 100
    assert price.seconds >= target.chip.launch.kernel_overhead_s


def test_bytes_and_flops_by_hand() -> None:
    add = price_call(CALLS[3], CORE).totals
    assert add["hbm_read_bytes"] == 2 * 512 * 256 * 4
    assert add["hbm_write_bytes"] == 512 * 256 * 4
    product = price_call(CALLS[1], CORE).totals
    assert product["model_flops"] == 2 * 512 * 256 * 1024
    assert product["hbm_write_bytes"] == 512 * 1024 * 4
    repeated = price_call(CALLS[4], CORE).totals  # a bias is loaded once to each of 128 partitions
    assert repeated["hbm_read_bytes"] == (512 + 128) * 256 * 4


def test_a_launch_of_several_programs_starts_once() -> None:
    gradients = CALLS[NAMES.index("15 aten::convolution_backward")]
    row = OPS[gradients.name]
    alone = sum(
        price_call(
            Call(gradients.op, (*gradients.arguments[:10], mask), gradients.results, "bf16"), CORE
        ).seconds
        for mask in ((True, False, False), (False, True, False), (False, False, True))
    )
    assert row.status == "modelled"
    overhead = TRN3.launch.kernel_overhead_s
    assert price_call(gradients, CORE).seconds == pytest.approx(alone - 2 * overhead)


def test_the_precision_decides_the_price() -> None:
    seconds = {
        policy: price_call(Call("aten::mm", (BIG, BIG), (BIG,), policy), CORE).seconds
        for policy in ("mxfp8", "bf16", "fp32")
    }
    assert seconds["mxfp8"] < seconds["bf16"] < seconds["fp32"]


def test_two_cores_share_the_work() -> None:
    one, two = (price_call(Call("aten::mm", (BIG, BIG), (BIG,), "bf16"), t) for t in (CORE, PAIR))
    assert 1.3 < one.seconds / two.seconds <= 2.0
    assert one.totals["model_flops"] == two.totals["model_flops"]


def test_what_cannot_be_priced_says_why() -> None:
    complex_ = price_call(Call("aten::cos", (dense((4,), "ComplexFloat"),), ()), CORE)
    assert complex_.status == NOT_MODELLED
    assert "ComplexFloat" in complex_.note
    svd = price_call(Call("aten::linalg_svd", (X,), (X,)), CORE)
    assert svd.status == NOT_MODELLED
    assert svd.seconds > 0
    nonsense = price_call(Call("aten::mm", (X,), ()), CORE)  # the row fails, the class prices it
    assert nonsense.status == "inferred"
    assert "mm" in nonsense.note


def test_metadata_is_free() -> None:
    assert price_call(Call("aten::empty.memory_format", ((4,),), (X,)), CORE).free


@pytest.mark.parametrize("row", OPS.values(), ids=lambda row: row.name)
def test_every_row_is_complete(row: Op) -> None:
    assert row.status in ("modelled", "inferred", "free")
    assert row.engine in ("tensor", "vector", "scalar", "gpsimd", "dma", "none")


def test_calls_are_read_from_the_ledgers_text() -> None:
    text = '[{"t":"Long","s":[2,3],"d":[3,1],"c":0},null,[1,2],0.5,NaN,true,"none"]'
    call = read_call("aten::add_.Tensor", text, "[]", "bf16")
    assert call.name == "add"
    assert call.tensors == (TensorArg("Long", (2, 3), (3, 1)),)
    assert call.narrowed == ("Long",)
    assert call.argument(1, 7) == 7
    assert call.argument(2) == (1, 2)


def test_reports_add_up() -> None:
    priced: list[tuple[str, int, Price]] = [(c.op, 3, price_call(c, CORE)) for c in CALLS]
    rows = report_rows(priced)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert sum(row.calls for row in rows) == 3 * len(CALLS)
    total = 3 * sum(price.seconds for _, _, price in priced)
    assert sum(row.device_s for row in rows) == pytest.approx(total)


@pytest.mark.parametrize(
    ("width", "whole", "status"),
    [(500, False, "modelled"), (60_000, False, "modelled"), (60_002, True, "inferred")],
)
def test_no_program_that_sbuf_does_not_hold_is_called_modelled(width, whole, status, monkeypatch):
    if whole:  # rows that no program cuts
        monkeypatch.setattr(windows, "ROW_BYTES", math.inf)
    image, out = (dense((1, 8, 64, n), F) for n in (width, width // 2))
    found = price_call(Call("aten::max_pool2d_with_indices", (image, (1, 2), (1, 2)), (out,)), CORE)
    assert (found.status, "SBUF" in found.note) == (status, status == "inferred")
