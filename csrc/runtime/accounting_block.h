// Memory that the host's own allocator gave, counted as emulated HBM: each piece has an accounting
// block in the core's pool, of the same size, whose addresses nothing touches. Capacity, statistics
// and the out-of-memory error are then those of the pool.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

namespace trn {

// `memory` with an accounting block on core `device`; throws c10::OutOfMemoryError beyond its
// capacity.
c10::DataPtr with_accounting_block(c10::DataPtr memory, size_t bytes, c10::DeviceIndex device);

// `bytes` of the host's memory for a tensor on core `device`.
c10::DataPtr allocate_on_host(size_t bytes, c10::DeviceIndex device);

bool has_accounting_block(const c10::DataPtr& memory) noexcept;

// The core whose tensor holds `pointer`, -1 for none.
int device_of_accounting_block(const void* pointer) noexcept;

}  // namespace trn
