// See on_meta.h. Casts, and what they are cast to, are those of ATen/autocast_mode.h. Checked on
// torch 2.13.0.
#include "on_meta.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;
using torch::jit::Stack;

// Of devices that no tensor here has; an estimate includes it.
constexpr DispatchKey kOfMeta = DispatchKey::AutocastIPU;
constexpr auto kDevice = c10::DeviceType::PrivateUse1;

enum class Cast { lower, single, promote, single_result, norm, refused };

bool is_cast(const Tensor& x) {
  return x.defined() && x.is_meta() && x.is_floating_point() && x.scalar_type() != at::kDouble;
}

using CastsKept = std::unordered_map<const c10::TensorImpl*, std::pair<Tensor, Tensor>>;

CastsKept& casts_kept() {
  thread_local auto* instance = new CastsKept;  // never destroyed: tensors may outlive libraries
  return *instance;
}

Tensor cast(const Tensor& x, at::ScalarType to) {
  if (!is_cast(x) || x.scalar_type() == to) return x;
  const bool keeps = to == at::autocast::get_autocast_dtype(kDevice) && to != at::kFloat &&
                     x.scalar_type() == at::kFloat && x.requires_grad() && x.is_leaf() &&
                     !x.is_view() && at::autocast::is_autocast_cache_enabled();
  if (!keeps) return x.to(to);
  auto& kept = casts_kept();
  const auto found = kept.find(x.unsafeGetTensorImpl());
  if (found != kept.end()) return found->second.second;
  return kept.emplace(x.unsafeGetTensorImpl(), std::pair{x, x.to(to)}).first->second.second;
}

// Calls f with each tensor of an argument, and puts what it gives in its place.
template <class F>
void each_tensor(IValue& value, const F& f) {
  if (value.isTensor()) {
    value = f(value.toTensor());
  } else if (value.isTensorList()) {
    auto all = value.toTensorVector();
    for (Tensor& one : all) one = f(one);
    value = IValue(std::move(all));
  } else if (value.isOptionalTensorList()) {
    const auto given = value.toOptionalTensorList();
    c10::List<std::optional<Tensor>> made;
    for (const std::optional<Tensor> one : given)
      made.push_back(one ? std::optional(f(*one)) : one);
    value = std::move(made);
  }
}

at::ScalarType widest(Stack& stack, size_t first) {
  at::ScalarType out = at::autocast::get_autocast_dtype(kDevice);
  for (size_t i = first; i < stack.size(); ++i) {
    each_tensor(stack[i], [&](const Tensor& x) {
      if (is_cast(x) && x.scalar_type() == at::kFloat) out = at::kFloat;
      return x;
    });
  }
  return out;
}

void cast_all(Stack& stack, size_t first, at::ScalarType to) {
  for (size_t i = first; i < stack.size(); ++i)
    each_tensor(stack[i], [&](const Tensor& x) { return cast(x, to); });
}

bool is_format_argument(const c10::Argument& argument) {
  const auto optional = argument.real_type()->cast<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::ScalarTypeType;
}

void ask_for_single_result(const c10::OperatorHandle& op, Stack& stack, size_t first) {
  if (!stack[first].isTensor() || !is_cast(stack[first].toTensor())) return;
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    IValue& value = stack[first + i];
    if (is_format_argument(arguments[i]) && value.isNone()) value = at::kFloat;
  }
}

// norm.Scalar and norm.ScalarOpt_dim, which have another overload with the format at the end.
void call_norm(const c10::OperatorHandle& op, Stack* stack, size_t first) {
  const Tensor x = (*stack)[first].toTensor();
  stack->emplace_back(is_cast(x) ? at::kFloat : x.scalar_type());
  const bool along = op.schema().overload_name() == "ScalarOpt_dim";
  c10::Dispatcher::singleton()
      .findSchemaOrThrow("aten::norm", along ? "ScalarOpt_dim_dtype" : "ScalarOpt_dtype")
      .callBoxed(stack);
}

bool is_product(const c10::OperatorHandle& op) {
  const std::string& name = op.schema().name();
  return op.schema().overload_name().empty() && (name == "aten::linear" || name == "aten::matmul");
}

// The operator, or the device's own. Autograd sees what either is made of; a subclass of tensors
// that is to see products itself does.
void call(const c10::OperatorHandle& op, Stack* stack, size_t first, bool product) {
  const auto folds = [](const Tensor& x) {
    const bool of_subclass = x.key_set().has(DispatchKey::Python);
    return x.is_meta() && !x.is_nested() &&
           (!of_subclass || x.key_set().has_any(c10::autograd_dispatch_keyset));
  };
  if (product && folds((*stack)[first].toTensor()))
    op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::AutogradPrivateUse1), stack);
  else
    op.callBoxed(stack);
}

template <Cast how>
void run_cast(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard below(kOfMeta);
  const size_t first = stack->size() - op.schema().arguments().size();
  const bool product = how == Cast::lower && is_product(op);
  if (!at::autocast::is_autocast_enabled(kDevice)) return call(op, stack, first, product);
  if constexpr (how == Cast::refused)
    return op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::AutocastPrivateUse1), stack);
  const c10::impl::ExcludeDispatchKeyGuard off(DispatchKey::AutocastPrivateUse1);
  if constexpr (how == Cast::norm) return call_norm(op, stack, first);
  if constexpr (how == Cast::lower)
    cast_all(*stack, first, at::autocast::get_autocast_dtype(kDevice));
  if constexpr (how == Cast::single) cast_all(*stack, first, at::kFloat);
  if constexpr (how == Cast::promote) cast_all(*stack, first, widest(*stack, first));
  if constexpr (how == Cast::single_result) ask_for_single_result(op, *stack, first);
  call(op, stack, first, product);
}

// `given` is a name, or a name and an overload, as the lists of torch have them.
template <Cast how>
void add(torch::Library& library, std::string given) {
  if (const auto comma = given.find(','); comma != given.npos) {
    given[comma] = '.';
    given.erase(std::remove(given.begin(), given.end(), ' '), given.end());
  }
  library.impl(given.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_cast<how>>());
}

TORCH_LIBRARY_IMPL(_, AutocastIPU, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define TRN_META_LOWER(...) add<Cast::lower>(m, #__VA_ARGS__);
#define TRN_META_SINGLE(...) add<Cast::single>(m, #__VA_ARGS__);
#define TRN_META_PROMOTE(...) add<Cast::promote>(m, #__VA_ARGS__);
#define TRN_META_RESULT(...) add<Cast::single_result>(m, #__VA_ARGS__);

TORCH_LIBRARY_IMPL(aten, AutocastIPU, m) {
  AT_FORALL_LOWER_PRECISION_FP(TRN_META_LOWER)
  AT_FORALL_FP32(TRN_META_SINGLE)
  AT_FORALL_FP32_SET_OPT_DTYPE(TRN_META_RESULT)
  AT_FORALL_PROMOTE(TRN_META_PROMOTE)
  for (const char* name : {"norm.Scalar", "norm.ScalarOpt_dim"}) add<Cast::norm>(m, name);
  add<Cast::refused>(m, "binary_cross_entropy");
}

}  // namespace

void clear_casts_of_meta() noexcept { casts_kept().clear(); }

}  // namespace trn
