"""The emulated HBM: accounting, limits, and memory that really goes back to the host."""

import gc
import os

import pytest
import torch
from parity import needs_pool
from torch import nn

from torch_trn_emu import _C

MIB = 1 << 20
CAPACITY = 36 << 30


@pytest.fixture(autouse=True)
def clean_pool():
    gc.collect()
    torch.trn.empty_cache()
    torch.trn.reset_peak_memory_stats()


def host_bytes() -> int:
    """Bytes of host memory that this process occupies."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_allocated_bytes_follow_tensors():
    before = torch.trn.memory_allocated()
    x = torch.ones(MIB, device="trn")
    assert torch.trn.memory_allocated() - before == 4 * MIB
    view = x[10:]
    del x
    assert torch.trn.memory_allocated() - before == 4 * MIB
    del view
    assert torch.trn.memory_allocated() == before


def test_results_and_workspaces_of_kernels_lie_in_the_pool():
    x = torch.ones(MIB, device="trn")
    before = torch.trn.memory_allocated()
    y = x.sort().indices
    assert torch.trn.memory_allocated() - before == 8 * MIB
    assert torch.trn.max_memory_allocated() - before > 8 * MIB
    del y


def test_peaks_are_kept_until_reset():
    x = torch.ones(8 * MIB, device="trn")
    del x
    assert torch.trn.max_memory_allocated() >= 32 * MIB
    assert torch.trn.max_memory_reserved() >= 32 * MIB
    torch.trn.reset_peak_memory_stats()
    assert torch.trn.max_memory_allocated() == torch.trn.memory_allocated()


def test_each_device_counts_for_itself():
    first, second = torch.trn.memory_allocated(0), torch.trn.memory_allocated(1)
    x = torch.ones(MIB, device="trn:1")
    assert torch.trn.memory_allocated(0) == first
    assert torch.trn.memory_allocated("trn:1") - second == x.nbytes
    with torch.trn.device(1):
        assert torch.trn.memory_allocated() - second == x.nbytes


def test_empty_cache_gives_memory_back_to_the_host():
    start = host_bytes()
    x = torch.ones(64 * MIB, device="trn")
    assert host_bytes() - start > 200 * MIB
    del x
    assert torch.trn.memory_reserved() >= 256 * MIB
    torch.trn.empty_cache()
    assert torch.trn.memory_reserved() < 16 * MIB
    assert host_bytes() - start < 64 * MIB


def test_freed_memory_is_used_again():
    x = torch.ones(16 * MIB, device="trn")
    where, reserved = x.data_ptr(), torch.trn.memory_reserved()
    del x
    y = torch.ones(16 * MIB, device="trn")
    assert y.data_ptr() == where
    assert torch.trn.memory_reserved() == reserved


def test_mem_get_info_gives_free_and_total():
    x = torch.ones(MIB, device="trn")
    free, total = torch.trn.mem_get_info()
    assert total == CAPACITY == torch.trn.get_device_properties().total_memory
    assert total - free == torch.trn.memory_allocated() >= x.nbytes
    assert torch.accelerator.get_memory_info() == (free, total)


def test_stats_have_the_names_of_cuda():
    x = torch.ones(MIB, device="trn")
    stats = torch.trn.memory_stats()
    assert stats["allocated_bytes.all.current"] == torch.trn.memory_allocated() >= x.nbytes
    assert stats["allocated_bytes.all.peak"] == torch.trn.max_memory_allocated()
    assert stats["reserved_bytes.all.current"] == torch.trn.memory_reserved()
    assert stats["reserved_bytes.all.peak"] == torch.trn.max_memory_reserved()
    assert stats["active_bytes.all.current"] == stats["allocated_bytes.all.current"]
    assert stats["allocation.all.current"] >= 1
    assert {"num_ooms", "num_alloc_retries"} <= set(stats)


def test_the_accelerator_reads_the_same_numbers():
    x = torch.ones(MIB, device="trn")
    assert torch.accelerator.memory_allocated() == torch.trn.memory_allocated() >= x.nbytes
    assert torch.accelerator.max_memory_allocated() == torch.trn.max_memory_allocated()
    assert torch.accelerator.memory_reserved() == torch.trn.memory_reserved()
    assert torch.accelerator.max_memory_reserved() == torch.trn.max_memory_reserved()
    assert torch.accelerator.memory_stats() == torch.trn.memory_stats()
    torch.accelerator.reset_peak_memory_stats()
    torch.accelerator.reset_accumulated_memory_stats()
    del x
    torch.accelerator.empty_cache()
    torch.accelerator.empty_host_cache()
    assert torch.trn.memory_stats()["allocated_bytes.all.allocated"] == 0


def test_the_summary_is_a_table_with_the_largest_blocks():
    x = torch.ones(MIB, device="trn")
    summary = torch.trn.memory_summary()
    assert "HBM of trn:0, 36.00 GiB" in summary
    assert "1 x 4.00 MiB" in summary
    assert "largest" not in torch.trn.memory_summary(abbreviated=True)
    assert x.nbytes == 4 * MIB


@needs_pool
def test_more_than_the_capacity_is_out_of_memory():
    kept = torch.ones(MIB, device="trn")
    ooms = torch.trn.memory_stats()["num_ooms"]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(CAPACITY + 1, dtype=torch.uint8, device="trn")
    text = str(caught.value)
    for part in ("trn:0 is out of memory", "36.00 GiB", "1 x 4.00 MiB", "smaller batch"):
        assert part in text
    assert "host" not in text
    assert torch.trn.memory_stats()["num_ooms"] == ooms + 1
    assert (kept + 1).sum().item() == 2 * MIB  # the device goes on


def test_many_blocks_fill_the_capacity_too():
    """Blocks that are never touched cost the host nothing."""
    blocks = [torch.empty(2 << 30, dtype=torch.uint8, device="trn:3") for _ in range(16)]
    with pytest.warns(UserWarning, match=r"trn:3 is nearly out of memory: 34.00 GiB of 36.00 GiB"):
        blocks.append(torch.empty(2 << 30, dtype=torch.uint8, device="trn:3"))
    blocks.append(torch.empty(1 << 30, dtype=torch.uint8, device="trn:3"))  # it is said once
    with pytest.raises(torch.OutOfMemoryError, match="trn:3"):
        blocks.append(torch.empty(2 << 30, dtype=torch.uint8, device="trn:3"))
    blocks.clear()
    torch.trn.empty_cache()


@needs_pool
def test_an_operator_that_does_not_fit_is_out_of_memory_and_leaves_nothing_behind():
    x = torch.ones(1 << 18, 1, device="trn")
    before = torch.trn.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError):
        x @ x.T  # 256 GiB
    with pytest.raises(torch.OutOfMemoryError):
        x + x.T
    assert torch.trn.memory_allocated() == before


@needs_pool
def test_a_host_without_memory_says_that_it_is_the_host():
    _C.assume_host_memory(600 * MIB)
    try:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(256 * MIB, dtype=torch.uint8, device="trn")
    finally:
        _C.assume_host_memory(None)
    assert "The host has not enough memory to back the emulated HBM of trn:0" in str(caught.value)
    assert "600.00 MiB available" in str(caught.value)
    assert torch.empty(256 * MIB, dtype=torch.uint8, device="trn").nbytes == 256 * MIB


def test_ten_thousand_steps_leak_nothing():
    torch.manual_seed(0)
    model = nn.Linear(8, 8).to("trn")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9999)
    x = torch.randn(4, 8, device="trn")

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            schedule.step()

    steps(200)
    allocated, reserved, host = (
        torch.trn.memory_allocated(),
        torch.trn.memory_reserved(),
        host_bytes(),
    )
    rows = len(_C.launches(0))
    steps(10_000)
    assert torch.trn.memory_allocated() == allocated
    assert torch.trn.memory_reserved() == reserved
    assert host_bytes() - host < 16 * MIB
    assert len(_C.launches(0)) == rows


def test_tensors_of_changing_sizes_leak_nothing():
    def sizes() -> None:
        for size in range(1, 3000, 7):
            torch.ones(size, 97, device="trn").cumsum(0)

    sizes()
    allocated, reserved = torch.trn.memory_allocated(), torch.trn.memory_reserved()
    for _ in range(3):
        sizes()
    assert torch.trn.memory_allocated() == allocated
    assert torch.trn.memory_reserved() <= reserved + 8 * MIB


def test_empty_tensors_take_no_memory():
    before = torch.trn.memory_allocated()
    x = torch.empty(0, 5, device="trn")
    assert torch.trn.memory_allocated() == before
    assert x.sum().item() == 0


def test_pinned_memory_is_host_memory_that_says_so():
    x = torch.arange(4.0).pin_memory()
    assert x.is_pinned()
    assert x[1:].is_pinned()
    assert x.device.type == "cpu"
    assert x.to("trn", non_blocking=True).tolist() == [0, 1, 2, 3]
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert not torch.empty(3).is_pinned()
    assert not torch.empty(3, device="trn").is_pinned()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        torch.empty(3, device="trn").pin_memory()
