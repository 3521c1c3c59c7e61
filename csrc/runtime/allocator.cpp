// Allocations go to the pool of a logical core; nothing here copies tensor data.
#include "allocator.h"

#include "accounting_block.h"
#include "free_listener.h"
#include "hbm.h"
#include "host.h"
#include "pending_work.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>

namespace trn {

thread_local c10::DeviceIndex InHbm::target = -1;

InHbm::InHbm(c10::DeviceIndex device) noexcept : previous_(target) {
  target = host().foreign ? c10::DeviceIndex(-1) : device;
}

namespace {
void report(void* pointer, int64_t bytes, const HbmPool& pool, c10::DeviceIndex device) {
  const HbmStats stats = pool.stats();
  c10::reportMemoryUsageToProfiler(pointer, bytes, stats.allocated, stats.reserved,
                                   c10::Device(kTrn, device));
}

std::atomic<FreeListener> free_listener{nullptr};

}  // namespace

void set_free_listener(FreeListener listener) noexcept {
  free_listener.store(listener, std::memory_order_release);
}

void* take_block(c10::DeviceIndex device, size_t bytes) {
  do_pending_work();
  HbmPool& pool = hbm(device);
  void* pointer = pool.allocate(bytes);
  // The block, not what was asked for: what is freed later is the block.
  if (pointer != nullptr && c10::memoryProfilingEnabled())
    report(pointer, int64_t(pool.block_bytes(pointer)), pool, device);
  return pointer;
}

void give_block_back(void* pointer) {
  if (const FreeListener listener = free_listener.load(std::memory_order_acquire))
    listener(pointer);
  if (pointer != nullptr && c10::memoryProfilingEnabled()) {
    const auto device = c10::DeviceIndex(hbm_device_of(pointer));
    const HbmPool& pool = hbm(device);
    report(pointer, -int64_t(pool.block_bytes(pointer)), pool, device);
  }
  hbm_free(pointer);
}

namespace {

using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;

void fill(StatArray& array, size_t current, size_t peak, size_t allocated, size_t freed) {
  Stat& stat = array[size_t(c10::CachingAllocator::StatType::AGGREGATE)];
  stat.current = int64_t(current);
  stat.peak = int64_t(peak);
  stat.allocated = int64_t(allocated);
  stat.freed = int64_t(freed);
}

class TrnAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::DeviceIndex device = current_device();
    if (host().foreign) return allocate_on_host(bytes, device);
    void* pointer = take_block(device, bytes);
    return {pointer, pointer, &give_block_back, c10::Device(kTrn, device)};
  }
  // A raw block says nothing of the host's own allocator.
  c10::DeleterFnPtr raw_deleter() const override {
    return host().foreign ? nullptr : &give_block_back;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    if (host().foreign)
      c10::GetAllocator(host().type)->copy_data(to, from, bytes);
    else
      default_copy_data(to, from, bytes);
  }

  // Copy-on-write may take a counted piece over with its context.
  bool is_simple_data_ptr(const c10::DataPtr& pointer) const override {
    return pointer.get() == pointer.get_context() || has_accounting_block(pointer);
  }

  bool initialized() override { return device_count() > 0; }
  void emptyCache(c10::MempoolId_t) override {
    for (int device = 0; device < device_count(); ++device) {
      if (hbm_in_use(device)) hbm(device).empty_cache();
    }
  }
  // Kernels finish before they return, so a block is never in use by a stream after its tensor is
  // gone.
  void recordStream(const c10::DataPtr&, c10::Stream) override {}

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    const HbmStats s = hbm(device).stats();
    c10::CachingDeviceAllocator::DeviceStats out;
    fill(out.allocation, size_t(s.blocks), size_t(s.blocks_peak), size_t(s.allocations),
         size_t(s.frees));
    out.active = out.allocation;
    fill(out.allocated_bytes, s.allocated, s.allocated_peak, s.total_allocated, s.total_freed);
    out.active_bytes = out.requested_bytes = out.allocated_bytes;
    fill(out.reserved_bytes, s.reserved, s.reserved_peak, s.reserved_peak,
         s.reserved_peak - s.reserved);
    out.num_ooms = s.ooms;
    out.num_alloc_retries = s.retries;
    return out;
  }
  void resetAccumulatedStats(c10::DeviceIndex device) override { hbm(device).reset_accumulated(); }
  void resetPeakStats(c10::DeviceIndex device) override { hbm(device).reset_peak(); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    const HbmStats s = hbm(device).stats();
    return {s.capacity - s.allocated, s.capacity};
  }
};

c10::Allocator* host_allocator = nullptr;  // the one in place before ours

void give_back_any(void* pointer) {
  if (hbm_device_of(pointer) >= 0)
    give_block_back(pointer);
  else
    host_allocator->raw_deleter()(pointer);
}

class DelegatingHostAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::DeviceIndex device = InHbm::current();
    if (device < 0) return host_allocator->allocate(bytes);
    void* pointer = take_block(device, bytes);
    return {pointer, pointer, &give_block_back, c10::Device(c10::DeviceType::CPU)};
  }
  bool is_simple_data_ptr(const c10::DataPtr& pointer) const override {
    return pointer.get() == pointer.get_context() || host_allocator->is_simple_data_ptr(pointer);
  }
  // Raw blocks may come from either side; without a raw interface below, there is none here.
  c10::DeleterFnPtr raw_deleter() const override {
    return host_allocator->raw_deleter() != nullptr ? &give_back_any : nullptr;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

c10::DeviceAllocator* device_allocator() {
  static auto* allocator = new TrnAllocator;  // torch keeps the pointer until the process ends
  return allocator;
}

void install_allocators() {
  c10::SetAllocator(kTrn, device_allocator());
  host_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(new DelegatingHostAllocator, /*priority=*/255);
}

}  // namespace trn
