"""Operators by family, bit for bit as on the host; also on results whose size depends on data."""

import warnings
from itertools import product

import pytest
import torch
from parity import assert_same_on_trn, leaf, with_gradients

import torch_trn_emu

INDEXING = {
    "number": lambda x, i, m: x[2],
    "slice": lambda x, i, m: x[1:5:2, :-1],
    "ellipsis and None": lambda x, i, m: x[..., None, 1],
    "tensor": lambda x, i, m: x[i],
    "two tensors": lambda x, i, m: x[i, i.flip(0)],
    "tensor after slice": lambda x, i, m: x[:, i],
    "mask": lambda x, i, m: x[m],
    "row mask": lambda x, i, m: x[m[:, 0]],
    "list": lambda x, i, m: x[[0, 2, 2]],
    "host tensor": lambda x, i, m: x[torch.tensor([3, 1])],
    "take": lambda x, i, m: x.take(i),
    "take_along_dim": lambda x, i, m: x.take_along_dim(i[:, None], 0),
    "gather": lambda x, i, m: x.gather(1, i[:, None].expand(4, 3)),
    "index_select": lambda x, i, m: x.index_select(1, i),
    "masked_select": lambda x, i, m: x.masked_select(m),
    "masked_fill": lambda x, i, m: x.masked_fill(m, 3.0),
    "masked_scatter": lambda x, i, m: x.masked_scatter(m, x.flip(0)),
    "where": lambda x, i, m: torch.where(m, x, -x),
    "index_add": lambda x, i, m: x.index_add(0, i, x[:4]),
    "index_copy": lambda x, i, m: x.index_copy(0, i, x[2:]),
    "index_fill": lambda x, i, m: x.index_fill(1, i, 9.0),
    "index_put": lambda x, i, m: x.index_put((i,), x[0]),
    "index_put adding": lambda x, i, m: x.index_put((i.new_tensor([1, 1, 2]),), x[:3], accumulate=True),
    "scatter": lambda x, i, m: x.scatter(0, i[None].expand(6, 4), x[:, :4]),
    "scatter_add": lambda x, i, m: x.scatter_add(1, i[:, None].expand(4, 6), x[:4]),
    "scatter_reduce": lambda x, i, m: x.scatter_reduce(0, i[:, None].expand(4, 6), x[:4], "amax"),
    "select_scatter": lambda x, i, m: x.select_scatter(x[0], 0, 1),
    "slice_scatter": lambda x, i, m: x.slice_scatter(x[:2], 0, 2, 4),
    "diagonal": lambda x, i, m: x.diagonal(1),
    "tril": lambda x, i, m: x.tril(-1),
    "roll": lambda x, i, m: x.roll(2, 0),
    "flip": lambda x, i, m: x.flip((0, 1)),
    "repeat_interleave": lambda x, i, m: x.repeat_interleave(2, 0),
    "split": lambda x, i, m: x.split([1, 2, 3]),
    "tensor_split": lambda x, i, m: x.tensor_split(4, 1),
    "chunk, cat, stack": lambda x, i, m: torch.cat([torch.stack(x.chunk(2)), x.view(2, 3, 6)]),
    "unbind": lambda x, i, m: x.unbind(1),
    "movedim": lambda x, i, m: x.movedim(0, 1).contiguous(),
    "nan_to_num": lambda x, i, m: (x / 0).nan_to_num(),
    "cummax": lambda x, i, m: x.cummax(0).values,
    "sort": lambda x, i, m: x.sort(dim=1, stable=True).values,
    "topk": lambda x, i, m: x.topk(2, 1).values,
    "kthvalue": lambda x, i, m: x.kthvalue(2, 1).values,
    "median": lambda x, i, m: x.median(1).values,
    "logcumsumexp": lambda x, i, m: x.logcumsumexp(0),
    "einsum": lambda x, i, m: torch.einsum("ij,jk->ik", x, x),
    "cdist": lambda x, i, m: torch.cdist(x, x.flip(0)),
    "var": lambda x, i, m: torch.var_mean(x, 1),
    "norm": lambda x, i, m: x.norm(3, 1),
    "prod": lambda x, i, m: x.prod(1),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXING)
def test_indexing_and_friends_with_gradients(name):
    def step(device):
        x = leaf(device, 6, 6)
        index = torch.tensor([0, 5, 2, 1]).to(device)
        mask = (torch.rand(6, 6) > 0.5).to(device)
        return with_gradients(INDEXING[name](x, index, mask), x)

    assert_same_on_trn(step)


ASSIGNMENTS = {
    "slice": lambda x, i, m: x.__setitem__((slice(1, 3),), 5.0),
    "tensor": lambda x, i, m: x.__setitem__(i, x[0].clone()),
    "mask": lambda x, i, m: x.__setitem__(m, -1.0),
    "mask and tensor": lambda x, i, m: x.__setitem__(m, x[m] * 2),
    "host number": lambda x, i, m: x.__setitem__((i, 0), torch.tensor(3.0)),
    "put_": lambda x, i, m: x.put_(i, x[0, :4].clone()),
    "fill_diagonal_": lambda x, i, m: x.fill_diagonal_(7),
    "out=": lambda x, i, m: torch.add(x.clone(), 1, out=x),
    "out= that grows": lambda x, i, m: torch.cat([x.clone(), x.clone()], out=x),
    "resize_": lambda x, i, m: x.resize_(3, 3),
    "t_": lambda x, i, m: x.t_(),
    "unsqueeze_": lambda x, i, m: x.unsqueeze_(0),
    "set_": lambda x, i, m: x.set_(x.flip(0)),
    "copy_": lambda x, i, m: x.copy_(x.t().clone()),
    "swapaxes_": lambda x, i, m: x.swapaxes_(0, 1),
    "squeeze_": lambda x, i, m: x.unsqueeze_(0).squeeze_(0),
}  # fmt: skip


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_writing_in_place(name):
    def step(device):
        x = torch.randn(6, 6).to(device)
        index = torch.tensor([0, 5, 2, 1]).to(device)
        mask = (torch.rand(6, 6) > 0.5).to(device)
        with warnings.catch_warnings():  # an out= that is resized warns, on every device
            warnings.simplefilter("ignore")
            ASSIGNMENTS[name](x, index, mask)
        return x, x.clone(), list(x.shape), list(x.stride())

    assert_same_on_trn(step)


DATA_DEPENDENT = {
    "nonzero": lambda x: x.round().nonzero(),
    "nonzero tuple": lambda x: x.round().nonzero(as_tuple=True),
    "argwhere": lambda x: torch.argwhere(x > 0),
    "unique": lambda x: x.round().unique(return_inverse=True, return_counts=True),
    "unique rows": lambda x: x.round().unique(dim=0),
    "unique_consecutive": lambda x: x.round().flatten().unique_consecutive(return_counts=True),
    "bincount": lambda x: x.abs().long().flatten().bincount(),
    "histc": lambda x: x.histc(5),
    "repeat_interleave": lambda x: x.repeat_interleave(x[:, 0].abs().long(), dim=0),
    "combinations": lambda x: torch.combinations(x[0]),
    "isin": lambda x: torch.isin(x.round(), x.new_tensor([0.0, 1.0])),
    "searchsorted": lambda x: torch.searchsorted(x[0].sort().values, x[1]),
    "bucketize": lambda x: torch.bucketize(x, x.new_tensor([-1.0, 0.0, 1.0])),
    "sort": lambda x: x.sort(0, descending=True),
    "argsort": lambda x: x.argsort(dim=1, stable=True),
    "topk": lambda x: x.topk(3, largest=False),
    "mode": lambda x: x.round().mode(),
    "aminmax": lambda x: x.aminmax(dim=1),
    "argmax": lambda x: (x.argmax(), x.argmin(1)),
    "all any": lambda x: ((x > 0).all(1), (x > 0).any()),
    "quantile": lambda x: x.quantile(0.3, 1),
    "tril_indices": lambda x: torch.tril_indices(3, 4, device=x.device),
    "tensordot": lambda x: torch.tensordot(x, x.t(), 1),
    "bitwise": lambda x: (x.long() & 3) ^ (x.long() << 1),
    "int division": lambda x: (x * 10).int() // 3,
    "remainder": lambda x: ((x * 10).int() % 4, x % 0.3),
    "histogram": lambda x: torch.histogram(x.cpu(), 4).hist.to(x.device),
    "special": lambda x: (x.lgamma(), x.digamma(), torch.special.i0e(x), x.erfinv()),
    "complex": lambda x: (torch.complex(x, x).abs(), torch.polar(x.abs(), x).angle(), x.to(torch.cfloat).conj()),
    "conj view": lambda x: (torch.complex(x, -x).conj() @ torch.complex(x, x).mT).imag,
    "view_as_real": lambda x: torch.view_as_real(torch.complex(x, x).conj().resolve_conj()),
    "block_diag": lambda x: torch.block_diag(x, x),
    "meshgrid": lambda x: torch.meshgrid(x[0], x[1], indexing="ij"),
    "cartesian": lambda x: torch.cartesian_prod(x[0], x[1]),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2), value=3.0),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.argmax(1)),
    "vander": lambda x: torch.vander(x[0]),
    "float8": lambda x: (x.to(torch.float8_e4m3fn).float(), x.to(torch.float8_e5m2).float()),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_results_that_depend_on_data(name):
    assert_same_on_trn(lambda device: DATA_DEPENDENT[name](torch.randn(6, 5).mul(2).to(device)))


LINALG = {
    "cholesky": lambda a, s: torch.linalg.cholesky(s),
    "qr": lambda a, s: torch.linalg.qr(a),
    "svd": lambda a, s: torch.linalg.svdvals(a),
    "eigh": lambda a, s: torch.linalg.eigvalsh(s),
    "inv": lambda a, s: torch.linalg.inv(s),
    "solve": lambda a, s: torch.linalg.solve(s, a),
    "lstsq": lambda a, s: torch.linalg.lstsq(s, a, driver="gels").solution,
    "lu": lambda a, s: torch.linalg.lu(s)[1:],
    "det": lambda a, s: torch.linalg.slogdet(s),
    "pinv": lambda a, s: torch.linalg.pinv(a),
    "matrix_exp": lambda a, s: torch.matrix_exp(a / 10),
    "matrix_power": lambda a, s: torch.linalg.matrix_power(a, 3),
    "norm": lambda a, s: torch.linalg.matrix_norm(a, "nuc"),
    "triangular": lambda a, s: torch.linalg.solve_triangular(s.triu(), a, upper=True),
    "multi_dot": lambda a, s: torch.linalg.multi_dot([a, s, a]),
    "householder": lambda a, s: torch.linalg.householder_product(a, a[0]),
    "trace": lambda a, s: a.trace(),
    "kron": lambda a, s: torch.kron(a, s[:2]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("name", LINALG)
def test_linear_algebra(name, dtype):
    def step(device):
        a = leaf(device, 4, 4, dtype=dtype)
        s = a @ a.mH + 3 * torch.eye(4, dtype=dtype).to(device)
        return with_gradients(LINALG[name](a, s), a)

    assert_same_on_trn(step)


def test_eigenvectors_with_complex_results():
    assert_same_on_trn(lambda device: torch.linalg.eig(torch.randn(4, 4).to(device)))


FFT = {
    "fft": lambda x: torch.fft.fft(x),
    "ifft": lambda x: torch.fft.ifft(x, norm="ortho"),
    "rfft": lambda x: torch.fft.rfft(x.real),
    "irfft": lambda x: torch.fft.irfft(x, n=9),
    "fft2": lambda x: torch.fft.fft2(x),
    "fftn": lambda x: torch.fft.ifftn(torch.fft.fftn(x)),
    "hfft": lambda x: torch.fft.hfft(x),
    "shift": lambda x: torch.fft.fftshift(x),
    "stft": lambda x: torch.stft(
        x.real, 4, window=torch.hann_window(4, device=x.device), return_complex=True),
}  # fmt: skip


@pytest.mark.parametrize("name", FFT)
def test_fourier_transforms(name):
    def step(device):
        x = leaf(device, 3, 8, dtype=torch.complex64)
        return with_gradients(FFT[name](x), x)

    assert_same_on_trn(step)


SPARSE = {
    "coo round trip": lambda x: x.to_sparse().to_dense(),
    "coo": lambda x: x.to_sparse().coalesce(),
    "coo sum": lambda x: torch.sparse.sum(x.to_sparse(), 0).to_dense(),
    "coo mm": lambda x: torch.sparse.mm(x.to_sparse(), x.t()),
    "coo times coo": lambda x: torch.sparse.mm(x.to_sparse(), x.t().to_sparse()).to_dense(),
    "coo add": lambda x: (x.to_sparse() + x.to_sparse()).to_dense(),
    "coo mul": lambda x: (x.to_sparse() * 2).to_dense(),
    "coo transpose": lambda x: x.to_sparse().t().to_dense(),
    "coo softmax": lambda x: torch.sparse.softmax(x.to_sparse(), 1).to_dense(),
    "coo index": lambda x: x.detach().to_sparse()[1].to_dense(),
    "coo cat": lambda x: torch.cat([x.detach().to_sparse()] * 2).to_dense(),
    "coo addmm": lambda x: torch.sparse.addmm(x @ x.t(), x.to_sparse(), x.t()),
    "csr": lambda x: x.to_sparse_csr().to_dense(),
    "csr mm": lambda x: x.to_sparse_csr() @ x.t(),
    "csr mv": lambda x: x.to_sparse_csr() @ x[0],
    "csc": lambda x: x.to_sparse_csc().to_dense(),
    "bsr": lambda x: x.to_sparse_bsr((2, 2)).to_dense(),
    "csr of coo": lambda x: x.to_sparse().to_sparse_csr().to_dense(),
    "mask": lambda x: x.sparse_mask(x.detach().to_sparse().coalesce()).to_dense(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*beta state", "ignore:.*invariant checks")
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_tensors(name):
    def step(device):
        x = leaf(device, 4, 6)
        with torch.no_grad():
            x[x < 0] = 0
        y = SPARSE[name](x)
        return with_gradients(y, x) if y.requires_grad else y

    assert_same_on_trn(step)


@pytest.mark.filterwarnings("ignore:.*prototype")
def test_jagged_tensors_train():
    def step(device):
        parts = [leaf(device, n, 4) for n in (2, 5, 3)]
        nested = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
        layer = torch.nn.Linear(4, 4).to(device)
        y = torch.nn.functional.layer_norm(layer(nested).relu(), (4,))
        values = y.values()
        return (
            with_gradients(values, *parts, layer.weight),
            y.to_padded_tensor(0.0),
            nested.offsets(),
        )

    assert_same_on_trn(step)


@pytest.mark.filterwarnings("ignore:.*prototype")
def test_strided_nested_tensors_compute():
    def step(device):
        nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], device=device)
        return nested, (nested * 2).to_padded_tensor(0.0), [t.sum() for t in nested.unbind()]

    assert_same_on_trn(step)


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*TypedStorage", "ignore:.*deprecated")
def test_quantized_tensors_compute():
    def step(device):
        x = torch.randn(4, 6).to(device)
        q = torch.quantize_per_tensor(x, 0.1, 10, torch.quint8)
        c = torch.quantize_per_channel(
            x,
            torch.full((4,), 0.1, device=device),
            torch.zeros(4, device=device).long(),
            0,
            torch.qint8,
        )
        fake = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
        return q.dequantize(), q.int_repr(), q.q_scale(), c.dequantize(), fake, q[1:3].dequantize()

    assert_same_on_trn(step)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.complex128,
    ],
    ids=str,
)
def test_arithmetic_in_every_dtype(dtype):
    def step(device):
        x = torch.randint(0, 5, (4, 5)).to(dtype).to(device)
        y = x + x if dtype != torch.bool else x | x
        return (
            y,
            x * x,
            x.sum(),
            x.t().contiguous(),
            x == x.flip(0),
            x.to(torch.float32) if not x.is_complex() else x,
        )

    assert_same_on_trn(step)


def test_type_promotion_is_the_hosts():
    def step(device):
        i, f, h = (
            torch.ones(2, dtype=t, device=device)
            for t in (torch.int32, torch.float32, torch.bfloat16)
        )
        results = (
            i + f,
            i + 1.5,
            h + f,
            h + 1.5,
            i / 2,
            h * torch.tensor(2.0, device=device),
            i > 0,
            -h,
        )
        return [(r, str(r.dtype)) for r in results]

    assert_same_on_trn(step)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)], ids=str)
def test_empty_and_scalar_shapes(shape):
    def step(device):
        x = leaf(device, *shape)
        results = (
            x + 1,
            x * x,
            x.sum(),
            x.reshape(-1),
            x.exp().mean(),
            torch.cat([x.reshape(-1)] * 2),
        )
        return with_gradients(results, x)

    assert_same_on_trn(step)


LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "bsc": lambda x: x.to_sparse_bsc((2, 2)),
    "jagged": lambda x: torch.nested.as_nested_tensor([x, x[:2]], layout=torch.jagged),
    "nested": lambda x: torch.nested.as_nested_tensor([x, x[:2]], layout=torch.strided),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 3, torch.quint8),
    "quantized by channel": lambda x: torch.quantize_per_channel(
        x, x.abs().amax(1) / 100 + 0.01, torch.arange(4, device=x.device), 0, torch.qint8
    ),
}  # fmt: skip


def dense(x: torch.Tensor) -> torch.Tensor:
    if x.is_nested:
        return x.to_padded_tensor(0.0)
    return x.dequantize() if x.is_quantized else x.to_dense()


@pytest.mark.filterwarnings(
    "ignore:.*beta state", "ignore:.*invariant checks", "ignore:.*prototype"
)
@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*deprecated")
@pytest.mark.parametrize("target", ["cpu", "trn:0", "trn:2"])
@pytest.mark.parametrize("source", ["cpu", "trn:0", "trn:1"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_moves_between_devices(name, source, target):
    torch.manual_seed(0)
    x = torch.randn(4, 4).relu()
    y = LAYOUTS[name](x.to(source))
    moved = y.to(target)
    assert moved.device == torch.device(target)
    assert moved.layout == y.layout
    assert dense(moved).device == torch.device(target)
    assert torch.equal(dense(moved).cpu(), dense(LAYOUTS[name](x)))
    if name != "jagged":
        assert torch.empty_like(y, device=target).device == torch.device(target)


@pytest.mark.parametrize("place", ["cpu", "trn"])
@pytest.mark.parametrize("size", [3, 300])
def test_a_list_takes_a_tensor_of_numbers_one_for_each(size, place):
    x, y, z = ([torch.rand(size, size) for _ in range(5)] for _ in range(3))
    numbers = torch.arange(1.0, 6.0)
    expected = torch._foreach_addcmul(x, y, z, numbers)
    on_trn = ([t.to("trn") for t in tensors] for tensors in (x, y, z))
    actual = torch._foreach_addcmul(*on_trn, numbers.to(place))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(actual, expected, strict=True))


def test_a_list_is_one_launch_and_its_results_are_not_copied():
    tensors = [torch.rand(1000, device="trn") for _ in range(8)]
    torch_trn_emu.reset_op_counts()
    torch.trn.reset_peak_memory_stats()
    before = torch.trn.memory_allocated()
    roots = torch._foreach_sqrt(tensors)
    torch._foreach_add_(tensors, roots)
    counts = torch_trn_emu.op_counts()
    assert counts == {"aten::_foreach_sqrt": 1, "aten::_foreach_add_.List": 1}
    assert torch.trn.max_memory_allocated() - before == sum(4096 for _ in roots)


VIEWS = {
    "alias": torch.ops.aten.alias,
    "detach": torch.Tensor.detach,
    "transpose": lambda x: x.transpose(-1, -2),
    "select": lambda x: x[0],
    "unbind": lambda x: x.unbind()[-1],
    "values": lambda x: x.values(),
}


@pytest.mark.filterwarnings(
    "ignore:.*beta state", "ignore:.*invariant checks", "ignore:.*prototype"
)
@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:.*deprecated")
@pytest.mark.parametrize("name", LAYOUTS)
def test_views_in_inference_mode_are_what_those_of_the_host_are(name):
    """Of tensors that were made in the mode and outside of it."""

    def outcome(device, view, made, read):
        with torch.inference_mode(made):
            x = LAYOUTS[name](torch.eye(4, device=device))
        try:
            with torch.inference_mode(read):
                y = view(x)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            return type(error)
        assert y.device.type == device
        return x.is_inference(), y.is_inference()

    for view, made, read in product(VIEWS.values(), (False, True), (False, True)):
        assert outcome("trn", view, made, read) == outcome("cpu", view, made, read), (view, made)


@pytest.mark.parametrize(("to", "come"), [("cpu", "trn"), ("trn", "cpu"), ("trn:1", "trn:0")])
def test_a_list_is_copied_between_devices(to: str, come: str) -> None:
    written = [torch.zeros(3, device=to), torch.zeros(2, 2, dtype=torch.float64, device=to)]
    read = [torch.ones(3, device=come), torch.full((2, 2), 2.0, device=come)]
    torch._foreach_copy_(written, read)
    for a, b in zip(written, read, strict=True):
        assert torch.equal(a.cpu().float(), b.cpu())
