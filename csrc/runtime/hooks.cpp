// Device hooks and the pinned-memory allocator. Pinned memory is host memory that remembers it is
// pinned.
#include "hooks.h"

#include "accounting_block.h"
#include "allocator.h"
#include "device_name.h"
#include "generator.h"
#include "hbm.h"
#include "host.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <mutex>

namespace trn {
namespace {

class PinnedAllocator final : public at::HostAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = c10::GetDefaultCPUAllocator()->allocate(bytes);
    if (bytes == 0) return memory;
    void* pointer = memory.release_context();
    std::lock_guard<std::mutex> lock(mutex_);
    live_.emplace(pointer, bytes);
    stats_.allocations.increase(1);
    stats_.allocated_bytes.increase(bytes);
    return {pointer, pointer, &free_pinned, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  bool holds(const void* pointer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto after = live_.upper_bound(const_cast<void*>(pointer));
    if (after == live_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return pointer < static_cast<char*>(begin) + bytes;
  }

  bool record_event(void*, void*, c10::Stream) override {
    return true;
  }  // copies finish before they return
  void empty_cache() override {}
  at::HostStats get_stats() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }
  void reset_accumulated_stats() override {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.allocations.reset_accumulated();
    stats_.allocated_bytes.reset_accumulated();
  }
  void reset_peak_stats() override {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.allocations.reset_peak();
    stats_.allocated_bytes.reset_peak();
  }

 private:
  static void free_pinned(void* pointer);
  void forget(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = live_.find(pointer);
    stats_.allocations.decrease(1);
    stats_.allocated_bytes.decrease(found->second);
    live_.erase(found);
  }
  mutable std::mutex mutex_;
  std::map<void*, size_t> live_;
  at::HostStats stats_;
};

PinnedAllocator& pinned() {
  static auto* allocator = new PinnedAllocator;
  return *allocator;
}

void PinnedAllocator::free_pinned(void* pointer) {
  if (pointer == nullptr) return;
  pinned().forget(pointer);
  c10::GetDefaultCPUAllocator()->raw_deleter()(pointer);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return trn::device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex device) const override { return hbm_in_use(device); }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override { return c10::DeviceIndex(trn::device_count()); }
  void setCurrentDevice(c10::DeviceIndex device) const override { exchange_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return exchange_device(device);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? current_device() : exchange_device(device);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return new_generator(device);
  }
  at::Device getDeviceFromPtr(void* data) const override {
    const int device = host().foreign ? device_of_accounting_block(data) : hbm_device_of(data);
    TORCH_CHECK(device >= 0, "The pointer does not lie in the emulated HBM of any ", device_name(),
                " device");
    return c10::Device(kTrn, c10::DeviceIndex(device));
  }
  bool isPinnedPtr(const void* data) const override { return pinned().holds(data); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    TORCH_CHECK(impl->resizable(), "Trying to resize storage that is not resizable");
    const c10::DeviceIndex device = impl->device().index();
    const InHbm scope(device);
    c10::DataPtr memory =
        host().foreign ? allocate_on_host(bytes, device) : c10::GetAllocator(kCpu)->allocate(bytes);
    memory.unsafe_set_device(impl->device());
    if (bytes > 0 && impl->nbytes() > 0)
      device_allocator()->copy_data(memory.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(memory));
    impl->set_nbytes(bytes);
  }
};

}  // namespace

void register_hooks() {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  at::setHostAllocator(kTrn, &pinned());
}

}  // namespace trn
