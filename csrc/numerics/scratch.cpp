// The default scratch: a few cached blocks a thread, so that warm calls touch no fresh pages.
#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace trn::numerics {
namespace {

constexpr size_t alignment = 64;

struct Header {  // sits in the `alignment` bytes before the memory handed out
  size_t bytes;
};

Header* header_of(void* memory) {
  return reinterpret_cast<Header*>(static_cast<unsigned char*>(memory) - alignment);
}

struct ThreadCache {
  std::vector<void*> idle;
  ~ThreadCache() {
    for (void* memory : idle) std::free(header_of(memory));
  }
};

ThreadCache& thread_cache() {
  thread_local ThreadCache cache;
  return cache;
}

void* cached_allocate(size_t bytes) {
  std::vector<void*>& idle = thread_cache().idle;
  size_t best = idle.size();
  for (size_t i = 0; i < idle.size(); ++i) {
    const size_t have = header_of(idle[i])->bytes;
    if (have >= bytes && (best == idle.size() || have < header_of(idle[best])->bytes)) best = i;
  }
  if (best != idle.size()) {
    void* memory = idle[best];
    idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(best));
    return memory;
  }
  constexpr size_t page = 4096;
  const size_t rounded = (bytes + page - 1) / page * page;
  void* block = std::aligned_alloc(alignment, alignment + rounded);
  if (block == nullptr) throw std::bad_alloc();
  new (block) Header{rounded};
  return static_cast<unsigned char*>(block) + alignment;
}

void cached_release(void* memory) {
  constexpr size_t kept = 8;
  std::vector<void*>& idle = thread_cache().idle;
  if (idle.size() >= kept) {  // drop the smallest: it is the cheapest to get again
    size_t smallest = 0;
    for (size_t i = 1; i < idle.size(); ++i)
      if (header_of(idle[i])->bytes < header_of(idle[smallest])->bytes) smallest = i;
    std::free(header_of(idle[smallest]));
    idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(smallest));
  }
  idle.push_back(memory);
}

Allocate allocate_function = cached_allocate;
Release release_function = cached_release;

}  // namespace

void set_scratch_allocator(Allocate allocate, Release release) {
  const bool injected = allocate != nullptr && release != nullptr;
  allocate_function = injected ? allocate : cached_allocate;
  release_function = injected ? release : cached_release;
}

namespace detail {
void* allocate_scratch(size_t bytes) { return allocate_function(bytes); }
void release_scratch(void* memory) { release_function(memory); }
}  // namespace detail

}  // namespace trn::numerics
