// The injected thread pool and the floating-point environment of the loops.
#include "parallel.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace trn::numerics {
namespace {

void serial_for(int64_t begin, int64_t end, int64_t, LoopBody body, void* context) {
  body(context, begin, end);
}

int one_thread() { return 1; }

ParallelFor pool_for = serial_for;
NumThreads pool_threads = one_thread;

}  // namespace

void set_thread_pool(ParallelFor parallel_for, NumThreads num_threads) {
  pool_for = parallel_for != nullptr ? parallel_for : serial_for;
  pool_threads = parallel_for != nullptr && num_threads != nullptr ? num_threads : one_thread;
}

int num_threads() { return pool_threads(); }

#if defined(__x86_64__)
IeeeScope::IeeeScope() : saved_(_mm_getcsr()) {
  constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x0040, rounding = 0x6000;
  const unsigned saved = static_cast<unsigned>(saved_);
  const unsigned wanted = saved & ~(flush_to_zero | denormals_are_zero | rounding);
  if (wanted != saved) _mm_setcsr(wanted);
}
IeeeScope::~IeeeScope() {
  if (_mm_getcsr() != static_cast<unsigned>(saved_)) _mm_setcsr(static_cast<unsigned>(saved_));
}
#elif defined(__aarch64__)
IeeeScope::IeeeScope() {
  constexpr uint64_t flush_to_zero = uint64_t{1} << 24, rounding = uint64_t{3} << 22;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
  const uint64_t wanted = saved_ & ~(flush_to_zero | rounding);
  __asm__ volatile("msr fpcr, %0" : : "r"(wanted));
}
IeeeScope::~IeeeScope() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
IeeeScope::IeeeScope() : saved_(0) {}
IeeeScope::~IeeeScope() {}
#endif

namespace detail {

void run_loop(int64_t begin, int64_t end, int64_t grain, LoopBody body, void* context) {
  if (begin >= end) return;
  if (end - begin <= grain || num_threads() == 1) return body(context, begin, end);
  pool_for(begin, end, grain, body, context);
}

}  // namespace detail
}  // namespace trn::numerics
