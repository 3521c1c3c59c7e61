// Registrations on the trn keys: host kernels for every operator the host has one for, metadata
// operators run as they are, and the few kernels written by hand.
#include "alias.h"
#include "composite_alias.h"
#include "missing_dtypes.h"
#include "operands.h"
#include "product_roles.h"
#include "redispatch.h"
#include "registrations.h"

#include "hot_ops.h"

#include <ATen/ops/_empty_per_channel_affine_quantized_ops.h>
#include <ATen/ops/copy_ops.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <unordered_set>

namespace trn {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// ---- operators that read or set metadata only: the host's kernel on the trn tensor itself ----

constexpr std::string_view kMetadataOps[] = {
    "aten::view",
    "aten::view.dtype",
    "aten::as_strided",
    "aten::_reshape_alias",
    "aten::unfold",
    "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset",
    "aten::set_.source_Tensor",
    "aten::is_set_to",
    "aten::_indices",
    "aten::_values",
    "aten::indices",
    "aten::values",
    "aten::crow_indices",
    "aten::col_indices",
    "aten::ccol_indices",
    "aten::row_indices",
    "aten::_nnz",
    "aten::sparse_dim",
    "aten::dense_dim",
    "aten::_dimI",
    "aten::_dimV",
    "aten::is_coalesced",
    "aten::_coalesced_",
    "aten::_nested_tensor_size",
    "aten::_nested_tensor_strides",
    "aten::_nested_tensor_storage_offsets",
    "aten::_nested_view_from_buffer",
    "aten::_nested_view_from_buffer_copy",
    "aten::qscheme",
    "aten::q_scale",
    "aten::q_zero_point",
    "aten::q_per_channel_axis",
    // Sparse, nested and quantized tensors: written with factories, which go to the device asked
    // for.
    "aten::_to_copy",
    "aten::empty_like",
    "aten::empty_quantized",
    // not metadata, but made of other operators: those follow the precision policy
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
};

// Composite operators that do not run on trn tensors: one looks at a list of devices, the others
// call a host kernel directly. They run on aliases as a whole.
constexpr const char* kHostComposites[] = {"mode.values", "conj_physical_", "kaiser_window",
                                           "kaiser_window.periodic", "kaiser_window.beta"};

bool is_metadata_op(std::string_view name) {
  return std::find(std::begin(kMetadataOps), std::end(kMetadataOps), name) !=
         std::end(kMetadataOps);
}

// The CPU's kernels do for metadata, whatever the host backend is.
void run_as_is(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
  BelowAutograd guard;
  op.redispatchBoxed(counterpart_on(keys, c10::BackendComponent::CPUBit), stack);
}

template <class Op, class Schema = typename Op::schema>
struct AsIs;

template <class Op, class R, class... A>
struct AsIs<Op, R(A...)> {
  static R kernel(A... arguments) {
    return Op::redispatch(DispatchKeySet(DispatchKey::CPU), std::forward<A>(arguments)...);
  }
};

// ---- by hand ----

// A cast that an engine would do on the way out: float32 to a 16-bit format.
bool rounds_copy(const at::Tensor& from, const at::Tensor& to) {
  return from.scalar_type() == at::kFloat &&
         (to.scalar_type() == at::kBFloat16 || to.scalar_type() == at::kHalf) &&
         from.layout() == at::kStrided && to.layout() == at::kStrided && !from.is_neg();
}

bool is_outside(const at::Tensor& tensor) {
  const auto type = tensor.device().type();
  return type == kCpu || type == host().type;
}

// Between host and device, between devices, and within one: all are copies of host memory.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  const bool to_trn = self.device().type() == kTrn;
  const at::Device other = source.device();
  TORCH_CHECK(other.type() == kTrn || is_outside(source), "Cannot copy from ", other, " to ",
              self.device());
  TORCH_CHECK(to_trn || is_outside(self), "Cannot copy from ", other, " to ", self.device());
  if (is_sparse(source) && to_trn && other.type() == kTrn && other != self.device()) {
    return copy_(self, source.cpu(), non_blocking);  // members cannot be lent to another core
  }
  Launch launch("aten::copy_", self, source);
  HostCall to(to_trn ? self.device().index() : launch.device(), "aten::copy_",
              /*host_tensors_allowed=*/true);
  HostCall from(other.type() == kTrn ? other.index() : launch.device(), "aten::copy_", true);
  at::Tensor target = to.alias(self, Access::kWrite);
  const at::Tensor given = from.alias(source);
  if (stochastic_rounding() && to_trn && rounds_copy(given, target)) {
    round_into(given.expand_as(target), target);
  } else {
    at::_ops::copy_::redispatch(host().counterpart(target.key_set()), target, given, non_blocking);
  }
  launch.retire();
  to.write_back();
  if (to_trn) follow_copy(self, source);
  return self;
}

// Without it Module.to() makes new Parameters: tied weights part, optimizers lose theirs.
bool has_compatible_shallow_copy_type(const at::Tensor& self, const at::Tensor& from) {
  const auto plain = [](const at::Tensor& tensor) {
    return tensor.device().type() == kTrn || is_outside(tensor);
  };
  return plain(self) && plain(from) && self.layout() == from.layout() &&
         self.is_quantized() == from.is_quantized();
}

// Pinned memory is the host's.
void check_not_pinned(std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool> pin_memory, std::optional<at::MemoryFormat> memory_format) {
  check_not_pinned(pin_memory);
  if (dtype) check_chip_has(*dtype);
  return HostOp<at::_ops::empty_memory_format>::kernel(size, dtype, layout, device, pin_memory,
                                                       memory_format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                         std::optional<at::Device> device, std::optional<bool> pin_memory) {
  check_not_pinned(pin_memory);
  if (dtype) check_chip_has(*dtype);
  return HostOp<at::_ops::empty_strided>::kernel(size, stride, dtype, layout, device, pin_memory);
}

// Torch's own copies between devices pass the scales where they are.
at::Tensor empty_per_channel(c10::SymIntArrayRef size, const at::Tensor& scales,
                             const at::Tensor& zero_points, int64_t axis,
                             std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                             std::optional<at::Device> device, std::optional<bool> pin_memory,
                             std::optional<at::MemoryFormat> memory_format) {
  check_not_pinned(pin_memory);
  using Op = at::_ops::_empty_per_channel_affine_quantized;
  const DispatchKeySet host_keys(DispatchKey::QuantizedCPU);
  if (device.has_value() && device->type() == kCpu)
    return Op::redispatch(host_keys, size, scales.cpu(), zero_points.cpu(), axis, dtype, layout,
                          device, pin_memory, memory_format);
  const at::Device on = resolve(device.value_or(at::Device(kTrn)));
  const at::Tensor scales_there = scales.to(on), zero_points_there = zero_points.to(on);
  Launch launch("aten::_empty_per_channel_affine_quantized", scales_there, zero_points_there, axis);
  HostCall call(on.index(), "aten::_empty_per_channel_affine_quantized");
  at::Tensor made =
      Op::redispatch(host_keys, size, call.alias(scales_there), call.alias(zero_points_there), axis,
                     dtype, layout, at::Device(kCpu), pin_memory, memory_format);
  launch.retire(made);
  return call.adopt(std::move(made));
}

// The host's kernel would give it an empty storage of the host.
at::Tensor& set_to_nothing(at::Tensor& self) {
  return at::_ops::set__source_Tensor::call(self, at::empty({0}, self.options()));
}

void record_stream(at::Tensor&, at::Stream) {}  // kernels finish before they return

// ---- registration ----

// Composite kernels rank above a backend fallback: wherever the host has a kernel of its own, so
// must we.
void register_host_ops(Registrar& registrar, DispatchKey host_key) {
  for (const c10::OperatorName& name :
       c10::Dispatcher::singleton().getRegistrationsForDispatchKey(host_key)) {
    if (name.getNamespace() != std::string_view("aten")) continue;
    const std::string full =
        name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
    const std::string plain = full.substr(sizeof("aten::") - 1);
    if (registrar.has(plain)) continue;
    registrar.add(plain, is_metadata_op(full)
                             ? torch::CppFunction::makeFromBoxedFunction<&run_as_is>()
                             : host_kernel());
  }
}

bool on_one_core(const c10::List<at::Tensor>& a, const c10::List<at::Tensor>& b) {
  std::optional<c10::Device> first;
  for (const auto* list : {&a, &b}) {
    for (size_t i = 0; i < list->size(); ++i) {
      const at::Tensor tensor = list->get(i);
      if (!tensor.defined()) return true;  // the host's kernel refuses it
      if (!first) first = tensor.device();
      if (tensor.device() != *first) return false;
    }
  }
  return true;
}

// Between devices it is a copy for each tensor, as on CUDA.
void foreach_copy(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
  const size_t first = stack->size() - op.schema().arguments().size();
  const auto written = (*stack)[first].toTensorList(), read = (*stack)[first + 1].toTensorList();
  if (written.size() != read.size() || on_one_core(written, read))
    return run_on_host(op, keys, stack);
  const bool non_blocking = (*stack)[first + 2].toBool();
  for (size_t i = 0; i < written.size(); ++i) {
    at::Tensor to = written.get(i);
    at::_ops::copy_::call(to, read.get(i), non_blocking);
  }
  stack->resize(first);
}

// Composite as well, a tensor after the other: on a list as a whole they are one launch, and the
// host's threads share the list (foreach.h).
void register_foreach(Registrar& registrar) {
  constexpr std::string_view prefix = "aten::_foreach_";
  const auto composites = c10::Dispatcher::singleton().getRegistrationsForDispatchKey(
      DispatchKey::CompositeExplicitAutograd);
  for (const c10::OperatorName& name : composites) {
    if (name.name.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string overload = name.overload_name.empty() ? "" : "." + name.overload_name;
    const std::string plain = name.name.substr(sizeof("aten::") - 1) + overload;
    if (!registrar.has(plain)) registrar.add(plain, host_kernel());
  }
}

void register_any_layout(Registrar& registrar) {
  registrar.add("copy_", &copy_);
  registrar.add("_foreach_copy_", torch::CppFunction::makeFromBoxedFunction<&foreach_copy>());
  registrar.add("_has_compatible_shallow_copy_type", &has_compatible_shallow_copy_type);
  registrar.add("_empty_per_channel_affine_quantized", &empty_per_channel);
}

template <class Op>
void add_as_is(Registrar& registrar) {
  registrar.add(std::string(op_name<Op>()).substr(sizeof("aten::") - 1), &AsIs<Op>::kernel);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  Registrar registrar(library);
  register_any_layout(registrar);
  registrar.add("record_stream", &record_stream);
  registrar.add("set_", &set_to_nothing);
  registrar.add("empty.memory_format", &empty);
  registrar.add("empty_strided", &empty_strided);
  register_attention(registrar);
  register_convolution(registrar);
  register_matmul(registrar);
  register_rnn(registrar);
#define AS_IS(op) add_as_is<at::_ops::op>(registrar);
  TRN_METADATA_OPS(AS_IS)
#undef AS_IS
#define HOT(op) registrar.host<at::_ops::op>();
  TRN_HOT_OPS(HOT)
#undef HOT
  for (const char* name : kHostComposites) registrar.add(name, host_kernel());
  register_foreach(registrar);
  register_host_ops(registrar, DispatchKey::CPU);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

#define TRN_LAYOUT(trn_key, host_key)                                            \
  TORCH_LIBRARY_IMPL(aten, trn_key, library) {                                   \
    Registrar registrar(library);                                                \
    register_any_layout(registrar);                                              \
    register_host_ops(registrar, DispatchKey::host_key);                         \
  }                                                                              \
  TORCH_LIBRARY_IMPL(_, trn_key, library) {                                      \
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); \
  }

TRN_LAYOUT(SparsePrivateUse1, SparseCPU)
TRN_LAYOUT(SparseCsrPrivateUse1, SparseCsrCPU)
TRN_LAYOUT(QuantizedPrivateUse1, QuantizedCPU)
TRN_LAYOUT(NestedTensorPrivateUse1, NestedTensorCPU)

}  // namespace trn
