"""Calls of operators at any size, for sweeps over sizes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int64)


Case = tuple[Callable[..., Any], tuple[Any, ...]]
# A family's call at a size.
FAMILIES: dict[str, Callable[[int], Case]] = {
    "sum of columns": lambda n: (lambda x: x.sum(0), (empty(65536, n),)),
    "sum of few columns, by rows": lambda n: (lambda x: x.sum(0), (empty(n, 40),)),
    "sum of rows": lambda n: (lambda x: x.sum(1), (empty(16384, n),)),
    "sum of rows, by rows": lambda n: (lambda x: x.sum(1), (empty(n, 300),)),
    "sum of long rows": lambda n: (lambda x: x.sum(1), (empty(n, 65536),)),
    "sum of all": lambda n: (lambda x: x.sum(), (empty(n, 1001),)),
    "sum of the middle": lambda n: (lambda x: x.sum(1), (empty(64, n, 33),)),
    "max of columns": lambda n: (lambda x: x.amax(0), (empty(16384, n),)),
    "mean of images": lambda n: (lambda x: x.mean((2, 3)), (empty(32, n, 7, 7),)),
    "var of columns": lambda n: (lambda x: x.var(0), (empty(16384, n),)),
    "var of rows": lambda n: (lambda x: x.var(1), (empty(16384, n),)),
    "argmax": lambda n: (lambda x: x.argmax(1), (empty(4096, n),)),
    "softmax": lambda n: (lambda x: x.softmax(-1), (empty(16384, n),)),
    "softmax, by rows": lambda n: (lambda x: x.softmax(-1), (empty(n, 33),)),
    "log_softmax of columns": lambda n: (lambda x: x.log_softmax(0), (empty(4096, n),)),
    "logsumexp": lambda n: (lambda x: x.logsumexp(1), (empty(16384, n),)),
    "layer_norm": lambda n: (lambda x: F.layer_norm(x, (n,)), (empty(16384, n),)),
    "batch_norm": lambda n: (
        lambda x: F.batch_norm(x, None, None, training=True),
        (empty(8, n, 14, 14),),
    ),
    "add": lambda n: (torch.add, (empty(n, 1001), empty(n, 1001))),
    "add a row": lambda n: (torch.add, (empty(16384, n), empty(n))),
    "add a column": lambda n: (torch.add, (empty(16384, n), empty(16384, 1))),
    "add a column, by rows": lambda n: (torch.add, (empty(n, 33), empty(n, 1))),
    "gelu": lambda n: (F.gelu, (empty(n * 1001),)),
    "transpose": lambda n: (lambda x: x.t().contiguous(), (empty(4096, n),)),
    "cat": lambda n: (lambda x, y: torch.cat([x, y], 1), (empty(4096, n), empty(4096, n))),
    "cumsum of columns": lambda n: (lambda x: x.cumsum(0), (empty(4096, n),)),
    "cumsum of rows": lambda n: (lambda x: x.cumsum(1), (empty(4096, n),)),
    "embedding": lambda n: (F.embedding, (indices(4096), empty(4096, n))),
    "gather": lambda n: (lambda x, i: x.gather(1, i), (empty(1024, 64), indices(1024, n))),
    "index_select": lambda n: (lambda x, i: x.index_select(0, i), (empty(4096, 64), indices(n))),
    "topk": lambda n: (lambda x: x.topk(1, -1), (empty(1024, n),)),
    "cross_entropy": lambda n: (F.cross_entropy, (empty(1024, n), indices(1024))),
    "mm of rows": lambda n: (torch.mm, (empty(n, 1024), empty(1024, 1024))),
    "mm of columns": lambda n: (torch.mm, (empty(1024, 1024), empty(1024, n))),
    "mm over": lambda n: (torch.mm, (empty(1024, n), empty(n, 1024))),
    "linear": lambda n: (F.linear, (empty(n, 1024), empty(1024, 1024), empty(1024))),
    "bmm": lambda n: (torch.bmm, (empty(n, 64, 64), empty(n, 64, 64))),
    "conv2d": lambda n: (
        lambda x, w: F.conv2d(x, w, padding=1),
        (empty(2, 64, 14, 14), empty(n, 64, 3, 3)),
    ),
    "max_pool2d": lambda n: (lambda x: F.max_pool2d(x, 2), (empty(2, n, 28, 28),)),
    "dropout": lambda n: (lambda x: F.dropout(x, 0.1, training=True), (empty(n, 1001),)),
    "sort": lambda n: (lambda x: x.sort(-1), (empty(1024, n),)),
    "scatter_add": lambda n: (
        lambda x, i, s: x.scatter_add(0, i, s),
        (empty(4096, 64), indices(n, 64), empty(n, 64)),
    ),
    "index_add": lambda n: (
        lambda x, i, s: x.index_add(0, i, s),
        (empty(4096, 64), indices(n), empty(n, 64)),
    ),
    "embedding gradient": lambda n: (
        lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, 4096, -1, False),
        (empty(n, 256), indices(n)),
    ),
    "randn": lambda n: (torch.randn_like, (empty(n, 1001),)),
    "depthwise convolution": lambda n: (
        lambda x, w: F.conv2d(x, w, padding=1, groups=n),
        (empty(8, n, 28, 28), empty(n, 1, 3, 3)),
    ),
    "convolution 7x7": lambda n: (
        lambda x, w: F.conv2d(x, w, padding=3, stride=2),
        (empty(8, 3, 224, 224), empty(min(n, 512), 3, 7, 7)),
    ),
    "convolution 1x1": lambda n: (F.conv2d, (empty(8, n, 14, 14), empty(256, n, 1, 1))),
    "attention": lambda n: (
        F.scaled_dot_product_attention,
        (empty(max(1, n // 64), 12, 128, 64),) * 3,
    ),
    "attention of one query": lambda n: (
        F.scaled_dot_product_attention,
        (empty(8, 12, 1, 64), empty(8, 12, n, 64), empty(8, 12, n, 64)),
    ),
    "interpolate": lambda n: (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        (empty(2, n, 28, 28),),
    ),
    "avg_pool2d": lambda n: (lambda x: F.avg_pool2d(x, 3, 2, 1), (empty(2, n, 28, 28),)),
    "flip": lambda n: (lambda x: x.flip(1), (empty(1024, n),)),
    "roll": lambda n: (lambda x: x.roll(3, 1), (empty(1024, n),)),
    "tril": lambda n: (torch.tril, (empty(n, 1024),)),
    "group_norm": lambda n: (lambda x: F.group_norm(x, 1), (empty(8, n, 14, 14),)),
    "rms_norm": lambda n: (lambda x: F.rms_norm(x, (n,)), (empty(4096, n),)),
    "cumprod": lambda n: (lambda x: x.cumprod(1), (empty(4096, n),)),
    "masked_fill": lambda n: (
        lambda x, m: x.masked_fill(m, 0.0),
        (empty(n, 1000), empty(n, 1000, dtype=torch.bool)),
    ),
    "permute": lambda n: (lambda x: x.permute(0, 2, 1).contiguous(), (empty(16, 128, n),)),
    "addcmul": lambda n: (torch.addcmul, (empty(n, 1000),) * 3),
    "unfold": lambda n: (lambda x: F.unfold(x, 3, padding=1), (empty(2, n, 28, 28),)),
}
