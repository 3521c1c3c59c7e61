// MX quantisation along rows and down columns.
#pragma once

#include "mx_bf16-inl.h"
#include "mx_encode-inl.h"
#include "mx_values-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

template <Output out>
struct Stored {
  using Type = uint8_t;
};
template <>
struct Stored<Output::float32> {
  using Type = float;
};
template <>
struct Stored<Output::bfloat16> {
  using Type = BFloat16;
};
template <>
struct Stored<Output::float16> {
  using Type = Half;
};
template <>
struct Stored<Output::bf16_pairs> {
  using Type = uint32_t;
};

template <Output out>
constexpr bool is_codes = out == Output::codes8 || out == Output::codes4;

template <Output out>
constexpr int64_t stored_count(int64_t elements) {
  return out == Output::codes4 ? (elements + 1) / 2 : elements;
}

// Values of 16-bit sources are bfloat16: where the scale is so small that the values are subnormal,
// the source has no finer steps than bfloat16, and rounding to a multiple of them adds none. (A
// float16 block has no such scale.)
template <class S, bool through_bf16, class T>
TRN_INLINE void store_value(T* p, u32v bits) {
  if constexpr (std::is_same_v<S, float> && !through_bf16)
    store_nearest(p, bits);
  else
    store_exact(p, bits);
}

// Whether mx_bf16-inl.h does it.
template <class S, bool stochastic, Output out>
constexpr bool has_word_kernel =
    std::is_same_v<S, BFloat16> && !stochastic && out == Output::codes8;

// One block of 32 contiguous elements, which has scale `at` of `s`.
template <class S, bool through_bf16, bool stochastic, Output out>
TRN_INLINE void mx_block(const MxConstants& c, const S* x, const Scales& s, int at,
                         const uint32_t* random, typename Stored<out>::Type* y) {
  constexpr int vectors = 32 / lanes;
  u32v codes[vectors];
  const bool nan = s.code[at] == 255;
  const f32v inverse = splat(s.inverse[at]), scale = splat(s.scale[at]);
  for (int v = 0; v < vectors; ++v) {
    const u32v words = stochastic ? load<u32v>(random + v * lanes) : u32v{};
    const u32v bits = finite_through_bf16<through_bf16>(load_bits(x + v * lanes));
    const Encoded e = encode_scaled<stochastic>(c, bits & 0x7fffffff, inverse, words);
    const u32v sign = bits & sign_mask;
    if constexpr (is_codes<out>)
      codes[v] = nan ? splat(c.nan_code) : e.code | (sign >> static_cast<int>(c.sign_shift));
    else if (nan)
      store_nearest(y + v * lanes, splat(quiet_nan));
    else
      store_value<S, through_bf16>(y + v * lanes, (u32v)(e.value * scale) | sign);
  }
  if constexpr (out == Output::codes8) narrow_block(codes, y);
  if constexpr (out == Output::codes4) pack_nibbles(codes, y);
}

template <class S, bool through_bf16, bool stochastic, Output out>
bool mx_row_typed(const MxConstants& constants, const S* x, int64_t count, uint64_t index,
                  typename Stored<out>::Type* y, uint8_t* scales) {
  if constexpr (has_value_words<S, through_bf16, stochastic, out>)
    if (has_many_binades(constants))
      return mx_row_values<S, through_bf16>(constants, x, count, y, scales);
  const MxConstants c = constants;  // a store through y cannot change it
  const WordConstants words = word_constants(c);
  u32v least = splat(255u);
  // Blocks by `lanes`: what a block's scale takes is vector work then.
  for (int64_t first = 0; first < count; first += 32 * lanes) {
    const int64_t here = count - first < 32 * lanes ? count - first : 32 * lanes;
    const int whole = static_cast<int>(here / 32), ragged = static_cast<int>(here % 32);
    alignas(64) uint32_t tops[lanes] = {}, random[32] = {};
    S padded[32] = {};
    if (ragged != 0) {
      copy_items(padded, x + first + 32 * whole, ragged);
      tops[whole] = block_top(padded);
    }
    for (int b = 0; b < whole; ++b) tops[b] = block_top(x + first + 32 * b);
    const Scales s = block_scales<through_bf16>(c, tops, least);
    if (scales != nullptr) {
      alignas(64) uint8_t bytes[lanes];
      narrow8(load<u32v>(s.code), bytes);
      copy_items(scales + first / 32, bytes, whole + (ragged != 0));
    }
    const auto draw = [&](int b, int64_t elements) {
      if constexpr (stochastic)
        random_words(c.seed, c.offset, index + static_cast<uint64_t>(first + 32 * b), elements,
                     random);
    };
    typename Stored<out>::Type* to = y + stored_count<out>(first);
    for (int b = 0; b < whole; ++b) {
      const S* block = x + first + 32 * b;
      if constexpr (has_word_kernel<S, stochastic, out>) {
        mx_block_words(c, words, block, s, b, to + 32 * b);
        continue;
      }
      draw(b, 32);
      mx_block<S, through_bf16, stochastic, out>(c, block, s, b, random,
                                                 to + stored_count<out>(32 * b));
    }
    if (ragged != 0) {
      draw(whole, ragged);
      typename Stored<out>::Type block[32];
      mx_block<S, through_bf16, stochastic, out>(c, padded, s, whole, random, block);
      copy_items(to + stored_count<out>(32 * whole), block, stored_count<out>(ragged));
    }
  }
  return least_of(least) < least_safe_scale;
}

// Calls f.template operator()<Output>().
template <class F>
TRN_INLINE bool with_row_output(Output out, F f) {
  switch (out) {
    case Output::codes8:
      return f.template operator()<Output::codes8>();
    case Output::codes4:
      return f.template operator()<Output::codes4>();
    case Output::float32:
      return f.template operator()<Output::float32>();
    case Output::bfloat16:
      return f.template operator()<Output::bfloat16>();
    case Output::float16:
      return f.template operator()<Output::float16>();
    case Output::bf16_pairs:
      break;
  }
  return false;
}

// Calls f.template operator()<S, through_bf16, stochastic>().
template <class F>
TRN_INLINE bool with_source(const MxConstants& c, DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      if (c.through_bf16)
        return c.stochastic ? f.template operator()<float, true, true>()
                            : f.template operator()<float, true, false>();
      return c.stochastic ? f.template operator()<float, false, true>()
                          : f.template operator()<float, false, false>();
    case DType::bfloat16:
      return c.stochastic ? f.template operator()<BFloat16, false, true>()
                          : f.template operator()<BFloat16, false, false>();
    case DType::float16:
      return c.stochastic ? f.template operator()<Half, false, true>()
                          : f.template operator()<Half, false, false>();
  }
  return false;
}

inline bool mx_row(const MxConstants& c, DType dtype, const void* x, int64_t count, uint64_t index,
                   Output out, void* y, uint8_t* scales) {
  return with_source(c, dtype, [&]<class S, bool through_bf16, bool stochastic>() {
    return with_row_output(out, [&]<Output o>() {
      return mx_row_typed<S, through_bf16, stochastic, o>(c, static_cast<const S*>(x), count, index,
                                                          static_cast<typename Stored<o>::Type*>(y),
                                                          scales);
    });
  });
}

constexpr int64_t strip_width = 2048;  // 256 KiB of copy, for the second-level cache

// Copies a strip of the rows of a block, widened to float32, and collects the largest magnitudes.
// Row by row: memory is read in runs, and the copy, whose rows lie one vector further apart than
// they are wide, is free of the cache conflicts that a power-of-two row stride brings.
template <class S>
TRN_INLINE void read_strip(const void* const* rows, int64_t column, int64_t live, int64_t padded,
                           uint32_t* strip, uint32_t* top) {
  constexpr int ahead = 4;  // rows to fetch before their turn; beyond the last, of the next strip
  const int64_t whole = live / lanes * lanes;
  for (int64_t j = 0; j < padded; j += lanes) store(top + j, splat(0u));
  for (int i = 0; i < 32; ++i) {
    if (rows[i] == nullptr) continue;
    const S* row = static_cast<const S*>(rows[i]) + column;
    const int other = (i + ahead) % 32;
    const S* next = rows[other] == nullptr ? row : static_cast<const S*>(rows[other]) + column;
    if (other < i) next += live;
    uint32_t* to = strip + i * (padded + lanes);
    for (int64_t j = 0; j < whole; j += lanes) {
      const u32v bits = load_bits(row + j);
      prefetch(next + j);
      store(to + j, bits);
      store(top + j, umax(load<u32v>(top + j), bits & 0x7fffffff));
    }
    for (int64_t j = whole; j < padded; j += lanes) {
      const u32v bits = load_ragged(row, j, live);
      store(to + j, bits);
      store(top + j, umax(load<u32v>(top + j), bits & 0x7fffffff));
    }
  }
}

template <class S, bool through_bf16, bool stochastic, Output out>
bool mx_columns_typed(const MxConstants& constants, const void* const* rows,
                      const uint64_t* indices, int64_t width, Grouping grouping,
                      const ColumnDestination& destination, uint8_t* scales) {
  using T = typename Stored<out>::Type;
  if constexpr (has_value_words<S, through_bf16, stochastic, out>)
    if (has_many_binades(constants))
      return mx_columns_values<S, through_bf16, out>(constants, rows, width, grouping, destination,
                                                     static_cast<T*>(destination.base), scales);
  constexpr int step = out == Output::codes4 || out == Output::bf16_pairs ? 2 : 1;
  const MxConstants c = constants;
  const ColumnDestination d = destination;
  alignas(64) uint32_t strip[32 * (strip_width + lanes)];
  alignas(64) uint32_t top[strip_width], inverse[strip_width], scale[strip_width];
  alignas(64) uint8_t code[strip_width];
  alignas(64) uint32_t random[2][stochastic ? strip_width : lanes] = {};
  u32v least = splat(255u);

  int64_t done = 0;
  if constexpr (has_word_kernel<S, stochastic, out>) {
    if (d.panel_width == 0) {
      done = width / (2 * lanes) * (2 * lanes);
      uint8_t* codes[32];
      for (int i = 0; i < 32; ++i)
        codes[i] = static_cast<uint8_t*>(d.base) + destination_row(grouping, i) * d.row_stride;
      mx_columns_words(c, reinterpret_cast<const BFloat16* const*>(rows), done, codes, scales,
                       least);
    }
  }
  for (int64_t base = done; base < width; base += strip_width) {
    const int64_t live = width - base < strip_width ? width - base : strip_width;
    const int64_t unit = d.panel_width == 0 ? lanes : d.panel_width;
    const int64_t padded = (live + unit - 1) / unit * unit;
    read_strip<S>(rows, base, live, padded, strip, top);
    if (d.panel_width == 0)  // or every row would start by waiting for its lines
      for (int i = 0; i < 32; i += step) {
        const char* to = reinterpret_cast<const char*>(
            static_cast<T*>(d.base) + destination_row(grouping, i) / step * d.row_stride + base);
        const int64_t bytes = live * static_cast<int64_t>(sizeof(T));
        for (int64_t b = 0; rows[i] != nullptr && b < bytes; b += 64) prefetch_write(to + b);
      }

    i32v nan = {};
    for (int64_t j = 0; j < padded; j += lanes) {
      const u32v tops = top_through_bf16<through_bf16>(load<u32v>(top + j));
      const u32v codes = scale_code(c, tops);
      least = umin(least, select(tops == splat(0u), splat(255u), codes));
      nan |= codes == splat(255u);
      store(inverse + j, inverse_scale_bits(codes));
      store(scale + j, scale_bits(codes));
      narrow8(codes, code + j);
    }
    if (scales != nullptr) copy_items(scales + base, code, live);
    const bool any_nan = largest((u32v)nan) != 0;

    // A vector of row i: codes with signs, or value bits.
    const auto encoded = [&](int i, int64_t j, int parity) __attribute__((always_inline)) {
      const u32v bits =
          finite_through_bf16<through_bf16>(load<u32v>(strip + i * (padded + lanes) + j));
      const u32v words = stochastic ? load<u32v>(random[parity] + j) : u32v{};
      const Encoded e =
          encode_scaled<stochastic>(c, bits & 0x7fffffff, (f32v)load<u32v>(inverse + j), words);
      const u32v sign = bits & sign_mask;
      u32v result;
      if constexpr (is_codes<out>)
        result = e.code | (sign >> static_cast<int>(c.sign_shift));
      else
        result = (u32v)(e.value * (f32v)load<u32v>(scale + j)) | sign;
      if (any_nan) [[unlikely]]
        result = select(load<u32v>(scale + j) == splat(quiet_nan),
                        splat(is_codes<out> ? c.nan_code : quiet_nan), result);
      return result;
    };
    const auto draw = [&](int i, int parity) {
      if constexpr (stochastic)
        random_words(c.seed, c.offset, indices[i] + static_cast<uint64_t>(base), live,
                     random[parity]);
    };

    for (int i = 0; i < 32; i += step) {
      if (rows[i] == nullptr) continue;
      const bool pair = step == 2 && rows[i + step - 1] != nullptr;
      draw(i, 0);
      if (pair) draw(i + 1, 1);
      const int64_t row = destination_row(grouping, i) / step;
      const int64_t limit = d.panel_width == 0 ? live : padded;
      const int64_t panel = d.panel_width == 0 ? padded : d.panel_width;
      T* at = static_cast<T*>(d.base) + row * d.row_stride +
              (d.panel_width == 0 ? base : base / panel * d.panel_stride);
      for (int64_t first = 0; first < padded; first += panel, at += d.panel_stride)
        for (int64_t j = first; j < first + panel; j += lanes) {
          T* to = at - first;
          const u32v even = encoded(i, j, 0);
          if constexpr (step == 1) {
            store_ragged(to, j, limit, even, [](T* p, u32v v) __attribute__((always_inline)) {
              if constexpr (out == Output::codes8)
                narrow8(v, p);
              else
                store_value<S, through_bf16>(p, v);
            });
            continue;
          }
          const u32v odd = pair ? encoded(i + 1, j, 1) : splat(0u);
          if constexpr (out == Output::codes4) {
            store_ragged(to, j, limit, (even & 0xf) | (odd << 4),
                         [](uint8_t* p, u32v v) { narrow8(v, p); });
          } else if constexpr (out == Output::bf16_pairs) {
            const bool exact = through_bf16 || !std::is_same_v<S, float>;
            const u32v low = exact ? even : nearest_bf16(even);
            const u32v high = exact ? odd : nearest_bf16(odd);
            store_ragged(to, j, limit, (low >> 16) | (high & 0xffff0000),
                         [](uint32_t* p, u32v v) { store(p, v); });
          }
        }
    }
  }
  return least_of(least) < least_safe_scale;
}

template <class F>
TRN_INLINE bool with_column_output(Output out, F f) {
  if (out == Output::bf16_pairs) return f.template operator()<Output::bf16_pairs>();
  return with_row_output(out, f);
}

inline bool mx_columns(const MxConstants& c, DType dtype, const void* const* rows,
                       const uint64_t* indices, int64_t width, Grouping grouping, Output out,
                       const ColumnDestination& destination, uint8_t* scales) {
  return with_source(c, dtype, [&]<class S, bool through_bf16, bool stochastic>() {
    return with_column_output(out, [&]<Output o>() {
      return mx_columns_typed<S, through_bf16, stochastic, o>(c, rows, indices, width, grouping,
                                                              destination, scales);
    });
  });
}

template <class D>
void mx_decode_typed(FloatFormat f, const uint8_t* codes, const float* scales, int64_t count,
                     D* y) {
  const int sign_shift = 32 - f.bits();
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t live = count - i < lanes ? count - i : lanes;
    uint8_t bytes[lanes] = {};
    float factors[lanes] = {};
    copy_items(bytes, codes + i, live);
    copy_items(factors, scales + i, live);
    const u32v code = widen8(bytes);
    const u32v magnitude = decode_magnitude(f, code & f.magnitude_mask());
    u32v bits = (u32v)((f32v)magnitude * load<f32v>(factors));
    bits = select(bits > splat(infinity_bits), splat(quiet_nan), bits);
    bits |= (code << sign_shift) & sign_mask;
    bits = select((bits & 0x7fffffff) > splat(infinity_bits), splat(quiet_nan), bits);
    store_ragged(y + i, 0, live, bits, [](D* p, u32v v) { store_nearest(p, v); });
  }
}

inline void mx_decode_row(FloatFormat f, const uint8_t* codes, const float* scales, int64_t count,
                          DType out, void* y) {
  with_type(out, [&](auto* d) {
    using D = std::remove_pointer_t<decltype(d)>;
    mx_decode_typed(f, codes, scales, count, static_cast<D*>(y));
  });
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
