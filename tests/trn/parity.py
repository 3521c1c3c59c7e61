"""Runs one function on the host and on trn, from the same seed, and compares what it returns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from torch_trn_emu.host import host_device, host_name

# A foreign host has not the CPU's fused attention: the same products, summed in another order.
_ATTENTION = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
needs_pool = pytest.mark.skipif(host_name() != "cpu", reason="memory is the host allocator's")


def run(function: Callable[[str], Any], device: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return function(device)


def to_host(value: Any) -> Any:
    """The tensor on the host, checked to have been on trn; what is no tensor passes."""
    if not isinstance(value, torch.Tensor):
        return value
    assert value.device.type == "trn", f"a result came back on {value.device}"
    return value.cpu()


def assert_same(actual: Any, expected: Any, bound: float = 0.0) -> None:
    """Equal layout, dtype, shape and values: bit for bit unless a relative `bound` is given."""
    if not isinstance(expected, torch.Tensor):
        assert actual == expected
        return
    assert actual.layout == expected.layout
    assert actual.requires_grad == expected.requires_grad
    if expected.is_nested:
        assert len(actual.unbind()) == len(expected.unbind())
        for a, b in zip(actual.unbind(), expected.unbind(), strict=True):
            assert_same(a, b, bound)
        return
    torch.testing.assert_close(
        actual.detach(),
        expected.detach(),
        rtol=bound,
        atol=bound,
        equal_nan=True,
        check_stride=False,
    )


def assert_same_on_trn(
    function: Callable[[str], Any], *, bound: float = 0.0, seed: int = 0
) -> None:
    """`function("trn")` returns what it returns on the host, on trn."""
    expected, structure = tree_flatten(run(function, host_device().type, seed))
    actual, same_structure = tree_flatten(run(function, "trn", seed))
    assert str(structure) == str(same_structure)
    for one, other in zip(actual, expected, strict=True):
        other = other.cpu() if isinstance(other, torch.Tensor) else other
        assert_same(to_host(one), other, bound)


def attention_bound(dtype: torch.dtype = torch.float32) -> float:
    """What attention may differ by from the host's."""
    return 0.0 if host_name() == "cpu" else _ATTENTION[dtype]


def leaf(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A random tensor that asks for a gradient; the same numbers on every device."""
    return torch.randn(shape, dtype=dtype).to(device).requires_grad_()


def with_gradients(output: Any, *inputs: Any) -> tuple[Any, ...]:
    """The output, and the gradients that the sum of its squares gives to the inputs."""
    flat = [t for t in tree_flatten(output)[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    sum((t.to_dense() if t.is_sparse else t).abs().square().sum() for t in flat).backward()
    return output, *(i.grad for i in inputs)
