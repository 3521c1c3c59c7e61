"""Names that torch.cuda has beside tensors: marks, memory, amp."""

import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile


def test_marks_show_in_the_profile():
    nvtx = torch.trn.nvtx
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        assert nvtx.range_push("outer") == 0
        assert nvtx.range_push("inner") == 1
        assert nvtx.range_pop() == 1
        assert nvtx.range_pop() == 0
        assert nvtx.range_pop() == -2
        first, second = nvtx.range_start("first"), nvtx.range_start("second")
        nvtx.range_end(first)
        nvtx.range_end(second)
        nvtx.range_end(second)
        nvtx.mark("here")
        with nvtx.range("step {}", 3):
            torch.ones(1, device="trn") + 1

        @nvtx.range("call")
        def called():
            return 1

        assert called() == called() == 1
    seen = {event.key: event.count for event in recorded.key_averages()}
    assert {"outer", "inner", "first", "second", "here", "step 3"} <= set(seen)
    assert seen["call"] == 2
    torch.trn.profiler.start()
    torch.trn.profiler.stop()
    with torch.trn.profiler.profile():
        pass


def test_the_snapshot_adds_up():
    held = [torch.empty(n, device="trn:1") for n in (3, 1000, 1 << 20)]
    del held[1]
    snapshot = [s for s in torch.trn.memory_snapshot() if s["device"] == 1]
    assert sum(s["total_size"] for s in snapshot) == torch.trn.memory_reserved(1)
    allocated = sum(s["allocated_size"] for s in snapshot)
    assert allocated == torch.trn.memory_allocated(1)
    blocks = [b for s in snapshot for b in s["blocks"]]
    assert sum(b["size"] for b in blocks if b["state"] == "active_allocated") == allocated
    live = {b["address"] for b in blocks if b["state"] == "active_allocated"}
    assert {t.data_ptr() for t in held} <= live
    with pytest.raises(ValueError, match="memory pool"):
        torch.trn.memory_snapshot((0, 1))


def test_nested_statistics_are_the_flat_ones():
    held = torch.ones(100, device="trn")
    nested, flat = torch.trn.memory_stats_as_nested_dict(), torch.trn.memory_stats()
    assert nested["allocated_bytes"]["all"]["current"] >= held.nbytes
    assert nested["allocated_bytes"]["all"]["peak"] == flat["allocated_bytes.all.peak"]
    assert nested["num_ooms"] == flat["num_ooms"]


@pytest.mark.parametrize("name", ["reset_max_memory_allocated", "reset_max_memory_cached"])
def test_the_older_names_reset_the_peak(name):
    held = torch.ones(1000, device="trn")
    del held
    getattr(torch.trn, name)()
    assert torch.trn.max_memory_allocated() == torch.trn.memory_allocated()
    assert torch.trn.max_memory_cached() == torch.trn.memory_cached()


def test_a_fraction_of_the_memory():
    total = torch.trn.mem_get_info(2)[1]
    torch.trn.set_per_process_memory_fraction(0.25, 2)
    try:
        assert torch.trn.get_per_process_memory_fraction("trn:2") == pytest.approx(0.25)
        assert torch.trn.get_per_process_memory_fraction(1) == 1
        with pytest.raises(torch.OutOfMemoryError, match="set_per_process_memory_fraction"):
            torch.empty(total // 2, dtype=torch.uint8, device="trn:2")
        assert torch.trn.mem_get_info(2)[1] == total
    finally:
        torch.trn.set_per_process_memory_fraction(1.0, 2)
    for wrong, error in ((1, TypeError), (-0.1, ValueError), (1.1, ValueError)):
        with pytest.raises(error, match="fraction"):
            torch.trn.set_per_process_memory_fraction(wrong)


def product_dtype():
    x = torch.ones(2, 2, device="trn")
    with torch.autocast("trn"):
        return (x @ x).dtype


def test_autocast_is_bfloat16_unless_told_otherwise_in_every_thread():
    seen = [product_dtype(), torch.get_autocast_dtype("trn")]
    thread = threading.Thread(target=lambda: seen.append(product_dtype()))
    thread.start()
    thread.join()
    assert seen == [torch.bfloat16] * 3

    def in_half():
        torch.set_autocast_dtype("trn", torch.float16)
        seen.append(product_dtype())

    thread = threading.Thread(target=in_half)
    thread.start()
    thread.join()
    assert seen[-1] == torch.float16
    assert product_dtype() == torch.bfloat16


def test_the_names_of_cuda_amp():
    x = torch.ones(2, 2, device="trn")
    with torch.trn.amp.autocast():
        assert (x @ x).dtype == torch.bfloat16
    with torch.trn.amp.autocast(dtype=torch.float16):
        assert (x @ x).dtype == torch.float16
    for scaler in (torch.trn.amp.GradScaler(), torch.amp.GradScaler()):
        assert scaler.is_enabled()
        assert scaler.scale(x).device.type == "trn"

    class Doubled(torch.autograd.Function):
        @staticmethod
        @torch.trn.amp.custom_fwd(cast_inputs=torch.float32)
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.trn.amp.custom_bwd
        def backward(ctx, grad):
            return grad * 2

    with torch.autocast("trn"):
        assert Doubled.apply(x.half()).dtype == torch.float32


def test_backward_runs_here_and_the_users_setting_stays():
    threads = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            threads.append(threading.get_ident())
            return grad * 2

    w = torch.ones(2, device="trn", requires_grad=True)
    for wanted in (True, False):
        with torch.autograd.set_multithreading_enabled(wanted):
            Noted.apply(w).sum().backward()
            torch.autograd.grad(Noted.apply(w).sum(), w)
            assert torch.autograd.is_multithreading_enabled() is wanted
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.ones(1, device="trn").backward()
    assert torch.autograd.is_multithreading_enabled()
    assert set(threads) == {threading.get_ident()}


def test_switches_that_say_what_there_is():
    assert torch.trn.can_device_access_peer(0, 1)
    assert not torch.trn.can_device_access_peer(1, 1)
    assert torch.trn.get_arch_list() == []
    assert torch.trn.get_gencode_flags() == ""
    assert not torch.trn.is_tf32_supported()
    assert not torch.trn.is_current_stream_capturing()
    assert torch.trn.ipc_collect() is None
    assert torch.trn.get_allocator_backend() == "native"
    assert torch.trn.device_memory_used() == torch.trn.memory_reserved()
    assert "process" in torch.trn.list_gpu_processes()
    torch.trn.set_sync_debug_mode("default")
    assert torch.trn.get_sync_debug_mode() == 0
    with pytest.raises(NotImplementedError, match="are not watched"):
        torch.trn.set_sync_debug_mode(1)
    with torch.trn.StreamContext(stream := torch.trn.Stream()):
        assert torch.trn.current_stream() == stream
