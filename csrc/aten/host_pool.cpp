// One pool for host kernels and ours: two would fight over the cores.
#include "host_pool.h"

#include "numerics/parallel.h"

#include <ATen/Parallel.h>

namespace trn {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, numerics::LoopBody body,
                  void* context) {
  at::parallel_for(begin, end, grain, [&](int64_t lo, int64_t hi) { body(context, lo, hi); });
}

}  // namespace

void share_thread_pool() { numerics::set_thread_pool(&parallel_for, &at::get_num_threads); }

}  // namespace trn
