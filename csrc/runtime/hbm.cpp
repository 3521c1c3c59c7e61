// A best-fit pool of 64 KiB granules with slabs for blocks up to 256 KiB.
//
// Blocks are reused lowest address first, so a training loop finds its pages warm.
#include "hbm.h"

#include "device.h"
#include "device_name.h"
#include "host.h"

#include <c10/util/Exception.h>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <sstream>
#include <unordered_set>

namespace trn {
namespace {

constexpr size_t kGranule = size_t{64} << 10;
constexpr uint32_t kSlabGranules = 32;  // 2 MiB, the size of a huge page
constexpr size_t kSmallLimit = size_t{256} << 10;
constexpr size_t kQuantum = 64;
constexpr size_t kHostMargin = size_t{512} << 20;     // left to the rest of the process
constexpr size_t kNearlyFull = 90;                    // percent of the capacity, for a warning
constexpr size_t kHostCheckEvery = size_t{64} << 20;  // growth between two looks at host memory

struct SizeClasses {
  std::vector<size_t> bytes;
  std::array<uint8_t, kSmallLimit / kQuantum + 1> of_quanta{};

  SizeClasses() {
    for (size_t step = kQuantum, size = kQuantum; size <= kSmallLimit;) {
      bytes.push_back(size);
      if (size >= 8 * step && (size & (size - 1)) == 0) step = size / 4;
      size += step;
    }
    for (size_t quanta = 0, c = 0; quanta < of_quanta.size(); ++quanta) {
      while (bytes[c] < quanta * kQuantum) ++c;
      of_quanta[quanta] = uint8_t(c);
    }
  }
};

const SizeClasses& classes() {
  static const SizeClasses table;
  return table;
}

size_t read_number(const char* path, const char* key = nullptr) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (key == nullptr || word == key) {
      size_t value = 0;
      if (key == nullptr) return std::strtoull(word.c_str(), nullptr, 10);
      if (file >> value) return value;
    }
  }
  return 0;
}

std::atomic<size_t> assumed_host_memory{SIZE_MAX};
std::atomic<HbmListener> hbm_listener{nullptr};

void tell(int device, const void* block, int64_t bytes) noexcept {
  if (const HbmListener listener = hbm_listener.load(std::memory_order_acquire))
    listener(device, block, bytes);
}

// Bytes the host can still give this process; the smaller of the machine's and the container's
// answer.
size_t host_available() {
  if (const size_t assumed = assumed_host_memory.load(); assumed != SIZE_MAX) return assumed;
  size_t available = read_number("/proc/meminfo", "MemAvailable:") << 10;
  if (available == 0) return SIZE_MAX;  // not Linux: let the host decide
  if (const size_t limit = read_number("/sys/fs/cgroup/memory.max")) {
    const size_t used = read_number("/sys/fs/cgroup/memory.current");
    const size_t cache = read_number("/sys/fs/cgroup/memory.stat", "inactive_file");
    available = std::min(available, limit + cache > used ? limit + cache - used : 0);
  }
  return available;
}

std::string human(size_t bytes) {
  std::ostringstream out;
  out.precision(2);
  out << std::fixed;
  if (bytes >= (size_t{1} << 30))
    out << double(bytes) / double(1 << 30) << " GiB";
  else if (bytes >= (size_t{1} << 20))
    out << double(bytes) / double(1 << 20) << " MiB";
  else
    out << double(bytes) / 1024.0 << " KiB";
  return out.str();
}

// A warning may become an exception in Python: nothing may be lost then, so the block comes first.
void warn_nearly_full(int device, size_t allocated, size_t capacity) {
  TORCH_WARN(device_name(device), " is nearly out of memory: ", human(allocated), " of ",
             human(capacity),
             " are allocated. Beyond that torch.OutOfMemoryError is raised: use a ",
             "smaller batch, activation checkpointing or another device index. This warning is "
             "issued once; torch.",
             device_name(), ".memory_summary() shows the whole table.");
}

}  // namespace

HbmPool::HbmPool(int device, char* base, size_t virtual_bytes, size_t capacity)
    : device_(device),
      base_(base),
      granule_count_(uint32_t(virtual_bytes / kGranule)),
      granules_(static_cast<Granule*>(std::calloc(granule_count_, sizeof(Granule)))),
      small_free_(classes().bytes.size()),
      limit_(capacity) {
  TORCH_CHECK(granules_ != nullptr, device_name(), ": no host memory for the HBM tables");
  stats_.capacity = capacity;
  mark(0, granule_count_, Kind::kFree);
  free_runs_.emplace(granule_count_, 0);
}

void HbmPool::mark(uint32_t first, uint32_t length, Kind kind) {
  for (uint32_t end : {first, first + length - 1}) {
    granules_[end].run = length;
    granules_[end].kind = kind;
  }
}

size_t HbmPool::unbacked(uint32_t first, uint32_t length) const {
  size_t count = 0;
  for (uint32_t g = first; g < first + length; ++g) count += !granules_[g].backed;
  return count * kGranule;
}

uint32_t HbmPool::take_run(uint32_t length, Kind kind, size_t asked) {
  auto fit = free_runs_.lower_bound({length, 0});
  if (fit == free_runs_.end()) throw_hbm_full(asked);
  const auto [run, first] = *fit;
  const size_t grow = unbacked(first, length);
  if (grow > 0) {
    if (stats_.reserved + grow > stats_.capacity) {
      ++stats_.retries;
      trim();
    }
    if (!host_can_back(grow)) throw_host_full(asked);
  }
  free_runs_.erase({run, first});
  if (run > length) {
    mark(first + length, run - length, Kind::kFree);
    free_runs_.emplace(run - length, first + length);
  }
  mark(first, length, kind);
  stats_.reserved += unbacked(first, length);
  stats_.reserved_peak = std::max(stats_.reserved_peak, stats_.reserved);
  for (uint32_t g = first; g < first + length; ++g) granules_[g].backed = true;
  return first;
}

void HbmPool::give_back_run(uint32_t first) {
  uint32_t length = granules_[first].run;
  const uint32_t next = first + length;
  if (next < granule_count_ && granules_[next].kind == Kind::kFree) {
    free_runs_.erase({granules_[next].run, next});
    length += granules_[next].run;
  }
  if (first > 0 && granules_[first - 1].kind == Kind::kFree) {
    const uint32_t before = granules_[first - 1].run;
    first -= before;
    free_runs_.erase({before, first});
    length += before;
  }
  mark(first, length, Kind::kFree);
  free_runs_.emplace(length, first);
}

void HbmPool::refill(uint8_t size_class, size_t asked) {
  const uint32_t first = take_run(kSlabGranules, Kind::kSlab, asked);
  for (uint32_t g = first; g < first + kSlabGranules; ++g) {
    granules_[g].kind = Kind::kSlab;
    granules_[g].slab = first;
    granules_[g].size_class = size_class;
  }
  granules_[first].live = 0;
  const size_t block = classes().bytes[size_class];
  char* const slab = base_ + size_t{first} * kGranule;
  auto& list = small_free_[size_class];
  for (size_t n = kSlabGranules * kGranule / block; n-- > 0;) list.push_back(slab + n * block);
}

HbmPool::Granule& HbmPool::granule_of(const void* pointer) const {
  return granules_[size_t(static_cast<const char*>(pointer) - base_) / kGranule];
}

void* HbmPool::take_small(uint8_t size_class, size_t asked) {
  auto& list = small_free_[size_class];
  if (list.empty()) refill(size_class, asked);
  void* pointer = list.back();
  list.pop_back();
  ++granules_[granule_of(pointer).slab].live;
  return pointer;
}

void* HbmPool::allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  std::unique_lock<std::mutex> lock(mutex_);
  if (bytes > limit_) throw_hbm_full(bytes);
  const bool small = bytes <= kSmallLimit;
  const uint8_t size_class =
      small ? classes().of_quanta[(bytes + kQuantum - 1) / kQuantum] : uint8_t{0};
  const uint32_t length = uint32_t((bytes + kGranule - 1) / kGranule);
  const size_t block = small ? classes().bytes[size_class] : length * kGranule;
  if (stats_.allocated + block > limit_) throw_hbm_full(bytes);
  void* pointer = small ? take_small(size_class, bytes)
                        : base_ + size_t{take_run(length, Kind::kLarge, bytes)} * kGranule;
  stats_.allocated += block;
  stats_.allocated_peak = std::max(stats_.allocated_peak, stats_.allocated);
  stats_.total_allocated += block;
  ++stats_.allocations;
  stats_.blocks_peak = std::max(stats_.blocks_peak, ++stats_.blocks);
  tell(device_, pointer, int64_t(block));
  const bool warn = !warned_ && stats_.allocated > stats_.capacity / 100 * kNearlyFull;
  warned_ |= warn;
  const size_t allocated = stats_.allocated;
  lock.unlock();
  if (warn) warn_nearly_full(device_, allocated, stats_.capacity);
  return pointer;
}

void HbmPool::free(void* pointer) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  Granule& granule = granule_of(pointer);
  size_t block = 0;
  if (granule.kind == Kind::kSlab) {
    block = classes().bytes[granule.size_class];
    --granules_[granule.slab].live;
    small_free_[granule.size_class].push_back(pointer);
  } else {
    block = granule.run * kGranule;
    give_back_run(uint32_t(&granule - granules_.get()));
  }
  tell(device_, pointer, -int64_t(block));
  stats_.allocated -= block;
  stats_.total_freed += block;
  ++stats_.frees;
  --stats_.blocks;
}

size_t HbmPool::block_bytes(const void* pointer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const Granule& granule = granule_of(pointer);
  return granule.kind == Kind::kSlab ? classes().bytes[granule.size_class] : granule.run * kGranule;
}

// Frees empty slabs, then hands the pages of every free run back to the host.
void HbmPool::trim() {
  std::vector<uint32_t> empty;
  for (auto& list : small_free_) {
    auto kept = std::remove_if(list.begin(), list.end(), [&](void* pointer) {
      const uint32_t slab = granule_of(pointer).slab;
      if (granules_[slab].live > 0) return false;
      if (empty.empty() || empty.back() != slab) empty.push_back(slab);
      return true;
    });
    list.erase(kept, list.end());
  }
  std::sort(empty.begin(), empty.end());
  empty.erase(std::unique(empty.begin(), empty.end()), empty.end());
  for (uint32_t slab : empty) give_back_run(slab);
  for (const auto& [length, first] : free_runs_) {
    const size_t held = length * kGranule - unbacked(first, length);
    if (held == 0) continue;
    madvise(base_ + size_t{first} * kGranule, size_t{length} * kGranule, MADV_DONTNEED);
    for (uint32_t g = first; g < first + length; ++g) granules_[g].backed = false;
    stats_.reserved -= held;
  }
  host_checked_ = stats_.reserved;
}

void HbmPool::empty_cache() {
  std::lock_guard<std::mutex> lock(mutex_);
  trim();
}

// Reads the host's free memory once for each kHostCheckEvery bytes of growth.
bool HbmPool::host_can_back(size_t bytes) {
  if (host().foreign) return true;  // accounting blocks only
  if (stats_.reserved + bytes < host_checked_ + kHostCheckEvery) return true;
  if (bytes + kHostMargin > host_available()) {
    trim();
    if (bytes + kHostMargin > host_available()) return false;
  }
  host_checked_ = stats_.reserved;
  return true;
}

HbmStats HbmPool::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void HbmPool::reset_peak() {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.allocated_peak = stats_.allocated;
  stats_.reserved_peak = stats_.reserved;
  stats_.blocks_peak = stats_.blocks;
}

void HbmPool::reset_accumulated() {
  std::lock_guard<std::mutex> lock(mutex_);
  stats_.total_allocated = stats_.total_freed = 0;
  stats_.allocations = stats_.frees = stats_.ooms = stats_.retries = 0;
}

void HbmPool::set_limit(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  limit_ = std::min(bytes, stats_.capacity);
}

size_t HbmPool::limit() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return limit_;
}

std::vector<HbmSegment> HbmPool::segments() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::unordered_set<const void*> unused;
  for (const auto& list : small_free_) unused.insert(list.begin(), list.end());
  std::vector<HbmSegment> found;
  for (uint32_t g = 0; g < granule_count_; g += granules_[g].run) {
    const Granule& granule = granules_[g];
    const char* const begin = base_ + size_t{g} * kGranule;
    HbmSegment segment{uintptr_t(begin), granule.run * kGranule, 0, {}};
    if (granule.kind == Kind::kLarge) {
      segment.block_bytes = segment.bytes;
      segment.live = {true};
    } else if (granule.kind == Kind::kSlab) {
      segment.block_bytes = classes().bytes[granule.size_class];
      for (size_t n = 0; n < segment.bytes / segment.block_bytes; ++n) {
        segment.live.push_back(unused.count(begin + n * segment.block_bytes) == 0);
      }
    } else {
      segment.bytes -= unbacked(g, granule.run);  // what is cached of a free run
    }
    if (segment.bytes > 0) found.push_back(std::move(segment));
  }
  return found;
}

std::vector<std::pair<size_t, int64_t>> HbmPool::live_blocks(size_t limit) const {
  std::map<size_t, int64_t, std::greater<>> count;
  for (uint32_t g = 0; g < granule_count_; g += granules_[g].run) {
    const Granule& granule = granules_[g];
    if (granule.kind == Kind::kLarge) ++count[granule.run * kGranule];
    if (granule.kind == Kind::kSlab && granule.live > 0) {
      count[classes().bytes[granule.size_class]] += granule.live;
    }
  }
  std::vector<std::pair<size_t, int64_t>> rows(count.begin(), count.end());
  rows.resize(std::min(rows.size(), limit));
  return rows;
}

void HbmPool::throw_hbm_full(size_t asked) {
  ++stats_.ooms;
  std::ostringstream out;
  out << device_name(device_) << " is out of memory. Tried to allocate " << human(asked)
      << ". The logical core has " << human(stats_.capacity) << " of HBM (" << config().name
      << "), of which " << human(stats_.allocated) << " is allocated by PyTorch in "
      << stats_.blocks << " blocks and " << human(stats_.capacity - stats_.allocated) << " is free";
  if (limit_ < stats_.capacity)
    out << "; set_per_process_memory_fraction allows " << human(limit_) << " of it";
  out << ". Largest blocks:";
  for (const auto& [bytes, count] : live_blocks(5))
    out << " " << count << " x " << human(bytes) << ";";
  out << " use a smaller batch, activation checkpointing or another device index. torch."
      << device_name() << ".memory_summary() shows the whole table.";
  TORCH_CHECK_WITH(OutOfMemoryError, false, out.str());
}

void HbmPool::throw_host_full(size_t asked) {
  TORCH_CHECK_WITH(
      OutOfMemoryError, false, "The host has not enough memory to back the emulated HBM of ",
      device_name(device_), ": tried to allocate ", human(asked), ", the host has ",
      human(host_available()), " available, of which ", human(kHostMargin),
      " is kept free; the emulated core itself has ", human(stats_.capacity - stats_.allocated),
      " free. Run on a host with more memory, or make the model or batch smaller.");
}

namespace {

// One reservation for all cores, made once; slices are as large as the host's address space allows.
class Reservation {
 public:
  static Reservation& instance() {
    static Reservation reservation;
    return reservation;
  }

  int device_of(const void* pointer) const noexcept {
    const char* const base = base_.load(std::memory_order_acquire);
    if (base == nullptr) return -1;  // else the sizes, stored before it, are there
    const size_t offset = size_t(static_cast<const char*>(pointer) - base);
    return offset < total_ ? int(offset / slice_) : -1;
  }

  bool in_use(int device) const noexcept { return pools_[size_t(device)].load() != nullptr; }

  HbmPool& pool(int device) {
    check_index(device);
    HbmPool* pool = pools_[size_t(device)].load(std::memory_order_acquire);
    return pool != nullptr ? *pool : make(device);
  }

 private:
  HbmPool& make(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (total_ == 0) reserve();
    auto& slot = pools_[size_t(device)];
    if (slot.load() == nullptr) {
      char* const base = base_.load() + size_t(device) * slice_;
      slot.store(
          new HbmPool(device, base, slice_, config().hbm_bytes));  // lives as long as the process
    }
    return *slot.load();
  }

  void reserve() {
    watch_forks();
    const size_t count = size_t(device_count());
    // Twice the capacity leaves room for fragmentation; fall back where address space is limited.
    for (size_t scale : {8, 4, 2, 1}) {
      const size_t slice = (config().hbm_bytes * scale / 4 + kGranule - 1) / kGranule * kGranule;
      void* base = mmap(nullptr, slice * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (base == MAP_FAILED) continue;
      madvise(base, slice * count, MADV_HUGEPAGE);
      slice_ = slice;
      total_ = slice * count;
      base_.store(static_cast<char*>(base), std::memory_order_release);  // publishes the sizes
      return;
    }
    TORCH_CHECK_WITH(OutOfMemoryError, false, "The host gives no address space for ", count,
                     " emulated HBMs of ", human(config().hbm_bytes),
                     ": raise `ulimit -v`, or set NEURON_RT_NUM_CORES=1.");
  }

  std::mutex mutex_;
  std::atomic<char*> base_{nullptr};
  size_t slice_ = 1;
  size_t total_ = 0;
  std::array<std::atomic<HbmPool*>, kMaxDevices> pools_{};
};

}  // namespace

HbmPool& hbm(int device) { return Reservation::instance().pool(device); }
bool hbm_in_use(int device) noexcept { return Reservation::instance().in_use(device); }
int hbm_device_of(const void* pointer) noexcept {
  return Reservation::instance().device_of(pointer);
}

void set_hbm_listener(HbmListener listener) noexcept {
  hbm_listener.store(listener, std::memory_order_release);
}

void assume_host_memory(size_t bytes) noexcept { assumed_host_memory.store(bytes); }

void hbm_free(void* pointer) noexcept {
  if (pointer != nullptr) Reservation::instance().pool(hbm_device_of(pointer)).free(pointer);
}

}  // namespace trn
