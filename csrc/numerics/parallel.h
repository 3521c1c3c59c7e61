// Parallel loops through an injected thread pool; serial until one is injected.
#pragma once

#include <cstdint>
#include <type_traits>

namespace trn::numerics {

using LoopBody = void (*)(void* context, int64_t lo, int64_t hi);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, LoopBody body,
                             void* context);
using NumThreads = int (*)();

// Both together, or neither: a pool that splits [begin, end) into at most num_threads() ranges.
// Null pointers restore the serial default. Call while no kernel runs.
void set_thread_pool(ParallelFor parallel_for, NumThreads num_threads);
int num_threads();

// Gradual underflow and round-to-nearest for a scope: a block scale of 2^-127 is subnormal, and the
// caller may have asked for flushing (torch.set_flush_denormal). Restored by the destructor.
class IeeeScope {
 public:
  IeeeScope();
  ~IeeeScope();
  IeeeScope(const IeeeScope&) = delete;
  IeeeScope& operator=(const IeeeScope&) = delete;

 private:
  uint64_t saved_;
};

namespace detail {
void run_loop(int64_t begin, int64_t end, int64_t grain, LoopBody body, void* context);
}

// Calls body(lo, hi) on ranges that cover [begin, end), each under an IeeeScope. A range of `grain`
// or fewer runs on the calling thread. What a body computes may not depend on the split.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::run_loop(
      begin, end, grain,
      [](void* context, int64_t lo, int64_t hi) {
        IeeeScope scope;
        (*static_cast<Plain*>(context))(lo, hi);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace trn::numerics
