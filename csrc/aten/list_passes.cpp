// See list_passes.h.
#include "list_passes.h"

#include "alias.h"
#include "host_alias.h"
#include "runtime/allocator.h"
#include "runtime/host.h"
#include "runtime/pending_work.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace trn {
namespace {

using c10::IValue;
using torch::jit::Stack;

constexpr int64_t kPieceBytes = 256 << 10;  // of a tensor; chosen by measurement
constexpr int64_t kWorthBytes = 1 << 20;    // of a list, less than which stays in the caches

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

// One tensor that passes read or write: memory of the device, and where in the lists it stands.
struct ListOperand {
  at::Tensor host;
  size_t index;
  bool written;
};

struct ListPass {
  c10::OperatorHandle op;  // in place
  c10::DispatchKeySet keys;
  std::vector<bool> is_list;                   // of each argument, whether of tensors
  std::vector<std::vector<uint32_t>> members;  // of those, the operands
  std::vector<IValue> others;
  bool copies = false;  // members.back() are results, which start as copies of members[0]
};

// A stretch of the tensors of one place in the lists.
struct ListPiece {
  size_t index;
  int64_t begin, elements;
};

class ListPasses {
 public:
  bool collecting = false;

  bool keep(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
            Stack* stack, c10::DeviceIndex device);
  void run();

 private:
  bool is_continued_by(const IValue& list) const;
  std::optional<uint32_t> operand(const at::Tensor& tensor, size_t index, bool written);
  bool add_operands(const OpPlan& plan, const IValue* arguments, ListPass& pass);
  std::vector<ListPiece> pieces() const;
  void run_pieces(const std::vector<ListPiece>& pieces, int64_t begin, int64_t end) const;
  void clear();

  std::vector<ListPass> passes_;
  std::vector<int64_t> elements_;  // of the tensors at each place of the lists
  std::vector<ListOperand> operands_;
  std::unordered_map<const char*, uint32_t> by_memory_;
  std::map<const char*, const char*> spans_;  // of all operands: begin, end
  bool makes_tensors_ = false;
};

ListPasses& passes_of_thread() {
  thread_local ListPasses* instance = new ListPasses;  // never destroyed, as the slots of HostCall
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
bool ListPasses::is_continued_by(const IValue& list) const {
  const auto tensors = list.toListRef();
  return std::equal(tensors.begin(), tensors.end(), elements_.begin(), elements_.end(),
                    [](const IValue& tensor, int64_t n) { return tensor.toTensor().numel() == n; });
}

// The operand of this memory; none where it is that of another place in the lists, in part or
// whole, whose passes would come in another order.
std::optional<uint32_t> ListPasses::operand(const at::Tensor& tensor, size_t index, bool written) {
  if (written) tensor.unsafeGetTensorImpl()->unsafe_storage().mutable_data();  // copy-on-write
  const auto* memory = static_cast<const char*>(tensor.const_data_ptr());
  const char* const end = memory + bytes_in(tensor);
  if (const auto found = by_memory_.find(memory); found != by_memory_.end()) {
    ListOperand& known = operands_[found->second];
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
  const auto number = uint32_t(operands_.size());
  operands_.push_back({lent(tensor, written ? Access::kWrite : Access::kRead), index, written});
  if (memory != end) by_memory_.emplace(memory, number);
  return number;
}

bool ListPasses::add_operands(const OpPlan& plan, const IValue* arguments, ListPass& pass) {
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

bool ListPasses::keep(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
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
  elements_.clear();
  for (const IValue& tensor : arguments[0].toListRef())
    elements_.push_back(tensor.toTensor().numel());
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
  passes_.push_back(std::move(pass));
  pending_work = &run_list_passes;
  calls_kept.fetch_add(1, std::memory_order_relaxed);
  return true;
}

std::vector<ListPiece> ListPasses::pieces() const {
  const int64_t most = kPieceBytes / int64_t(operands_[0].host.element_size());
  std::vector<ListPiece> out;
  for (size_t index = 0; index < elements_.size(); ++index) {
    for (int64_t begin = 0; begin < elements_[index]; begin += most)
      out.push_back({index, begin, std::min(most, elements_[index] - begin)});
  }
  return out;
}

// A view of a stretch of an operand's memory, which moves from piece to piece.
class ListWindow {
 public:
  explicit ListWindow(const at::Tensor& host)
      : first_(host.storage_offset()),
        impl_(c10::make_intrusive<c10::TensorImpl>(c10::Storage(host.storage()), host.key_set(),
                                                   host.dtype())),
        list_({at::Tensor(impl_)}) {}
  void move(const ListPiece& piece) {
    const int64_t stride = 1;
    impl_->set_sizes_and_strides({&piece.elements, 1}, {&stride, 1}, first_ + piece.begin);
  }
  const c10::List<at::Tensor>& list() const { return list_; }
  void take(const ListWindow& from) {
    std::memcpy(impl_->mutable_data(), from.impl_->data(),
                size_t(impl_->numel()) * impl_->itemsize());
  }

 private:
  const int64_t first_;
  c10::intrusive_ptr<c10::TensorImpl> impl_;
  c10::List<at::Tensor> list_;
};

// The arguments of one pass at one place of the lists.
Stack arguments_at(const ListPass& pass, size_t index,
                   std::unordered_map<uint32_t, ListWindow>& windows) {
  Stack out;
  size_t list = 0, other = 0;
  for (const bool is_list : pass.is_list) {
    if (is_list) {
      // In place on the results, where there are some, which hold the first argument by then.
      const auto& members = list == 0 && pass.copies ? pass.members.back() : pass.members[list];
      out.push_back(windows.at(members[index]).list());
      ++list;
      continue;
    }
    const IValue& value = pass.others[other++];
    if (!value.isList()) {
      out.push_back(value);
      continue;
    }
    c10::impl::GenericList one(value.toList().elementType());
    one.push_back(value.toListRef()[index]);
    out.push_back(std::move(one));
  }
  return out;
}

void ListPasses::run_pieces(const std::vector<ListPiece>& pieces, int64_t begin,
                            int64_t end) const {
  std::unordered_map<uint32_t, ListWindow> windows;
  std::vector<Stack> arguments;
  Stack stack;
  for (int64_t p = begin; p < end; ++p) {
    const ListPiece& piece = pieces[size_t(p)];
    if (p == begin || pieces[size_t(p - 1)].index != piece.index) {
      windows.clear();
      arguments.clear();
      for (const ListPass& pass : passes_) {
        for (const auto& members : pass.members)
          windows.try_emplace(members[piece.index], operands_[members[piece.index]].host);
        arguments.push_back(arguments_at(pass, piece.index, windows));
      }
    }
    for (auto& [number, window] : windows) window.move(piece);
    for (size_t i = 0; i < passes_.size(); ++i) {
      const ListPass& pass = passes_[i];
      if (pass.copies)
        windows.at(pass.members.back()[piece.index]).take(windows.at(pass.members[0][piece.index]));
      stack = arguments[i];
      pass.op.redispatchBoxed(pass.keys, &stack);
    }
  }
}

void ListPasses::clear() {
  pending_work = nullptr;
  passes_.clear();
  elements_.clear();
  operands_.clear();
  by_memory_.clear();
  spans_.clear();
  makes_tensors_ = false;
}

void ListPasses::run() {
  if (passes_.empty()) return clear();
  const ListPasses now = std::move(*this);
  clear();
  const std::vector<ListPiece> pieces = now.pieces();
  std::vector<int64_t> ends;  // of the threads' stretches, of about as many elements
  int64_t total = 0, seen = 0;
  for (const ListPiece& piece : pieces) total += piece.elements;
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  for (size_t p = 0; p < pieces.size(); ++p) {
    seen += pieces[p].elements;
    if (seen * threads >= total * int64_t(ends.size() + 1)) ends.push_back(int64_t(p) + 1);
  }
  // The step's end may stand within modes and transforms, which have seen these calls.
  c10::impl::PODLocalDispatchKeySet keys{};
  keys.set_excluded(c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                    c10::autocast_dispatch_keyset);
  const c10::impl::ForceDispatchKeyGuard only_the_host{c10::impl::LocalDispatchKeySet(keys)};
  const at::ThreadLocalState state;
  at::parallel_for(0, int64_t(ends.size()), 1, [&](int64_t first, int64_t last) {
    const at::ThreadLocalStateGuard same_state(state);
    for (int64_t t = first; t < last; ++t)
      now.run_pieces(pieces, t == 0 ? 0 : ends[size_t(t - 1)], ends[size_t(t)]);
  });
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
