"""The noise of stochastic rounding belongs to an element's place: independent, whatever the layout.

`noise` of an element is whether it was rounded up; every value lies halfway between two codes.
"""

import itertools

import pytest
import torch
from torch import Tensor

quantize = torch.ops.trn.quantize_mx
quantize_dequantize = torch.ops.trn.quantize_dequantize_mx

ELEMENTS = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")
MIDDLE = {"float8_e4m3fn": 1.0625, "float8_e5m2": 1.125, "float4_e2m1fn": 1.25}
SHAPES = ((256, 64), (4, 64, 32), (3, 2, 64, 8), (8, 64, 1), (512,))
DEVICES = ("cpu", "trn")


def halfway(shape: tuple[int, ...], element: str, device: str = "cpu") -> Tensor:
    """Each value halfway between two of the element's, in blocks of one scale."""
    return torch.full(shape, MIDDLE[element], device=device)


def noise(x: Tensor, dim: int, element: str, seed: int = 0, grouping: str = "contiguous") -> Tensor:
    """-1 where an element of x was rounded down, 1 where it was rounded up."""
    made = quantize_dequantize(
        x, dim=dim, element=element, rounding="stochastic", grouping=grouping, seed=seed
    )
    return torch.sign(made - x).cpu()


def assert_independent(a: Tensor, b: Tensor) -> None:
    """The correlation of fair signs is below 5 deviations, 5 / sqrt(n)."""
    agreement = float((a * b).mean())
    assert abs(agreement) < 5 / a.numel() ** 0.5, f"correlation {agreement:.3f}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounds_up_half_of_the_time_along_every_dim(shape, element, device):
    for dim in range(len(shape)):
        drawn = noise(halfway(shape, element, device), dim, element)
        assert set(drawn.unique().tolist()) <= {-1.0, 1.0}
        assert abs(float(drawn.mean())) < 5 / drawn.numel() ** 0.5


@pytest.mark.parametrize("grouping", ["contiguous", "wrapped"])
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_batches_and_blocks_are_independent(dim, element, grouping):
    drawn = noise(halfway((4, 128, 32), element), dim, element, grouping=grouping)
    for axis, size in enumerate(drawn.shape):
        step = 32 if size == 128 else 1  # blocks along k, members of a batch
        parts = drawn.movedim(axis, 0).unfold(0, step, step).movedim(-1, 1)
        for a, b in itertools.combinations(parts[:4], 2):
            assert_independent(a, b)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_noise_is_a_function_of_the_place_and_the_seed_alone(dim):
    """The same along every dim, in every layout and beside other values."""
    shape = (4, 64, 32)
    wanted = noise(halfway(shape, "float8_e4m3fn"), 2, "float8_e4m3fn", seed=5)
    got = noise(halfway(shape, "float8_e4m3fn"), dim, "float8_e4m3fn", seed=5)
    assert torch.equal(got, wanted)
    first = noise(halfway((2, 64, 32), "float8_e4m3fn"), dim, "float8_e4m3fn", seed=5)
    assert torch.equal(first, wanted[:2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_layout_changes_neither_codes_nor_scales(dim, element, device):
    torch.manual_seed(0)
    x = torch.randn(96, 64, device=device)
    layouts = {
        "column-major": x.t().contiguous().t(),
        "every second": torch.stack((x, x), -1).flatten(1)[:, ::2],
        "offset": torch.nn.functional.pad(x, (3, 2))[:, 3:-2],
    }
    options = {"dim": dim, "element": element, "rounding": "stochastic", "seed": 3}
    for laid in layouts.values():
        for mine, plain in zip(quantize(laid, **options), quantize(x, **options), strict=True):
            assert torch.equal(mine.view(torch.uint8).cpu(), plain.view(torch.uint8).cpu())
        assert torch.equal(quantize_dequantize(laid, **options), quantize_dequantize(x, **options))


def test_seeds_are_independent():
    x = halfway((128, 64), "float8_e4m3fn")
    drawn = [noise(x, 0, "float8_e4m3fn", seed=s) for s in (0, 1, 2, 2**32, 2**40 + 1)]
    for a, b in itertools.combinations(drawn, 2):
        assert_independent(a, b)


def test_codes_are_those_of_each_matrix_of_a_batch():
    """Codes of a batch dequantise to what quantising without codes gives, along every dim."""
    torch.manual_seed(0)
    x = torch.randn(3, 64, 40)
    for dim in range(3):
        options = {"dim": dim, "rounding": "stochastic", "seed": 11}
        codes, scales = quantize(x, **options)
        made = torch.ops.trn.dequantize_mx(codes, scales, dim=dim)
        assert torch.equal(made, quantize_dequantize(x, **options))
