// Operands that a host kernel takes for contiguous without asking: it would read beyond them, or
// write to the wrong elements. They are given to it as contiguous copies. To add an operator, add a
// row to kPlainRows in plain_operands.cpp.
#pragma once

#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>

#include <string_view>
#include <utility>
#include <vector>

namespace trn {

struct OpPlan;

// Whether the kernel of "aten::median.dim" takes the argument "self" for contiguous.
bool taken_for_contiguous(std::string_view op, std::string_view argument);

// Replaces these operands, among the host arguments on top of the stack, for the time of a call.
class PlainOperands {
 public:
  PlainOperands(const OpPlan& plan, torch::jit::Stack* stack);
  // After the call: writes back what it wrote, and puts the operands themselves among its results.
  void restore(torch::jit::Stack* stack, size_t first);

 private:
  struct Copy {
    at::Tensor operand, plain;
    bool written;
  };
  std::vector<Copy> copies_;
};

}  // namespace trn
