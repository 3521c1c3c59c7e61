"""Sparse operators in formats that CUDA's kernels take and the host's do not.

They compute in a wider format and cast the result once: the values of that computation on the CPU.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse (CSR tensor support|invariant checks)|ComplexHalf"
)

WIDE = {
    torch.bool: torch.uint8,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}
HALVES = (torch.float16, torch.bfloat16)
ADDED = (torch.float16, torch.bool, torch.complex32)


def twice(x: Tensor) -> Tensor:
    """Every element in two uncoalesced parts."""
    indices = torch.nonzero(x).t()
    values = x[tuple(indices)]
    both = torch.cat([indices, indices], 1), torch.cat([values, values])
    return torch.sparse_coo_tensor(*both, x.shape)


def csr(x: Tensor) -> Tensor:
    return x.to_sparse_csr()


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[torch.dtype, ...]]] = {
    "add": (lambda a, b: a.to_sparse() + b.to_sparse(), ADDED),
    "add of uncoalesced": (lambda a, b: twice(a) + twice(b), ADDED),
    "add of hybrid": (lambda a, b: a.to_sparse(1) + b.to_sparse(1), ADDED),
    "add with alpha": (
        lambda a, b: torch.add(a.to_sparse(), b.to_sparse(), alpha=3),
        (torch.float16, torch.complex32),
    ),
    "add in place": (lambda a, b: a.to_sparse().add_(b.to_sparse()), ADDED),
    "add to nothing": (lambda a, b: a.mul(0).to_sparse() + b.to_sparse(), ADDED[:1]),
    "sub": (lambda a, b: a.to_sparse() - b.to_sparse(), (torch.float16, torch.complex32)),
    "sub in place": (lambda a, b: a.to_sparse().sub_(b.to_sparse()), (torch.float16,)),
    "mul": (lambda a, b: a.to_sparse() * b.to_sparse(), (torch.bool,)),
    "mul of hybrid": (lambda a, b: a.to_sparse(1) * b.to_sparse(1), (torch.bool,)),
    "mul of CSR": (lambda a, b: csr(a) * csr(b), (torch.bool,)),
    "mul of CSR in place": (lambda a, b: csr(a).mul_(csr(b)), (torch.bool,)),
    "mul of CSR with dense": (lambda a, b: csr(a) * b, (torch.bool,)),
    "mul of COO with dense": (lambda a, b: a.to_sparse() * b, (torch.bool,)),
    "coalesce": (lambda a, b: twice(a).coalesce(), (torch.complex32,)),
    "to dense": (lambda a, b: a.to_sparse().to_dense(), (torch.complex32,)),
    "to dense of CSR": (lambda a, b: csr(a).to_dense(), (torch.complex32,)),
    "product of sparse": (lambda a, b: torch.sparse.mm(a.to_sparse(), b.to_sparse().t()), HALVES),
    "CSR with dense": (lambda a, b: csr(a) @ b.t(), HALVES),
    "CSR with CSR": (lambda a, b: csr(a) @ csr(b.t().contiguous()), HALVES),
    "CSR with a vector": (lambda a, b: csr(a).mv(b[0]), HALVES),
    "addmm of CSR": (lambda a, b: torch.addmm(b[:, :3], csr(a), b.t(), beta=0.5), HALVES),
}


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a, b = (torch.randn(3, 4).mul(torch.rand(3, 4) < 0.6) for _ in range(2))
    if dtype.is_complex:
        a, b = (torch.complex(x, x.roll(1, 0)) for x in (a, b))
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, (_, dtypes) in CASES.items() for dtype in dtypes]
)
def test_computes_wider_and_casts_once(name: str, dtype: torch.dtype) -> None:
    function = CASES[name][0]
    a, b = operands(dtype)
    found = function(a.to("trn"), b.to("trn"))
    wide = function(a.to(WIDE[dtype]), b.to(WIDE[dtype]))
    assert found.dtype == dtype
    assert found.layout == wide.layout
    assert found.device.type == "trn"
    if found.layout == torch.sparse_coo:
        assert found.is_coalesced() == wide.is_coalesced()
    as_kept = wide.to(dtype).to(wide.dtype).to_dense()
    assert torch.equal(found.cpu().to(wide.dtype).to_dense(), as_kept)


def test_adds_of_two_formats_promote() -> None:
    a, b = operands(torch.float16)
    for other in (torch.int32, torch.bfloat16, torch.float32, torch.bool):
        found = a.to("trn").to_sparse() + b.to(other).to("trn").to_sparse()
        assert found.dtype == torch.promote_types(torch.float16, other)
        wide = a.float() + b.to(other)
        assert torch.equal(found.cpu().to_dense(), wide.to(found.dtype))


def test_gradients_of_sparse_halves() -> None:
    a, b = (x.to("trn").to_sparse().requires_grad_() for x in operands(torch.float16))
    torch.sparse.sum(a + b).backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float16
    assert bool((a.grad.to_dense()[a.detach().to_dense() != 0] == 1).all())
