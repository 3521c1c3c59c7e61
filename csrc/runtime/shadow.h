// Memory that the host's own allocator gave, counted as emulated HBM: each piece has a shadow block
// in the core's pool, of the same size, whose addresses nothing touches. Capacity, statistics and
// the out-of-memory error are then those of the pool.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

namespace trn {

// `memory` with a shadow on core `device`; throws c10::OutOfMemoryError beyond its capacity.
c10::DataPtr with_shadow(c10::DataPtr memory, size_t bytes, c10::DeviceIndex device);

// `bytes` of the host's memory for a tensor on core `device`.
c10::DataPtr allocate_on_host(size_t bytes, c10::DeviceIndex device);

bool is_shadowed(const c10::DataPtr& memory) noexcept;

// The core whose tensor holds `pointer`, -1 for none.
int shadow_device_of(const void* pointer) noexcept;

}  // namespace trn
