// The matmul family under the precision policy: operands rounded as they are packed, exact
// products, float32 sums, one rounding. What the policy leaves alone (fp32, other dtypes) runs on
// the host's kernel.
#include "numerics/kernels.h"
#include "numerics/packed.h"
#include "on_host.h"
#include "operands.h"
#include "product_roles.h"
#include "products.h"
#include "registrations.h"
#include "rounding_mode.h"
#include "weight_copies.h"

#include <ATen/ExpandUtils.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_addmm_activation_ops.h>
#include <ATen/ops/addbmm_ops.h>
#include <ATen/ops/addmm_ops.h>
#include <ATen/ops/addmv_ops.h>
#include <ATen/ops/baddbmm_ops.h>
#include <ATen/ops/bmm_ops.h>
#include <ATen/ops/dot_ops.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/mm_ops.h>
#include <ATen/ops/mv_ops.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/vdot_ops.h>
#include <ATen/ops/zeros.h>

namespace trn {
namespace {

using at::Scalar;
using at::Tensor;

// a [batch, m, k] or [m, k] or [k]; b [batch, k, n] or [k, n] or [k]. A vector is a row of a, a
// column of b.
struct Shape {
  int64_t batch = 1, m = 1, n = 1, k = 1;
  std::vector<int64_t> result;

  static std::optional<Shape> of(const Tensor& a, const Tensor& b) {
    const bool batched = a.dim() == 3;
    if (a.dim() > 3 || b.dim() > 3 || a.dim() == 0 || b.dim() == 0 || batched != (b.dim() == 3))
      return std::nullopt;
    if (batched && a.size(0) != b.size(0)) return std::nullopt;
    Shape s;
    if (batched) s.result.push_back(s.batch = a.size(0));
    if (a.dim() >= 2) s.result.push_back(s.m = a.size(-2));
    s.k = a.size(-1);
    if (b.dim() >= 2) s.result.push_back(s.n = b.size(-1));
    if (b.size(b.dim() >= 2 ? -2 : -1) != s.k) return std::nullopt;
    return s;
  }
};

// The formats the policy asks for, or nothing where the host computes as it is given.
std::optional<OperandFormats> rounded_formats(const Tensor& a, const Tensor& b) {
  if (!takes_policy(a.scalar_type()) || a.scalar_type() != b.scalar_type()) return std::nullopt;
  if (a.layout() != at::kStrided || b.layout() != at::kStrided) return std::nullopt;
  const OperandFormats formats = formats_of(current_policy(), role_of(a, b));
  if (formats.as_given() && !(stochastic_rounding() && a.scalar_type() != at::kFloat))
    return std::nullopt;
  return formats;
}

int64_t axis_stride(const Tensor& tensor, int64_t from_end) {
  return tensor.dim() >= from_end ? tensor.stride(-from_end) : 0;
}

numerics::Operand first_operand(const Tensor& a, OperandFormat format) {
  const int64_t row = a.dim() == 1 ? 0 : a.stride(-2);
  return {a.const_data_ptr(), numerics_dtype(a.scalar_type()),           row,
          a.stride(-1),       operand_rounding(format, a.scalar_type()), axis_stride(a, 3)};
}

numerics::Operand second_operand(const Tensor& b, OperandFormat format) {
  const int64_t row = b.dim() == 1 ? b.stride(0) : b.stride(-2);
  const int64_t col = b.dim() == 1 ? 0 : b.stride(-1);
  return {b.const_data_ptr(),
          numerics_dtype(b.scalar_type()),
          row,
          col,
          operand_rounding(format, b.scalar_type()),
          axis_stride(b, 3)};
}

// The addend broadcast to the result's shape. A vector result of mv and addmv is a column.
numerics::Addend addend_of(const Tensor& self, bool column) {
  const auto dtype = numerics_dtype(self.scalar_type());
  if (column) return {self.const_data_ptr(), dtype, self.stride(-1), 0, 0};
  return {self.const_data_ptr(), dtype, axis_stride(self, 2), axis_stride(self, 1),
          axis_stride(self, 3)};
}

numerics::Result result_of(const Tensor& c, bool column) {
  const auto dtype = numerics_dtype(c.scalar_type());
  // What is not rounded draws nothing: the sequence is that of every host.
  const auto rounding = c.scalar_type() == at::kFloat ? numerics::Rounding{} : next_rounding();
  if (column) return {c.mutable_data_ptr(), dtype, c.stride(-1), 1, 0, rounding};
  return {c.mutable_data_ptr(), dtype,   axis_stride(c, 2), c.dim() >= 1 ? c.stride(-1) : 1,
          axis_stride(c, 3),    rounding};
}

struct Addition {
  const Tensor* self = nullptr;
  float beta = 0.0f, alpha = 1.0f;
};

// c = alpha a b + beta self, on host tensors.
void multiply_into(const Tensor& c, const Shape& s, const Tensor& a, const Tensor& b,
                   OperandFormats formats, const Addition& add) {
  const bool column = a.dim() == 2 && b.dim() == 1;
  numerics::Addend addend;
  Tensor expanded;
  if (add.self != nullptr && add.beta != 0.0f) {
    expanded = add.self->expand(s.result);
    if (!takes_policy(expanded.scalar_type())) expanded = expanded.to(at::kFloat);
    addend = addend_of(expanded, column);
  }
  numerics::gemm(s.batch, s.m, s.n, s.k, first_operand(a, formats.first),
                 second_operand(b, formats.second), result_of(c, column), add.alpha, add.beta,
                 addend);
}

// A sum of no products is zero, whatever it is multiplied by.
Scalar scale_of(const Tensor& a, const Scalar& alpha) {
  return a.dim() > 0 && a.size(-1) == 0 ? Scalar(0) : alpha;
}

Tensor resolved(HostCall& call, const Tensor& tensor) { return call.alias(tensor).resolve_neg(); }

// The operands of a product on the host. Where one has few lines, the other is its rounded copy, if
// it has one: the values are those of rounding it now.
class HostOperands {
 public:
  HostOperands(HostCall& call, const Tensor& first, const Tensor& second, OperandFormats given)
      : formats_(given) {
    constexpr int64_t few = 128;
    if (first.dim() <= 2 && second.dim() == 2 && (first.dim() == 1 || first.size(0) <= few)) {
      if (reads_panels(first, second)) panels_ = packed_copy(second, formats_.second);
      if (!panels_.defined()) b_ = rounded_copy(second, formats_.second, 0);
    }
    if (b_.defined())
      formats_.second = OperandFormat::as_given;
    else if (!panels_.defined() && first.dim() == 2 && second.dim() <= 2 &&
             (second.dim() == 1 || second.size(1) <= few))
      a_ = rounded_copy(first, formats_.first, 1);
    if (a_.defined())
      formats_.first = OperandFormat::as_given;
    else
      a_ = resolved(call, first);
    if (!b_.defined()) b_ = resolved(call, second);
  }

  // As product_on_host.
  Tensor product(const std::optional<Tensor>& addend, const Scalar& beta, const Scalar& alpha,
                 at::ScalarType out_dtype) const {
    if (!panels_.defined())
      return product_on_host(a_, b_, formats_, addend, beta, scale_of(a_, alpha), out_dtype);
    const int64_t m = a_.size(0), n = b_.size(1);
    Tensor out = at::empty({m, n}, a_.options().dtype(out_dtype)), added;
    numerics::Addend plus;
    if (addend.has_value() && beta.toFloat() != 0.0f) {
      added = addend->resolve_neg().expand({m, n});
      if (!takes_policy(added.scalar_type())) added = added.to(at::kFloat);
      plus = addend_of(added, false);
    }
    numerics::gemm_packed(m, n, b_.size(0), first_operand(a_, formats_.first),
                          static_cast<const uint32_t*>(panels_.const_data_ptr()),
                          result_of(out, false), scale_of(a_, alpha).toFloat(), beta.toFloat(),
                          plus);
    return out;
  }

 private:
  // Whether the product would pack the second operand (numerics/packed.h).
  bool reads_panels(const Tensor& first, const Tensor& second) const {
    if (first.dim() != 2 || first.size(0) > second.size(1) || first.size(1) != second.size(0))
      return false;
    const bool by_lines = first.size(0) <= numerics::most_dots && second.stride(0) == 1;
    return first.numel() > 0 && !by_lines &&
           numerics::is_packable(operand_rounding(formats_.first, first.scalar_type()));
  }

  Tensor a_, b_, panels_;
  OperandFormats formats_;
};

bool expands(const Tensor& self, const std::vector<int64_t>& sizes) {
  return at::is_expandable_to(at::IntArrayRef(self.sizes()), at::IntArrayRef(sizes)) &&
         takes_policy(self.scalar_type());
}

// Of the operands of each operator. Others are the host's kernel's to refuse.
struct Ranks {
  int64_t first, second;
  bool fit(const Tensor& a, const Tensor& b) const { return a.dim() == first && b.dim() == second; }
};
constexpr Ranks kMatrices{2, 2}, kBatches{3, 3}, kMatrixVector{2, 1}, kVectors{1, 1};

// The formats of the operands of a product under the policy, or nothing: then the host's kernel
// runs, or says what is wrong.
std::optional<OperandFormats> formats_of_product(Ranks ranks, const Tensor& a, const Tensor& b,
                                                 const Tensor* self) {
  if (!ranks.fit(a, b)) return std::nullopt;
  const auto formats = rounded_formats(a, b);
  const auto shape = Shape::of(a, b);
  if (!formats.has_value() || !shape.has_value()) return std::nullopt;
  if (self != nullptr && (!expands(*self, shape->result) || self->scalar_type() != a.scalar_type()))
    return std::nullopt;
  return formats;
}

// While it lives, launches are priced in the formats of linear layers if the product is one: a
// batch of them costs what attention does under mxfp8_all.
class PriceOfRole {
 public:
  PriceOfRole(const Tensor& a, const Tensor& b) {
    const Policy policy = current_policy();
    const bool apart = policy == Policy::mxfp8 || policy == Policy::mxfp4;
    if (!apart || a.dim() != 3 || role_of(a, b).matmul_class != MatmulClass::linear) return;
    previous_ = exchange_thread_policy(int(Policy::mxfp8_all));
    changed_ = true;
  }
  ~PriceOfRole() {
    if (changed_) exchange_thread_policy(previous_);
  }
  PriceOfRole(const PriceOfRole&) = delete;
  PriceOfRole& operator=(const PriceOfRole&) = delete;

 private:
  int previous_ = -1;
  bool changed_ = false;
};

// One product under the policy, or nothing.
std::optional<Tensor> product(const char* name, Ranks ranks, const Tensor& a, const Tensor& b,
                              const Tensor* self = nullptr, const Scalar& beta = 0,
                              const Scalar& alpha = 1,
                              std::optional<at::ScalarType> out_dtype = std::nullopt) {
  const auto formats = formats_of_product(ranks, a, b, self);
  if (!formats.has_value()) return std::nullopt;
  if (out_dtype.has_value() && !takes_policy(*out_dtype)) return std::nullopt;
  const auto addend = self != nullptr ? std::optional<Tensor>(*self) : std::nullopt;
  Launch launch = [&] {
    const PriceOfRole price(a, b);
    return Launch(name, addend, a, b, beta, alpha);
  }();
  HostCall call(launch.device(), name);
  const HostOperands host(call, a, b, *formats);
  Tensor out = host.product(call.alias(addend), beta, alpha, out_dtype.value_or(a.scalar_type()));
  launch.retire(out);
  return call.adopt(std::move(out));
}

// Writes a product to `out` as out= overloads do: checked dtype, resized, copied.
Tensor& store(const Tensor& value, Tensor& out) {
  TORCH_CHECK(out.scalar_type() == value.scalar_type(), "Expected out tensor to have dtype ",
              value.scalar_type(), ", but got ", out.scalar_type(), " instead");
  at::native::resize_output(out, value.sizes());
  return out.copy_(value);
}

// ---- the operators: each is its product, or the host's kernel ----

Tensor mm(const Tensor& a, const Tensor& b) {
  if (auto made = product("aten::mm", kMatrices, a, b)) return *made;
  return HostOp<at::_ops::mm>::kernel(a, b);
}

Tensor& mm_out(const Tensor& a, const Tensor& b, Tensor& out) {
  if (auto made = product("aten::mm.out", kMatrices, a, b)) return store(*made, out);
  return HostOp<at::_ops::mm_out>::kernel(a, b, out);
}

Tensor bmm(const Tensor& a, const Tensor& b) {
  if (auto made = product("aten::bmm", kBatches, a, b)) return *made;
  return HostOp<at::_ops::bmm>::kernel(a, b);
}

Tensor& bmm_out(const Tensor& a, const Tensor& b, Tensor& out) {
  if (auto made = product("aten::bmm.out", kBatches, a, b)) return store(*made, out);
  return HostOp<at::_ops::bmm_out>::kernel(a, b, out);
}

Tensor mv(const Tensor& a, const Tensor& b) {
  if (auto made = product("aten::mv", kMatrixVector, a, b)) return *made;
  return HostOp<at::_ops::mv>::kernel(a, b);
}

Tensor dot(const Tensor& a, const Tensor& b) {
  if (auto made = product("aten::dot", kVectors, a, b)) return *made;
  return HostOp<at::_ops::dot>::kernel(a, b);
}

Tensor vdot(const Tensor& a, const Tensor& b) {
  if (auto made = product("aten::vdot", kVectors, a, b)) return *made;
  return HostOp<at::_ops::vdot>::kernel(a, b);
}

// addmm, baddbmm and addmv share their three overloads: functional, in place and out=.
template <class Functional, class InPlace, class Out, const Ranks& ranks>
struct Added {
  static std::optional<Tensor> made(const char* name, const Tensor& self, const Tensor& a,
                                    const Tensor& b, const Scalar& beta, const Scalar& alpha) {
    return product(name, ranks, a, b, &self, beta, alpha);
  }
  static Tensor functional(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                           const Scalar& alpha) {
    if (auto value = made(op_name<Functional>(), self, a, b, beta, alpha)) return *value;
    return HostOp<Functional>::kernel(self, a, b, beta, alpha);
  }
  static Tensor& in_place(Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                          const Scalar& alpha) {
    const auto shape = Shape::of(a, b);
    if (shape.has_value() && self.sizes() == at::IntArrayRef(shape->result)) {
      if (auto value = made(op_name<InPlace>(), self, a, b, beta, alpha)) return self.copy_(*value);
    }
    return HostOp<InPlace>::kernel(self, a, b, beta, alpha);
  }
  static Tensor& out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                     const Scalar& alpha, Tensor& out) {
    if (auto value = made(op_name<Out>(), self, a, b, beta, alpha)) return store(*value, out);
    return HostOp<Out>::kernel(self, a, b, beta, alpha, out);
  }
};

using Addmm = Added<at::_ops::addmm, at::_ops::addmm_, at::_ops::addmm_out, kMatrices>;
using Baddbmm = Added<at::_ops::baddbmm, at::_ops::baddbmm_, at::_ops::baddbmm_out, kBatches>;
using Addmv = Added<at::_ops::addmv, at::_ops::addmv_, at::_ops::addmv_out, kMatrixVector>;

// The activation as the sums leave, before the one rounding.
std::optional<Tensor> activated(const char* name, const Tensor& self, const Tensor& a,
                                const Tensor& b, const Scalar& beta, const Scalar& alpha,
                                bool use_gelu) {
  const auto formats = formats_of_product(kMatrices, a, b, &self);
  if (!formats.has_value()) return std::nullopt;
  Launch launch(name, self, a, b, beta, alpha, use_gelu);
  HostCall call(launch.device(), name);
  const HostOperands host(call, a, b, *formats);
  Tensor sums = host.product(call.alias(self), beta, alpha, at::kFloat);
  Tensor out = round_result(use_gelu ? at::gelu(sums) : at::relu(sums), a.scalar_type());
  launch.retire(out);
  return call.adopt(std::move(out));
}

Tensor addmm_activation(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                        const Scalar& alpha, bool use_gelu) {
  using Op = at::_ops::_addmm_activation;
  if (auto made = activated(op_name<Op>(), self, a, b, beta, alpha, use_gelu)) return *made;
  return HostOp<Op>::kernel(self, a, b, beta, alpha, use_gelu);
}

Tensor& addmm_activation_out(const Tensor& self, const Tensor& a, const Tensor& b,
                             const Scalar& beta, const Scalar& alpha, bool use_gelu, Tensor& out) {
  using Op = at::_ops::_addmm_activation_out;
  if (auto made = activated(op_name<Op>(), self, a, b, beta, alpha, use_gelu))
    return store(*made, out);
  return HostOp<Op>::kernel(self, a, b, beta, alpha, use_gelu, out);
}

// Sums over the batch as well: one accumulation in float32, rounded once.
std::optional<Tensor> summed(const char* name, const Tensor& self, const Tensor& a, const Tensor& b,
                             const Scalar& beta, const Scalar& alpha) {
  if (!kBatches.fit(a, b)) return std::nullopt;
  const auto formats = rounded_formats(a, b);
  const auto shape = Shape::of(a, b);
  if (!formats.has_value() || !shape.has_value()) return std::nullopt;
  const std::vector<int64_t> sizes{shape->m, shape->n};
  if (!expands(self, sizes) || self.scalar_type() != a.scalar_type()) return std::nullopt;
  Launch launch(name, self, a, b, beta, alpha);
  HostCall call(launch.device(), name);
  const Tensor x = resolved(call, a), y = resolved(call, b);
  Tensor sum = beta.toFloat() == 0.0f ? at::zeros(sizes, x.options().dtype(at::kFloat))
                                      : resolved(call, self).expand(sizes).to(at::kFloat).mul(beta);
  if (!sum.is_contiguous()) sum = sum.contiguous();
  Shape each = *shape;
  each.batch = 1;
  each.result = sizes;
  const Scalar scale = scale_of(x, alpha);
  for (int64_t i = 0; i < shape->batch; ++i) {
    if (host().foreign)
      sum = product_on_host(x[i], y[i], *formats, sum, 1, scale, at::kFloat);
    else
      multiply_into(sum, each, x[i], y[i], *formats, {&sum, 1.0f, scale.toFloat()});
  }
  launch.retire();
  return call.adopt(round_result(std::move(sum), a.scalar_type()));
}

Tensor addbmm(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
              const Scalar& alpha) {
  if (auto made = summed("aten::addbmm", self, a, b, beta, alpha)) return *made;
  return HostOp<at::_ops::addbmm>::kernel(self, a, b, beta, alpha);
}

Tensor& addbmm_(Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                const Scalar& alpha) {
  const auto shape = Shape::of(a, b);
  if (shape.has_value() && self.sizes() == at::IntArrayRef({shape->m, shape->n})) {
    if (auto made = summed("aten::addbmm_", self, a, b, beta, alpha)) return self.copy_(*made);
  }
  return HostOp<at::_ops::addbmm_>::kernel(self, a, b, beta, alpha);
}

Tensor& addbmm_out(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                   const Scalar& alpha, Tensor& out) {
  if (auto made = summed("aten::addbmm.out", self, a, b, beta, alpha)) return store(*made, out);
  return HostOp<at::_ops::addbmm_out>::kernel(self, a, b, beta, alpha, out);
}

}  // namespace

Tensor host_product(const Tensor& a, const Tensor& b, OperandFormats formats,
                    const std::optional<Tensor>& addend, const Scalar& beta, const Scalar& alpha,
                    at::ScalarType out_dtype) {
  const auto shape = Shape::of(a, b);
  TORCH_CHECK(shape.has_value(), "trn::product: shapes ", a.sizes(), " and ", b.sizes(),
              " cannot be multiplied");
  const Tensor x = a.resolve_neg(), y = b.resolve_neg();
  Tensor out = at::empty(shape->result, x.options().dtype(out_dtype));
  Addition add{nullptr, beta.toFloat(), scale_of(x, alpha).toFloat()};
  Tensor added;
  if (addend.has_value()) {
    added = addend->resolve_neg();
    add.self = &added;
  }
  multiply_into(out, *shape, x, y, formats, add);
  return out;
}

void register_matmul(Registrar& registrar) {
  watch_freed_memory();
  registrar.add("mm", &mm);
  registrar.add("mm.out", &mm_out);
  registrar.add("bmm", &bmm);
  registrar.add("bmm.out", &bmm_out);
  registrar.add("mv", &mv);
  registrar.add("dot", &dot);
  registrar.add("vdot", &vdot);
  registrar.add("addmm", &Addmm::functional);
  registrar.add("addmm_", &Addmm::in_place);
  registrar.add("addmm.out", &Addmm::out);
  registrar.add("_addmm_activation", &addmm_activation);
  registrar.add("_addmm_activation.out", &addmm_activation_out);
  registrar.add("baddbmm", &Baddbmm::functional);
  registrar.add("baddbmm_", &Baddbmm::in_place);
  registrar.add("baddbmm.out", &Baddbmm::out);
  registrar.add("addmv", &Addmv::functional);
  registrar.add("addmv_", &Addmv::in_place);
  registrar.add("addmv.out", &Addmv::out);
  registrar.add("addbmm", &addbmm);
  registrar.add("addbmm_", &addbmm_);
  registrar.add("addbmm.out", &addbmm_out);
}

}  // namespace trn
