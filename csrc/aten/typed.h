// The unboxed form of the host kernel: `HostOp<at::_ops::add_Tensor>::kernel` aliases its
// arguments, runs the host's kernel and adopts the result, with no boxing. For operators called so
// often that boxing shows.
#pragma once

#include "alias.h"
#include "named_errors.h"
#include "policy.h"
#include "redispatch.h"
#include "rounding_mode.h"
#include "runtime/generator.h"
#include "runtime/ledger.h"

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace trn {
namespace typed {

// The core a call runs on, from whichever argument says it.
template <class T>
void find_device(c10::DeviceIndex& found, const T& value) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    if (found < 0 && value.defined() && value.device().type() == kTrn)
      found = value.device().index();
  } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
    if (value.has_value()) find_device(found, *value);
  } else if constexpr (std::is_same_v<T, at::TensorList>) {
    for (const at::Tensor& tensor : value) find_device(found, tensor);
  } else if constexpr (std::is_same_v<T, std::optional<c10::Device>>) {
    if (found < 0 && value.has_value() && value->type() == kTrn) found = resolve(*value).index();
  }
}

template <class T>
void add_to(SignatureHash& hash, const T& value) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    hash.add(value);
  } else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>) {
    hash.add(uint64_t(value));
  } else if constexpr (std::is_same_v<T, at::IntArrayRef>) {
    for (int64_t element : value) hash.add(uint64_t(element));
    hash.add(uint64_t(value.size()) << 32);
  } else if constexpr (std::is_same_v<T, at::TensorList>) {
    for (const at::Tensor& tensor : value) hash.add(tensor);
    hash.add(uint64_t(value.size()) << 32);
  } else if constexpr (std::is_same_v<T, double>) {
    hash.add_number(value);
  } else if constexpr (std::is_same_v<T, at::Scalar>) {
    hash.add_number(c10::IValue(value));
  } else if constexpr (std::is_constructible_v<bool, T>) {  // optionals
    hash.add(uint64_t(bool(value)) + 2);
    if constexpr (!std::is_same_v<T, std::optional<at::Generator>>) {
      if (value) add_to(hash, *value);
    }
  } else {
    hash.add(c10::IValue(value));
  }
}

// Complex operands, or a complex dtype asked for: the boxed kernel knows which formats the host
// computes in a wider one (wider.h).
template <class T>
bool is_complex(const T& value) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    return value.defined() && c10::isComplexType(value.scalar_type());
  } else if constexpr (std::is_same_v<T, std::optional<at::ScalarType>>) {
    return value.has_value() && c10::isComplexType(*value);
  } else {
    return false;
  }
}

// The host's form of one argument. Tensors written to are taken by reference in aten's signatures.
template <class T>
decltype(auto) to_host(HostCall& call, T&& value) {
  using Plain = std::remove_cv_t<std::remove_reference_t<T>>;
  constexpr bool written = std::is_same_v<T, at::Tensor&>;
  if constexpr (std::is_same_v<Plain, at::Tensor>) {
    return call.alias(value, written ? Access::kWrite : Access::kRead);
  } else if constexpr (std::is_same_v<Plain, std::optional<at::Tensor>>) {
    return call.alias(value);
  } else if constexpr (std::is_same_v<Plain, at::TensorList>) {
    return call.alias(value, Access::kRead);
  } else if constexpr (std::is_same_v<Plain, std::optional<c10::Device>>) {
    return value.has_value() && value->type() == kTrn ? Plain(host().device()) : value;
  } else if constexpr (std::is_same_v<Plain, std::optional<at::Generator>>) {
    return Plain(host_generator(value, call.device()));
  } else {
    return Plain(std::forward<T>(value));
  }
}

inline at::Tensor adopt(HostCall& call, at::Tensor result) { return call.adopt(std::move(result)); }
inline std::vector<at::Tensor> adopt(HostCall& call, std::vector<at::Tensor> r) {
  return call.adopt(std::move(r));
}
template <class T>
  requires std::is_arithmetic_v<T> || std::is_same_v<T, at::Scalar>
T adopt(HostCall&, T value) {
  return value;
}
template <class... T>
std::tuple<T...> adopt(HostCall& call, std::tuple<T...> results) {
  return std::apply(
      [&](auto&... each) { return std::tuple<T...>(adopt(call, std::move(each))...); }, results);
}

template <class... A>
at::Tensor& written_argument(A&&... arguments) {
  at::Tensor* found = nullptr;
  const auto look = [&](auto&& argument) {
    if constexpr (std::is_same_v<decltype(argument), at::Tensor&>) found = &argument;
  };
  (look(std::forward<A>(arguments)), ...);
  return *found;
}

template <class... A>
std::vector<c10::IValue> boxed(const A&... arguments) {
  std::vector<c10::IValue> out;
  [[maybe_unused]] const auto push = [&](const auto& value) {
    using T = std::remove_cv_t<std::remove_reference_t<decltype(value)>>;
    if constexpr (std::is_same_v<T, std::optional<at::Generator>>) {
      out.emplace_back();
    } else {
      out.emplace_back(value);
    }
  };
  (push(arguments), ...);
  return out;
}

}  // namespace typed

// One launch of `op` on the core of its arguments: the scope in which a kernel of ours runs.
class Launch {
 public:
  template <class... A>
  explicit Launch(const char* op, const A&... arguments) : op_(op), policy_(int(current_policy())) {
    c10::DeviceIndex device = -1;
    signature_.add(reinterpret_cast<uint64_t>(op) + uint64_t(policy_));
    ((typed::find_device(device, arguments), typed::add_to(signature_, arguments)), ...);
    device_ = device >= 0 ? device : current_device();
    row_ = Ledger::of(device_).find(signature_);
    if (C10_UNLIKELY(row_ == nullptr)) arguments_.emplace(typed::boxed(arguments...));
  }
  c10::DeviceIndex device() const { return device_; }
  // The kernel is done. A new signature is priced now, from its arguments and what results are
  // given.
  template <class... R>
  void retire(const R&... results) {
    Ledger& ledger = Ledger::of(device_);
    if (C10_UNLIKELY(row_ == nullptr)) {
      row_ = ledger.add(signature_, op_, *arguments_, CallText(typed::boxed(results...)), policy_);
    }
    ledger.launch(row_);
  }

 private:
  const char* op_;
  int policy_;
  SignatureHash signature_;
  std::optional<CallText> arguments_;  // of a new signature
  c10::DeviceIndex device_;
  LaunchRow* row_;
  BelowAutograd guard_;
};

template <class Op>
const char* op_name() {
  static const std::string name =
      std::string(Op::name) + (*Op::overload_name ? "." : "") + Op::overload_name;
  return name.c_str();
}

template <class Op, class Schema = typename Op::schema>
struct HostOp;

template <class Op, class R, class... A>
struct HostOp<Op, R(A...)> {
  static R kernel(A... arguments) {
    if (C10_UNLIKELY(stochastic_rounding() || (typed::is_complex(arguments) || ...)))
      return boxed(std::forward<A>(arguments)...);
    static const char* const name = op_name<Op>();
    Launch launch(name, arguments...);
    HostCall call(launch.device(), name);
    auto host = std::tuple(typed::to_host<A>(call, std::forward<A>(arguments))...);
    const c10::DispatchKeySet keys = trn::host().keys;
    if constexpr (std::is_same_v<R, at::Tensor&>) {
      naming_trn(name,
                 [&] { std::apply([&](auto&... each) { Op::redispatch(keys, each...); }, host); });
      launch.retire();
      call.write_back();
      return typed::written_argument(std::forward<A>(arguments)...);
    } else {
      R result = naming_trn(name, [&] {
        return std::apply([&](auto&... each) { return Op::redispatch(keys, each...); }, host);
      });
      launch.retire(result);
      return typed::adopt(call, std::move(result));
    }
  }

 private:
  static R boxed(A... arguments) {
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow(Op::name, Op::overload_name);
    static const auto kernel = c10::BoxedKernel::makeFromFunction<&run_on_host>();
    constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
    return c10::impl::BoxedKernelWrapper<R(A...)>::call(kernel, op, keys,
                                                        std::forward<A>(arguments)...);
  }
};

}  // namespace trn
