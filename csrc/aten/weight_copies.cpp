// See weight_copies.h. One table for all cores, by address; what is not in it costs a load.
#include "weight_copies.h"

#include "numerics/packed.h"
#include "numerics/round_operand.h"
#include "operands.h"
#include "runtime/allocator.h"
#include "runtime/free_listener.h"
#include "runtime/hbm.h"
#include "runtime/host.h"
#include "runtime/pending_work.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/StorageImpl.h>

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace trn {
namespace {

constexpr int64_t kLeastElements = 1 << 15;  // smaller ones are rounded in no time
constexpr int64_t kMostBytes = int64_t{1} << 30;
constexpr int64_t kIdleLookups = 4096;
constexpr size_t kMostMatrices = 4096;
constexpr size_t kSamples = 64;

using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;
using Samples = std::array<uint32_t, kSamples>;

// One matrix in one format.
struct Copy {
  OperandFormat format;
  int k_axis;
  int64_t panel_columns;  // 0: as the matrix lies
  at::ScalarType dtype;
  std::array<int64_t, 5> layout;  // sizes, strides, offset
  uint32_t version;
  bool impossible = false;  // its values are no bfloat16
  Samples samples{};
  at::Tensor rounded;
  int64_t used = 0;  // the look-up

  int64_t bytes() const { return rounded.defined() ? int64_t(rounded.nbytes()) : 0; }
};

struct Memory {
  uintptr_t end;
  const c10::StorageImpl* impl;
  WeakStorage storage;
  std::vector<Copy> copies;
};

struct Table {
  std::mutex mutex;
  std::map<uintptr_t, Memory> memory;  // by address
  std::multimap<uintptr_t, uintptr_t> lent;
  CopyCounts counts;
  int64_t lookups = 0;
  std::atomic<bool> any{false};
};

Table& table() {
  static Table* instance = new Table;  // tensors may outlive what is destroyed at exit
  return *instance;
}

using Entry = std::map<uintptr_t, Memory>::iterator;

void drop(Table& t, Copy& copy) {
  if (!copy.rounded.defined()) return;
  t.counts.bytes -= copy.bytes();
  --t.counts.copies;
  copy.rounded = at::Tensor();
}

Entry drop(Table& t, Entry entry) {
  for (Copy& copy : entry->second.copies) drop(t, copy);
  return t.memory.erase(entry);
}

void drop_overlapping(Table& t, uintptr_t begin, uintptr_t end) {
  auto entry = t.memory.lower_bound(begin);
  if (entry != t.memory.begin() && std::prev(entry)->second.end > begin) --entry;
  while (entry != t.memory.end() && entry->first < end) entry = drop(t, entry);
  if (t.memory.empty()) t.any = false;
}

bool is_lent(const Table& t, uintptr_t begin, uintptr_t end) {
  for (const auto& [from, to] : t.lent) {
    if (from < end && begin < to) return true;
  }
  return false;
}

Samples samples_of(const at::Tensor& weight) {
  const auto* memory = static_cast<const char*>(weight.const_data_ptr());
  const size_t last = size_t(weight.nbytes()) - sizeof(uint32_t);
  Samples samples;
  for (size_t i = 0; i < kSamples; ++i)
    std::memcpy(&samples[i], memory + last * i / (kSamples - 1), sizeof(uint32_t));
  return samples;
}

// Makes room for `bytes`, or says that there is none.
bool has_room(Table& t, int64_t bytes) {
  if (t.counts.bytes + bytes <= kMostBytes) return true;
  for (auto& [begin, memory] : t.memory)
    for (Copy& copy : memory.copies)
      if (t.lookups - copy.used > kIdleLookups) drop(t, copy);
  return t.counts.bytes + bytes <= kMostBytes;
}

numerics::Operand operand_of(const at::Tensor& weight, OperandFormat format) {
  return {weight.const_data_ptr(), numerics_dtype(weight.scalar_type()),           weight.stride(0),
          weight.stride(1),        operand_rounding(format, weight.scalar_type()), 0};
}

// Undefined where its values are no bfloat16.
at::Tensor rounded_as_it_lies(const Copy& copy, const at::Tensor& weight) {
  at::Tensor rounded = at::empty_strided(weight.sizes(), weight.strides(),
                                         at::dtype(at::kBFloat16).device(at::kCPU));
  const bool made =
      numerics::round_operand(weight.size(0), weight.size(1), operand_of(weight, copy.format),
                              copy.k_axis, rounded.mutable_data_ptr());
  return made ? rounded : at::Tensor();
}

at::Tensor packed(const Copy& copy, const at::Tensor& weight) {
  const int64_t k = weight.size(0), n = weight.size(1);
  at::Tensor words =
      at::empty({numerics::packed_words(k, n)}, at::dtype(at::kInt).device(at::kCPU));
  auto* to = static_cast<uint32_t*>(words.mutable_data_ptr());
  const bool made = numerics::pack_matrix(k, n, operand_of(weight, copy.format), to);
  return made ? words : at::Tensor();
}

void make(Table& t, Copy& copy, const at::Tensor& weight) {
  if (!has_room(t, weight.numel() * int64_t{sizeof(uint16_t)})) return;
  const InHbm of_the_host(-1);
  copy.samples = samples_of(weight);
  at::Tensor rounded =
      copy.panel_columns > 0 ? packed(copy, weight) : rounded_as_it_lies(copy, weight);
  copy.impossible = !rounded.defined();
  if (copy.impossible) return;
  copy.rounded = std::move(rounded);
  t.counts.bytes += copy.bytes();
  ++t.counts.copies;
}

// Whether a copy would save anything, and the memory is one that tells of what happens to it.
bool is_worth_it(const at::Tensor& weight, OperandFormat format, bool packs) {
  const auto kind = operand_rounding(format, weight.scalar_type()).kind;
  const bool rounds = kind == numerics::OperandRounding::Kind::bfloat16 ||
                      kind == numerics::OperandRounding::Kind::mx;
  if (!rounds && !(packs && weight.scalar_type() == at::kBFloat16)) return false;
  if (weight.dim() != 2 || weight.numel() < kLeastElements || weight.is_neg() || host().foreign)
    return false;
  const bool dense = (weight.stride(1) == 1 && weight.stride(0) == weight.size(1)) ||
                     (weight.stride(0) == 1 && weight.stride(1) == weight.size(0));
  return dense && weight.unsafeGetTensorImpl()->has_storage() &&
         hbm_device_of(weight.storage().data()) >= 0;
}

Memory& memory_of(Table& t, const c10::Storage& storage, uintptr_t begin, uintptr_t end) {
  auto* impl = storage.unsafeGetStorageImpl();
  if (const auto found = t.memory.find(begin); found != t.memory.end()) {
    if (found->second.impl == impl && found->second.end == end) return found->second;
  }
  drop_overlapping(t, begin, end);
  if (t.memory.size() >= kMostMatrices) drop_overlapping(t, 0, UINTPTR_MAX);
  t.any = true;
  return t.memory.emplace(begin, Memory{end, impl, storage.getWeakStorageImpl(), {}}).first->second;
}

at::Tensor copy_of(const at::Tensor& weight, OperandFormat format, int k_axis,
                   int64_t panel_columns) {
  if (!is_worth_it(weight, format, panel_columns > 0)) return {};
  const c10::Storage& storage = weight.storage();
  const auto begin = reinterpret_cast<uintptr_t>(storage.data());
  const uintptr_t end = begin + storage.nbytes();
  const uint32_t version = weight.is_inference() ? 0 : uint32_t(weight._version());
  const std::array layout{weight.size(0), weight.size(1), weight.stride(0), weight.stride(1),
                          weight.storage_offset()};
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  ++t.lookups;
  if (is_lent(t, begin, end)) return {};
  Memory& memory = memory_of(t, storage, begin, end);
  for (Copy& copy : memory.copies) {
    if (copy.format != format || copy.k_axis != k_axis || copy.panel_columns != panel_columns ||
        copy.dtype != weight.scalar_type() || copy.layout != layout)
      continue;
    const bool changed =
        copy.version != version || (copy.rounded.defined() && copy.samples != samples_of(weight));
    copy.used = t.lookups;
    if (changed) {  // from here on it may be read as it is again
      drop(t, copy);
      copy.version = version;
      copy.impossible = false;
      return {};
    }
    if (!copy.rounded.defined() && !copy.impossible) make(t, copy, weight);
    t.counts.uses += copy.rounded.defined();
    return copy.rounded;
  }
  memory.copies.push_back({format,
                           k_axis,
                           panel_columns,
                           weight.scalar_type(),
                           layout,
                           version,
                           false,
                           {},
                           {},
                           t.lookups});
  return {};
}

}  // namespace

at::Tensor rounded_copy(const at::Tensor& weight, OperandFormat format, int k_axis) {
  do_pending_work();
  return copy_of(weight, format, k_axis, 0);
}

at::Tensor packed_copy(const at::Tensor& weight, OperandFormat format) {
  do_pending_work();
  return copy_of(weight, format, 0, numerics::packed_columns());
}

void forget_copies(const void* memory, size_t bytes) noexcept {
  Table& t = table();
  if (bytes == 0 || !t.any.load(std::memory_order_relaxed)) return;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const std::lock_guard lock(t.mutex);
  drop_overlapping(t, begin, begin + bytes);
}

WritableSpan::WritableSpan(const void* memory, size_t bytes)
    : begin_(reinterpret_cast<uintptr_t>(memory)), end_(begin_ + bytes) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  drop_overlapping(t, begin_, end_);
  t.lent.emplace(begin_, end_);
}

WritableSpan::~WritableSpan() {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  drop_overlapping(t, begin_, end_);
  const auto [first, last] = t.lent.equal_range(begin_);
  for (auto at = first; at != last; ++at) {
    if (at->second != end_) continue;
    t.lent.erase(at);
    return;
  }
}

void watch_freed_memory() {
  set_free_listener([](const void* block) noexcept { forget_copies(block, 1); });
}

CopyCounts copy_counts() {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  return t.counts;
}

}  // namespace trn
