"""What Lightning is told: one device, or a clear refusal."""

import pytest
import torch

from torch_trn_emu.errors import Unimplemented
from torch_trn_emu.integrations.lightning import _accelerator

TrnAccelerator = _accelerator(object)


@pytest.mark.parametrize(
    ("asked", "index"), [(1, 0), ("auto", 0), ("1", 0), (-1, 0), ([2], 2), ("3,", 3)]
)
def test_one_device(asked, index):
    parsed = TrnAccelerator.parse_devices(asked)
    assert TrnAccelerator.get_parallel_devices(parsed) == [torch.device("trn", index)]


@pytest.mark.parametrize("asked", [2, [0, 1], "0,1"])
def test_several_devices_are_planned(asked):
    with pytest.raises(Unimplemented, match="torchrun and DistributedDataParallel"):
        TrnAccelerator.parse_devices(asked)


def test_it_is_there():
    assert TrnAccelerator.is_available()
    assert TrnAccelerator.name() == "trn"
    assert "launch_count" in TrnAccelerator().get_device_stats(torch.device("trn", 0))
