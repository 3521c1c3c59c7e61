// Temporaries of the kernels, from an injected allocator; by default each thread keeps its own.
#pragma once

#include <cstddef>
#include <utility>

namespace trn::numerics {

using Allocate = void* (*)(size_t bytes);  // 64-byte aligned; throws when out of memory
using Release = void (*)(void* memory);

// Null pointers restore the default: per-thread caches, released when the thread ends. Call while
// no kernel runs.
void set_scratch_allocator(Allocate allocate, Release release);

// Uninitialised memory for one kernel call, given back by the destructor.
template <class T>
class Scratch;

namespace detail {
void* allocate_scratch(size_t bytes);
void release_scratch(void* memory);
}  // namespace detail

template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(size_t count)
      : data_(count == 0 ? nullptr : static_cast<T*>(detail::allocate_scratch(count * sizeof(T)))) {
  }
  ~Scratch() {
    if (data_ != nullptr) detail::release_scratch(data_);
  }
  Scratch(Scratch&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace trn::numerics
