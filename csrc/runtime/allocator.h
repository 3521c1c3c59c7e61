// torch's two allocators over the emulated HBM: that of the trn device, and the host's, which
// serves from HBM while the calling thread runs a trn kernel.
#pragma once

#include "device.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace trn {

c10::DeviceAllocator* device_allocator();
void install_allocators();  // once, at load

// A block of a core's pool, which the profiler is told of.
void* take_block(c10::DeviceIndex device, size_t bytes);
void give_block_back(void* block);

// While one lives, host allocations of this thread land in the HBM of `device`. Nothing on a
// foreign host, whose memory is counted when a result is taken over.
class InHbm {
 public:
  explicit InHbm(c10::DeviceIndex device) noexcept;
  ~InHbm() { target = previous_; }
  InHbm(const InHbm&) = delete;
  InHbm& operator=(const InHbm&) = delete;

  static c10::DeviceIndex current() noexcept { return target; }

 private:
  static thread_local c10::DeviceIndex target;
  c10::DeviceIndex previous_;
};

}  // namespace trn
