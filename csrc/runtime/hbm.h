// The emulated HBM: one reserved address range, a caching pool for each logical core in it.
//
// Addresses of all cores lie in one reservation, so "is this pointer ours, and whose" is a
// subtraction. The host backs memory only when it is touched; freed blocks keep their pages until
// empty_cache().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace trn {

struct HbmStats {
  size_t capacity = 0;
  size_t allocated = 0, allocated_peak = 0;  // bytes in blocks handed out, rounded to block sizes
  size_t reserved = 0, reserved_peak = 0;    // bytes the pool holds of the host, used or cached
  size_t total_allocated = 0, total_freed = 0;
  int64_t blocks = 0, blocks_peak = 0;
  int64_t allocations = 0, frees = 0, ooms = 0, retries = 0;
};

// A run of memory that the pool holds of the host: equal blocks, each handed out or not.
struct HbmSegment {
  uintptr_t address;
  size_t bytes;
  size_t block_bytes;
  std::vector<bool> live;  // by block; empty for a run that is only cached
};

class HbmPool {
 public:
  HbmPool(int device, char* base, size_t virtual_bytes, size_t capacity);

  void* allocate(size_t bytes);  // 64-byte aligned; throws c10::OutOfMemoryError
  void free(void* pointer) noexcept;
  size_t block_bytes(const void* pointer) const;
  void empty_cache();  // returns the pages of free blocks to the host

  HbmStats stats() const;
  void reset_peak();
  void reset_accumulated();
  void set_limit(size_t bytes);  // of what may be allocated in sum; the capacity at first
  size_t limit() const;
  std::vector<HbmSegment> segments() const;  // in order of address
  // Live blocks as (bytes, count), largest first, at most `limit` rows.
  std::vector<std::pair<size_t, int64_t>> live_blocks(size_t limit) const;

 private:
  // A run of 64 KiB granules is free, one large block, or a slab of equal small blocks. A run's
  // length stands at its first and last granule, so neighbours coalesce without a search.
  enum class Kind : uint8_t { kFree, kLarge, kSlab };
  struct Granule {
    uint32_t run;
    uint32_t slab;  // of every granule of a slab: its first granule
    uint32_t live;  // of a slab's first granule: blocks handed out
    Kind kind;
    uint8_t size_class;
    bool backed;  // touched since the last trim
  };
  struct CFree {
    void operator()(void* p) const noexcept { std::free(p); }
  };

  uint32_t take_run(uint32_t length, Kind kind, size_t asked);
  void* take_small(uint8_t size_class, size_t asked);
  void give_back_run(uint32_t first);
  void mark(uint32_t first, uint32_t length, Kind kind);
  void refill(uint8_t size_class, size_t asked);
  void trim();
  bool host_can_back(size_t bytes);
  size_t unbacked(uint32_t first, uint32_t length) const;
  [[noreturn]] void throw_hbm_full(size_t asked);
  [[noreturn]] void throw_host_full(size_t asked);
  Granule& granule_of(const void* pointer) const;

  const int device_;
  char* const base_;
  const uint32_t granule_count_;
  mutable std::mutex mutex_;
  std::unique_ptr<Granule[], CFree> granules_;
  std::set<std::pair<uint32_t, uint32_t>> free_runs_;  // (length, first): best fit, lowest address
  std::vector<std::vector<void*>> small_free_;         // by size class
  size_t limit_;
  bool warned_ = false;      // that it is nearly full
  size_t host_checked_ = 0;  // reserved bytes when host memory was last read
  HbmStats stats_;
};

HbmPool& hbm(int device);  // made on first use
bool hbm_in_use(int device) noexcept;
int hbm_device_of(const void* pointer) noexcept;  // -1: not emulated HBM
void hbm_free(void* pointer) noexcept;            // nullptr is allowed

// Told of every block that is taken (bytes > 0) or given back (bytes < 0), in order.
using HbmListener = void (*)(int device, const void* block, int64_t bytes) noexcept;
void set_hbm_listener(HbmListener listener) noexcept;  // null: nobody

// For tests: from now on the host is taken to have `bytes` available; SIZE_MAX asks it again.
void assume_host_memory(size_t bytes) noexcept;

}  // namespace trn
