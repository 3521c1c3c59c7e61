"""Arguments with which a kernel of the host crashes, or leaves its result as memory was, raise."""

import itertools

import pytest
import torch
from torch.nn import functional as F


def on_trn(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="trn")


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gradient_of_an_empty_batch_norm_is_refused_or_zero(shape, dtype):
    x = torch.ones(shape, device="trn", dtype=dtype, requires_grad=True)
    mean, var = (torch.ones(shape[1], device="trn", dtype=dtype) for _ in range(2))
    made = torch.native_batch_norm(x, None, None, mean, var, False, 0.1, 1e-5)[0]
    with pytest.raises(
        RuntimeError, match=r"no gradient for an empty input.*functional\.batch_norm"
    ):
        made.sum().backward()
    F.batch_norm(x, mean, var).sum().backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 4])
@pytest.mark.parametrize("strided", [False, True])
def test_indices_in_no_bag(dtype, mode, padding, strided):
    """Where the host writes before its result, trn refuses; elsewhere there are no bags."""
    table = torch.ones(5, 5, dtype=dtype, device="trn")
    table = table.repeat_interleave(2, 1)[:, ::2] if strided else table
    none = torch.zeros(0, dtype=torch.long, device="trn")
    some = torch.zeros(6, dtype=torch.long, device="trn")

    def bags(indices):
        return F.embedding_bag(indices, table, none, mode=mode, padding_idx=padding)

    assert bags(none).shape == (0, 5)
    if mode != "max" and dtype != torch.float64 and padding is None and not strided:
        assert bags(some).shape == (0, 5)
    else:
        with pytest.raises(RuntimeError, match=r"offsets is empty.*Pass where each bag begins"):
            bags(some)


def test_gradients_of_embedding_bags_without_offsets():
    table, samples = (torch.ones(shape, device="trn", requires_grad=True) for shape in ((4, 3), 6))
    indices, none = on_trn(6).long(), on_trn(0).long()
    result = F.embedding_bag(indices, table, none, mode="sum", per_sample_weights=samples)
    for wanted in (table, samples):
        with pytest.raises(RuntimeError, match=r"offsets is empty.*Pass where each bag begins"):
            torch.autograd.grad(result, wanted, torch.ones_like(result), retain_graph=True)
    dense = torch.ops.aten._embedding_bag_dense_backward
    for bags in (none, torch.full((6,), -1, device="trn"), torch.full((6,), 2, device="trn")):
        with pytest.raises(RuntimeError, match=r"offset2bag must have one of the 2 bags"):
            dense(on_trn(2, 3), indices, bags, none, none, 4, False, 0, None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_gradients_of_nested_tensors(layout):
    """Nested tensors have no sizes that could be checked."""
    pieces = [torch.randn(3, 8), torch.randn(5, 8)]

    def gradients(device):
        nested = torch.nested.nested_tensor(
            [piece.to(device) for piece in pieces], layout=layout, requires_grad=True
        )
        result = torch.softmax(nested, -1)
        total = sum((piece * piece).sum() for piece in result.unbind())
        return torch.autograd.grad(total, nested)[0].unbind()

    for actual, expected in zip(gradients("trn"), gradients("cpu"), strict=True):
        assert torch.equal(actual.cpu(), expected)


def test_embedding_bag_says_first_that_offsets_have_one_dimension():
    weight = torch.ones(4, 3, device="trn")
    indices = torch.zeros(2, dtype=torch.int64, device="trn")
    offsets = torch.zeros(2, 0, dtype=torch.int64, device="trn")
    with pytest.raises(RuntimeError, match="1D Tensor"):
        torch.embedding_bag(weight, indices, offsets)


@pytest.mark.parametrize("driver", ["gelsy", "gels", "gelsd", "gelss"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_least_squares_without_a_right_hand_side(driver, batch):
    a, b = torch.randn(*batch, 4, 3, device="trn"), on_trn(*batch, 4, 0)
    if driver in ("gelsd", "gelss"):
        with pytest.raises(RuntimeError, match=r"at least one right-hand side.*gelsy"):
            torch.linalg.lstsq(a, b, driver=driver)
    else:
        assert torch.linalg.lstsq(a, b, driver=driver).solution.shape == (*batch, 3, 0)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_leaves_no_negative_size(mode, rank):
    for crop in (-4, -100):
        with pytest.raises(RuntimeError, match=r"pad: padding of|too small"):
            F.pad(on_trn(0, *[3] * (rank + 1)), (0, crop, *[0] * (2 * rank - 2)), mode=mode)


def test_circular_padding_reads_only_what_is_left():
    for size, before, after in itertools.product((1, 2, 3), range(-3, 4), range(-3, 4)):
        x = torch.arange(2.0 * size).view(1, 2, size)
        left = size + min(before, 0) + min(after, 0)
        if left < 0 or max(before, after) > left:
            with pytest.raises(RuntimeError):
                F.pad(x.to("trn"), (before, after), mode="circular")
            continue
        core = x[..., max(-before, 0) : size - max(-after, 0)]
        parts = [core[..., left - max(before, 0) :], core, core[..., : max(after, 0)]]
        made = F.pad(x.to("trn"), (before, after), mode="circular")
        assert torch.equal(made.cpu(), torch.cat(parts, -1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_limits_of_a_histogram_are_numbers_of_its_type(dtype):
    info, x = torch.iinfo(dtype), torch.ones(3, dtype=dtype, device="trn")
    for limits in ((2.0 * info.min - 1, 10), (0, 2.0 * info.max + 2)):
        with pytest.raises(RuntimeError, match=r"histc: (min|max) is .*does not hold"):
            torch.histc(x, bins=4, min=limits[0], max=limits[1])
    assert torch.histc(x, bins=4, min=0, max=100).sum() == 3


@pytest.mark.parametrize("lengths", [(2, 1), torch.tensor([2, 1])], ids=["numbers", "tensor"])
def test_targets_of_ctc_loss_are_classes(lengths):
    """What lies beyond the length of a target is not read."""
    scores = torch.randn(5, 2, 4).log_softmax(-1)
    rows = torch.tensor([[1, 2, 9], [3, -1, 9]])
    steps = torch.tensor([5, 5]) if isinstance(lengths, torch.Tensor) else (5, 5)
    got = F.ctc_loss(scores.to("trn"), rows.to("trn"), steps, lengths)
    assert torch.equal(got.cpu(), F.ctc_loss(scores, rows, steps, lengths))
    for wrong in (torch.tensor([[1, 4], [3, 0]]), torch.tensor([1, -1, 3])):
        with pytest.raises(RuntimeError, match="ctc_loss: targets must be from 0 to 3"):
            F.ctc_loss(scores.to("trn"), wrong.to("trn"), steps, lengths)


@pytest.mark.parametrize("statistics", [(0, 4), (4, 3), (3, 0)], ids=str)
def test_running_statistics_have_an_element_per_channel(statistics):
    mean, var = map(on_trn, statistics)
    with pytest.raises(RuntimeError, match=r"batch_norm_update_stats: running_\w+ has \d elements"):
        torch.batch_norm_update_stats(on_trn(3, 4, 2), mean, var, 0.1)


@pytest.mark.parametrize("dim", [0, 2])
def test_norms_of_weights_have_an_element_per_slice(dim):
    v, sizes = on_trn(4, 3, 5), [1, 1, 1]
    norms = [1, 1, 1]
    norms[dim] = v.size(dim)
    for size in (0, 1, v.size(dim) - 1, v.size(dim) + 1):
        sizes[dim] = size
        with pytest.raises(RuntimeError, match="weight_norm: g has shape"):
            torch._weight_norm(v, on_trn(*sizes), dim)
        with pytest.raises(RuntimeError, match="weight_norm: g has shape"):
            torch.ops.aten._weight_norm_interface_backward(
                v, v, on_trn(*sizes), on_trn(*norms), dim
            )
    with pytest.raises(RuntimeError, match="weight_norm: a gradient of shape"):
        torch.ops.aten._weight_norm_interface_backward(v[0], v, *[on_trn(*norms)] * 2, dim)
    assert torch._weight_norm(v, on_trn(*norms), dim).shape == v.shape


@pytest.mark.parametrize("sizes", [[2, 2], [2], [2, 2, 1, 1], [3, 2, 1]], ids=str)
def test_batch_sizes_of_packed_sequences_add_up_to_their_rows(sizes):
    weights = [on_trn(15, 4), on_trn(15, 5), on_trn(15), on_trn(15)]
    with pytest.raises(RuntimeError, match="batch_sizes add up to"):
        torch.gru(
            on_trn(5, 4), torch.tensor(sizes), on_trn(1, sizes[0], 5), weights,
            True, 1, 0.0, False, False,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["_softmax_backward_data", "_log_softmax_backward_data"])
def test_a_gradient_of_softmax_has_the_shape_of_its_output(name):
    backward = getattr(torch, name)
    for shape in ((3, 3), (3, 5), (2, 4), (4,)):
        with pytest.raises(RuntimeError, match="softmax backward: grad_output has shape"):
            backward(on_trn(*shape), on_trn(3, 4), 1, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_eigenvalues_of_what_is_not_finite(dtype, value):
    x = torch.eye(5, dtype=dtype, device="trn").repeat(2, 1, 1)
    x[0, 1, 1] = value
    for eigen in (torch.linalg.eigvals, torch.linalg.eig):
        with pytest.raises(RuntimeError, match="should not contain infs or NaNs"):
            eigen(x)
    with pytest.raises(RuntimeError, match="should not contain infs or NaNs"):
        torch.linalg.eigvals(x, out=torch.empty(0, dtype=torch.complex128, device="trn"))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex32_with_both_bits_is_resolved():
    """The host has no kernel that resolves a conjugate and a negative bit of complex32 at once."""
    x = torch.tensor([1 + 2j, 3 - 4j, 5j], dtype=torch.complex32)
    host, trn = (torch._neg_view(x.to(place)[::2].conj()) for place in ("cpu", "trn"))
    expected = torch.tensor([-1 + 2j, 5j], dtype=torch.complex64)
    there = torch.empty(2, dtype=torch.complex32, device="trn").copy_(host)
    for made in (there, trn, trn.clone(), trn.resolve_neg(), trn.contiguous(), trn * 1):
        assert torch.equal(made.cpu().to(torch.complex64), expected)
