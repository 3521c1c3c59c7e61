"""DLPack, both ways: memory is shared, devices and streams are honoured."""

import numpy as np
import pytest
import torch
from torch.utils import dlpack


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str
)
def test_memory_is_shared(index, dtype):
    x = torch.ones(2, 6, device=f"trn:{index}").to(dtype)[:, ::2]
    for shared in (torch.from_dlpack(x), dlpack.from_dlpack(dlpack.to_dlpack(x))):
        assert (shared.device, shared.dtype, shared.stride()) == (x.device, x.dtype, x.stride())
        shared.zero_()
        assert not x.any()
        x.fill_(1)


def test_the_device_is_an_extension_device():
    kind, index = torch.ones(1, device="trn:1").__dlpack_device__()
    assert (kind, index) == (dlpack.DLDeviceType.kDLExtDev, 1)
    assert torch.ones(1).__dlpack_device__()[0] == dlpack.DLDeviceType.kDLCPU


@pytest.mark.parametrize("stream", [None, -1, 0, 1, 7])
@pytest.mark.parametrize("max_version", [None, (1, 0)])
def test_any_stream_will_do(stream, max_version):
    x = torch.ones(2, device="trn")
    capsule = x.__dlpack__(stream=stream, max_version=max_version)
    assert torch.from_dlpack(capsule).data_ptr() == x.data_ptr()


def test_a_copy_and_other_devices():
    x = torch.arange(3.0, device="trn:1")
    assert torch.from_dlpack(x, copy=False).data_ptr() == x.data_ptr()
    assert torch.from_dlpack(x, copy=True).data_ptr() != x.data_ptr()
    for device in ("cpu", "trn:0", torch.device("trn", 2)):
        moved = torch.from_dlpack(x, device=device)
        assert moved.device == torch.device(device)
        assert moved.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="without copying"):
        torch.from_dlpack(x, device="cpu", copy=False)


def test_numpy_takes_a_host_copy_when_asked():
    x = torch.arange(3.0, device="trn")
    assert np.from_dlpack(x, device="cpu").tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match="Unsupported device"):
        np.from_dlpack(x)
    assert torch.from_dlpack(np.ones(2), device="trn").device.type == "trn"


def test_what_a_capsule_cannot_hold_is_refused():
    with pytest.raises(BufferError, match="require gradient"):
        torch.from_dlpack(torch.ones(1, device="trn", requires_grad=True))
    with pytest.raises(BufferError, match="conjugate"):
        torch.from_dlpack(torch.ones(1, dtype=torch.complex64, device="trn").conj())
