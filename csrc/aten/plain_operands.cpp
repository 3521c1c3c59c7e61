// See plain_operands.h. Found by comparing every operator of op_db on the host with itself,
// operands expanded, transposed and with a stride of two; checked against torch 2.13.
#include "plain_operands.h"

#include "redispatch.h"
#include "runtime/allocator.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace trn {
namespace {

struct PlainRow {
  std::string_view op;  // by prefix
  std::string_view argument;
};

constexpr PlainRow kPlainRows[] = {
    {"aten::median.dim", "self"},
    {"aten::nanmedian.dim", "self"},
    {"aten::native_group_norm", "weight"},
    {"aten::native_group_norm", "bias"},
    {"aten::gelu.out", "out"},
    {"aten::narrow_copy.out", "out"},
    {"aten::avg_pool3d.out", "out"},
    {"aten::avg_pool3d_backward.grad_input", "grad_input"},
    {"aten::native_batch_norm.out", "out"},
    {"aten::native_batch_norm.out", "save_mean"},
    {"aten::native_batch_norm.out", "save_invstd"},
    {"aten::_native_batch_norm_legit.out", "out"},
    {"aten::_native_batch_norm_legit.out", "save_mean"},
    {"aten::_native_batch_norm_legit.out", "save_invstd"},
    {"aten::_native_batch_norm_legit.no_stats_out", "out"},
    {"aten::_native_batch_norm_legit.no_stats_out", "save_mean"},
    {"aten::_native_batch_norm_legit.no_stats_out", "save_invstd"},
    {"aten::_batch_norm_with_update.out", "out"},
    {"aten::_batch_norm_with_update.out", "save_mean"},
    {"aten::_batch_norm_with_update.out", "save_invstd"},
};

}  // namespace

bool taken_for_contiguous(std::string_view op, std::string_view argument) {
  return std::any_of(std::begin(kPlainRows), std::end(kPlainRows), [&](const PlainRow& row) {
    return op.substr(0, row.op.size()) == row.op && argument == row.argument;
  });
}

PlainOperands::PlainOperands(const OpPlan& plan, torch::jit::Stack* stack) {
  if (!plan.any_plain) return;
  const InHbm outside(-1);  // working memory is not the device's
  const size_t first = stack->size() - plan.arguments.size();
  for (size_t i = 0; i < plan.arguments.size(); ++i) {
    c10::IValue& value = (*stack)[first + i];
    if (!plan.arguments[i].plain || !value.isTensor()) continue;
    const at::Tensor operand = value.toTensor();
    if (!operand.defined() || operand.is_contiguous()) continue;
    copies_.push_back({operand, operand.contiguous(), plan.arguments[i].written});
    value = copies_.back().plain;
  }
}

void PlainOperands::restore(torch::jit::Stack* stack, size_t first) {
  for (const Copy& copy : copies_) {
    if (!copy.written) continue;
    if (copy.operand.sizes() != copy.plain.sizes()) copy.operand.resize_(copy.plain.sizes());
    copy.operand.copy_(copy.plain);
    for (size_t i = first; i < stack->size(); ++i) {
      c10::IValue& value = (*stack)[i];
      if (value.isTensor() && value.toTensor().is_same(copy.plain)) value = copy.operand;
    }
  }
}

}  // namespace trn
