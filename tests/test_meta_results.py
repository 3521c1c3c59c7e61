"""The results that `estimate` keeps by signature are those that torch gives."""

from itertools import islice

import pytest
import torch
from torch.testing._internal.common_methods_invocations import foreach_unary_op_db, op_db

from torch_trn_emu.estimation import meta_results
from torch_trn_emu.estimation.meta_results import run_on_meta, tensors_in
from torch_trn_emu.torch_private import TorchDispatchMode, tree_map_only


def layouts(value):
    return [
        (x.shape, x.stride(), x.dtype, x.device, x.untyped_storage().nbytes())
        for x in tensors_in(value)
    ]


class Compared(TorchDispatchMode):
    """Asks three times: the first result is torch's, the second may be a kept one."""

    compared = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            return run_on_meta(func, args, kwargs)
        right = func(*args, **kwargs)
        for _ in range(2):
            made = run_on_meta(func, args, kwargs)
            assert type(made) is type(right), func
            assert layouts(made) == layouts(right), func
        Compared.compared += 1
        return made


def on_meta(value):
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("meta"), value)


@pytest.mark.parametrize(
    ("dtype", "every"),
    [
        (torch.float32, 12),
        pytest.param(torch.float32, 1, marks=pytest.mark.conformance),
        pytest.param(torch.int64, 1, marks=pytest.mark.conformance),
    ],
    ids=str,
)
def test_operators(dtype, every):
    meta_results._made.clear()
    Compared.compared = 0
    for op in op_db[::every]:
        if dtype not in op.dtypes or op.name.startswith("sparse."):
            continue
        for sample in islice(op.sample_inputs("cpu", dtype), 2):
            input, args, kwargs = on_meta((sample.input, sample.args, sample.kwargs))
            try:
                op(input, *args, **kwargs)
            except Exception:  # not every operator runs on meta
                continue
            with Compared():
                op(input, *args, **kwargs)
    assert Compared.compared > 200 / every
    assert meta_results._made


def test_foreach():
    for op in foreach_unary_op_db:
        given = [torch.empty(2, 3, device="meta"), torch.empty(4, device="meta")] * 3
        with Compared():
            op.method_variant(given)


def test_foreach_of_the_host_runs_for_each_tensor():
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return run_on_meta(func, args, kwargs or {})

    steps = [torch.zeros(()) for _ in range(3)]
    with Mode():
        torch._foreach_add_(steps, 1)
    assert steps == [torch.ones(())] * 3


def test_default_dtype_takes_part():
    whole = torch.ones(2, dtype=torch.int64, device="meta")
    assert run_on_meta(torch.ops.aten.div.Tensor, (whole, whole), {}).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert run_on_meta(torch.ops.aten.div.Tensor, (whole, whole), {}).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(meta_results, "MOST", 8)
    meta_results._made.clear()
    for size in range(20):
        x = torch.empty(size, device="meta")
        assert run_on_meta(torch.ops.aten.mul.Tensor, (x, x), {}).shape == (size,)
    assert len(meta_results._made) == 8
