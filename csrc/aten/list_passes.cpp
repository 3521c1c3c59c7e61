// See list_passes.h.
#include "list_passes.h"

#include "alias.h"
#include "host_alias.h"
#include "list_pieces.h"
#include "runtime/allocator.h"
#include "runtime/host.h"
#include "runtime/pending_work.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

using c10::IValue;
using torch::jit::Stack;

constexpr int64_t kWorthBytes = 1 << 20;  // of a list, less than which stays in the caches

// By the name after "aten::_foreach_", without the underscore of those in place.
constexpr std::string_view kElementWise[] = {
    "abs",     "add",     "addcdiv", "addcmul", "clamp_max", "clamp_min",  "div",  "lerp",
    "maximum", "minimum", "mul",     "neg",     "sign",      "reciprocal", "sqrt", "sub",
};

constexpr std::string_view kPrefix = "aten::_foreach_";

struct ForeachName {
  std::string_view base, overload;
  bool in_place;
};

ForeachName foreach_name(std::string_view name) {
  name.remove_prefix(kPrefix.size());
  const size_t dot = name.find('.');
  ForeachName out{name.substr(0, dot), dot == name.npos ? std::string_view{} : name.substr(dot + 1),
                  false};
  if (!out.base.empty() && out.base.back() == '_') {
    out.in_place = true;
    out.base.remove_suffix(1);
  }
  return out;
}

c10::OperatorHandle in_place_form(std::string_view name) {
  const ForeachName parts = foreach_name(name);
  const std::string written = std::string(kPrefix) + std::string(parts.base) + "_";
  return c10::Dispatcher::singleton().findSchemaOrThrow(written.c_str(),
                                                        std::string(parts.overload).c_str());
}

bool is_list_of_tensors(const OpPlan& plan, size_t argument) {
  return plan.arguments[argument].kind == OpPlan::Kind::kTensorList;
}

class KeptPasses {
 public:
  bool collecting = false;

  bool keep(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
            Stack* stack, c10::DeviceIndex device);
  void run();

 private:
  bool is_continued_by(const IValue& list) const;
  std::optional<uint32_t> operand(const at::Tensor& tensor, size_t index, bool written);
  bool add_operands(const OpPlan& plan, const IValue* arguments, ListPass& pass);
  void clear();

  ListPasses all_;
  std::unordered_map<const char*, uint32_t> by_memory_;
  std::map<const char*, const char*> spans_;  // of all operands: begin, end
  bool makes_tensors_ = false;
};

KeptPasses& passes_of_thread() {
  thread_local KeptPasses* instance = new KeptPasses;  // never destroyed, as the slots of HostCall
  return *instance;
}

std::atomic<int64_t> calls_kept{0};

int64_t bytes_in(const at::Tensor& tensor) { return tensor.numel() * tensor.element_size(); }

bool is_real_number(const IValue& value) { return value.isDouble() || value.isInt(); }

bool are_numbers(const IValue& value, size_t length) {
  if (!value.isList()) return is_real_number(value);
  const auto all = value.toListRef();
  return all.size() == length && std::all_of(all.begin(), all.end(), is_real_number);
}

bool is_alike(const at::Tensor& tensor, const at::Tensor& like, c10::DeviceIndex device) {
  return tensor.defined() && tensor.device() == c10::Device(kTrn, device) &&
         tensor.layout() == at::kStrided && !tensor.is_neg() &&
         tensor.scalar_type() == like.scalar_type() && tensor.sizes() == like.sizes() &&
         tensor.strides() == like.strides() && tensor.is_non_overlapping_and_dense();
}

// Lists of tensors that are alike from list to list, and numbers.
bool can_be_kept(const OpPlan& plan, const IValue* arguments, c10::DeviceIndex device) {
  if (!arguments[0].isTensorList()) return false;
  const auto first = arguments[0].toListRef();
  if (first.empty() || !first[0].toTensor().defined()) return false;
  const auto dtype = first[0].toTensor().scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kDouble)
    return false;
  int64_t bytes = 0;
  for (const IValue& value : first) {
    const at::Tensor& tensor = value.toTensor();
    if (!tensor.defined() || tensor.scalar_type() != dtype) return false;
    bytes += bytes_in(tensor);
  }
  if (bytes < kWorthBytes) return false;
  // The host's product of a 16-bit tensor and a number rounds the number in place only.
  if (!plan.any_written && dtype != at::kFloat && dtype != at::kDouble) return false;
  for (size_t a = 0; a < plan.arguments.size(); ++a) {
    if (!is_list_of_tensors(plan, a)) {
      if (!are_numbers(arguments[a], first.size())) return false;
      continue;
    }
    if (!arguments[a].isTensorList() || arguments[a].toListRef().size() != first.size())
      return false;
    for (size_t i = 0; i < first.size(); ++i) {
      if (!is_alike(arguments[a].toListRef()[i].toTensor(), first[i].toTensor(), device))
        return false;
    }
  }
  return true;
}

// Whether its tensors have the sizes of those of the passes so far, place by place.
bool KeptPasses::is_continued_by(const IValue& list) const {
  const auto tensors = list.toListRef();
  return std::equal(tensors.begin(), tensors.end(), all_.elements.begin(), all_.elements.end(),
                    [](const IValue& tensor, int64_t n) { return tensor.toTensor().numel() == n; });
}

// The operand of this memory; none where it is that of another place in the lists, in part or
// whole, whose passes would come in another order.
std::optional<uint32_t> KeptPasses::operand(const at::Tensor& tensor, size_t index, bool written) {
  if (written) tensor.unsafeGetTensorImpl()->unsafe_storage().mutable_data();  // copy-on-write
  const auto* memory = static_cast<const char*>(tensor.const_data_ptr());
  const char* const end = memory + bytes_in(tensor);
  if (const auto found = by_memory_.find(memory); found != by_memory_.end()) {
    ListOperand& known = all_.operands[found->second];
    if (known.index != index || spans_.at(memory) != end) return std::nullopt;
    if (written && !known.written) {
      known.host = lent(tensor, Access::kWrite);
      known.written = true;
    }
    return found->second;
  }
  if (memory != end) {
    const auto after = spans_.lower_bound(memory);
    if (after != spans_.end() && after->first < end) return std::nullopt;
    if (after != spans_.begin() && std::prev(after)->second > memory) return std::nullopt;
    spans_.emplace(memory, end);
  }
  const auto number = uint32_t(all_.operands.size());
  all_.operands.push_back({lent(tensor, written ? Access::kWrite : Access::kRead), index, written});
  if (memory != end) by_memory_.emplace(memory, number);
  return number;
}

bool KeptPasses::add_operands(const OpPlan& plan, const IValue* arguments, ListPass& pass) {
  for (size_t a = 0; a < plan.arguments.size(); ++a) {
    pass.is_list.push_back(is_list_of_tensors(plan, a));
    if (!pass.is_list.back()) {
      pass.others.push_back(arguments[a]);
      continue;
    }
    const auto list = arguments[a].toListRef();
    auto& members = pass.members.emplace_back();
    for (size_t i = 0; i < list.size(); ++i) {
      const auto found = operand(list[i].toTensor(), i, plan.arguments[a].written);
      if (!found) return false;
      members.push_back(*found);
    }
  }
  return true;
}

c10::List<at::Tensor> results_like(const IValue& list, c10::DeviceIndex device) {
  c10::List<at::Tensor> out;
  const InHbm in_hbm(device);
  const PendingWork kept_meanwhile = std::exchange(pending_work, nullptr);
  for (const IValue& value : list.toListRef()) {
    const at::Tensor& like = value.toTensor();
    at::Tensor made =
        at::empty_strided(like.sizes(), like.strides(), like.options().device(host().device()));
    out.push_back(relabel(std::move(made), c10::Device(kTrn, device)));
  }
  pending_work = kept_meanwhile;
  return out;
}

bool KeptPasses::keep(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                      Stack* stack, c10::DeviceIndex device) {
  const size_t count = plan.arguments.size();
  const IValue* arguments = stack->data() + stack->size() - count;
  const bool makes = !plan.any_written;
  if (host().foreign || at::hasCallbacks() || !can_be_kept(plan, arguments, device)) return false;
  // New tensors come into being when those that are no longer used have gone.
  if (!is_continued_by(arguments[0]) || (makes && makes_tensors_)) run();
  const ListPass empty{makes ? in_place_form(plan.name) : op, keys, {}, {}, {}, makes};
  ListPass pass = empty;
  if (!add_operands(plan, arguments, pass)) {
    run();
    pass = empty;
    if (!add_operands(plan, arguments, pass)) {
      clear();
      return false;
    }
  }
  all_.elements.clear();
  for (const IValue& tensor : arguments[0].toListRef())
    all_.elements.push_back(tensor.toTensor().numel());
  if (makes) {
    const auto results = results_like(arguments[0], device);
    auto& members = pass.members.emplace_back();
    for (size_t i = 0; i < results.size(); ++i)
      members.push_back(operand(results.get(i), i, true).value());
    stack->resize(stack->size() - count);
    stack->push_back(results);
    makes_tensors_ = true;
  } else {
    stack->resize(stack->size() - count);
  }
  all_.passes.push_back(std::move(pass));
  pending_work = &run_list_passes;
  calls_kept.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void KeptPasses::clear() {
  pending_work = nullptr;
  all_ = {};
  by_memory_.clear();
  spans_.clear();
  makes_tensors_ = false;
}

void KeptPasses::run() {
  if (all_.passes.empty()) return clear();
  const ListPasses now = std::move(all_);
  clear();
  run_in_pieces(now);
}

}  // namespace

bool is_list_pass(const OpPlan& plan) {
  if (std::string_view(plan.name).substr(0, kPrefix.size()) != kPrefix || !plan.foreach_list)
    return false;
  const ForeachName name = foreach_name(plan.name);
  if (std::find(std::begin(kElementWise), std::end(kElementWise), name.base) ==
          std::end(kElementWise) ||
      name.overload.find("out") != name.overload.npos)
    return false;
  return std::none_of(plan.arguments.begin(), plan.arguments.end(), [](const auto& argument) {
    return argument.kind != OpPlan::Kind::kTensorList && argument.kind != OpPlan::Kind::kOther;
  });
}

bool keep_list_pass(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    Stack* stack, c10::DeviceIndex device) {
  return passes_of_thread().keep(plan, op, keys, stack, device);
}

void collect_list_passes(bool on) {
  passes_of_thread().collecting = on;
  if (!on) passes_of_thread().run();
}

bool collecting_list_passes() noexcept { return passes_of_thread().collecting; }

void run_list_passes() { passes_of_thread().run(); }

int64_t list_passes_kept() noexcept { return calls_kept.load(std::memory_order_relaxed); }

}  // namespace trn
