// The setting is torch's and the process's: the first call that needs it changes it, the last one
// puts it back.
#include "aten/float32_products.h"

#include <ATen/Context.h>

#include <atomic>
#include <mutex>

namespace trn {
namespace {

constexpr auto kBackend = at::Float32Backend::MKLDNN;
constexpr auto kOp = at::Float32Op::MATMUL;

std::mutex mutex;
std::atomic<int> holders = 0;
at::Float32Precision found;  // before the first holder

at::Float32Precision current_precision() {
  return at::globalContext().float32Precision(kBackend, kOp);
}

void set(at::Float32Precision precision) {
  at::globalContext().setFloat32Precision(kBackend, kOp, precision);
}

bool lowers(at::Float32Precision precision) {
  return precision == at::Float32Precision::BF16 || precision == at::Float32Precision::TF32;
}

}  // namespace

Float32Products::Float32Products() : holds_(holders.load() > 0 || lowers(current_precision())) {
  if (!holds_) return;
  const std::lock_guard<std::mutex> lock(mutex);
  if (holders++ > 0) return;
  found = current_precision();
  set(at::Float32Precision::IEEE);
}

Float32Products::~Float32Products() {
  if (!holds_) return;
  const std::lock_guard<std::mutex> lock(mutex);
  if (--holders > 0) return;
  // Either set for this operator, or inherited from a wider setting.
  set(at::Float32Precision::NONE);
  if (current_precision() != found) set(found);
}

}  // namespace trn
