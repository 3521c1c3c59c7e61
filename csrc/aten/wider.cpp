// See wider.h. The operators and formats are those of op_db with dtypesIfCUDA - dtypes, and what
// their gradients are made of; tests/conformance/wider.py walks them.
#include "wider.h"

#include "formats_set.h"
#include "operands.h"
#include "rounding_mode.h"
#include "runtime/allocator.h"
#include "runtime/host.h"

#include <ATen/native/TypeProperties.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/resize_as_sparse.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <unordered_map>

namespace trn {

// Of which operands a row speaks, by their layouts.
enum class Of { kAny, kAllSparse, kOneSparse, kOneCompressed };

struct WiderRow {
  // Without the underscore of the form in place; with an overload, that one alone.
  std::string_view op;
  Formats from;
  bool numbers = false;      // numbers take part in type promotion
  const char* of = nullptr;  // NaN of the first operand counts as zero; the rest is this operator
  Of operands = Of::kAny;
};

namespace {

using at::ScalarType;
using c10::IValue;

constexpr Formats kComplexHalf{ScalarType::ComplexHalf};
constexpr Formats kFft{ScalarType::Half, ScalarType::ComplexHalf};
constexpr Formats kHalf{ScalarType::Half};
constexpr Formats kHalves{ScalarType::Half, ScalarType::BFloat16};
constexpr Formats kBool{ScalarType::Bool};
constexpr Formats kAdded{ScalarType::Bool, ScalarType::Half, ScalarType::ComplexHalf};
constexpr Formats kIntegers{ScalarType::Byte, ScalarType::Char, ScalarType::Short, ScalarType::Int,
                            ScalarType::Long};
constexpr Formats kComplex{ScalarType::ComplexHalf, ScalarType::ComplexFloat,
                           ScalarType::ComplexDouble};

constexpr WiderRow kWiderRows[] = {
    {"abs", kBool},
    {"histc", kIntegers},
    {"trace", kBool | kComplexHalf},
    {"nansum", kComplex, false, "aten::sum"},
    // complex32 as complex64
    {"acos", kComplexHalf},
    {"acosh", kComplexHalf},
    {"angle", kComplexHalf},
    {"asin", kComplexHalf},
    {"asinh", kComplexHalf},
    {"atan", kComplexHalf},
    {"atanh", kComplexHalf},
    {"cos", kComplexHalf},
    {"cosh", kComplexHalf},
    {"cumprod", kComplexHalf},
    {"div", kComplexHalf, true},
    {"exp", kComplexHalf},
    {"flip", kComplexHalf},
    {"lerp", kComplexHalf, true},
    {"log", kComplexHalf},
    {"logaddexp", kComplexHalf},
    {"pow", kComplexHalf, true},
    {"prod", kComplexHalf},
    {"rsqrt", kComplexHalf},
    {"sigmoid", kComplexHalf},
    {"sigmoid_backward", kComplexHalf},
    {"sin", kComplexHalf},
    {"sinh", kComplexHalf},
    {"sqrt", kComplexHalf},
    {"sum", kComplexHalf},
    {"tan", kComplexHalf},
    {"tanh", kComplexHalf},
    {"tanh_backward", kComplexHalf},
    // Fourier transforms
    {"_fft_c2c", kFft},
    {"_fft_c2r", kFft},
    {"_fft_r2c", kFft},
    // 16-bit formats
    {"_upsample_bicubic2d_aa", kHalves},
    {"_upsample_bicubic2d_aa_backward", kHalves},
    {"_upsample_bilinear2d_aa", kHalves},
    {"_upsample_bilinear2d_aa_backward", kHalves},
    {"avg_pool3d", kHalves},
    {"avg_pool3d_backward", kHalves},
    {"multi_margin_loss", kHalves},
    {"multi_margin_loss_backward", kHalves},
    {"multilabel_margin_loss_backward", kHalves},
    {"multilabel_margin_loss_forward", kHalves},
    {"polygamma", kHalf},
    {"round.decimals", kHalf},
    {"rrelu_with_noise", kHalf},
    {"rrelu_with_noise_backward", kHalf},
    // sparse operands
    {"_coalesce", kComplexHalf, false, nullptr, Of::kAllSparse},
    {"_to_dense", kComplexHalf},
    {"_sparse_sparse_matmul", kHalves, false, nullptr, Of::kAllSparse},
    {"add", kAdded, false, nullptr, Of::kAllSparse},
    {"addmm", kHalves, false, nullptr, Of::kOneCompressed},
    {"addmv", kHalves, false, nullptr, Of::kOneCompressed},
    {"mm", kHalves, false, nullptr, Of::kOneCompressed},
    {"mul", kBool, false, nullptr, Of::kOneSparse},
    {"mv", kHalves, false, nullptr, Of::kOneCompressed},
    {"sub", kAdded, false, nullptr, Of::kAllSparse},
};

bool are(Of wanted, const torch::jit::Stack& stack, size_t first) {
  if (wanted == Of::kAny) return true;
  bool all = true, one = false, compressed = false;
  for (size_t i = first; i < stack.size(); ++i) {
    if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
    const at::Layout layout = stack[i].toTensor().layout();
    all &= layout == at::kSparse;
    one |= layout != at::kStrided;
    compressed |= layout != at::kSparse && layout != at::kStrided;
  }
  return wanted == Of::kAllSparse ? all : wanted == Of::kOneSparse ? one : compressed;
}

at::Tensor cast(const at::Tensor& made, ScalarType dtype) {
  if (!stochastic_rounding() || made.layout() != at::kStrided || made.scalar_type() != at::kFloat ||
      (dtype != at::kHalf && dtype != at::kBFloat16))
    return made.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  at::Tensor rounded = at::empty_like(made, made.options().dtype(dtype));
  round_into(made, rounded);
  return rounded;
}

void write(const at::Tensor& made, at::Tensor to) {
  if (made.layout() == at::kStrided && to.sizes() != made.sizes()) {
    to.resize_(made.sizes());
    if (to.strides() != made.strides()) to.as_strided_(made.sizes(), made.strides());
  } else if (made.layout() != at::kStrided && made.layout() != at::kSparse) {
    at::resize_as_sparse_(to, made);  // copies keep the number of elements
  }
  to.copy_(cast(made, to.scalar_type()));
}

// Wide copies of the narrow tensors among the arguments; one copy for each tensor.
class WideCopies {
 public:
  explicit WideCopies(Formats from) : from_(from) {}

  at::Tensor of(const at::Tensor& tensor) {
    if (!tensor.defined() || !from_.has(tensor.scalar_type())) return tensor;
    auto& copy = copies_[tensor.unsafeGetTensorImpl()];
    if (!copy.defined()) copy = tensor.to(wider(tensor.scalar_type()));
    return copy;
  }
  IValue of(const IValue& value) {
    if (value.isTensor()) return of(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const IValue& element : value.toListRef()) list.push_back(of(element.toTensor()));
    return list;
  }

 private:
  Formats from_;
  std::unordered_map<const c10::TensorImpl*, at::Tensor> copies_;
};

// What the operands of a call promote to, and the format that its dtype argument asks for.
struct Promotion {
  ScalarType operands = ScalarType::Undefined;
  std::optional<ScalarType> asked;

  ScalarType results() const { return asked.value_or(operands); }
};

Promotion promotion(const OpPlan& plan, const IValue* arguments) {
  Promotion found;
  at::native::ResultTypeState state{};
  const auto visit = [&](const at::Tensor& tensor) {
    if (tensor.defined()) state = at::native::update_result_type_state(tensor, state);
  };
  for (size_t i = 0; i < plan.arguments.size(); ++i) {
    const IValue& value = arguments[i];
    const bool read = !plan.arguments[i].written || i == 0;  // the first one written is `self`
    if (plan.arguments[i].format && value.isInt()) {
      found.asked = ScalarType(value.toInt());
    } else if (value.isTensor() && read) {
      visit(value.toTensor());
    } else if (value.isTensorList() && read) {
      for (const IValue& element : value.toListRef()) visit(element.toTensor());
    } else if (plan.wider->numbers && plan.arguments[i].number && value.isScalar()) {
      state = at::native::update_result_type_state(value.toScalar(), state);
    }
  }
  found.operands = at::native::result_type(state);
  return found;
}

// Runs the operator of `plan`, or the one that its row names, on wide arguments.
void run_wide(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
              torch::jit::Stack* wide) {
  if (plan.wider->of == nullptr) return op.redispatchBoxed(keys, wide);
  const at::Tensor x = (*wide)[0].toTensor();
  (*wide)[0] = at::where(at::isnan(x), at::Scalar(0), x).to(x.scalar_type());
  const char* overload = plan.any_written ? "IntList_out" : "dim_IntList";
  c10::Dispatcher::singleton()
      .findSchemaOrThrow(plan.wider->of, overload)
      .redispatchBoxed(keys, wide);
}

}  // namespace

ScalarType wider(ScalarType narrow) {
  switch (narrow) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return ScalarType::Float;
    case ScalarType::ComplexHalf:
      return ScalarType::ComplexFloat;
    case ScalarType::Bool:
      return ScalarType::Byte;
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
      return ScalarType::Double;
    default:
      return narrow;
  }
}

ScalarType cast_back(ScalarType made, ScalarType narrow) {
  const ScalarType wide = wider(narrow);
  if (made == wide) return narrow;
  if (!c10::isFloatingType(wide) && !c10::isComplexType(wide)) return made;
  if (made == c10::toRealValueType(wide)) return c10::toRealValueType(narrow);
  if (c10::isFloatingType(narrow) && made == c10::toComplexType(wide))
    return c10::toComplexType(narrow);
  return made;
}

const WiderRow* wider_row(std::string_view name) {
  constexpr std::string_view aten = "aten::";
  if (name.substr(0, aten.size()) != aten) return nullptr;
  std::string_view op = name.substr(aten.size());
  const std::string_view overload = op.substr(std::min(op.find('.'), op.size()));
  op.remove_suffix(overload.size());
  if (op.ends_with('_')) op.remove_suffix(1);
  const std::string full = std::string(op).append(overload);
  for (const WiderRow& row : kWiderRows) {
    const bool one_overload = row.op.find('.') != row.op.npos;
    if (one_overload ? full.starts_with(row.op) : op == row.op) return &row;
  }
  return nullptr;
}

bool call_wider(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                torch::jit::Stack* stack) {
  const WiderRow& row = *plan.wider;
  const size_t first = stack->size() - plan.arguments.size();
  if (!are(row.operands, *stack, first)) return false;
  const Promotion formats = promotion(plan, stack->data() + first);
  const bool asked = formats.asked.has_value() && row.from.has(*formats.asked);
  if (!asked && !row.from.has(formats.operands)) return false;

  torch::jit::Stack given(stack->begin() + std::ptrdiff_t(first), stack->end());
  torch::jit::Stack wide;
  {
    const InHbm outside(-1);  // working memory is not the device's
    WideCopies copies(row.from.has(ScalarType::ComplexHalf) ? row.from | kHalf : row.from);
    for (const IValue& value : given) wide.push_back(copies.of(value));
    for (size_t i = 0; i < given.size() && asked; ++i) {
      if (plan.arguments[i].format) wide[i] = int64_t(wider(*formats.asked));
    }
  }
  const torch::jit::Stack wide_arguments = wide;
  {
    const InHbm outside(-1);
    run_wide(plan, op, keys, &wide);
  }
  for (size_t i = 0; i < given.size(); ++i) {
    if (!plan.arguments[i].written || !given[i].isTensor()) continue;
    if (!given[i].toTensor().is_same(wide_arguments[i].toTensor()))
      write(wide_arguments[i].toTensor(), given[i].toTensor());
  }
  stack->resize(first);
  for (IValue& value : wide) {
    const auto same = [&](const IValue& argument) {
      return argument.isTensor() && value.isTensor() && argument.toTensor().defined() &&
             argument.toTensor().is_same(value.toTensor());
    };
    const auto written = std::find_if(wide_arguments.begin(), wide_arguments.end(), same);
    if (written != wide_arguments.end()) {
      stack->push_back(given[size_t(written - wide_arguments.begin())]);
    } else if (value.isTensor() && value.toTensor().defined()) {
      const at::Tensor& made = value.toTensor();
      stack->push_back(cast(made, row.from.has(formats.results())
                                      ? cast_back(made.scalar_type(), formats.results())
                                      : made.scalar_type()));
    } else {
      stack->push_back(std::move(value));
    }
  }
  return true;
}

}  // namespace trn
