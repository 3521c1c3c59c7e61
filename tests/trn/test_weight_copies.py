"""Rounded copies of weights: every bit as without them, and gone with the first change."""

import ctypes
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from torch_trn_emu import _C
from torch_trn_emu.settings import ISAS

N, K = 192, 256
POLICIES = ("bf16", "mxfp8", "mxfp8_all", "mxfp4")


@pytest.fixture(autouse=True)
def policy() -> Iterator[None]:
    before = torch.backends.trn.matmul.precision
    torch.backends.trn.matmul.precision = "mxfp8"
    yield
    torch.backends.trn.matmul.precision = before


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*(shape or (N, K)), dtype=dtype).to("trn")


def rows(m: int = 1, dtype: torch.dtype = torch.float32, k: int = K) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(m, k, dtype=dtype).to("trn")


def product(w: Tensor) -> Tensor:
    with torch.no_grad():
        return rows(k=w.shape[1]) @ w.t()


def uses() -> int:
    return _C.weight_copies()[2]


def held() -> int:
    return _C.weight_copies()[0]


def warm(w: Tensor) -> None:
    before = uses()
    for _ in range(3):
        product(w)
    assert uses() > before


def is_as_new(w: Tensor) -> bool:
    """Whether the product reads the weight as it is now. A fresh tensor has no copy."""
    return all(torch.equal(product(w).cpu(), product(w.detach().clone()).cpu()) for _ in range(3))


# --- every way to change a weight ---------------------------------------------------------------


def other(w: Tensor) -> Tensor:
    return torch.randn(w.shape, dtype=w.dtype).to("trn")


def in_a_thread(w: Tensor) -> None:
    thread = threading.Thread(target=lambda: w.add_(1))
    thread.start()
    thread.join()


def by_optimizer(kind: Callable[..., torch.optim.Optimizer], **options: object):
    def change(w: Tensor) -> None:
        parameter = nn.Parameter(w)  # of the same memory
        parameter.grad = torch.ones_like(w)
        kind([parameter], lr=0.5, **options).step()

    return change


def by_state(w: Tensor) -> None:
    layer = nn.Linear(K, N, bias=False, device="trn")
    layer.weight = nn.Parameter(w)
    layer.load_state_dict({"weight": other(w)})


def by_address(w: Tensor) -> None:
    ctypes.memset(w.data_ptr(), 0, w.nbytes)


def by_dlpack(w: Tensor) -> None:
    torch.from_dlpack(w).add_(1)


def by_part_of_dlpack(w: Tensor) -> None:
    torch.from_dlpack(w[N // 2 :]).add_(1)


def by_lent_memory(w: Tensor) -> None:
    _C.host_alias(w).numpy()[3, 5] = 1e3


def by_resize(w: Tensor) -> None:
    w.untyped_storage().resize_(0)
    w.untyped_storage().resize_(w.nbytes)
    w.copy_(other(w))


def by_set(w: Tensor) -> None:
    w.set_(other(w))


def by_data(w: Tensor) -> None:
    w.data = other(w)


def by_storage(w: Tensor) -> None:
    w.untyped_storage().copy_(other(w).untyped_storage())


def in_inference_mode(w: Tensor) -> None:
    with torch.inference_mode():
        w.mul_(2)


def by_gradient(w: Tensor) -> None:
    """Autograd accumulates into it."""
    leaf = torch.zeros_like(w).requires_grad_()
    leaf.grad = w
    (leaf * 3).sum().backward()


WAYS: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda w: w.add_(1),
    "copy_ from the host": lambda w: w.copy_(torch.ones(w.shape)),
    "zero_": lambda w: w.zero_(),
    "normal_": lambda w: w.normal_(),
    "addcmul_": lambda w: w.addcmul_(w, w),
    "data": lambda w: w.data.add_(1),
    "data, one element": lambda w: w.data[1, 2].fill_(1e3),
    "detach": lambda w: w.detach().mul_(2),
    "a row": lambda w: w[7].fill_(4),
    "an element": lambda w: w.__setitem__((3, 5), 1e3),
    "a view": lambda w: w.view(-1)[9:11].fill_(1e3),
    "the transposed view": lambda w: w.t().add_(1),
    "as_strided": lambda w: w.as_strided((4,), (K,), 17).fill_(1e3),
    "index_put_": lambda w: w.index_put_((torch.tensor([1]).to("trn"),), torch.ones(K).to("trn")),
    "masked_fill_": lambda w: w.masked_fill_(w > 0, 3),
    "out=": lambda w: torch.add(w, 1, out=w),
    "out= of a product": lambda w: torch.mm(torch.eye(N).to("trn"), other(w), out=w),
    "out= of its own product": lambda w: torch.mm(torch.eye(N).to("trn"), w, out=w),
    "addmm_": lambda w: w.addmm_(torch.ones(N, 1).to("trn"), torch.ones(1, K).to("trn")),
    "_foreach_add_": lambda w: torch._foreach_add_([w, other(w)], 1),
    "init": lambda w: nn.init.uniform_(w),
    "SGD": by_optimizer(torch.optim.SGD),
    "AdamW": by_optimizer(torch.optim.AdamW),
    "AdamW, fused": by_optimizer(torch.optim.AdamW, fused=True),
    "AdamW, a loop": by_optimizer(torch.optim.AdamW, foreach=False),
    "load_state_dict": by_state,
    "a thread": in_a_thread,
    "inference_mode": in_inference_mode,
    "set_": by_set,
    "data =": by_data,
    "storage": by_storage,
    "resize_": by_resize,
    "swap_tensors": lambda w: torch.utils.swap_tensors(w, other(w)),
    "DLPack": by_dlpack,
    "a part, by DLPack": by_part_of_dlpack,
    "memory lent": by_lent_memory,
    "its address": by_address,
    "gradients": by_gradient,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_seen(way: str) -> None:
    w = weight()
    warm(w)
    before = product(w).cpu()
    WAYS[way](w)
    assert not torch.equal(product(w).cpu(), before)
    assert is_as_new(w)
    WAYS[way](w)
    assert is_as_new(w)


def test_memory_that_is_lent_has_no_copy() -> None:
    w = weight()
    warm(w)
    lent = _C.host_alias(w).numpy()
    for value in range(4):
        lent[0, 0] = value * 100.0
        assert is_as_new(w)
    del lent
    warm(w)


def test_a_tensor_made_in_inference_mode() -> None:
    with torch.inference_mode():
        w = weight()
        warm(w)
        w.add_(1)
        assert is_as_new(w)
        w[0, 0] = 1e3
        assert is_as_new(w)


def test_memory_that_another_tensor_takes_over() -> None:
    for _ in range(8):
        w = weight().mul_(torch.rand(()).item() + 0.5)
        assert is_as_new(w)
        del w


# --- no bit is another --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", POLICIES)
def test_every_bit_is_that_of_the_first_use(name: str, dtype: torch.dtype) -> None:
    torch.backends.trn.matmul.precision = name
    special = weight(dtype=dtype)
    special[0, :40] = torch.tensor([float("nan"), float("inf"), 0.0, -0.0] * 10).to("trn", dtype)
    special[1] *= 1e-30
    special[2] *= 1e-38 if dtype != torch.float16 else 1e-5
    for w in (weight(dtype=dtype), special, weight(K, N, dtype=dtype).t()):
        for m in (1, 3, 5, 20, 100):
            x = rows(m, dtype)
            for call in (lambda x=x, w=w: x @ w.t(), lambda x=x, w=w: w @ x.t()):
                first, *later = [call().cpu() for _ in range(3)]
                for again in later:
                    assert torch.equal(
                        again.view(torch.int8), first.view(torch.int8)
                    ) or torch.equal(again.isnan(), first.isnan())
                    torch.testing.assert_close(again, first, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def any_isa() -> Iterator[Callable[[int], None]]:
    before = _C.isa()
    yield _C.limit_isa
    _C.limit_isa(before)


@pytest.mark.parametrize("name", POLICIES)
def test_packed_weights_give_the_bits_of_the_first_use(
    name: str, any_isa: Callable[[int], None]
) -> None:
    torch.backends.trn.matmul.precision = name
    for level in range(len(ISAS)):
        any_isa(level)
        for dtype, (n, k), m in itertools.product(
            (torch.float32, torch.bfloat16), ((N, K), (130, 301), (520, 77)), (5, 6, 12, 13, 128)
        ):
            x, bias = rows(m, dtype, k), weight(n, dtype=dtype)
            for w in (weight(n, k, dtype=dtype), weight(k, n, dtype=dtype).t()):
                if m > n:
                    continue
                before = uses()
                first, *later = [torch.addmm(bias, x, w.t(), beta=0.5, alpha=2) for _ in range(4)]
                assert uses() >= before + 2
                assert all(torch.equal(again.cpu(), first.cpu()) for again in later)


def test_vectors_and_addends() -> None:
    w, bias, x = weight(), weight(N), rows()[0]
    for call in (lambda: w @ x, lambda: nn.functional.linear(rows(2), w, bias),
                 lambda: torch.addmv(bias, w, x), lambda: nn.functional.linear(x, w, bias)):  # fmt: skip
        first, *later = [call().cpu() for _ in range(3)]
        assert all(torch.equal(first, again) for again in later)


# --- what holds them ----------------------------------------------------------------------------


def test_a_copy_goes_with_its_tensor() -> None:
    w = weight()
    before = held()
    warm(w)
    assert held() > before
    del w
    assert held() == before


def test_the_emulated_memory_does_not_see_it() -> None:
    w = weight(1024, 1024)
    x = rows(k=1024)
    x @ w.t()
    before = torch.trn.memory_allocated(), torch.trn.memory_reserved()
    for _ in range(3):
        x @ w.t()
    assert (torch.trn.memory_allocated(), torch.trn.memory_reserved()) == before


def test_fp32_and_matrices_read_once_have_none() -> None:
    before = _C.weight_copies()
    weight() @ rows().t()
    torch.backends.trn.matmul.precision = "fp32"
    w = weight()
    for _ in range(3):
        w @ rows().t()
    assert _C.weight_copies() == before


def test_threads_that_read_and_write() -> None:
    """Whoever writes last, what is read after that is what was written."""
    w = weight()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            product(w)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for value in range(30):
        w.data.fill_(value)
        product(w)
    stop.set()
    for reader in readers:
        reader.join()
    assert is_as_new(w)
