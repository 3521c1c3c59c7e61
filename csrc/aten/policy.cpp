// The table of policies and where the one in force is kept.
#include "policy.h"

#include <atomic>

namespace trn {
namespace {

using F = OperandFormat;

struct PolicyRow {
  const char* name;
  OperandFormats linear;
  OperandFormats weight_gradient;  // of a linear layer
  OperandFormats attention;        // bmm and scaled dot product attention
  OperandFormats convolution;      // its contraction runs over channels and taps: no MX blocks
};

constexpr OperandFormats both(F format) { return {format, format}; }

constexpr PolicyRow kPolicies[] = {
// in the order of Policy
#define TRN_POLICY(name, weight, other, weight_gradient, attention, convolution) \
  {#name,                                                                        \
   {F::other, F::weight},                                                        \
   both(F::weight_gradient),                                                     \
   both(F::attention),                                                           \
   both(F::convolution)},
#include "../../torch_trn_emu/formats/formats.def"
};

std::atomic<Policy> process_policy{Policy::fp32};
thread_local int thread_policy = -1;

}  // namespace

OperandFormats operand_formats(Policy policy, MatmulClass matmul_class, bool weight_gradient) {
  const PolicyRow& row = kPolicies[size_t(policy)];
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
  for (const PolicyRow& row : kPolicies) names.emplace_back(row.name);
  return names;
}

std::vector<std::string> operand_format_names() {
  return {
      "as_given",
      "bf16",
#define TRN_MX_FORMAT(name, element) #name,
#include "../../torch_trn_emu/formats/formats.def"
  };
}

}  // namespace trn
