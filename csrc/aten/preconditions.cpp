// See preconditions.h. Composite operators that read a tensor's values on the CPU alone are here
// too: they run above autograd, over the composite kernel.
#include "preconditions.h"

#include "runtime/device.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/_pad_circular_ops.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/le.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/nanquantile_ops.h>
#include <ATen/ops/quantile_ops.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/tensor_split_ops.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace trn {
namespace {

using c10::IValue;

// lu_unpack(LU_data, LU_pivots, unpack_data, unpack_pivots)
void lu_unpack(const IValue* arguments) {
  const at::Tensor &lu = arguments[0].toTensor(), &pivots = arguments[1].toTensor();
  if (!arguments[3].toBool() || lu.dim() < 2) return;
  std::vector<int64_t> needed(lu.sizes().begin(), lu.sizes().end() - 2);
  needed.push_back(std::min(lu.size(-2), lu.size(-1)));
  TORCH_CHECK(pivots.sizes() == at::IntArrayRef(needed), "lu_unpack: LU_pivots has shape ",
              pivots.sizes(), ", but LU_data of shape ", lu.sizes(), " needs ",
              at::IntArrayRef(needed), ". Pass what lu_factor returned, or unpack_pivots=False.");
}

// Whether the host sums the rows by a kernel of its own, which reads where each bag begins. Its
// plain loop writes to the bag of each index: before the result, where there is none.
bool sums_by_bags(const at::Tensor& weight, int64_t mode, int64_t padding_idx) {
  constexpr int64_t max = 2;
  const auto dtype = weight.scalar_type();
  const bool narrow = dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
  return mode != max && padding_idx < 0 && narrow && weight.dim() == 2 && weight.stride(1) == 1;
}

void check_bags(const at::Tensor& indices, const at::Tensor& offsets) {
  TORCH_CHECK(indices.numel() == 0 || offsets.numel() > 0 || offsets.dim() != 1,  // refused anyway
              "embedding_bag: offsets is empty, but there are ", indices.numel(),
              " indices, each of which belongs to a bag. Pass where each bag begins.");
}

// _embedding_bag(weight, indices, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights?,
// include_last_offset, padding_idx)
void embedding_bag(const IValue* arguments) {
  const at::Tensor& weight = arguments[0].toTensor();
  const auto dtype = weight.scalar_type();
  if (arguments[6].isTensor() && arguments[6].toTensor().defined()) {
    const auto found = arguments[6].toTensor().scalar_type();
    TORCH_CHECK(found == dtype, "embedding_bag: expected scalar type ", dtype,
                " of per_sample_weights, but found ", found,
                "; they have the same type as weight. Convert one of them with to().");
  }
  if (!sums_by_bags(weight, arguments[4].toInt(), arguments[8].toInt()))
    check_bags(arguments[1].toTensor(), arguments[2].toTensor());
}

// _embedding_bag_backward(grad, indices, offsets, ...)
void embedding_bag_backward(const IValue* arguments) {
  check_bags(arguments[1].toTensor(), arguments[2].toTensor());
}
// _embedding_bag_per_sample_weights_backward(grad, weight, indices, offsets, ...)
void embedding_bag_sample_backward(const IValue* arguments) {
  check_bags(arguments[2].toTensor(), arguments[3].toTensor());
}
// _embedding_bag_dense_backward(grad, indices, offset2bag, ...)
void embedding_bag_dense_backward(const IValue* arguments) {
  const at::Tensor &grad = arguments[0].toTensor(), &bags = arguments[2].toTensor();
  const int64_t indices = arguments[1].toTensor().numel();
  if (!at::isIntegralType(bags.scalar_type(), false)) return;
  const int64_t count = grad.dim() > 0 ? grad.size(0) : 0;
  TORCH_CHECK(bags.numel() == indices && at::ge(bags, 0).all().item<bool>() &&
                  at::lt(bags, count).all().item<bool>(),
              "embedding_bag backward: offset2bag must have one of the ", count,
              " bags of grad for each of the ", indices, " indices.");
}

// Of each row of lengths, or of offsets, along an axis of `data`.
void check_segments(const at::Tensor& data, const IValue& lengths, const IValue& offsets,
                    int64_t axis) {
  const bool by_offsets = offsets.isTensor() && offsets.toTensor().defined();
  if (!by_offsets && !(lengths.isTensor() && lengths.toTensor().defined())) return;
  const at::Tensor& given = by_offsets ? offsets.toTensor() : lengths.toTensor();
  const char* name = by_offsets ? "offsets" : "lengths";
  if (axis < 0) axis += data.dim();
  if (axis < 0 || axis >= data.dim() || given.dim() != axis + 1) return;  // the kernel refuses it
  TORCH_CHECK(given.sizes().slice(0, size_t(axis)) == data.sizes().slice(0, size_t(axis)),
              "segment_reduce: ", name, " has shape ", given.sizes(), ", but data ", data.sizes(),
              ": the dimensions before axis ", axis, " must be the same.");
  if (given.numel() == 0 || !at::isIntegralType(given.scalar_type(), false)) return;
  const int64_t size = data.size(axis);
  const bool within =
      at::ge(given, 0).all().item<bool>() &&
      (by_offsets ? at::le(given, size) : at::le(given.sum(-1), size)).all().item<bool>();
  TORCH_CHECK(within, "segment_reduce: ", name, " must be segments of the ", size,
              " elements along axis ", axis, ", but some lie outside.");
}

// segment_reduce(data, reduce, *, lengths, indices, offsets, axis, ...)
void segment_reduce(const IValue* arguments) {
  check_segments(arguments[0].toTensor(), arguments[2], arguments[4], arguments[5].toInt());
}
// _segment_reduce_backward(grad, output, data, reduce, *, lengths, offsets, axis, ...)
void segment_reduce_backward(const IValue* arguments) {
  check_segments(arguments[2].toTensor(), arguments[4], arguments[5], arguments[6].toInt());
}

// _ctc_loss(log_probs, targets, input_lengths, target_lengths, ...): each target is a class. Rows
// of targets are as long as the longest, and what lies beyond a length is not read.
void ctc_loss(const IValue* arguments) {
  const at::Tensor &log_probs = arguments[0].toTensor(), &targets = arguments[1].toTensor();
  if (targets.numel() == 0 || !at::isIntegralType(targets.scalar_type(), false)) return;
  at::Tensor read = targets;
  if (targets.dim() == 2) {
    at::Tensor lengths =
        arguments[3].isTensor() ? arguments[3].toTensor() : at::tensor(arguments[3].toIntVector());
    if (lengths.dim() != 1 || lengths.numel() != targets.size(0)) return;  // the kernel refuses it
    const at::Tensor place = at::arange(targets.size(1), lengths.options());
    read = targets.masked_select(place.lt(lengths.unsqueeze(1)));
  }
  const int64_t classes = log_probs.dim() > 0 ? log_probs.size(-1) : 0;
  const bool within =
      at::ge(read, 0).all().item<bool>() && at::lt(read, classes).all().item<bool>();
  TORCH_CHECK(within, "ctc_loss: targets must be from 0 to ", classes - 1, ", one of the ", classes,
              " classes of log_probs.");
}

// _softmax_backward_data(grad_output, output, dim, input_dtype) and that of its logarithm
void softmax_backward(const IValue* arguments) {
  const at::Tensor &grad = arguments[0].toTensor(), &output = arguments[1].toTensor();
  TORCH_CHECK(grad.sizes() == output.sizes(), "softmax backward: grad_output has shape ",
              grad.sizes(), ", but output ", output.sizes(), ". They must be the same.");
}

// _linalg_eigvals(self): LAPACK crashes on them, or finds that nothing converges, which is an error
// of this class on the host; linalg.eig checks them by itself.
void eigvals(const IValue* arguments) {
  TORCH_CHECK_LINALG(at::isfinite(arguments[0].toTensor()).all().item<bool>(),
                     "torch.linalg.eigvals: input tensor should not contain infs or NaNs.");
}

// _pdist_backward(grad, self, p, pdist)
void pdist_backward(const IValue* arguments) {
  const at::Tensor& self = arguments[1].toTensor();
  TORCH_CHECK(self.numel() > 0 || self.size(0) > 0,
              "pdist: no gradient for an input without rows, of shape ", self.sizes(),
              ". Skip it where there is nothing to measure.");
}

bool is_tensor(const IValue& value) { return value.isTensor() && value.toTensor().defined(); }

void check_channels(const char* op, const char* name, const at::Tensor& given, int64_t channels) {
  TORCH_CHECK(given.numel() >= channels, op, ": ", name, " has ", given.numel(),
              " elements, fewer than the input's ", channels, " channels.");
}

// native_batch_norm(input, weight?, bias?, running_mean?, running_var?, ...) and its kin
void batch_norm(const IValue* arguments) {
  constexpr std::pair<size_t, const char*> kPerChannel[] = {
      {1, "weight"}, {2, "bias"}, {3, "running_mean"}, {4, "running_var"}};
  const at::Tensor& input = arguments[0].toTensor();
  const bool without_stats = arguments[3].isBool();  // the overload no_stats
  const IValue& training = arguments[without_stats ? 3 : 5];
  const bool normalises_by_stats = training.isBool() && !training.toBool();
  const bool mean = !without_stats && is_tensor(arguments[3]);
  const bool variance = !without_stats && is_tensor(arguments[4]);
  constexpr const char* kMissing =
      "batch_norm: running_mean has to be given, and running_var, where training is False. "
      "Pass both, or training=True.";
  TORCH_CHECK_VALUE(!normalises_by_stats || mean == variance, kMissing);  // as the host's class
  TORCH_CHECK(!normalises_by_stats || mean, kMissing);
  if (input.dim() < 2) return;
  for (const auto& [at, name] : kPerChannel) {
    if (!is_tensor(arguments[at])) continue;
    check_channels("batch_norm", name, arguments[at].toTensor(), input.size(1));
  }
}

// batch_norm_update_stats(input, running_mean?, running_var?, momentum)
void batch_norm_update_stats(const IValue* arguments) {
  const at::Tensor& input = arguments[0].toTensor();
  if (input.dim() < 2) return;
  for (const auto& [at, name] : {std::pair(1, "running_mean"), std::pair(2, "running_var")})
    if (is_tensor(arguments[at]))
      check_channels("batch_norm_update_stats", name, arguments[at].toTensor(), input.size(1));
}

// _weight_norm_interface(v, g, dim), and its gradient for (grad_w, saved_v, saved_g, norms, dim)
template <size_t at>
void weight_norm(const IValue* arguments) {
  const at::Tensor &v = arguments[at].toTensor(), &g = arguments[at + 1].toTensor();
  const int64_t dim = arguments[at == 0 ? 2 : 4].toInt();
  if (dim != 0 && dim != v.dim() - 1) return;  // refused anyway
  TORCH_CHECK(v.dim() > 0 && g.numel() == v.size(dim), "weight_norm: g has shape ", g.sizes(),
              " for v of shape ", v.sizes(), " and dim ", dim);
  TORCH_CHECK(at == 0 || arguments[0].toTensor().sizes() == v.sizes(),
              "weight_norm: a gradient of shape ", arguments[0].toTensor().sizes(),
              " for v of shape ", v.sizes());
}

void check_modes(const char* op, int64_t interpolation, int64_t last, int64_t padding) {
  TORCH_CHECK(interpolation >= 0 && interpolation <= last, op, ": interpolation_mode is ",
              interpolation, "; it must be from 0 to ", last, ".");
  TORCH_CHECK(padding >= 0 && padding <= 2, op, ": padding_mode is ", padding,
              "; it must be from 0 to 2.");
}

// grid_sampler_2d(input, grid, interpolation_mode, padding_mode, align_corners)
void grid_sampler_2d(const IValue* arguments) {
  check_modes("grid_sampler_2d", arguments[2].toInt(), 2, arguments[3].toInt());
}
void grid_sampler_3d(const IValue* arguments) {
  check_modes("grid_sampler_3d", arguments[2].toInt(), 1, arguments[3].toInt());
}

// native_batch_norm_backward(grad_out, input, ...) and its kin divide by the number of elements.
void batch_norm_backward(const IValue* arguments) {
  const at::Tensor& input = arguments[1].toTensor();
  TORCH_CHECK(input.numel() > 0, "batch_norm: no gradient for an empty input, of shape ",
              input.sizes(), ". Call torch.nn.functional.batch_norm, whose gradient is zero.");
}

// linalg_lstsq(self, b, rcond?, *, driver?)
void lstsq(const IValue* arguments) {
  const at::Tensor &a = arguments[0].toTensor(), &b = arguments[1].toTensor();
  if (!arguments[3].isString() || a.numel() == 0 || b.dim() == 0 || b.size(-1) > 0) return;
  const std::string& driver = arguments[3].toStringRef();
  TORCH_CHECK(driver != "gelss" && driver != "gelsd", "linalg.lstsq: driver '", driver,
              "' needs at least one right-hand side, but other has shape ", b.sizes(),
              ". Pass driver='gelsy'.");
}

// reflection_pad2d(self, padding) and its kin
void pad(const IValue* arguments) {
  const at::Tensor& self = arguments[0].toTensor();
  const std::vector<int64_t> padding = arguments[1].toIntVector();
  for (size_t i = 0; 2 * i + 1 < padding.size() && int64_t(i) < self.dim(); ++i) {
    const int64_t dim = self.dim() - 1 - int64_t(i);
    const int64_t size = self.size(dim) + padding[2 * i] + padding[2 * i + 1];
    TORCH_CHECK(size >= 0, "pad: padding of ", padding[2 * i], " and ", padding[2 * i + 1],
                " leaves ", size, " elements of the ", self.size(dim), " along dimension ", dim,
                ". Remove fewer.");
  }
}

// histc(self, bins, min, max): the limits are numbers of the input's type.
void histc(const IValue* arguments) {
  const at::ScalarType dtype = arguments[0].toTensor().scalar_type();
  if (!at::isIntegralType(dtype, false)) return;
  const bool is_signed = at::isSignedType(dtype);
  const int bits = int(8 * c10::elementSize(dtype)) - (is_signed ? 1 : 0);
  const double above = std::ldexp(1.0, bits), lowest = is_signed ? -above : 0;
  for (size_t k : {2, 3}) {
    const double limit = arguments[k].toScalar().toDouble();
    TORCH_CHECK(limit >= lowest && limit < above, "histc: ", k == 2 ? "min" : "max", " is ", limit,
                ", which ", dtype, " does not hold. Convert the input with to().");
  }
}

constexpr std::pair<std::string_view, Precondition> kPreconditions[] = {
    {"lu_unpack", &lu_unpack},
    {"_embedding_bag", &embedding_bag},
    {"_embedding_bag_forward_only", &embedding_bag},
    {"_embedding_bag_backward", &embedding_bag_backward},
    {"_embedding_bag_per_sample_weights_backward", &embedding_bag_sample_backward},
    {"_embedding_bag_dense_backward", &embedding_bag_dense_backward},
    {"native_batch_norm", &batch_norm},
    {"_native_batch_norm_legit", &batch_norm},
    {"_native_batch_norm_legit_no_training", &batch_norm},
    {"_batch_norm_with_update", &batch_norm},
    {"native_batch_norm_backward", &batch_norm_backward},
    {"batch_norm_backward", &batch_norm_backward},
    {"batch_norm_update_stats", &batch_norm_update_stats},
    {"_weight_norm_interface", &weight_norm<0>},
    {"_weight_norm_interface_backward", &weight_norm<1>},
    {"linalg_lstsq", &lstsq},
    {"histc", &histc},
    {"reflection_pad1d", &pad},
    {"reflection_pad2d", &pad},
    {"reflection_pad3d", &pad},
    {"replication_pad1d", &pad},
    {"replication_pad2d", &pad},
    {"replication_pad3d", &pad},
    {"_ctc_loss", &ctc_loss},
    {"_linalg_eigvals", &eigvals},
    {"linalg_eigvals", &eigvals},
    {"_softmax_backward_data", &softmax_backward},
    {"_log_softmax_backward_data", &softmax_backward},
    {"segment_reduce", &segment_reduce},
    {"_segment_reduce_backward", &segment_reduce_backward},
    {"_pdist_backward", &pdist_backward},
    {"grid_sampler_2d", &grid_sampler_2d},
    {"grid_sampler_3d", &grid_sampler_3d},
};

// ---- composites ----

constexpr c10::DispatchKeySet kComposite(c10::DispatchKey::CPU);  // runs on tensors of any device

// quantile(self, q, ...) and its kin look at q only where it is on the CPU.
template <class Op, class Schema = typename Op::schema>
struct ChecksQ;

template <class Op, class R, class... A>
struct ChecksQ<Op, R(const at::Tensor&, const at::Tensor&, A...)> {
  static R kernel(const at::Tensor& self, const at::Tensor& q, A... rest) {
    const bool traced = q.key_set().has(c10::DispatchKey::Python) ||
                        q.key_set().has(c10::DispatchKey::Functionalize);
    if (q.device().type() == kTrn && q.is_floating_point() && !traced) {
      const bool within = at::ge(q, 0).logical_and(at::le(q, 1)).all().template item<bool>();
      TORCH_CHECK(within, "quantile() q values must be in the range [0, 1]");
    }
    return Op::redispatch(kComposite, self, q, std::forward<A>(rest)...);
  }
};

// Where to split is read on the host.
std::vector<at::Tensor> tensor_split(const at::Tensor& self, const at::Tensor& where, int64_t dim) {
  using Op = at::_ops::tensor_split_tensor_indices_or_sections;
  return Op::redispatch(kComposite, self, where.cpu(), dim);
}

// Where one side of a dimension is cropped and the other wraps around more than what is left, the
// composite leaves memory as it was.
at::Tensor pad_circular(const at::Tensor& self, c10::SymIntArrayRef padding) {
  using Op = at::_ops::_pad_circular;
  const auto known = c10::asIntArrayRefSlowOpt(padding);
  if (known && !self.unsafeGetTensorImpl()->has_symbolic_sizes_strides()) {
    for (size_t i = 0; 2 * i + 1 < known->size() && int64_t(i) < self.dim(); ++i) {
      const int64_t before = (*known)[2 * i], after = (*known)[2 * i + 1];
      const int64_t size = self.size(self.dim() - 1 - int64_t(i));
      const int64_t left = size + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0);
      const int64_t wrapped = std::max<int64_t>({before, after, 0});
      TORCH_CHECK(wrapped <= left || wrapped > size, "pad: padding of ", before, " and ", after,
                  " wraps around more than the ", left, " elements that are left of ", size,
                  ". Pad less, or crop first.");
    }
  }
  return Op::redispatch(kComposite, self, padding);
}

void register_composites(torch::Library& library) {
  library.impl("_pad_circular", &pad_circular);
  library.impl("quantile", &ChecksQ<at::_ops::quantile>::kernel);
  library.impl("quantile.out", &ChecksQ<at::_ops::quantile_out>::kernel);
  library.impl("nanquantile", &ChecksQ<at::_ops::nanquantile>::kernel);
  library.impl("nanquantile.out", &ChecksQ<at::_ops::nanquantile_out>::kernel);
  library.impl("tensor_split.tensor_indices_or_sections", &tensor_split);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) { register_composites(library); }
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, library) { register_composites(library); }

}  // namespace

Precondition precondition(std::string_view name) {
  constexpr std::string_view aten = "aten::";
  if (name.substr(0, aten.size()) != aten) return nullptr;
  const std::string_view op = name.substr(aten.size(), name.find('.') - aten.size());
  for (const auto& [row, check] : kPreconditions) {
    if (row == op) return check;
  }
  return nullptr;
}

}  // namespace trn
