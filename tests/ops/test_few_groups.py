"""Group norm of few groups, which lie on all partitions: values, and time."""

import pytest
import torch
from torch.nn.functional import group_norm

import torch_trn_emu
from torch_trn_emu.chip import get_chip

from .calls import random
from .on_cores import computed

aten = torch.ops.aten


@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize(("images", "channels", "groups"), [(1, 6, 2), (3, 4, 1), (2, 6, 3)])
def test_values(parameters: bool, images: int, channels: int, groups: int) -> None:
    x = random(images, channels, 95, 90) + 2.0
    w, b = (random(channels), random(channels)) if parameters else (None, None)
    sizes = (images, channels, 95 * 90, groups)
    cores, pairs = computed(
        "native_group_norm", aten.native_group_norm.default, x, w, b, *sizes, 1e-5
    )
    assert cores
    assert len(pairs) == 3
    for got, expected in pairs:
        found = torch.as_tensor(got).reshape(expected.shape)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [("trn1", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2)], ids=str)
def test_images_of_few_groups_take_a_few_times_their_bytes(target: tuple[str, int]) -> None:
    chip, cores = get_chip(target[0]), target[1]
    rate = chip.hbm_bytes_per_s_per_core() * cores
    for shape, groups in (((1, 512, 64, 64), 32), ((8, 64, 56, 56), 1), ((1, 128, 256, 256), 32)):
        x = torch.empty(shape, device="meta")
        w = torch.empty(shape[1], device="meta")
        made = torch_trn_emu.estimate(group_norm, x, groups, w, w, chip=target[0], lnc=cores)
        limit_us = 2 * x.nbytes / rate * 1e6
        assert limit_us < made.device_us < 6 * limit_us + 23, (shape, groups)
