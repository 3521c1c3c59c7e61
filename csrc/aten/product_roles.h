// Which operand of a matrix product is a weight, which decides what a policy rounds it to. The one
// answer for eager kernels, their gradients and, through Python, for compiled graphs: no stride is
// looked at. See docs/decisions/0012-roles-of-operands.md.
#pragma once

#include "policy.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <typeinfo>
#include <vector>

namespace trn {

struct ProductRole {
  MatmulClass matmul_class = MatmulClass::linear;
  int weight = 1;  // the operand that is the weight: 0, 1, or -1 where neither is

  ProductRole flipped() const { return {matmul_class, weight < 0 ? -1 : 1 - weight}; }
};

OperandFormats formats_of(Policy policy, ProductRole role);

// Whether the policy tells operands by their roles.
bool tells_weights(Policy policy);

// The role that a RoleScope of this thread has set, else the operands' own: batches of activations
// are attention, everything else is linear, with the second operand as the weight unless only the
// first one is known to be one.
ProductRole role_of(const at::Tensor& a, const at::Tensor& b);

class RoleScope {
 public:
  explicit RoleScope(ProductRole role) noexcept;
  ~RoleScope();
  RoleScope(const RoleScope&) = delete;
  RoleScope& operator=(const RoleScope&) = delete;

 private:
  const ProductRole* previous_;
  ProductRole role_;
};

// The product of two matrices in a gradient, whose role is not what its operands say.
at::Tensor product_of(const at::Tensor& a, const at::Tensor& b, ProductRole role);

// ---- what is known to be a weight: a parameter of a module, and what is made of it by views,
// copies, casts, by choosing some of its matrices or by putting weights together ----

bool is_weight(const at::Tensor& tensor);

// `made` was copied from `from`: it is a weight if that is one.
void follow_copy(const at::Tensor& made, const at::Tensor& from);

void mark_weight(const at::Tensor& tensor);

// The nodes of autograd that know their product's role, each with one of torch's own that it stands
// for, whose attributes (_saved_self ..) Python shows.
struct ProductNode {
  const std::type_info& type;
  c10::intrusive_ptr<torch::autograd::Node> torchs;
};
std::vector<ProductNode> product_nodes();

// Whether a tensor is a torch.nn.Parameter. Python knows.
using ParameterTest = bool (*)(const c10::TensorImpl*);
void set_parameter_test(ParameterTest test) noexcept;

}  // namespace trn
