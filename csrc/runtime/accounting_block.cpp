// See accounting_block.h.
#include "accounting_block.h"

#include "allocator.h"
#include "host.h"

#include <map>
#include <memory>
#include <mutex>

namespace trn {
namespace {

struct Piece {
  size_t bytes;
  c10::DeviceIndex device;
};

// The pieces in use, by address.
class Pieces {
 public:
  static Pieces& instance() {
    static auto* pieces = new Pieces;  // tensors may be freed while the process ends
    return *pieces;
  }
  void add(const void* pointer, Piece piece) {
    std::lock_guard<std::mutex> lock(mutex_);
    pieces_[pointer] = piece;
  }
  void remove(const void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    pieces_.erase(pointer);
  }
  int device_of(const void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto after = pieces_.upper_bound(pointer);
    if (after == pieces_.begin()) return -1;
    const auto& [begin, piece] = *std::prev(after);
    return pointer < static_cast<const char*>(begin) + piece.bytes ? piece.device : -1;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, Piece> pieces_;
};

// The context of a counted DataPtr: what owns the memory, and the block that counts it.
struct Accounted {
  c10::DataPtr memory;
  void* block;
  ~Accounted() {
    Pieces::instance().remove(memory.get());
    give_block_back(block);
  }
};

void release(void* context) { delete static_cast<Accounted*>(context); }

c10::DataPtr accounted(c10::DataPtr memory, size_t bytes, c10::DeviceIndex device, void* block) {
  void* pointer = memory.get();
  Pieces::instance().add(pointer, {bytes, device});
  return {pointer, new Accounted{std::move(memory), block}, &release, c10::Device(kTrn, device)};
}

}  // namespace

c10::DataPtr with_accounting_block(c10::DataPtr memory, size_t bytes, c10::DeviceIndex device) {
  if (memory.get() != nullptr)
    return accounted(std::move(memory), bytes, device, take_block(device, bytes));
  memory.unsafe_set_device(c10::Device(kTrn, device));
  return memory;
}

c10::DataPtr allocate_on_host(size_t bytes, c10::DeviceIndex device) {
  if (bytes == 0) return {nullptr, c10::Device(kTrn, device)};
  void* block = take_block(device, bytes);  // first: the core may be full where the host is not
  try {
    return accounted(c10::GetAllocator(host().type)->allocate(bytes), bytes, device, block);
  } catch (...) {
    give_block_back(block);
    throw;
  }
}

bool has_accounting_block(const c10::DataPtr& memory) noexcept {
  return memory.get_deleter() == &release;
}

int device_of_accounting_block(const void* pointer) noexcept {
  return Pieces::instance().device_of(pointer);
}

}  // namespace trn
