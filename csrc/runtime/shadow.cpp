// See shadow.h.
#include "shadow.h"

#include "device.h"
#include "hbm.h"
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

// The context of a shadowed DataPtr: what owns the memory, and the block that counts it.
struct Shadowed {
  c10::DataPtr memory;
  void* block;
  ~Shadowed() {
    Pieces::instance().remove(memory.get());
    hbm_free(block);
  }
};

void release(void* context) { delete static_cast<Shadowed*>(context); }

}  // namespace

c10::DataPtr with_shadow(c10::DataPtr memory, size_t bytes, c10::DeviceIndex device) {
  void* pointer = memory.get();
  const c10::Device on(kTrn, device);
  if (pointer == nullptr) {
    memory.unsafe_set_device(on);
    return memory;
  }
  void* block = hbm(device).allocate(bytes);
  Pieces::instance().add(pointer, {bytes, device});
  return {pointer, new Shadowed{std::move(memory), block}, &release, on};
}

c10::DataPtr allocate_on_host(size_t bytes, c10::DeviceIndex device) {
  return with_shadow(c10::GetAllocator(host().type)->allocate(bytes), bytes, device);
}

int shadow_device_of(const void* pointer) noexcept { return Pieces::instance().device_of(pointer); }

}  // namespace trn
