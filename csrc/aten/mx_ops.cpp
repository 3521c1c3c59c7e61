// torch.ops.trn: MX quantisation and MX products as operators, alike on trn and on the host, with
// meta kernels. Gradients: mx_gradients.cpp.
#include "operands.h"
#include "operator_named.h"
#include "redispatch.h"

#include "numerics/mx.h"
#include "numerics/stored.h"

#include <ATen/WrapDimUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string_view>

namespace trn {
namespace {

using at::Tensor;
using numerics::Element;
using numerics::MxSpec;

// ---- names ----

template <class T>
struct Named {
  std::string_view name;
  T value;
};

constexpr Named<Element> kElements[] = {
#define TRN_ELEMENT(name, codes_dtype) {#name, Element::name},
#include "../../torch_trn_emu/formats/formats.def"
};
constexpr Named<numerics::ScaleRule> kScaleRules[] = {
#define TRN_SCALE_RULE(name, of, log2, raised) {#name, numerics::ScaleRule::name},
#include "../../torch_trn_emu/formats/formats.def"
};
constexpr Named<numerics::Grouping> kGroupings[] = {
    {"contiguous", numerics::Grouping::contiguous},
    {"wrapped", numerics::Grouping::wrapped},
};
constexpr Named<numerics::RoundingMode> kRoundings[] = {
    {"nearest_even", numerics::RoundingMode::nearest_even},
    {"stochastic", numerics::RoundingMode::stochastic},
};

template <class T, size_t N>
T named(const Named<T> (&rows)[N], std::string_view name, const char* what) {
  std::string known;
  for (const auto& row : rows) {
    if (row.name == name) return row.value;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  TORCH_CHECK_VALUE(false, what, " \"", std::string(name), "\" is none of ", known);
}

at::ScalarType codes_dtype(Element element) {
  constexpr at::ScalarType dtypes[] = {
#define TRN_ELEMENT(name, codes_dtype) at::ScalarType::codes_dtype,
#include "../../torch_trn_emu/formats/formats.def"
  };
  return dtypes[size_t(element)];
}

// The element that codes hold: the one named, or the only one that their dtype stands for.
Element element_of(at::ScalarType dtype, std::optional<std::string_view> name) {
  if (name.has_value()) {
    const Element element = named(kElements, *name, "element");
    TORCH_CHECK_TYPE(codes_dtype(element) == dtype, "MX codes of ", std::string(*name), " are ",
                     codes_dtype(element), ", got ", dtype);
    return element;
  }
  std::string known;
  std::vector<Element> found;
  for (const auto& row : kElements) {
    if (codes_dtype(row.value) != dtype) continue;
    found.push_back(row.value);
    known += (known.empty() ? "" : " or ") + std::string(row.name);
  }
  if (found.size() == 1) return found[0];
  TORCH_CHECK_TYPE(found.empty(), "MX codes in ", dtype, " are ", known, ": name the element");
  std::string dtypes;
  for (const auto& row : kElements)
    dtypes += (dtypes.empty() ? "" : ", ") + std::string(at::toString(codes_dtype(row.value)));
  TORCH_CHECK_TYPE(false, "MX codes are ", dtypes, ", got ", dtype);
}

MxSpec spec_of(std::string_view element, std::string_view rule, std::string_view rounding,
               std::string_view grouping, int64_t seed) {
  MxSpec spec;
  spec.element = named(kElements, element, "element");
  spec.rule = named(kScaleRules, rule, "scale_rule");
  spec.grouping = named(kGroupings, grouping, "grouping");
  spec.rounding.mode = named(kRoundings, rounding, "rounding");
  spec.rounding.seed = uint64_t(seed);
  return spec;
}

// ---- shapes ----

// A tensor as [outer, k, inner] around the blocked axis; inner == 1 is a matrix blocked along its
// rows.
struct Axis {
  int64_t dim, outer = 1, k, inner = 1;

  Axis(const Tensor& x, int64_t at_dim, const char* what) {
    TORCH_CHECK(x.dim() > 0, what, ": a zero-dimensional tensor has no axis to block");
    dim = at::maybe_wrap_dim(at_dim, x.dim());
    k = x.size(dim);
    for (int64_t d = 0; d < dim; ++d) outer *= x.size(d);
    for (int64_t d = dim + 1; d < x.dim(); ++d) inner *= x.size(d);
  }
  int axis() const { return inner == 1 ? 1 : 0; }
  int64_t rows() const { return inner == 1 ? outer : k; }
  int64_t cols() const { return inner == 1 ? k : inner; }
  int64_t matrices() const { return inner == 1 ? 1 : outer; }
};

std::vector<int64_t> with_size(const Tensor& x, int64_t dim, int64_t size) {
  auto sizes = x.sizes().vec();
  sizes[size_t(dim)] = size;
  return sizes;
}

int64_t packed(Element element, int64_t k) {
  const int64_t together = numerics::codes_a_byte(element);
  return (k + together - 1) / together;
}

void check_source(const Tensor& x, const char* what) {
  TORCH_CHECK_TYPE(takes_policy(x.scalar_type()), what, ": ", x.scalar_type(),
                   " input: the chip quantizes bfloat16 and float16, and float32 through bfloat16. "
                   "Convert it first.");
}

std::pair<Tensor, Tensor> empty_quantized(const Tensor& x, const MxSpec& spec, int64_t dim) {
  const int64_t k = x.size(dim);
  Tensor codes = at::empty(with_size(x, dim, packed(spec.element, k)),
                           x.options().dtype(codes_dtype(spec.element)));
  Tensor scales = at::empty(with_size(x, dim, numerics::scale_count(k, spec.grouping)),
                            x.options().dtype(at::kFloat8_e8m0fnu));
  return {codes, scales};
}

// A column-major matrix is worked on as its transpose, and so are its codes.
bool is_column_major(const Tensor& x) {
  return x.dim() == 2 && x.stride(0) == 1 && x.stride(1) > 1;
}

// Random bits belong to an element's place among the rows, in whatever order it is stored.
bool is_random(const MxSpec& spec) {
  return spec.rounding.mode == numerics::RoundingMode::stochastic;
}

Tensor column_major(const Tensor& x) {  // float4 codes are copied as bytes
  return x.view(at::kByte).t().contiguous().t().view(x.scalar_type());
}

numerics::MatrixView view(const Tensor& x, const Axis& at, int64_t index) {
  const char* data = static_cast<const char*>(x.const_data_ptr());
  const auto dtype = numerics_dtype(x.scalar_type());
  if (x.dim() == 2) return {data, dtype, x.size(0), x.size(1), x.stride(0), x.stride(1)};
  return {data + index * at.rows() * at.cols() * int64_t(x.element_size()),
          dtype,
          at.rows(),
          at.cols(),
          at.cols(),
          1};
}

Tensor plain(const Tensor& x) {
  const Tensor resolved = x.resolve_neg();
  return resolved.dim() == 2 ? resolved : resolved.contiguous();
}

// For a matrix, [outer, k, inner] would lose which axis is blocked when the other has size 1.
int matrix_axis(const Tensor& x, const Axis& at) { return x.dim() == 2 ? int(at.dim) : at.axis(); }
int64_t matrix_count(const Tensor& x, const Axis& at) { return x.dim() == 2 ? 1 : at.matrices(); }

// ---- on host tensors ----

std::tuple<Tensor, Tensor> quantize(const Tensor& given, MxSpec spec, int64_t dim) {
  check_source(given, "quantize_mx");
  const Tensor x = plain(given);
  const Axis at(x, dim, "quantize_mx");
  if (is_column_major(x) && !is_random(spec)) {
    auto [codes, scales] = quantize(x.t(), spec, 1 - at.dim);
    return {codes.t(), scales.t()};
  }
  auto [codes, scales] = empty_quantized(x, spec, at.dim);
  const int axis = matrix_axis(x, at);
  for (int64_t i = 0; i < matrix_count(x, at); ++i) {
    const numerics::MatrixView m = view(x, at, i);
    spec.first_index = uint64_t(i * m.rows * m.cols);
    const int64_t code_rows = axis == 0 ? packed(spec.element, m.rows) : m.rows;
    const int64_t code_cols = axis == 1 ? packed(spec.element, m.cols) : m.cols;
    const int64_t scale_rows = axis == 0 ? numerics::scale_count(m.rows, spec.grouping) : m.rows;
    const int64_t scale_cols = axis == 1 ? numerics::scale_count(m.cols, spec.grouping) : m.cols;
    numerics::quantize(
        m, axis, spec, static_cast<uint8_t*>(codes.mutable_data_ptr()) + i * code_rows * code_cols,
        code_cols, static_cast<uint8_t*>(scales.mutable_data_ptr()) + i * scale_rows * scale_cols,
        scale_cols);
  }
  if (is_column_major(x)) return {column_major(codes), column_major(scales)};
  return {codes, scales};
}

int64_t dequantized_size(const Tensor& codes, Element element, int64_t dim,
                         std::optional<int64_t> size) {
  const int64_t given = codes.size(at::maybe_wrap_dim(dim, codes.dim()));
  const int together = numerics::codes_a_byte(element);
  if (together == 1) return given;
  TORCH_CHECK_VALUE(!size.has_value() || packed(element, *size) == given, "dequantize_mx: size ",
                    size.value_or(0), " does not fit ", given, " bytes of packed float4 codes");
  return size.value_or(together * given);
}

void check_scales(const Tensor& codes, const Tensor& scales, int64_t dim, int64_t k,
                  numerics::Grouping grouping) {
  TORCH_CHECK_TYPE(scales.scalar_type() == at::kFloat8_e8m0fnu,
                   "MX scales are float8_e8m0fnu, got ", scales.scalar_type());
  const auto wanted = with_size(codes, dim, numerics::scale_count(k, grouping));
  TORCH_CHECK_VALUE(scales.sizes() == at::IntArrayRef(wanted), "MX scales of codes ", codes.sizes(),
                    " along dim ", dim, " have shape ", at::IntArrayRef(wanted), ", got ",
                    scales.sizes());
}

Tensor dequantize(const Tensor& given_codes, const Tensor& given_scales, int64_t at_dim,
                  at::ScalarType dtype, numerics::Grouping grouping, std::optional<int64_t> size,
                  std::optional<std::string_view> name) {
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16,
                   "dequantize_mx gives float32 or bfloat16, asked for ", dtype);
  const Element element = element_of(given_codes.scalar_type(), name);
  TORCH_CHECK(given_codes.dim() > 0,
              "dequantize_mx: a zero-dimensional tensor has no axis to block");
  const int64_t dim = at::maybe_wrap_dim(at_dim, given_codes.dim());
  const int64_t k = dequantized_size(given_codes, element, dim, size);
  check_scales(given_codes, given_scales, dim, k, grouping);
  // torch copies bytes of any layout, but not float4 codes.
  const Tensor codes = given_codes.view(at::kByte).contiguous();
  const Tensor scales = given_scales.contiguous();
  Tensor out = at::empty(with_size(codes, dim, k), codes.options().dtype(dtype));
  const Axis at(out, dim, "dequantize_mx");
  const int64_t code_size = at.outer * at.inner > 0 ? codes.numel() / at.matrices() : 0;
  const int64_t scale_size = at.outer * at.inner > 0 ? scales.numel() / at.matrices() : 0;
  for (int64_t i = 0; i < at.matrices() && out.numel() > 0; ++i) {
    const int64_t code_cols = at.axis() == 1 ? packed(element, k) : at.cols();
    const int64_t scale_cols = at.axis() == 1 ? numerics::scale_count(k, grouping) : at.cols();
    char* to = static_cast<char*>(out.mutable_data_ptr()) +
               i * at.rows() * at.cols() * int64_t(out.element_size());
    numerics::dequantize(
        static_cast<const uint8_t*>(codes.const_data_ptr()) + i * code_size, code_cols,
        static_cast<const uint8_t*>(scales.const_data_ptr()) + i * scale_size, scale_cols,
        at.axis(), element, grouping, at.rows(), at.cols(), numerics_dtype(dtype), to, at.cols());
  }
  return out;
}

Tensor quantize_dequantize(const Tensor& given, MxSpec spec, int64_t dim) {
  check_source(given, "quantize_dequantize_mx");
  const Tensor x = plain(given);
  const Axis at(x, dim, "quantize_dequantize_mx");
  if (is_column_major(x) && !is_random(spec))
    return quantize_dequantize(x.t(), spec, 1 - at.dim).t();
  // float16 cannot hold every dequantised value: its result is float32, rounded.
  const at::ScalarType dtype = x.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
  for (int64_t i = 0; i < matrix_count(x, at) && x.numel() > 0; ++i) {
    const numerics::MatrixView m = view(x, at, i);
    char* to = static_cast<char*>(out.mutable_data_ptr()) +
               i * m.rows * m.cols * int64_t(out.element_size());
    spec.first_index = uint64_t(i * m.rows * m.cols);
    numerics::quantize_dequantize(m, matrix_axis(x, at), spec, numerics_dtype(dtype), to, m.cols);
  }
  if (is_column_major(x)) out = out.t().contiguous().t();
  return round_result(std::move(out), x.scalar_type());
}

numerics::Operand mx_operand(const Tensor& x, const MxSpec& spec) {
  numerics::OperandRounding rounding{numerics::OperandRounding::Kind::mx, spec};
  return {x.const_data_ptr(), numerics_dtype(x.scalar_type()), x.stride(-2), x.stride(-1),
          rounding,           x.dim() == 3 ? x.stride(0) : 0};
}

std::vector<int64_t> product_shape(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK((a.dim() == 2 || a.dim() == 3) && a.dim() == b.dim() && a.size(-1) == b.size(-2) &&
                  (a.dim() == 2 || a.size(0) == b.size(0)),
              what, ": shapes ", a.sizes(), " and ", b.sizes(),
              " cannot be multiplied; give [m, k] x [k, n], or both ",
              "with the same batch in front");
  auto sizes = a.sizes().vec();
  sizes.back() = b.size(-1);
  return sizes;
}

Tensor multiply(const Tensor& a, const Tensor& b, const MxSpec& first, const MxSpec& second,
                at::ScalarType out_dtype) {
  check_source(a, "mx_mm");
  check_source(b, "mx_mm");
  check_source(at::empty({0}, a.options().dtype(out_dtype)), "mx_mm, out_dtype");
  const Tensor x = a.resolve_neg(), y = b.resolve_neg();
  Tensor out = at::empty(product_shape(x, y, "mx_mm"), x.options().dtype(out_dtype));
  const int64_t m = x.size(-2), n = y.size(-1);
  numerics::gemm(x.dim() == 3 ? x.size(0) : 1, m, n, x.size(-1), mx_operand(x, first),
                 mx_operand(y, second),
                 {out.mutable_data_ptr(), numerics_dtype(out_dtype), n, 1, m * n});
  return out;
}

// A few rows by a matrix whose columns lie in memory as they were quantised, or nothing.
std::optional<Tensor> few_rows_by_codes(const Tensor& x, const Tensor& b, const Tensor& b_scales,
                                        at::ScalarType out_dtype, numerics::Grouping grouping,
                                        std::optional<std::string_view> name) {
  if (x.dim() != 2 || b.dim() != 2 || x.size(0) > numerics::most_stored_rows || x.numel() == 0 ||
      grouping != numerics::Grouping::contiguous || b_scales.dim() != 2 || b.stride(0) != 1 ||
      b.stride(1) != b.size(0) || b_scales.stride(0) != 1)
    return std::nullopt;
  const Element element = element_of(b.scalar_type(), name);
  const int64_t m = x.size(0), k = dequantized_size(b, element, 0, std::nullopt), n = b.size(1);
  check_scales(b, b_scales, 0, k, grouping);
  if (x.size(1) != k) return std::nullopt;
  Tensor out = at::empty({m, n}, x.options().dtype(out_dtype));
  numerics::gemm_stored(
      m, n, k, x.const_data_ptr<float>(),
      {static_cast<const uint8_t*>(b.const_data_ptr()), b.stride(1),
       static_cast<const uint8_t*>(b_scales.const_data_ptr()), b_scales.stride(1), element},
      {out.mutable_data_ptr(), numerics_dtype(out_dtype), n});
  return out;
}

Tensor multiply_codes(const Tensor& a, const Tensor& a_scales, const Tensor& b,
                      const Tensor& b_scales, at::ScalarType out_dtype, numerics::Grouping grouping,
                      std::optional<std::string_view> a_element,
                      std::optional<std::string_view> b_element) {
  const Tensor x = dequantize(a, a_scales, -1, at::kFloat, grouping, std::nullopt, a_element);
  if (auto out = few_rows_by_codes(x, b, b_scales, out_dtype, grouping, b_element)) return *out;
  const Tensor y = dequantize(b, b_scales, -2, at::kFloat, grouping, std::nullopt, b_element);
  Tensor out = at::empty(product_shape(x, y, "mx_matmul"), x.options().dtype(out_dtype));
  const auto operand = [](const Tensor& t) {
    return numerics::Operand{t.const_data_ptr(),
                             numerics::DType::float32,
                             t.stride(-2),
                             t.stride(-1),
                             {},
                             t.dim() == 3 ? t.stride(0) : 0};
  };
  const int64_t m = x.size(-2), n = y.size(-1);
  numerics::gemm(x.dim() == 3 ? x.size(0) : 1, m, n, x.size(-1), operand(x), operand(y),
                 {out.mutable_data_ptr(), numerics_dtype(out_dtype), n, 1, m * n});
  return out;
}

// ---- the operators on the host; on trn they run on aliases, as every operator does ----

using Str = std::string_view;

struct Ops {
  static std::tuple<Tensor, Tensor> quantize_mx(const Tensor& x, int64_t dim, Str element, Str rule,
                                                Str rounding, Str grouping, int64_t seed) {
    return quantize(x, spec_of(element, rule, rounding, grouping, seed), dim);
  }
  static Tensor dequantize_mx(const Tensor& codes, const Tensor& scales, int64_t dim,
                              at::ScalarType dtype, Str grouping, std::optional<int64_t> size,
                              std::optional<Str> element) {
    return dequantize(codes, scales, dim, dtype, named(kGroupings, grouping, "grouping"), size,
                      element);
  }
  static Tensor quantize_dequantize_mx(const Tensor& x, int64_t dim, Str element, Str rule,
                                       Str rounding, Str grouping, int64_t seed) {
    return quantize_dequantize(x, spec_of(element, rule, rounding, grouping, seed), dim);
  }
  static Tensor mx_mm(const Tensor& a, const Tensor& b, Str a_element, Str b_element, Str rule,
                      Str grouping, std::optional<at::ScalarType> out_dtype) {
    return multiply(a, b, spec_of(a_element, rule, "nearest_even", grouping, 0),
                    spec_of(b_element, rule, "nearest_even", grouping, 0),
                    out_dtype.value_or(a.scalar_type()));
  }
  static Tensor mx_matmul(const Tensor& a, const Tensor& a_scales, const Tensor& b,
                          const Tensor& b_scales, at::ScalarType out_dtype, Str grouping,
                          std::optional<Str> a_element, std::optional<Str> b_element) {
    return multiply_codes(a, a_scales, b, b_scales, out_dtype,
                          named(kGroupings, grouping, "grouping"), a_element, b_element);
  }
};

// ---- shapes without values ----

std::tuple<Tensor, Tensor> quantize_meta(const Tensor& x, int64_t dim, Str element, Str rule,
                                         Str rounding, Str grouping, int64_t seed) {
  check_source(x, "quantize_mx");
  const Axis at(x, dim, "quantize_mx");
  const bool transposed = is_column_major(x);
  auto [codes, scales] =
      empty_quantized(transposed ? x.t() : x, spec_of(element, rule, rounding, grouping, seed),
                      transposed ? 1 - at.dim : at.dim);
  return transposed ? std::tuple(codes.t(), scales.t()) : std::tuple(codes, scales);
}

Tensor dequantize_meta(const Tensor& codes, const Tensor& scales, int64_t dim, at::ScalarType dtype,
                       Str grouping, std::optional<int64_t> size, std::optional<Str> element) {
  const int64_t at = at::maybe_wrap_dim(dim, codes.dim());
  const int64_t k = dequantized_size(codes, element_of(codes.scalar_type(), element), at, size);
  check_scales(codes, scales, at, k, named(kGroupings, grouping, "grouping"));
  return at::empty(with_size(codes, at, k), codes.options().dtype(dtype));
}

Tensor quantize_dequantize_meta(const Tensor& x, int64_t, Str, Str, Str, Str, int64_t) {
  check_source(x, "quantize_dequantize_mx");
  return is_column_major(x) ? at::empty(x.t().sizes(), x.options()).t()
                            : at::empty(x.sizes(), x.options());
}

Tensor mx_mm_meta(const Tensor& a, const Tensor& b, Str, Str, Str, Str,
                  std::optional<at::ScalarType> out_dtype) {
  return at::empty(product_shape(a, b, "mx_mm"),
                   a.options().dtype(out_dtype.value_or(a.scalar_type())));
}

Tensor mx_matmul_meta(const Tensor& a, const Tensor&, const Tensor& b, const Tensor&,
                      at::ScalarType out_dtype, Str, std::optional<Str>, std::optional<Str>) {
  auto sizes = a.sizes().vec();
  sizes.back() = b.size(-1);
  return at::empty(sizes, a.options().dtype(out_dtype));
}

}  // namespace

TORCH_LIBRARY(trn, library) {
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag};
  library.def(
      "quantize_mx(Tensor x, *, int dim=-1, str element=\"float8_e4m3fn\", str "
      "scale_rule=\"trn3\", "
      "str rounding=\"nearest_even\", str grouping=\"contiguous\", int seed=0) -> (Tensor codes, "
      "Tensor scales)",
      tags);
  library.def(
      "dequantize_mx(Tensor codes, Tensor scales, *, int dim=-1, ScalarType dtype=float32, "
      "str grouping=\"contiguous\", int? size=None, str? element=None) -> Tensor",
      tags);
  library.def(
      "quantize_dequantize_mx(Tensor x, *, int dim=-1, str element=\"float8_e4m3fn\", str "
      "scale_rule=\"trn3\", "
      "str rounding=\"nearest_even\", str grouping=\"contiguous\", int seed=0) -> Tensor",
      tags);
  library.def(
      "mx_mm(Tensor a, Tensor b, *, str a_element=\"float8_e4m3fn\", str "
      "b_element=\"float8_e4m3fn\", "
      "str scale_rule=\"trn3\", str grouping=\"contiguous\", ScalarType? out_dtype=None) -> Tensor",
      tags);
  library.def(
      "mx_matmul(Tensor a_codes, Tensor a_scales, Tensor b_codes, Tensor b_scales, *, ScalarType "
      "out_dtype=float32, "
      "str grouping=\"contiguous\", str? a_element=None, str? b_element=None) -> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(trn, CPU, library) {
  library.impl("quantize_mx", &Ops::quantize_mx);
  library.impl("dequantize_mx", &Ops::dequantize_mx);
  library.impl("quantize_dequantize_mx", &Ops::quantize_dequantize_mx);
  library.impl("mx_mm", &Ops::mx_mm);
  library.impl("mx_matmul", &Ops::mx_matmul);
}

TORCH_LIBRARY_IMPL(trn, PrivateUse1, library) {
  for (const char* name :
       {"quantize_mx", "dequantize_mx", "quantize_dequantize_mx", "mx_mm", "mx_matmul"})
    library.impl(name, host_kernel());
}

TORCH_LIBRARY_IMPL(trn, Meta, library) {
  library.impl("quantize_mx", &quantize_meta);
  library.impl("dequantize_mx", &dequantize_meta);
  library.impl("quantize_dequantize_mx", &quantize_dequantize_meta);
  library.impl("mx_mm", &mx_mm_meta);
  library.impl("mx_matmul", &mx_matmul_meta);
}

}  // namespace trn
