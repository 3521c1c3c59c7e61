// The matmul precision policy: which number format each operand takes on its way into the Tensor
// engine. A new policy is a row in torch_trn_emu/formats/formats.def.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trn {

enum class Policy : uint8_t {
#define TRN_POLICY(name, weight, other, weight_gradient, attention, convolution) name,
#include "../../torch_trn_emu/formats/formats.def"
};

// What an operand is rounded to before exact products with float32 accumulation.
enum class OperandFormat : uint8_t {
  as_given,
  bf16,  // float32 is rounded to bfloat16; 16-bit operands stay as they are
// blocks of 32 along the contraction axis
#define TRN_MX_FORMAT(name, element) name,
#include "../../torch_trn_emu/formats/formats.def"
};

constexpr bool is_mx(OperandFormat format) { return format > OperandFormat::bf16; }

struct OperandFormats {
  OperandFormat first, second;
  bool as_given() const {
    return first == OperandFormat::as_given && second == OperandFormat::as_given;
  }
};

enum class MatmulClass : uint8_t { linear, attention, convolution };

// `weight_gradient`: neither operand of the linear product is a weight, as in a weight's gradient,
// the product of an activation and an incoming gradient. product_roles.h tells which product it is.
OperandFormats operand_formats(Policy policy, MatmulClass matmul_class,
                               bool weight_gradient = false);

Policy current_policy() noexcept;  // this thread's, else the process's
void set_process_policy(Policy policy) noexcept;
int exchange_thread_policy(int policy) noexcept;  // -1: none; returns the previous

std::vector<std::string> policy_names();          // in the order of Policy
std::vector<std::string> operand_format_names();  // in the order of OperandFormat

}  // namespace trn
