"""What Lightning is told of devices, and a clear refusal of more than there are."""

import pytest
import torch

from torch_trn_emu.errors import ChipLimit
from torch_trn_emu.integrations.lightning import _accelerator

TrnAccelerator = _accelerator(object)


@pytest.mark.parametrize(
    ("asked", "indices"),
    [(1, [0]), ("auto", [0]), ("1", [0]), (-1, [0, 1, 2, 3]), ([2], [2]), ("3,", [3]), (2, [0, 1]),
     ("0,1", [0, 1])],
)  # fmt: skip
def test_devices(asked, indices):
    parsed = TrnAccelerator.parse_devices(asked)
    assert TrnAccelerator.get_parallel_devices(parsed) == [torch.device("trn", i) for i in indices]


@pytest.mark.parametrize("asked", [5, [4], "0,9"])
def test_more_devices_than_there_are(asked):
    with pytest.raises(ChipLimit, match="4 devices are visible"):
        TrnAccelerator.parse_devices(asked)


def test_it_is_there():
    assert TrnAccelerator.is_available()
    assert TrnAccelerator.name() == "trn"
    assert "launch_count" in TrnAccelerator().get_device_stats(torch.device("trn", 0))
