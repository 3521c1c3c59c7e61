// See reduce.h. One loop for each operation and dtype, over tiles that stay in the cache.
#include "reduce.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <type_traits>

namespace trn {
namespace {

using Red = c10d::ReduceOp::RedOpType;
using Combine = void (*)(void*, const void* const*, int, size_t, const double*);

constexpr size_t kTile = 1024;

// What is accumulated in.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double> || std::is_integral_v<T>, T, float>;

template <class A>
A lesser(A a, A b) {  // NaN wins, as in torch.minimum
  return a != a ? a : (b != b ? b : std::min(a, b));
}
template <class A>
A greater(A a, A b) {
  return a != a ? a : (b != b ? b : std::max(a, b));
}

template <class T, Red op>
Sum<T> joined(Sum<T> a, Sum<T> b) {
  using A = Sum<T>;
  if constexpr (op == Red::PRODUCT) {
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
      return A(uint64_t(a) * uint64_t(b));
    else
      return A(a * b);
  }
  if constexpr (op == Red::MIN) return lesser(a, b);
  if constexpr (op == Red::MAX) return greater(a, b);
  if constexpr (std::is_integral_v<T>) {
    if constexpr (op == Red::BAND) return A(a & b);
    if constexpr (op == Red::BOR) return A(a | b);
    if constexpr (op == Red::BXOR) return A(a ^ b);
    return A(uint64_t(a) + uint64_t(b));  // integers wrap
  } else {
    return a + b;
  }
}

template <class T, Red op>
void combine(void* out, const void* const* in, int ranks, size_t elements, const double* factors) {
  using A = Sum<T>;
  A sums[kTile];
  for (size_t at = 0; at < elements; at += kTile) {
    const size_t n = std::min(kTile, elements - at);
    for (int r = 0; r < ranks; ++r) {
      const T* x = static_cast<const T*>(in[r]) + at;
      if constexpr (op == Red::PREMUL_SUM) {
        const A factor = A(factors[r]);
        if (r == 0)
          for (size_t i = 0; i < n; ++i) sums[i] = A(x[i]) * factor;
        else
          for (size_t i = 0; i < n; ++i) sums[i] = sums[i] + A(x[i]) * factor;
      } else if (r == 0) {
        for (size_t i = 0; i < n; ++i) sums[i] = A(x[i]);
      } else {
        for (size_t i = 0; i < n; ++i) sums[i] = joined<T, op>(sums[i], A(x[i]));
      }
    }
    T* y = static_cast<T*>(out) + at;
    if constexpr (op == Red::AVG)
      for (size_t i = 0; i < n; ++i) y[i] = T(sums[i] / A(ranks));
    else
      for (size_t i = 0; i < n; ++i) y[i] = T(sums[i]);
  }
}

// Bool as bytes of 0 and 1: a sum is "any", a product "all".
template <class T>
Combine for_integers(Red op) {
  switch (op) {
    case Red::SUM:
      return &combine<T, Red::SUM>;
    case Red::AVG:
      return &combine<T, Red::AVG>;
    case Red::PRODUCT:
      return &combine<T, Red::PRODUCT>;
    case Red::MIN:
      return &combine<T, Red::MIN>;
    case Red::MAX:
      return &combine<T, Red::MAX>;
    case Red::BAND:
      return &combine<T, Red::BAND>;
    case Red::BOR:
      return &combine<T, Red::BOR>;
    case Red::BXOR:
      return &combine<T, Red::BXOR>;
    default:
      return nullptr;
  }
}

Combine for_bool(Red op) {
  switch (op) {
    case Red::SUM:
    case Red::MAX:
    case Red::BOR:
      return &combine<uint8_t, Red::MAX>;
    case Red::PRODUCT:
    case Red::MIN:
    case Red::BAND:
      return &combine<uint8_t, Red::MIN>;
    case Red::BXOR:
      return &combine<uint8_t, Red::BXOR>;
    default:
      return nullptr;
  }
}

template <class T>
Combine for_floats(Red op) {
  switch (op) {
    case Red::SUM:
      return &combine<T, Red::SUM>;
    case Red::AVG:
      return &combine<T, Red::AVG>;
    case Red::PRODUCT:
      return &combine<T, Red::PRODUCT>;
    case Red::MIN:
      return &combine<T, Red::MIN>;
    case Red::MAX:
      return &combine<T, Red::MAX>;
    case Red::PREMUL_SUM:
      return &combine<T, Red::PREMUL_SUM>;
    default:
      return nullptr;
  }
}

Combine find(Red op, c10::ScalarType dtype) {
  using c10::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return for_floats<float>(op);
    case ScalarType::Double:
      return for_floats<double>(op);
    case ScalarType::Half:
      return for_floats<c10::Half>(op);
    case ScalarType::BFloat16:
      return for_floats<c10::BFloat16>(op);
    case ScalarType::Float8_e4m3fn:
      return for_floats<c10::Float8_e4m3fn>(op);
    case ScalarType::Float8_e5m2:
      return for_floats<c10::Float8_e5m2>(op);
    case ScalarType::Byte:
      return for_integers<uint8_t>(op);
    case ScalarType::Char:
      return for_integers<int8_t>(op);
    case ScalarType::Short:
      return for_integers<int16_t>(op);
    case ScalarType::UInt16:
      return for_integers<uint16_t>(op);
    case ScalarType::Int:
      return for_integers<int32_t>(op);
    case ScalarType::UInt32:
      return for_integers<uint32_t>(op);
    case ScalarType::Long:
      return for_integers<int64_t>(op);
    case ScalarType::UInt64:
      return for_integers<uint64_t>(op);
    case ScalarType::Bool:
      return for_bool(op);
    default:
      return nullptr;
  }
}

}  // namespace

const char* name_of(Red op) {
  constexpr const char* names[] = {"SUM",  "AVG", "PRODUCT", "MIN",        "MAX",
                                   "BAND", "BOR", "BXOR",    "PREMUL_SUM", "UNUSED"};
  return names[std::min(size_t(op), size_t(9))];
}

collectives::Reduction reduction(const c10d::ReduceOp& op, c10::ScalarType dtype, int,
                                 std::vector<double> factors) {
  const Combine combine = find(op.op_, dtype);
  TORCH_CHECK_VALUE(combine != nullptr, "ReduceOp.", name_of(op.op_), " of ", dtype,
                    " tensors is not supported: reduce in another dtype (tensor.to(...)), or ",
                    "gather the tensors and combine them yourself");
  return {c10::elementSize(dtype), combine, std::move(factors)};
}

}  // namespace trn
