// See stochastic.h.
#include "stochastic.h"

#include "operands.h"

#include <unordered_map>

namespace trn {
namespace {

using c10::IValue;

bool is_half(const at::Tensor& tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided &&
         (tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf);
}

// float32 copies of the 16-bit tensors among the arguments; one copy for each tensor.
class Widened {
 public:
  at::Tensor of(const at::Tensor& tensor) {
    if (!is_half(tensor)) return tensor;
    auto [at, fresh] = copies_.try_emplace(tensor.unsafeGetTensorImpl());
    if (fresh) at->second = tensor.to(at::kFloat);
    return at->second;
  }
  IValue of(const IValue& value) {
    if (value.isTensor()) return of(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const IValue& element : value.toListRef()) list.push_back(of(element.toTensor()));
    return list;
  }
  bool any() const { return !copies_.empty(); }
  bool holds(const at::Tensor& tensor) const {
    return copies_.count(tensor.unsafeGetTensorImpl()) > 0;
  }

 private:
  std::unordered_map<const c10::TensorImpl*, at::Tensor> copies_;
};

void round_tensor(const at::Tensor& wide, at::Tensor to) {
  if (is_half(to) && wide.scalar_type() == at::kFloat && wide.sizes() == to.sizes())
    round_into(wide, to);
}

void round_value(const IValue& wide, const IValue& to) {
  if (to.isTensor() && wide.isTensor()) return round_tensor(wide.toTensor(), to.toTensor());
  if (!to.isTensorList()) return;
  for (size_t i = 0; i < to.toListRef().size(); ++i)
    round_value(wide.toListRef()[i], to.toListRef()[i]);
}

bool is_argument(const Widened& widened, const IValue& result) {
  if (result.isTensorList())
    return !result.toListRef().empty() && is_argument(widened, result.toListRef()[0]);
  return result.isTensor() && result.toTensor().defined() && widened.holds(result.toTensor());
}

}  // namespace

void call_rounding_stochastically(const OpPlan& plan, const c10::OperatorHandle& op,
                                  c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const size_t first = stack->size() - plan.arguments.size();
  const torch::jit::Stack given(stack->begin() + std::ptrdiff_t(first), stack->end());
  Widened widened;
  torch::jit::Stack wide;
  for (const IValue& value : given) wide.push_back(widened.of(value));
  op.redispatchBoxed(keys, stack);
  if (!widened.any() || op.hasTag(at::Tag::nondeterministic_seeded)) return;
  const torch::jit::Stack wide_arguments = wide;
  op.redispatchBoxed(keys, &wide);
  for (size_t i = 0; i < given.size(); ++i) {
    if (plan.arguments[i].written) round_value(wide_arguments[i], given[i]);
  }
  for (size_t i = 0; i < wide.size(); ++i) {
    if (!is_argument(widened, (*stack)[first + i])) round_value(wide[i], (*stack)[first + i]);
  }
}

}  // namespace trn
