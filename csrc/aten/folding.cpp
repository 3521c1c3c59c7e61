// matmul and linear of more than two dimensions. torch folds a batch of rows into one matrix where
// strides or gradients make it worth a copy, and else multiplies a batch of matrices, which a
// policy may round differently. Here ranks alone decide wherever operands are rounded.
#include "operands.h"
#include "policy.h"

#include <ATen/native/Resize.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/linear_native.h>
#include <ATen/ops/matmul_native.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mv.h>
#include <torch/library.h>

namespace trn {
namespace {

using at::Tensor;
using Sizes = std::vector<c10::SymInt>;

bool rounds_operands(const Tensor& a, const Tensor& b) {
  return takes_policy(a.scalar_type()) && a.scalar_type() == b.scalar_type() &&
         a.layout() == at::kStrided && b.layout() == at::kStrided && !a.is_nested() &&
         !b.is_nested() && !operand_formats(current_policy(), MatmulClass::linear).as_given();
}

Sizes leading(const Tensor& x) {
  const auto sizes = x.sym_sizes();
  return Sizes(sizes.begin(), sizes.end() - 1);
}

// [..., k] -> [rows, k]
Tensor folded(const Tensor& x) {
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : leading(x)) rows *= size;
  return x.reshape_symint({rows, x.sym_size(-1)});
}

// [..., k] by [k, n] or [k]
Tensor fold(const Tensor& a, const Tensor& b) {
  Sizes sizes = leading(a);
  if (b.dim() == 1) return at::mv(folded(a), b).view_symint(sizes);
  sizes.push_back(b.sym_size(1));
  return at::mm(folded(a), b).view_symint(sizes);
}

Tensor matmul(const Tensor& a, const Tensor& b) {
  if (!rounds_operands(a, b) || a.dim() == 0 || b.dim() == 0) return at::native::matmul(a, b);
  if (a.dim() >= 3 && b.dim() <= 2) return fold(a, b);
  if (b.dim() >= 3 && a.dim() <= 2) {
    const Tensor turned = fold(b.mT(), a.dim() == 2 ? a.t() : a);
    return a.dim() == 2 ? turned.mT() : turned;
  }
  return at::native::matmul(a, b);
}

Tensor& matmul_out(const Tensor& a, const Tensor& b, Tensor& out) {
  const bool folds = (a.dim() >= 3) != (b.dim() >= 3) && a.dim() > 0 && b.dim() > 0;
  if (!folds || !rounds_operands(a, b) || out.scalar_type() != a.scalar_type())
    return at::native::matmul_out(a, b, out);
  const Tensor made = (matmul)(a, b);
  at::native::resize_output(out, made.sizes());
  return out.copy_(made);
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const bool adds = bias.has_value() && bias->defined() && bias->dim() <= 1;
  if (!adds || x.dim() < 3 || weight.dim() != 2 || !rounds_operands(x, weight))
    return at::native::linear(x, weight, bias);
  Sizes sizes = leading(x);
  sizes.push_back(weight.sym_size(0));
  return at::addmm(*bias, folded(x), weight.t()).view_symint(sizes);
}

}  // namespace

// Both keys: torch's own is made of other operators, which have the gradients.
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) {
  library.impl("matmul", &matmul);
  library.impl("linear", &linear);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("matmul", &matmul);
  library.impl("linear", &linear);
  library.impl("matmul.out", &matmul_out);
}

}  // namespace trn
