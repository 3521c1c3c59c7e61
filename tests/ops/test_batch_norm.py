"""Batch and group norm with real strides, forward and backward."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from torch_trn_emu.kernels.batch_norm import backward, forward

from .calls import call_of, lowered, random, run
from .on_cores import computed

aten = torch.ops.aten
CLOSE = {"rtol": 2e-4, "atol": 2e-4}
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 150), st.integers(1, 6), st.integers(1, 6))


@pytest.fixture(params=[1024, 1], ids=["side by side", "one by one"])
def most_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of chunks are kept one after the other, as those of many are."""
    for module in (forward, backward):
        monkeypatch.setattr(module, "MOST_CHUNKS", request.param)


def _parameters(channels: int) -> tuple[torch.Tensor, ...]:
    return random(channels), random(channels), random(channels), random(channels).abs() + 0.5


@pytest.mark.usefixtures("most_chunks")
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=SHAPES, trains=st.booleans(), affine=st.booleans())
@example(shape=(2, 3, 100, 90), trains=True, affine=True)  # longer than a chunk
@example(shape=(9, 2, 60, 50), trains=True, affine=False)  # more than stays in SBUF
@example(shape=(9, 2, 60, 50), trains=False, affine=True)
def test_batch_norm(shape: tuple[int, ...], trains: bool, affine: bool) -> None:
    if shape[0] * shape[2] * shape[3] == 1:
        return  # torch has no variance of one value
    x, g = random(*shape), random(*shape)
    w, b, mean, var = _parameters(shape[1])
    params = (w, b) if affine else (None, None)
    feeds = {"x": x, "weight": w, "bias": b, "running_mean": mean, "running_var": var}
    op = aten.native_batch_norm.default
    results = op(x, *params, mean.clone(), var.clone(), trains, 0.1, 1e-5)
    call = call_of(op, x, *params, mean, var, trains, 0.1, 1e-5, results=results)
    got = run(lowered(call), feeds)
    np.testing.assert_allclose(got["y"].reshape(shape), results[0], **CLOSE)
    save = mean, 1 / (var + 1e-5).sqrt()
    if trains:
        save = results[1:]
        np.testing.assert_allclose(got["mean"], save[0], **CLOSE)
        np.testing.assert_allclose(got["rstd"], save[1], **CLOSE)
        after = mean.clone(), var.clone()
        op(x, *params, *after, True, 0.1, 1e-5)
        np.testing.assert_allclose(got["new running_mean"], after[0], **CLOSE)
        np.testing.assert_allclose(got["new running_var"], after[1], **CLOSE)
    back = aten.native_batch_norm_backward.default
    args = (g, x, params[0], mean, var, *save, trains, 1e-5, [True, affine, affine])
    expected = back(*args)
    got = run(
        lowered(call_of(back, *args, results=expected)),
        {"g": g, "x": x, "weight": w, "mean": save[0] if trains else mean, "rstd": save[1],
         "variance": var},
    )  # fmt: skip
    for name, want in zip(("dx", "dw", "db"), expected, strict=True):
        if want is not None:
            np.testing.assert_allclose(got[name].reshape(want.shape), want, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("most_chunks")
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    images=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 3, 32, 130]),
    per=st.integers(1, 5),
    pixels=st.integers(1, 40),
    affine=st.booleans(),
)
@example(images=2, groups=2, per=3, pixels=9000, affine=True)
@example(images=5, groups=1, per=2, pixels=5000, affine=True)
@example(images=1, groups=130, per=1, pixels=9000, affine=True)
def test_group_norm(images: int, groups: int, per: int, pixels: int, affine: bool) -> None:
    if per * pixels == 1:
        return
    channels = groups * per
    x, g = random(images, channels, pixels), random(images, channels, pixels)
    w, b = (random(channels), random(channels)) if affine else (None, None)
    sizes = (images, channels, pixels, groups)
    op = aten.native_group_norm.default
    expected = op(x, w, b, *sizes, 1e-5)
    cores, pairs = computed("native_group_norm", op, x, w, b, *sizes, 1e-5)
    assert cores
    for got, want in zip([pair[0] for pair in pairs], expected, strict=True):
        np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-3, atol=5e-4)
    feeds = {"x": x, "g": g} | ({"weight": w, "bias": b} if affine else {})
    op = aten.native_group_norm_backward.default
    args = (g, x, expected[1], expected[2], w, *sizes, [True, affine, affine])
    want = op(*args)
    call = call_of(op, *args, results=want)
    feeds |= {"mean": expected[1], "rstd": expected[2]}
    programs = lowered(call)
    got = run(programs[:1], feeds)
    scale = max(1.0, float(want[0].abs().max()))
    np.testing.assert_allclose(got["dx"].reshape(x.shape), want[0], atol=2e-4 * scale)
    for k, (name, program) in enumerate(zip(("dw", "db"), programs[1:], strict=False)):
        total = run([program], {"in": torch.from_numpy(got[name])})["out"]
        np.testing.assert_allclose(total.reshape(-1), want[1 + k], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["_native_batch_norm_legit_no_training", "_batch_norm_no_update"])
def test_evaluation_has_its_own_names(name: str) -> None:
    x = random(2, 3, 4)
    w, b, mean, var = _parameters(3)
    op = getattr(aten, name).default
    call = call_of(op, x, w, b, mean, var, 0.1, 1e-5)
    feeds = {"x": x, "weight": w, "bias": b, "running_mean": mean, "running_var": var}
    want = op(x, w, b, mean, var, 0.1, 1e-5)[0]
    np.testing.assert_allclose(run(lowered(call), feeds)["y"].reshape(x.shape), want, **CLOSE)
