// See redispatch.h. Registrations: one boxed kernel for each operator that the host has a kernel
// for, a fallback for the rest, and operators that only read metadata run on the trn tensors
// themselves.
#include "redispatch.h"

#include "accelerated.h"
#include "alias.h"
#include "foreach.h"
#include "fused_optimizers.h"
#include "list_passes.h"
#include "named_errors.h"
#include "plain_operands.h"
#include "policy.h"
#include "preconditions.h"
#include "product_roles.h"
#include "rounding_mode.h"
#include "runtime/generator.h"
#include "runtime/ledger.h"
#include "stochastic.h"
#include "wider.h"

#include <algorithm>
#include <atomic>
#include <string_view>
#include <unordered_set>

namespace trn {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;

// Arguments that may be host tensors by contract, as on CUDA: operators by prefix, and the
// argument's name.
struct HostArgument {
  std::string_view op, argument;
};
constexpr HostArgument kHostArguments[] = {
    {"aten::index.", "indices"},
    {"aten::_unsafe_index", "indices"},
    {"aten::index_put", "indices"},
    {"aten::_index_put_impl_", "indices"},
    {"aten::_unsafe_masked_index", "indices"},
    {"aten::_pack_padded_sequence", "lengths"},
    {"aten::_ctc_loss", "input_lengths"},
    {"aten::_ctc_loss", "target_lengths"},
    {"aten::_nested_view_from_buffer", "nested_size"},
    {"aten::_nested_view_from_buffer", "nested_strides"},
    {"aten::_nested_view_from_buffer", "offsets"},
    {"aten::_nested_from_padded", "cpu_nested_shape_example"},
    {"aten::_nested_tensor_from_tensor_list", "list"},
    {"aten::_pin_memory", "self"},
    {"aten::_foreach_", "scalars"},
    {"aten::_fused_", "lr"},
};

bool may_stay_on_host(std::string_view op, std::string_view argument) {
  for (const HostArgument& row : kHostArguments) {
    if (op.substr(0, row.op.size()) == row.op && argument == row.argument) return true;
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

// Operators whose result is a weight if what they copy from is one.
constexpr std::string_view kCopies[] = {"aten::clone",  "aten::index.Tensor", "aten::index_select",
                                        "aten::gather", "aten::cat",          "aten::stack"};

bool is_copy(std::string_view op) {
  return std::find(std::begin(kCopies), std::end(kCopies), op) != std::end(kCopies);
}

// Rows chosen from a matrix are activations, as those of an embedding; matrices chosen from a batch
// of them are weights.
void follow_weights(const OpPlan& plan, const c10::IValue& from, const at::Tensor& made) {
  if (from.isTensorList()) {
    const auto list = from.toTensorVector();
    if (!list.empty() && std::all_of(list.begin(), list.end(), &is_weight)) mark_weight(made);
  } else if (from.isTensor() && (plan.name == "aten::clone" || from.toTensor().dim() >= 3)) {
    if (is_weight(from.toTensor())) mark_weight(made);
  }
}

// Numbers that are data: `alpha`, `value`, a list of learning rates. Sizes and dimensions are plain
// integers.
bool is_number(const c10::Type& type) {
  if (const auto optional = type.cast<c10::OptionalType>())
    return is_number(*optional->getElementType());
  if (const auto list = type.cast<c10::ListType>()) return is_number(*list->getElementType());
  return type.kind() == c10::TypeKind::NumberType || type.kind() == c10::TypeKind::FloatType;
}

bool is_format(const c10::Type& type) {
  if (const auto optional = type.cast<c10::OptionalType>())
    return is_format(*optional->getElementType());
  return type.kind() == c10::TypeKind::ScalarTypeType;
}

// Their numbers decide the size of the result.
bool numbers_are_sizes(std::string_view name) {
  return name.substr(0, 12) == "aten::arange" || name.substr(0, 11) == "aten::range";
}

// The core a call runs on: that of its first trn tensor, else of its device argument, else the
// current one.
struct FindDevice {
  c10::DeviceIndex found = -1;
  bool host_tensor = false, trn_generator = false;

  void visit(const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.device().type() == kCpu) host_tensor = true;
    if (found < 0 && tensor.device().type() == kTrn) found = tensor.device().index();
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
    } else if (argument.kind == OpPlan::Kind::kGenerator && value.isGenerator()) {
      trn_generator |= value.toGenerator().device().type() == kTrn;
    } else if (argument.pins && value.isBool()) {
      TORCH_CHECK(!value.toBool(), "Only dense CPU tensors can be pinned");
    }
  }

  c10::DeviceIndex device() const {
    // The generator alone has brought the call here.
    TORCH_CHECK(found >= 0 || !host_tensor || !trn_generator,
                "Expected a 'cpu' device type for generator but found '",
                c10::DeviceTypeName(kTrn, /*lower_case=*/true), "'");
    return found >= 0 ? found : current_device();
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
      return value.isDevice() && value.toDevice().type() == kTrn ? c10::IValue(host().device())
                                                                 : value;
    case OpPlan::Kind::kOther:
      return value;
  }
  return value;
}

c10::IValue trn_result(HostCall& call, c10::IValue value) {
  if (value.isTensor()) return call.adopt(std::move(value).toTensor());
  if (value.isTensorList()) {
    std::vector<at::Tensor> results = value.toTensorVector();
    value = c10::IValue();  // nobody else holds them now
    return c10::List<at::Tensor>(call.adopt(std::move(results)));
  }
  return value;
}

std::vector<c10::IValue> copy_of(const c10::IValue* begin, size_t count) {
  return std::vector<c10::IValue>(begin, begin + count);
}

// A plan, and the operator that runs on the host in its operator's place (accelerated.h).
struct Planned {
  explicit Planned(const c10::OperatorHandle& op)
      : plan(op), twin(twin_of(op.operator_name())), copies(is_copy(plan.name)) {}
  OpPlan plan;
  std::optional<c10::OperatorHandle> twin;
  bool copies;  // its result holds elements of its first argument, as they are
};

void call_host(const Planned& planned, const c10::OperatorHandle& op, DispatchKeySet keys,
               torch::jit::Stack* stack, c10::DeviceIndex device) {
  const OpPlan& plan = planned.plan;
  std::optional<DefaultGeneratorSwap> swap;
  if (plan.draws_unseen) swap.emplace(device);
  if (planned.twin.has_value()) return planned.twin->callBoxed(stack);
  if (plan.wider != nullptr && call_wider(plan, op, keys, stack)) return;
  if (stochastic_rounding() && plan.rounds) {
    call_rounding_stochastically(plan, op, keys, stack);
  } else if (plan.foreach_list) {
    call_foreach(plan, op, keys, stack);
  } else if (plan.fused_optimizer) {
    call_fused_optimizer(plan, op, keys, stack);
  } else {
    op.redispatchBoxed(keys, stack);
  }
}

void check_indices(const at::Tensor& indexed, const c10::IValue& indices) {
  for (const c10::IValue& index : indices.toListRef()) {
    if (!index.isTensor() || !index.toTensor().defined()) continue;
    const c10::Device on = index.toTensor().device();
    TORCH_CHECK(on.type() != kTrn || on == indexed.device(),
                "indices should be either on cpu or on the same device as the indexed tensor (",
                indexed.device(), ")");
  }
}

void run(const Planned& planned, const c10::OperatorHandle& op, DispatchKeySet keys,
         torch::jit::Stack* stack) {
  const OpPlan& plan = planned.plan;
  const size_t count = plan.arguments.size();
  const size_t first = stack->size() - count;
  c10::IValue* arguments = stack->data() + first;
  FindDevice device;
  SignatureHash signature;
  const int policy = int(current_policy());
  signature.add(plan.name_hash + uint64_t(policy));
  for (size_t i = 0; i < count; ++i) {
    device.visit(plan.arguments[i], arguments[i]);
    if (plan.arguments[i].number)
      signature.add_number(arguments[i]);
    else
      signature.add(arguments[i]);
  }
  if (plan.indexes) check_indices(arguments[0].toTensor(), arguments[1]);
  const c10::DeviceIndex core = device.device();
  Ledger& ledger = Ledger::of(core);
  LaunchRow* row = ledger.find(signature);
  if (plan.list_pass && row != nullptr && collecting_list_passes() && !stochastic_rounding() &&
      keep_list_pass(plan, op, host().counterpart(keys), stack, core))
    return ledger.launch(row);
  HostCall call(core, plan.name.c_str());
  const auto copied = planned.copies ? std::optional(arguments[0]) : std::nullopt;
  std::optional<CallText> given;
  if (C10_UNLIKELY(row == nullptr)) given.emplace(copy_of(arguments, count));
  for (size_t i = 0; i < count; ++i) {
    if (plan.arguments[i].kind == OpPlan::Kind::kOther) continue;
    call.allow_host_tensors(plan.arguments[i].host_allowed);
    arguments[i] = host_argument(call, plan.arguments[i], arguments[i]);
  }
  BelowAutograd guard;
  naming_trn(plan.name.c_str(), [&] {
    if (plan.check != nullptr && !keys.has(DispatchKey::NestedTensor)) plan.check(arguments);
    PlainOperands plain(plan, stack);
    call_host(planned, op, host().counterpart(keys), stack, call.device());
    plain.restore(stack, first);
  });
  if (C10_UNLIKELY(row == nullptr)) {
    const CallText results(copy_of(stack->data() + first, stack->size() - first));
    row = ledger.add(signature, plan.name.c_str(), *given, results, policy);
  }
  ledger.launch(row);
  if (plan.any_written) call.write_back();
  for (size_t i = first; i < stack->size(); ++i)
    (*stack)[i] = trn_result(call, std::move((*stack)[i]));
  if (copied.has_value()) follow_weights(plan, *copied, (*stack)[first].toTensor());
}

class HostKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
    const Planned* planned = planned_.load(std::memory_order_acquire);
    if (planned == nullptr) planned = make(op);
    run(*planned, op, keys, stack);
  }

 private:
  const Planned* make(const c10::OperatorHandle& op) {
    auto* made = new Planned(op);  // kernels live as long as the process
    const Planned* expected = nullptr;
    if (planned_.compare_exchange_strong(expected, made)) return made;
    delete made;
    return expected;
  }
  std::atomic<const Planned*> planned_{nullptr};
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
    made.number = is_number(*argument.type()) && !numbers_are_sizes(name);
    made.written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    made.host_allowed = may_stay_on_host(name, argument.name());
    made.format = is_format(*argument.real_type());
    made.pins = argument.name() == "pin_memory";
    made.plain = taken_for_contiguous(name, argument.name());
    any_plain |= made.plain;
    indexes |= made.host_allowed && argument.name() == "indices";
    takes_generator |= made.kind == Kind::kGenerator;
    any_written |= made.written;
    arguments.push_back(made);
  }
  wider = host().foreign ? nullptr : wider_row(name);
  check = precondition(name);
  foreach_list = is_foreach(*this);
  fused_optimizer = is_fused_optimizer(*this);
  list_pass = check == nullptr && wider == nullptr && !any_plain && is_list_pass(*this);
  rounds = name.rfind("trn::", 0) != 0;
  draws_unseen = op.hasTag(at::Tag::nondeterministic_seeded) && !takes_generator;
}

torch::CppFunction host_kernel() {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<HostKernel>());
}

void run_on_host(const c10::OperatorHandle& op, DispatchKeySet keys, torch::jit::Stack* stack) {
  run(Planned(op), op, keys, stack);
}

}  // namespace trn
