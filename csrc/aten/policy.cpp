// The table of policies and where the one in force is kept.
#include "policy.h"

#include <atomic>

namespace trn {
namespace {

using F = OperandFormat;

struct Row {
  const char* name;
  OperandFormats linear;
  OperandFormats weight_gradient;  // of a linear layer
  OperandFormats attention;        // bmm and scaled dot product attention
  OperandFormats convolution;      // its contraction runs over channels and taps: no MX blocks
};

constexpr OperandFormats kGiven{F::as_given, F::as_given};
constexpr OperandFormats kBf16{F::bf16, F::bf16};
constexpr OperandFormats kMxfp8{F::mxfp8_e4m3, F::mxfp8_e4m3};

constexpr Row kRows[] = {
    // in the order of Policy
    {"fp32", kGiven, kGiven, kGiven, kGiven},
    {"bf16", kBf16, kBf16, kBf16, kBf16},
    {"mxfp8", kMxfp8, kMxfp8, kBf16, kBf16},
    {"mxfp8_all", kMxfp8, kMxfp8, kMxfp8, kBf16},
    {"mxfp4", {F::mxfp8_e4m3, F::mxfp4_e2m1}, kMxfp8, kBf16, kBf16},
};

std::atomic<Policy> process_policy{Policy::fp32};
thread_local int thread_policy = -1;

}  // namespace

OperandFormats operand_formats(Policy policy, MatmulClass matmul_class, bool weight_gradient) {
  const Row& row = kRows[size_t(policy)];
  if (matmul_class == MatmulClass::attention) return row.attention;
  if (matmul_class == MatmulClass::convolution) return row.convolution;
  return weight_gradient ? row.weight_gradient : row.linear;
}

Policy current_policy() noexcept {
  return thread_policy >= 0 ? Policy(thread_policy)
                            : process_policy.load(std::memory_order_relaxed);
}

void set_process_policy(Policy policy) noexcept { process_policy.store(policy); }

int exchange_thread_policy(int policy) noexcept {
  const int previous = thread_policy;
  thread_policy = policy;
  return previous;
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> operand_format_names() { return {"as_given", "bf16", "mxfp8", "mxfp4"}; }

}  // namespace trn
