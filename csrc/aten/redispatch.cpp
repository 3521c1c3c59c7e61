// See redispatch.h. Registrations: one boxed kernel for each operator that the host has a kernel
// for, a fallback for the rest, and operators that only read metadata run on the trn tensors
// themselves.
#include "redispatch.h"

#include "alias.h"
#include "policy.h"
#include "rounding_mode.h"
#include "runtime/generator.h"
#include "runtime/ledger.h"
#include "stochastic.h"

#include <atomic>
#include <string_view>
#include <unordered_set>

namespace trn {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// Take host tensors by contract: indices, lengths and offsets may stay on the host, as on CUDA.
constexpr std::string_view kTakesHostTensors[] = {
    "aten::index.",
    "aten::_unsafe_index",
    "aten::index_put",
    "aten::_index_put_impl_",
    "aten::_pack_padded_sequence",
    "aten::_ctc_loss",
    "aten::_unsafe_masked_index",
    "aten::tensor_split",
    "aten::_nested_",
    "aten::_pin_memory",
    "aten::_assert_async",
};

bool takes_host_tensors(std::string_view name) {
  for (std::string_view prefix : kTakesHostTensors) {
    if (name.substr(0, prefix.size()) == prefix) return true;
  }
  return false;
}

OpPlan::Kind kind_of(const c10::Type& type) {
  if (const auto optional = type.cast<c10::OptionalType>())
    return kind_of(*optional->getElementType());
  if (type.kind() == c10::TypeKind::TensorType) return OpPlan::Kind::kTensor;
  if (const auto list = type.cast<c10::ListType>()) {
    return kind_of(*list->getElementType()) == OpPlan::Kind::kTensor ? OpPlan::Kind::kTensorList
                                                                     : OpPlan::Kind::kOther;
  }
  if (type.kind() == c10::TypeKind::GeneratorType) return OpPlan::Kind::kGenerator;
  if (type.kind() == c10::TypeKind::DeviceObjType) return OpPlan::Kind::kDevice;
  return OpPlan::Kind::kOther;
}

// The core a call runs on: that of its first trn tensor, else of its device argument, else the
// current one.
struct FindDevice {
  c10::DeviceIndex found = -1;

  void visit(const at::Tensor& tensor) {
    if (found < 0 && tensor.defined() && tensor.device().type() == kTrn)
      found = tensor.device().index();
  }
  void visit(const OpPlan::Argument& argument, const c10::IValue& value) {
    if (value.isTensor()) {
      visit(value.toTensor());
    } else if (argument.kind == OpPlan::Kind::kTensorList && value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        if (element.isTensor()) visit(element.toTensor());
      }
    } else if (argument.kind == OpPlan::Kind::kDevice && value.isDevice() &&
               value.toDevice().type() == kTrn) {
      if (found < 0) found = resolve(value.toDevice()).index();
    }
  }
};

c10::IValue alias_list(HostCall& call, const c10::IValue& value, Access access) {
  if (value.isTensorList()) {
    c10::List<at::Tensor> out;
    out.reserve(value.toListRef().size());
    for (const c10::IValue& element : value.toListRef())
      out.push_back(call.alias(element.toTensor(), access));
    return out;
  }
  c10::List<std::optional<at::Tensor>> out;
  for (const c10::IValue& element : value.toListRef()) {
    out.push_back(element.isTensor()
                      ? std::optional<at::Tensor>(call.alias(element.toTensor(), access))
                      : std::nullopt);
  }
  return out;
}

c10::IValue host_argument(HostCall& call, const OpPlan::Argument& argument,
                          const c10::IValue& value) {
  const Access access = argument.written ? Access::kWrite : Access::kRead;
  switch (argument.kind) {
    case OpPlan::Kind::kTensor:
      return value.isTensor() ? c10::IValue(call.alias(value.toTensor(), access)) : value;
    case OpPlan::Kind::kTensorList:
      return value.isList() ? alias_list(call, value, access) : value;
    case OpPlan::Kind::kGenerator:
      return host_generator(
          value.isNone() ? std::nullopt : std::optional<at::Generator>(value.toGenerator()),
          call.device());
    case OpPlan::Kind::kDevice:
      return value.isDevice() && value.toDevice().type() == kTrn ? c10::IValue(c10::Device(kHost))
                                                                 : value;
    case OpPlan::Kind::kOther:
      return value;
  }
  return value;
}

c10::IValue trn_result(HostCall& call, c10::IValue value) {
  if (value.isTensor()) return call.adopt(std::move(value).toTensor());
  if (value.isTensorList())
    return c10::List<at::Tensor>(call.adopt(std::move(value).toTensorVector()));
  return value;
}

// The host's counterpart of the key this kernel was called under: CPU, SparseCPU, QuantizedCPU, ...
DispatchKeySet host_key_set(DispatchKeySet keys) {
  const DispatchKey functionality = c10::toFunctionalityKey(keys.highestPriorityTypeId());
  return DispatchKeySet(
      c10::toRuntimePerBackendFunctionalityKey(functionality, c10::BackendComponent::CPUBit));
}

std::vector<c10::IValue> copy_of(const c10::IValue* begin, size_t count) {
  return std::vector<c10::IValue>(begin, begin + count);
}

void call_host(const OpPlan& plan, const c10::OperatorHandle& op, DispatchKeySet keys,
               torch::jit::Stack* stack, c10::DeviceIndex device) {
  std::optional<DefaultGeneratorSwap> swap;
  if (plan.draws_unseen) swap.emplace(device);
  if (stochastic_rounding()) {
    call_rounding_stochastically(plan, op, keys, stack);
  } else {
    op.redispatchBoxed(keys, stack);
  }
}

void run(const OpPlan& plan, const c10::OperatorHandle& op, DispatchKeySet keys,
         torch::jit::Stack* stack) {
  const size_t count = plan.arguments.size();
  const size_t first = stack->size() - count;
  c10::IValue* arguments = stack->data() + first;
  FindDevice device;
  SignatureHash signature;
  const int policy = int(current_policy());
  signature.add(plan.name_hash + uint64_t(policy));
  for (size_t i = 0; i < count; ++i) {
    device.visit(plan.arguments[i], arguments[i]);
    signature.add(arguments[i]);
  }
  HostCall call(device.found >= 0 ? device.found : current_device(), plan.name.c_str(),
                plan.host_tensors_allowed);
  Ledger& ledger = Ledger::of(call.device());
  LaunchRow* row = ledger.find(signature);
  std::optional<CallText> given;
  if (C10_UNLIKELY(row == nullptr)) given.emplace(copy_of(arguments, count));
  for (size_t i = 0; i < count; ++i) {
    if (plan.arguments[i].kind == OpPlan::Kind::kOther) continue;
    arguments[i] = host_argument(call, plan.arguments[i], arguments[i]);
  }
  BelowAutograd guard;
  call_host(plan, op, host_key_set(keys), stack, call.device());
  if (C10_UNLIKELY(row == nullptr)) {
    const CallText results(copy_of(stack->data() + first, stack->size() - first));
    row = ledger.add(signature, plan.name.c_str(), *given, results, policy);
  }
  ledger.launch(row);
  if (plan.any_written) call.write_back();
  for (size_t i = first; i < stack->size(); ++i)
    (*stack)[i] = trn_result(call, std::move((*stack)[i]));
}

class HostKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
    const OpPlan* plan = plan_.load(std::memory_order_acquire);
    if (plan == nullptr) plan = make(op);
    run(*plan, op, keys, stack);
  }

 private:
  const OpPlan* make(const c10::OperatorHandle& op) {
    auto* made = new OpPlan(op);  // kernels live as long as the process
    const OpPlan* expected = nullptr;
    if (plan_.compare_exchange_strong(expected, made)) return made;
    delete made;
    return expected;
  }
  std::atomic<const OpPlan*> plan_{nullptr};
};

}  // namespace

OpPlan::OpPlan(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  name_hash = std::hash<std::string>{}(name);
  bool takes_generator = false;
  for (const c10::Argument& argument : schema.arguments()) {
    Argument made;
    made.kind = kind_of(*argument.type());
    made.written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    takes_generator |= made.kind == Kind::kGenerator;
    any_written |= made.written;
    arguments.push_back(made);
  }
  host_tensors_allowed = takes_host_tensors(name);
  draws_unseen = op.hasTag(at::Tag::nondeterministic_seeded) && !takes_generator;
}

torch::CppFunction host_kernel() {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<HostKernel>());
}

void run_on_host(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
  run(OpPlan(op), op, keys, stack);
}

}  // namespace trn
