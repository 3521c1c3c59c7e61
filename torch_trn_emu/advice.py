"""What could be better about one operator, from its price. Add a rule as a row of RULES.

Sources
  [profile]  Neuron SDK, tools/neuron-explorer: the size that DMA transfers should have
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .ops import OPS

if TYPE_CHECKING:
    from .pricing import Price

__all__ = ["GOOD_TRANSFER_BYTES", "RULES", "advice", "is_elementwise", "transfer_bytes"]

GOOD_TRANSFER_BYTES = 32 * 1024  # [profile]


def transfer_bytes(price: "Price") -> float:
    """Bytes of an average DMA transfer; 0 without any."""
    count = price.totals["dma_transfer_count"]
    return price.totals["dma_transfer_total_bytes"] / count if count else 0.0


def is_elementwise(price: "Price") -> bool:
    """Work of the Vector or Scalar engine that could stay in SBUF between operators."""
    row = OPS.get(price.row)
    return (row.engine if row else price.row) in ("vector", "scalar", "pointwise")


def _float32(price: "Price") -> bool:
    """Products whose operands no policy has narrowed; sums by ones have no policy."""
    row, flops = OPS.get(price.row), price.totals["hardware_flops"]
    is_product = row is not None and row.engine == "tensor"
    return is_product and bool(flops) and price.totals["adjusted_hardware_flops"] >= 4 * flops


# (text, whether it applies to a price)
RULES: tuple[tuple[str, Callable[["Price"], bool]], ...] = (
    ("no engine program, priced as work on the host: use other operators",
     lambda p: p.status == "not modelled"),
    ("it makes the host wait: read values less often", lambda p: p.blocks),
    ("not supported by the chip, priced at half the width: use int32 or float32",
     lambda p: bool(p.narrowed)),
    ("float32 takes the array four times as long as bfloat16: use precision 'bf16'", _float32),
    ("mostly program start and end: use larger tensors or torch.compile",
     lambda p: 0 < p.totals["total_active_time"] < 0.5 * p.seconds),
    ("bound by HBM: torch.compile fuses it and keeps operands in SBUF",
     lambda p: p.engine == "dma" and is_elementwise(p)),
    ("DMA transfers below 32 KiB: use larger, contiguous tensors",
     lambda p: p.engine == "dma" and 0 < transfer_bytes(p) < GOOD_TRANSFER_BYTES),
)  # fmt: skip


def advice(prices: Iterable["Price"]) -> str:
    """The rules that apply to some of the prices, in a sentence; "" for none."""
    found = list(prices)
    return "; ".join(text for text, applies in RULES if any(applies(p) for p in found))
