// Operand rounding and the epilogue of matrix products of one instruction set.
#pragma once

#include "microkernel-inl.h"
#include "mx-inl.h"
#include "transpose-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

// ---- operands that are rounded element by element ----

template <class S, Elementwise op>
TRN_INLINE u32v round_element(u32v bits) {
  if constexpr (op == Elementwise::bfloat16 && !std::is_same_v<S, BFloat16>)
    return nearest_bf16(bits);
  if constexpr (op == Elementwise::tfloat32 && std::is_same_v<S, float>) return nearest_tf32(bits);
  return bits;
}

// Whether what round_element gives is a bfloat16, however it is stored.
template <class S, Elementwise op>
constexpr bool is_bf16 = op == Elementwise::bfloat16 || std::is_same_v<S, BFloat16>;

TRN_INLINE u32v subnormal_mask(u32v bits) {
  return (u32v)((bits & 0x7fffffff) - 1 < splat(0x7fffffu));
}

// Calls f.template operator()<S, op>().
template <class F>
TRN_INLINE bool with_elementwise(Elementwise op, DType dtype, F f) {
  bool result = false;
  with_type(dtype, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    switch (op) {
      case Elementwise::none:
        result = f.template operator()<S, Elementwise::none>();
        return;
      case Elementwise::bfloat16:
        result = f.template operator()<S, Elementwise::bfloat16>();
        return;
      case Elementwise::tfloat32:
        result = f.template operator()<S, Elementwise::tfloat32>();
        return;
    }
  });
  return result;
}

// Words of two vectors, each element rounded once, or what round_element gives for them where there
// is NaN. Collects whether one is subnormal.
template <class S, Elementwise op>
TRN_INLINE u32v round_words(u32v low, u32v high, bool& subnormal) {
  u32v words = words_of < op == Elementwise::bfloat16 && !std::is_same_v < S,
       BFloat16 >> (low, high);
  const u32v magnitudes = words & 0x7fff7fff;
  subnormal |= any_up_to(magnitudes, splat(0x7eu * in_both));
  if (any_up_to(splat(0x7fff7fffu) - magnitudes + in_both, splat(0x7eu * in_both))) [[unlikely]]
    words = (round_element<S, op>(low) >> 16) | (round_element<S, op>(high) & 0xffff0000);
  return words;
}

template <class S, Elementwise op, class D>
bool round_row_typed(const S* x, int64_t count, D* y) {
  constexpr bool as_words = is_bf16<S, op> && std::is_same_v<D, BFloat16>;
  bool found = false;
  int64_t i = 0;
  for (; as_words && i + 2 * lanes <= count; i += 2 * lanes)
    store_in_order(reinterpret_cast<BFloat16*>(y + i),
                   round_words<S, op>(load_bits(x + i), load_bits(x + i + lanes), found));
  u32v subnormal = splat(0u);
  for (; i < count; i += lanes) {
    const u32v bits = round_element<S, op>(load_ragged(x, i, count));
    subnormal |= subnormal_mask(bits);
    store_ragged(y, i, count, bits, [](D* p, u32v v) { store_nearest(p, v); });
  }
  return found || largest(subnormal) != 0;
}

inline bool round_row(Elementwise op, DType dtype, const void* x, int64_t count, Output out,
                      void* y) {
  return with_elementwise(op, dtype, [&]<class S, Elementwise e>() {
    const S* from = static_cast<const S*>(x);
    return out == Output::float32 ? round_row_typed<S, e>(from, count, static_cast<float*>(y))
                                  : round_row_typed<S, e>(from, count, static_cast<BFloat16*>(y));
  });
}

template <class S, Elementwise op, bool pairs>
bool round_columns_typed(const void* const* rows, int64_t count, int64_t width,
                         const ColumnDestination& destination) {
  constexpr int64_t step = pairs ? 2 : 1, ahead = 4;  // rows to fetch before their turn
  const ColumnDestination d = destination;
  const int64_t panel = d.panel_width == 0 ? width : d.panel_width;
  u32v subnormal = splat(0u);
  bool found = false;
  for (int64_t i = 0; i < count; i += step) {
    const S* first = static_cast<const S*>(rows[i]);
    const S* second = pairs && i + 1 < count ? static_cast<const S*>(rows[i + 1]) : nullptr;
    for (int64_t row = i + ahead; row < i + ahead + step; ++row) {
      // Beyond the last: of the next columns.
      const S* next = static_cast<const S*>(rows[row % count]) + (row < count ? 0 : width);
      for (int64_t j = 0; j < width; j += 64 / int64_t{sizeof(S)}) prefetch(next + j);
    }
    uint32_t* at = static_cast<uint32_t*>(d.base) + i / step * d.row_stride;
    for (int64_t base = 0; base < width; base += panel, at += d.panel_stride) {
      const int64_t end = d.panel_width == 0 ? width : base + panel;
      for (int64_t j = base; j < end; j += lanes) {
        const u32v low = load_ragged(first, j, width);
        u32v word = splat(0u);
        if constexpr (pairs && is_bf16<S, op>) {
          const u32v high = second == nullptr ? splat(0u) : load_ragged(second, j, width);
          word = round_words<S, op>(low, high, found);
        } else {
          word = round_element<S, op>(low);
          subnormal |= subnormal_mask(word);
          if constexpr (pairs) {
            u32v other = splat(0u);
            if (second != nullptr) other = round_element<S, op>(load_ragged(second, j, width));
            subnormal |= subnormal_mask(other);
            word = (nearest_bf16(word) >> 16) | (nearest_bf16(other) & 0xffff0000);
          }
        }
        store_ragged(at, j - base, end - base, word, [](uint32_t* p, u32v v) { store(p, v); });
      }
    }
  }
  return found || largest(subnormal) != 0;
}

inline bool round_columns(Elementwise op, DType dtype, const void* const* rows, int64_t count,
                          int64_t width, Output out, const ColumnDestination& d) {
  return with_elementwise(op, dtype, [&]<class S, Elementwise e>() {
    return out == Output::float32 ? round_columns_typed<S, e, false>(rows, count, width, d)
                                  : round_columns_typed<S, e, true>(rows, count, width, d);
  });
}

// ---- a few rows times lines, which are rounded on the way ----

// Every instruction set sums element i in chain i % 32, those after the last whole 32 in i % 16, so
// that the order does not depend on its lanes.
constexpr int dot_chains = 32 / lanes;
// Elements of a that are multiplied together: 8 KiB, which stay in the first-level cache (chosen).
constexpr int64_t dots_chunk = 4 * dots_piece;

// Rows of a. Lines of bfloat16 are read by words of two elements, and what they are multiplied by
// lies likewise: of each 2 * lanes elements the even ones, then the odd ones, for whole 32s.
struct FewRows {
  const float* in_order;
  int64_t stride;
  const float* apart;
  int64_t apart_stride;

  FewRows from(int64_t row, int64_t k) const {
    return {in_order + row * stride + k, stride, apart + row * apart_stride + k, apart_stride};
  }
};

// sum[r][j][v] is of vectors v of whole 32s.
template <class S, Elementwise op, int rows, int columns>
TRN_INLINE void add_whole(int64_t count, const FewRows& a, const S* b, int64_t ldb,
                          f32v (&sum)[rows][columns][dot_chains]) {
  constexpr bool in_words = std::is_same_v<S, BFloat16>;
  const float* const of_a = in_words ? a.apart : a.in_order;
  const int64_t lda = in_words ? a.apart_stride : a.stride;
  for (int64_t i = 0; i + 32 <= count; i += 32)
#pragma GCC unroll 8
    for (int v = 0; v < dot_chains; v += in_words ? 2 : 1) {
      const int64_t at = i + v * lanes;
      f32v values[columns][2];
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) {
        if constexpr (in_words) {
          const u32v words = held(load<u32v>(b + j * ldb + at));
          values[j][0] = (f32v)(words << 16);
          values[j][1] = (f32v)(words & 0xffff0000);
        } else {
          values[j][0] = (f32v)round_element<S, op>(load_bits(b + j * ldb + at));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int part = 0; part < (in_words ? 2 : 1); ++part) {
          const auto* const from = of_a + r * lda + at + part * lanes;
          const f32v row = columns > 1 ? held(load<f32v>(from)) : load<f32v>(from);
#pragma GCC unroll 4
          for (int j = 0; j < columns; ++j)
            sum[r][j][v + part] = multiply_add(row, values[j][part], sum[r][j][v + part]);
        }
    }
  if constexpr (in_words)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < dot_chains; v += 2) {
          const Vectors2 chains = in_order(sum[r][j][v], sum[r][j][v + 1], EachLane());
          sum[r][j][v] = chains.first;
          sum[r][j][v + 1] = chains.second;
        }
}

// Of a piece of k, row r and column j, at [r][j][e]: the sums of chains e and e + 16.
using Halves = float[most_dots][16][16];

// Of lines of b that are ldb apart, from column 0 of `halves` on.
template <class S, Elementwise op, int rows, int columns>
void halves_of(int64_t count, const FewRows& a, const S* b, int64_t ldb, float* halves) {
  f32v sum[rows][columns][dot_chains] = {};
  add_whole<S, op>(count, a, b, ldb, sum);
  for (int64_t i = count / 32 * 32; i < count; i += 16)
#pragma GCC unroll 2
    for (int v = 0; v < dot_chains / 2; ++v) {
      const int64_t at = i + v * lanes;
      if (at >= count) continue;
#pragma GCC unroll 4
      for (int j = 0; j < columns; ++j) {
        const f32v value = (f32v)round_element<S, op>(load_ragged(b + j * ldb, at, count));
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const f32v row = (f32v)load_ragged(a.in_order + r * a.stride, at, count);
          sum[r][j][v] = multiply_add(row, value, sum[r][j][v]);
        }
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < dot_chains / 2; ++v)
        store(halves + (r * 16 + j) * 16 + v * lanes, sum[r][j][v] + sum[r][j][v + dot_chains / 2]);
}

// Of columns [j, end), as many at a time as have sums that fit the registers, each read from end to
// end: piece p of k to halves[p].
template <class S, Elementwise op, int rows>
void halves_of_lines(int64_t j, int64_t end, int64_t count, const FewRows& a, int64_t row,
                     const S* b, int64_t ldb, Halves* halves) {
  constexpr int fit = lanes / (rows * dot_chains), at_once = fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
  const auto add = [&]<int columns>(std::integral_constant<int, columns>) {
    for (int64_t k = 0; k < count; k += dots_piece)
      halves_of<S, op, rows, columns>(count - k < dots_piece ? count - k : dots_piece,
                                      a.from(row, k), b + j * ldb + k, ldb,
                                      halves[k / dots_piece][row][j]);
    j += columns;
  };
  while (j + at_once <= end) add(std::integral_constant<int, at_once>());
  while (j < end) add(std::integral_constant<int, 1>());
}

inline void put_apart(int64_t rows, int64_t count, const float* a, int64_t lda, float* to,
                      int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i + 2 * lanes <= count; i += 2 * lanes) {
      const float* from = a + r * lda + i;
      const Vectors2 parts = apart(load<f32v>(from), load<f32v>(from + lanes), EachLane());
      store(to + r * stride + i, parts.first);
      store(to + r * stride + i + lanes, parts.second);
    }
}

// sums[j] += halves[j][0], then halves[j][1], and so on to 15, of `columns`.
inline void add_in_order(const float* halves, int64_t columns, float* sums) {
  alignas(64) uint32_t across[16 * 16];
  transpose(reinterpret_cast<const uint32_t*>(halves), 16, 16, 16, across, 16);
  for (int64_t j = 0; j < columns; j += lanes) {
    f32v sum = (f32v)load_ragged(sums, j, columns);
    for (int e = 0; e < 16; ++e) sum = sum + load<f32v>(across + 16 * e + j);
    store_ragged(sums, j, columns, (u32v)sum, [](float* p, u32v v) { store(p, v); });
  }
}

// Of at most 16 columns and dots_chunk of k.
template <class S, Elementwise op>
void dots_of_chunk(int64_t rows, int64_t columns, int64_t count, const FewRows& a, const S* b,
                   int64_t ldb, float* sums, int64_t stride) {
  static_assert(most_dots == 4);
  constexpr int64_t at_once = lanes == 16 ? 4 : 2;  // more sums would leave the registers
  constexpr decltype(&halves_of_lines<S, op, 1>) of[] = {
      halves_of_lines<S, op, 1>, halves_of_lines<S, op, 2>, halves_of_lines<S, op, 3>,
      halves_of_lines<S, op, 4>};
  alignas(64) Halves halves[dots_chunk / dots_piece];
  const int64_t step = rows <= at_once ? columns : 1;  // a line is read again while it is in caches
  for (int64_t j = 0; j < columns; j += step)
    for (int64_t row = 0; row < rows; row += at_once)
      of[(rows - row < at_once ? rows - row : at_once) - 1](j, j + step, count, a, row, b, ldb,
                                                            halves);
  for (int64_t p = 0; p * dots_piece < count; ++p)
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = columns; j < 16; ++j)
        for (int64_t e = 0; e < 16; ++e) halves[p][r][j][e] = 0;
      add_in_order(halves[p][r][0], columns, sums + r * stride);
    }
}

inline void dots(int64_t rows, int64_t columns, int64_t count, const float* a, int64_t lda,
                 Elementwise op, DType dtype, const void* b, int64_t ldb, float* sums,
                 int64_t stride) {
  alignas(64) float apart[dots_chunk];
  const int64_t chunk = dots_chunk / rows / dots_piece * dots_piece;
  with_elementwise(op, dtype, [&]<class S, Elementwise e>() {
    for (int64_t k = 0; k < count; k += chunk) {
      const int64_t live = count - k < chunk ? count - k : chunk;
      const FewRows of_a{a + k, lda, apart, chunk};
      if constexpr (std::is_same_v<S, BFloat16>) put_apart(rows, live, a + k, lda, apart, chunk);
      const auto* lines = static_cast<const S*>(b) + k;
      for (int64_t j = 0; j < columns; j += 16)
        dots_of_chunk<S, e>(rows, columns - j < 16 ? columns - j : 16, live, of_a, lines + j * ldb,
                            ldb, sums + j, stride);
    }
    return false;
  });
}

// ---- epilogue ----

template <class A, class D, bool stochastic>
void finish_typed(const float* sums, int64_t count, float alpha, float beta, const A* addend,
                  int64_t addend_stride, D* y, Rounding rounding, uint64_t index) {
  for_vectors<stochastic>(sums, count, rounding, index,
                          [&](int64_t i, int64_t live, u32v bits, u32v random) {
                            f32v value = (f32v)bits * splat(alpha);
                            if (addend != nullptr) {
                              A items[lanes] = {};
                              if (addend_stride == 1 && live == lanes)
                                copy_items(items, addend + i, lanes);
                              else
                                for (int64_t j = 0; j < live; ++j)
                                  items[j] = addend[(i + j) * addend_stride];
                              value = value + (f32v)load_bits(items) * splat(beta);
                            }
                            if (live == lanes)
                              return store_rounded<stochastic>(y + i, (u32v)value, random);
                            D padded[lanes];
                            store_rounded<stochastic>(padded, (u32v)value, random);
                            copy_items(y + i, padded, live);
                          });
}

// y[i] = alpha * sums[i] + beta * addend[i * addend_stride], rounded once. addend may be null.
inline void finish_row(const float* sums, int64_t count, float alpha, float beta,
                       DType addend_dtype, const void* addend, int64_t addend_stride, DType out,
                       void* y, Rounding rounding, uint64_t index) {
  with_type(addend_dtype, [&](auto* a) {
    using A = std::remove_pointer_t<decltype(a)>;
    with_type(out, [&](auto* d) {
      using D = std::remove_pointer_t<decltype(d)>;
      with_mode(out == DType::float32 ? RoundingMode::nearest_even : rounding.mode,
                [&](auto stochastic) {
                  finish_typed<A, D, decltype(stochastic)::value>(
                      sums, count, alpha, beta, static_cast<const A*>(addend), addend_stride,
                      static_cast<D*>(y), rounding, index);
                });
    });
  });
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
