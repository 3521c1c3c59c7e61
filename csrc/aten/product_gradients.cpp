// The gradients of products: torch's own formulas, which know what each operand was in the forward
// pass, so that a policy rounds it by its role. torch 2.13: tools/autograd/derivatives.yaml.
#include "product_roles.h"

#include "operands.h"
#include "operator_named.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mm_ops.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/library.h>

namespace trn {
namespace {

using at::Scalar;
using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using torch::autograd::edge_list;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
namespace made = torch::autograd::generated;

Tensor transposed(const Tensor& x) { return x.transpose(-2, -1); }

bool is_traced() {
  return c10::impl::TorchDispatchModeTLS::get_mode(c10::impl::TorchDispatchModeKey::PROXY)
      .has_value();
}

const auto& op_of_role() {
  using Signature = Tensor(const Tensor&, const Tensor&, int64_t, int64_t);
  static const auto op = operator_named<Signature>("trn::product_of_role");
  return op;
}

// A product whose role is not what its operands say. Where a graph is being traced, an operator
// that names the role stands for it.
Tensor multiply(const Tensor& a, const Tensor& b, ProductRole role) {
  if (is_traced()) return op_of_role().call(a, b, int64_t(role.matmul_class), role.weight);
  const RoleScope scope(role);
  return a.dim() == 3 ? at::bmm(a, b) : at::mm(a, b);
}

// As torch lays the gradient of a column-major matrix out.
struct Layout {
  bool column_major = false;
  static Layout of(const std::vector<c10::SymInt>& sizes, const std::vector<c10::SymInt>& strides) {
    return {sizes.size() == 2 && strides.size() == 2 && strides[0] == 1 && strides[1] == sizes[0]};
  }
};

Tensor multiply(const Tensor& a, const Tensor& b, ProductRole role, Layout layout) {
  if (!layout.column_major) return multiply(a, b, role);
  return transposed(multiply(transposed(b), transposed(a), role.flipped()));
}

Tensor scaled(Tensor x, const Scalar& by) {
  const bool one = !by.isComplex() && !by.isSymbolic() && by.equal(1);
  return one ? x : x * by;
}

// Both gradients of alpha a b, from that of the result.
struct Factors {
  Tensor a, b;
  Layout a_layout, b_layout;
  ProductRole role;  // of the product

  Tensor first(const Tensor& grad, const Scalar& alpha) const {
    const ProductRole of{role.matmul_class, role.weight == 1 ? 1 : -1};
    return scaled(multiply(grad, transposed(b), of, a_layout), alpha);
  }
  Tensor second(const Tensor& grad, const Scalar& alpha) const {
    const ProductRole of{role.matmul_class, role.weight == 0 ? 0 : -1};
    return scaled(multiply(transposed(a), grad, of, b_layout), alpha);
  }
};

// Whether the roles of the gradient's products are said, not left to the operands. In a graph being
// traced all are: what the parameters are is known later there.
bool says_roles(const Tensor& grad, ProductRole role) {
  if (!grad.defined() || !takes_policy(grad.scalar_type()) || grad.layout() != at::kStrided)
    return false;
  const bool differ = role.matmul_class == MatmulClass::linear && tells_weights(current_policy());
  return is_traced() || differ;
}

// ---- the nodes: torch's own, with the role of their product ----

template <class Made>
struct OfRole : Made {
  OfRole(Made& from, ProductRole given)
      : Made(from.sequence_nr(), edge_list(from.next_edges())), role(given) {}
  ProductRole role;

  // torch's formula, with all its products in the class of the forward one: under vmap they are
  // batches, which would be taken for attention.
  variable_list as_made(variable_list&& grads) {
    if (role.matmul_class == MatmulClass::attention) return Made::apply(std::move(grads));
    const RoleScope scope({role.matmul_class, -1});
    return Made::apply(std::move(grads));
  }
};

struct MmNode final : OfRole<made::MmBackward0> {
  MmNode(made::MmBackward0& from, ProductRole given) : OfRole(from, given) {
    self_ = std::move(from.self_);
    mat2_ = std::move(from.mat2_);
    self_layout = from.self_layout;
    mat2_layout = from.mat2_layout;
    self_sym_sizes = from.self_sym_sizes;
    mat2_sym_sizes = from.mat2_sym_sizes;
    self_sym_strides = from.self_sym_strides;
    mat2_sym_strides = from.mat2_sym_strides;
  }
  variable_list apply(variable_list&& grads) override {
    if (!says_roles(grads[0], role)) return as_made(std::move(grads));
    const std::lock_guard lock(mutex_);
    const Factors f{self_.unpack(), mat2_.unpack(), Layout::of(self_sym_sizes, self_sym_strides),
                    Layout::of(mat2_sym_sizes, mat2_sym_strides), role};
    variable_list out(2);
    if (task_should_compute_output(1)) out[1] = f.second(grads[0], 1);
    if (task_should_compute_output(0)) out[0] = f.first(grads[0], 1);
    return out;
  }
};

struct AddmmNode final : OfRole<made::AddmmBackward0> {
  AddmmNode(made::AddmmBackward0& from, ProductRole given) : OfRole(from, given) {
    alpha = from.alpha;
    beta = from.beta;
    mat1_ = std::move(from.mat1_);
    mat2_ = std::move(from.mat2_);
    mat1_layout = from.mat1_layout;
    mat2_layout = from.mat2_layout;
    mat1_sym_sizes = from.mat1_sym_sizes;
    mat2_sym_sizes = from.mat2_sym_sizes;
    mat1_sym_strides = from.mat1_sym_strides;
    mat2_sym_strides = from.mat2_sym_strides;
  }
  variable_list apply(variable_list&& grads) override {
    if (!says_roles(grads[0], role)) return as_made(std::move(grads));
    const std::lock_guard lock(mutex_);
    const Factors f{mat1_.unpack(), mat2_.unpack(), Layout::of(mat1_sym_sizes, mat1_sym_strides),
                    Layout::of(mat2_sym_sizes, mat2_sym_strides), role};
    variable_list out(3);
    if (task_should_compute_output(1)) out[1] = f.first(grads[0], alpha);
    if (task_should_compute_output(2)) out[2] = f.second(grads[0], alpha);
    if (task_should_compute_output(0)) out[0] = scaled(grads[0], beta);
    return out;
  }
};

struct BmmNode final : OfRole<made::BmmBackward0> {
  BmmNode(made::BmmBackward0& from, ProductRole given) : OfRole(from, given) {
    self_ = std::move(from.self_);
    mat2_ = std::move(from.mat2_);
  }
  variable_list apply(variable_list&& grads) override {
    if (!says_roles(grads[0], role)) return as_made(std::move(grads));
    const std::lock_guard lock(mutex_);
    const Factors f{self_.unpack(), mat2_.unpack(), {}, {}, role};
    variable_list out(2);
    if (task_should_compute_output(1)) out[1] = f.second(grads[0], 1);
    if (task_should_compute_output(0)) out[0] = f.first(grads[0], 1);
    return out;
  }
};

struct BaddbmmNode final : OfRole<made::BaddbmmBackward0> {
  BaddbmmNode(made::BaddbmmBackward0& from, ProductRole given) : OfRole(from, given) {
    alpha = from.alpha;
    beta = from.beta;
    batch1_ = std::move(from.batch1_);
    batch2_ = std::move(from.batch2_);
  }
  variable_list apply(variable_list&& grads) override {
    if (!says_roles(grads[0], role)) return as_made(std::move(grads));
    const std::lock_guard lock(mutex_);
    const Factors f{batch1_.unpack(), batch2_.unpack(), {}, {}, role};
    variable_list out(3);
    if (task_should_compute_output(1)) out[1] = f.first(grads[0], alpha);
    if (task_should_compute_output(2)) out[2] = f.second(grads[0], alpha);
    if (task_should_compute_output(0)) out[0] = scaled(grads[0], beta);
    return out;
  }
};

// Puts a node with the product's role in the place of the one that torch has made.
template <class Ours, class Made>
Tensor with_role(Tensor out, const Tensor& a, const Tensor& b) {
  if (!out.requires_grad() || !out.grad_fn()) return out;
  auto* node = dynamic_cast<Made*>(out.grad_fn().get());
  if (node == nullptr) return out;
  auto ours = c10::make_intrusive<Ours>(*node, role_of(a, b));
  ours->add_input_metadata(out);
  torch::autograd::impl::set_gradient_edge(
      out, {c10::intrusive_ptr<torch::autograd::Node>(std::move(ours)), 0});
  return out;
}

// ---- the kernels: torch's, below which the device's follow ----

DispatchKeySet torchs(DispatchKeySet keys) {
  return (keys & c10::after_autograd_keyset) | DispatchKeySet(DispatchKey::AutogradOther);
}

Tensor mm_by_role(DispatchKeySet keys, const Tensor& a, const Tensor& b) {
  return with_role<MmNode, made::MmBackward0>(at::_ops::mm::redispatch(torchs(keys), a, b), a, b);
}

Tensor addmm_by_role(DispatchKeySet keys, const Tensor& self, const Tensor& a, const Tensor& b,
                     const Scalar& beta, const Scalar& alpha) {
  return with_role<AddmmNode, made::AddmmBackward0>(
      at::_ops::addmm::redispatch(torchs(keys), self, a, b, beta, alpha), a, b);
}

Tensor bmm_by_role(DispatchKeySet keys, const Tensor& a, const Tensor& b) {
  return with_role<BmmNode, made::BmmBackward0>(at::_ops::bmm::redispatch(torchs(keys), a, b), a,
                                                b);
}

Tensor baddbmm_by_role(DispatchKeySet keys, const Tensor& self, const Tensor& a, const Tensor& b,
                       const Scalar& beta, const Scalar& alpha) {
  return with_role<BaddbmmNode, made::BaddbmmBackward0>(
      at::_ops::baddbmm::redispatch(torchs(keys), self, a, b, beta, alpha), a, b);
}

// In place, the node that torch makes is woven into the history: where roles matter, a product and
// a copy stand for it.
template <class InPlace, Tensor (*functional)(const Tensor&, const Tensor&, const Tensor&,
                                              const Scalar&, const Scalar&)>
Tensor& in_place(DispatchKeySet keys, Tensor& self, const Tensor& a, const Tensor& b,
                 const Scalar& beta, const Scalar& alpha) {
  if (takes_policy(self.scalar_type()) && tells_weights(current_policy()))
    return self.copy_(functional(self, a, b, beta, alpha));
  return InPlace::redispatch(torchs(keys), self, a, b, beta, alpha);
}

// ---- the operator that stands for a product in a graph being traced ----

Tensor product_of_role(const Tensor& a, const Tensor& b, int64_t matmul_class, int64_t weight) {
  const RoleScope scope({MatmulClass(matmul_class), int(weight)});
  return a.dim() == 3 ? at::bmm(a, b) : at::mm(a, b);
}

// Its gradients, for second derivatives in compiled functions: nodes of products, as eager ones
// have.
template <class Ours, class Made>
c10::intrusive_ptr<torch::autograd::Node> node_of(Made& made, const Tensor& a, const Tensor& b,
                                                  ProductRole role) {
  made.set_next_edges(torch::autograd::collect_next_edges(a, b));
  made.self_ = SavedVariable(a, false);
  made.mat2_ = SavedVariable(b, false);
  return c10::make_intrusive<Ours>(made, role);
}

c10::intrusive_ptr<torch::autograd::Node> node_of(const Tensor& a, const Tensor& b,
                                                  ProductRole role) {
  if (a.dim() == 3) {
    const auto made = c10::make_intrusive<made::BmmBackward0>();
    return node_of<BmmNode>(*made, a, b, role);
  }
  const auto made = c10::make_intrusive<made::MmBackward0>();
  made->self_layout = a.layout();
  made->mat2_layout = b.layout();
  made->self_sym_sizes = a.sym_sizes().vec();
  made->mat2_sym_sizes = b.sym_sizes().vec();
  made->self_sym_strides = a.sym_strides().vec();
  made->mat2_sym_strides = b.sym_strides().vec();
  return node_of<MmNode>(*made, a, b, role);
}

Tensor differentiable(DispatchKeySet keys, const Tensor& a, const Tensor& b, int64_t matmul_class,
                      int64_t weight) {
  if (a._fw_grad(0).defined() || b._fw_grad(0).defined())
    return product_of_role(a, b, matmul_class, weight);  // torch's formulas for tangents
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return op_of_role().redispatch(keys & c10::after_autograd_keyset, a, b, matmul_class, weight);
  }();
  if (torch::autograd::compute_requires_grad(a, b))
    torch::autograd::set_history(out, node_of(a, b, {MatmulClass(matmul_class), int(weight)}));
  return out;
}

}  // namespace

Tensor product_of(const Tensor& a, const Tensor& b, ProductRole role) {
  if (says_roles(a, role)) return multiply(a, b, role);
  const RoleScope scope({role.matmul_class, -1});
  return at::mm(a, b);
}

std::vector<ProductNode> product_nodes() {
  return {{typeid(MmNode), c10::make_intrusive<made::MmBackward0>()},
          {typeid(AddmmNode), c10::make_intrusive<made::AddmmBackward0>()},
          {typeid(BmmNode), c10::make_intrusive<made::BmmBackward0>()},
          {typeid(BaddbmmNode), c10::make_intrusive<made::BaddbmmBackward0>()}};
}

TORCH_LIBRARY_FRAGMENT(trn, library) {
  library.def("product_of_role(Tensor a, Tensor b, int matmul_class, int weight) -> Tensor",
              {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(trn, CompositeExplicitAutograd, library) {
  library.impl("product_of_role", &product_of_role);
}

TORCH_LIBRARY_IMPL(trn, Autograd, library) { library.impl("product_of_role", &differentiable); }

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) {
  library.impl("mm", &mm_by_role);
  library.impl("addmm", &addmm_by_role);
  library.impl("bmm", &bmm_by_role);
  library.impl("baddbmm", &baddbmm_by_role);
  library.impl("addmm_", &in_place<at::_ops::addmm_, &at::addmm>);
  library.impl("baddbmm_", &in_place<at::_ops::baddbmm_, &at::baddbmm>);
}

}  // namespace trn
