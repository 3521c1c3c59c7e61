// MX values of formats with many binades: two bfloat16 elements in each 32-bit lane.
//
// A normal number of the format has the same mantissa bits under every scale. So an element that is
// one is rounded where it stands, by integer arithmetic on the bits of the bfloat16: to nearest
// even, and to no more than the largest number under the scale of its block. Elements that are
// subnormal in the format are few if it has many binades; the vectors that hold some, and blocks
// with NaN or a scale near the ends of the range, are rounded as in mx_encode-inl.h.
#pragma once

#include "mx_bf16-inl.h"

namespace trn::numerics::TRN_NAMESPACE {
namespace {

template <class S, bool through_bf16, bool stochastic, Output out>
constexpr bool has_value_words =
    !stochastic && (through_bf16 || std::is_same_v<S, BFloat16>) &&
    (out == Output::float32 || out == Output::bfloat16 || out == Output::bf16_pairs);

constexpr uint32_t in_both = 0x00010001;  // times a half: the half twice

struct ValueConstants {
  int dropped;                     // mantissa bits that bfloat16 has and the format has not
  uint32_t first_code, last_code;  // scales under which the format's normal numbers are bfloat16's
  uint32_t least_word, most_word;  // of the format's normal numbers, under scale 1
  u32v half, kept;
};

// Whether a format has so many binades that few elements of a block are subnormal: from nine on
// (chosen; E4M3 has 15, E3M2 has 7).
inline bool has_many_binades(const MxConstants& c) {
  return (c.max_bits - c.min_normal_bits) >> 23 >= 8 && c.mantissa_shift > 16;
}

TRN_INLINE ValueConstants value_constants(const MxConstants& c) {
  const int dropped = c.mantissa_shift - 16;
  const uint32_t step = 1u << dropped;
  return {.dropped = dropped,
          .first_code = 128 - (c.min_normal_bits >> 23),
          .last_code = 254 + 127 - (c.max_bits >> 23),
          .least_word = c.min_normal_bits >> 16,
          .most_word = c.max_bits >> 16,
          .half = splat((step / 2 - 1) * in_both),
          .kept = splat((0x8000 - step) * in_both)};
}

#if TRN_ISA == 512
TRN_INLINE u32v average16(u32v a, u32v b) { return (u32v)_mm512_avg_epu16((__m512i)a, (__m512i)b); }
TRN_INLINE bool any_up_to(u32v magnitudes, u32v last) {
  return _mm512_cmple_epu16_mask(_mm512_sub_epi16((__m512i)magnitudes, _mm512_set1_epi16(1)),
                                 (__m512i)last) != 0;
}
TRN_INLINE uint32_t largest16(u32v v) {
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256((__m512i)v),
                                        _mm512_extracti64x4_epi64((__m512i)v, 1));
  const __m128i top =
      _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(top, _mm_set1_epi16(-1)));
  return ~static_cast<uint32_t>(_mm_cvtsi128_si32(least)) & 0xffff;
}
TRN_INLINE void store_in_order(BFloat16* p, u32v words) {
  alignas(64) static constexpr uint16_t order[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                     22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                     13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  store(p, (u32v)_mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)words));
}
#elif TRN_ISA == 2
TRN_INLINE u32v average16(u32v a, u32v b) { return (u32v)_mm256_avg_epu16((__m256i)a, (__m256i)b); }
TRN_INLINE bool any_up_to(u32v magnitudes, u32v last) {
  const __m256i less = _mm256_sub_epi16((__m256i)magnitudes, _mm256_set1_epi16(1));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_min_epu16(less, (__m256i)last), less)) != 0;
}
TRN_INLINE uint32_t largest16(u32v v) {
  const __m128i top =
      _mm_max_epu16(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(top, _mm_set1_epi16(-1)));
  return ~static_cast<uint32_t>(_mm_cvtsi128_si32(least)) & 0xffff;
}
TRN_INLINE void store_in_order(BFloat16* p, u32v words) {
  const __m256i packed = _mm256_packus_epi32((__m256i)(words & 0xffff), (__m256i)(words >> 16));
  store(p, (u32v)_mm256_permute4x64_epi64(packed, 0xd8));
}
#else
TRN_INLINE u32v average16(u32v a, u32v b) {
  const u32v below = splat(0x7fff7fffu);
  return ((a >> 1) & below) + ((b >> 1) & below) + ((a | b) & in_both);
}
TRN_INLINE bool any_up_to(u32v magnitudes, u32v last) {
  const words16 less = (words16)magnitudes - 1;
  return largest((u32v)(less <= (words16)last)) != 0;
}
TRN_INLINE uint32_t largest16(u32v v) {
  const u32v low = v & 0xffff, high = v >> 16;
  return largest(umax(low, high));
}
TRN_INLINE void store_in_order(BFloat16* p, u32v words) {
  for (int i = 0; i < lanes; ++i) {
    p[i].bits = static_cast<uint16_t>(words[i]);
    p[i + lanes].bits = static_cast<uint16_t>(words[i] >> 16);
  }
}
#endif

// Two vectors of elements as one of words, each rounded to bfloat16: `low` in the low halves.
template <bool through_bf16>
TRN_INLINE u32v words_of(u32v low, u32v high) {
  const u32v words = (low >> 16) | (high & 0xffff0000);
  if constexpr (!through_bf16) return words;
  // What is cut off, and 0x7fff, and the last bit that is kept: their carry rounds to nearest even.
  const u32v rest = (low & 0xffff) | (high << 16);
  const u32v sum = average16(rest, (words & in_both) | 0x7ffe7ffe);
  const u32v magnitude = (words & 0x7fff7fff) + ((sum >> 15) & in_both);
  return umin16(magnitude, splat(0x7fff7fffu)) | (words & 0x80008000);  // NaN stays NaN
}

// What the elements of blocks with these scale codes are rounded with, in both halves of a lane.
struct ValueLimits {
  u32v last;  // a magnitude between 1 and last + 1 needs the general way; 0xffff: 0 does, too
  u32v most;
};

TRN_INLINE ValueLimits value_limits(const ValueConstants& v, u32v code) {
  const u32v exponent = (code - 127) << 7;
  const u32v fits = (u32v)(code >= splat(v.first_code)) & (u32v)(code <= splat(v.last_code));
  u32v last = select((i32v)fits, exponent + (v.least_word - 2), splat(0xfffeu));
  last = select(code == splat(255u), splat(0xffffu), last);
  const u32v most = (exponent + v.most_word) & 0xffff;
  return {last | (last << 16), most | (most << 16)};
}

TRN_INLINE u32v rounded_words(const ValueConstants& v, u32v words, u32v most) {
  const u32v magnitude = words & 0x7fff7fff;
  const u32v last_bit = (magnitude >> v.dropped) & in_both;
  return umin16((magnitude + v.half + last_bit) & v.kept, most) | (words & 0x80008000);
}

// The same in the general way.
TRN_INLINE u32v encoded_words(const MxConstants& c, u32v words, f32v inverse, f32v scale) {
  const auto value = [&](u32v bits) __attribute__((always_inline)) {
    const Encoded e = encode_scaled<false>(c, bits & 0x7fffffff, inverse, u32v{});
    const u32v result = (u32v)(e.value * scale) | (bits & sign_mask);
    return select((u32v)scale == splat(quiet_nan), splat(quiet_nan), result);
  };
  return (value(words << 16) >> 16) | (value(words & 0xffff0000) & 0xffff0000);
}

// Words of 2 * lanes contiguous elements.
TRN_INLINE void store_words(float* p, u32v words) {
  store(p, words << 16);
  store(p + lanes, words & 0xffff0000);
}
TRN_INLINE void store_words(BFloat16* p, u32v words) { store_in_order(p, words); }

constexpr int block_vectors = 16 / lanes;  // of words, in a block of 32 elements

// One block, whose words are at `words`.
template <class D>
TRN_INLINE void store_block(const MxConstants& c, const ValueConstants& v, const uint32_t* words,
                            uint32_t last, uint32_t most, float inverse, float scale, D* y) {
  bool general = false;
  for (int i = 0; i < block_vectors; ++i)
    general |= any_up_to(load<u32v>(words + i * lanes) & 0x7fff7fff, splat(last));
  for (int i = 0; i < block_vectors; ++i) {
    const u32v w = load<u32v>(words + i * lanes);
    store_words(y + 2 * i * lanes, general ? encoded_words(c, w, splat(inverse), splat(scale))
                                           : rounded_words(v, w, splat(most)));
  }
}

// The words of one block; returns its largest magnitude, as float32 bits.
template <bool through_bf16, class S>
TRN_INLINE uint32_t load_block(const S* x, uint32_t* words) {
  u32v top = splat(0u);
  for (int i = 0; i < block_vectors; ++i) {
    const S* from = x + 2 * i * lanes;
    const u32v w = words_of<through_bf16>(load_bits(from), load_bits(from + lanes));
    store(words + i * lanes, w);
    top = umax16(top, w & 0x7fff7fff);
  }
  return largest16(top) << 16;
}

template <class S, bool through_bf16, class D>
bool mx_row_values(const MxConstants& constants, const S* x, int64_t count, D* y, uint8_t* scales) {
  const MxConstants c = constants;
  const ValueConstants v = value_constants(c);
  u32v least = splat(255u);
  for (int64_t first = 0; first < count; first += 32 * lanes) {
    const int64_t here = count - first < 32 * lanes ? count - first : 32 * lanes;
    const int whole = static_cast<int>(here / 32), ragged = static_cast<int>(here % 32);
    alignas(64) uint32_t tops[lanes] = {}, words[lanes][16], last[lanes], most[lanes];
    for (int b = 0; b < whole; ++b) {
      const S* block = x + first + 32 * b;
      for (int64_t i = 0; i < 32; i += 64 / int64_t{sizeof(S)}) prefetch(block + 32 * lanes + i);
      tops[b] = load_block<through_bf16>(block, words[b]);
    }
    if (ragged != 0) {
      S padded[32] = {};
      copy_items(padded, x + first + 32 * whole, ragged);
      tops[whole] = load_block<through_bf16>(padded, words[whole]);
    }
    const Scales s = block_scales<false>(c, tops, least);
    const ValueLimits limits = value_limits(v, load<u32v>(s.code));
    store(last, limits.last);
    store(most, limits.most);
    if (scales != nullptr) {
      alignas(64) uint8_t bytes[lanes];
      narrow8(load<u32v>(s.code), bytes);
      copy_items(scales + first / 32, bytes, whole + (ragged != 0));
    }
    for (int b = 0; b < whole; ++b)
      store_block(c, v, words[b], last[b], most[b], s.inverse[b], s.scale[b], y + first + 32 * b);
    if (ragged != 0) {
      D block[32];
      store_block(c, v, words[whole], last[whole], most[whole], s.inverse[whole], s.scale[whole],
                  block);
      copy_items(y + first + 32 * whole, block, ragged);
    }
  }
  return least_of(least) < least_safe_scale;
}

// `lanes` elements of a row at column j, zeros from `width` on.
template <class S>
TRN_INLINE u32v load_ragged(const S* row, int64_t j, int64_t width) {
  if (j + lanes <= width) return load_bits(row + j);
  S padded[lanes] = {};
  if (j < width) copy_items(padded, row + j, width - j);
  return load_bits(padded);
}

template <class T, class V, class Store>
TRN_INLINE void store_ragged(T* row, int64_t j, int64_t width, V v, Store store_vector) {
  if (j + lanes <= width) return store_vector(row + j, v);
  T padded[lanes];
  store_vector(padded, v);
  if (j < width) copy_items(row + j, padded, width - j);
}

constexpr int64_t destination_row(Grouping grouping, int64_t i) {
  return grouping == Grouping::contiguous ? i : i / 8 * 128 + i % 8;
}

// A strip of the columns of one block: the words of each pair of rows, and what each column is
// rounded with.
struct ValueStrip {
  static constexpr int64_t width = 2048;
  // Rows lie one vector further apart than they are wide: a power of two would bring conflicts.
  alignas(64) uint32_t words[16 * (width + lanes)];
  alignas(64) uint32_t last[width], most[width];  // the largest magnitudes at first
  alignas(64) uint32_t inverse[width], scale[width];
  alignas(64) uint8_t code[width];
  int64_t live, padded;

  uint32_t* pair(int i) { return words + i * (padded + lanes); }

  template <class S, bool through_bf16>
  TRN_INLINE void read(const void* const* rows, int64_t column);
  TRN_INLINE void scale_columns(const MxConstants& c, const ValueConstants& v, u32v& least);
  TRN_INLINE u32v rounded(const MxConstants& c, const ValueConstants& v, int i, int64_t j);
};

template <class S, bool through_bf16>
TRN_INLINE void ValueStrip::read(const void* const* rows, int64_t column) {
  constexpr int ahead = 4;  // rows to fetch before their turn; beyond the last, of the next strip
  const auto row_at = [&](int i) __attribute__((always_inline)) {
    return rows[i] == nullptr ? nullptr : static_cast<const S*>(rows[i]) + column;
  };
  for (int64_t j = 0; j < padded; j += lanes) store(last + j, splat(0u));
  for (int i = 0; i < 32; i += 2) {
    const S *low = row_at(i), *high = row_at(i + 1);
    if (low == nullptr) continue;
    const int later = (i + ahead) % 32;
    const S* next = row_at(later) == nullptr ? low : row_at(later) + (later < i ? live : 0);
    const S* second =
        row_at(later + 1) == nullptr ? next : row_at(later + 1) + (later < i ? live : 0);
    uint32_t* to = pair(i / 2);
    const auto words = [&](int64_t j, u32v a, u32v b) __attribute__((always_inline)) {
      const u32v w = words_of<through_bf16>(a, b);
      store(to + j, w);
      store(last + j, umax16(load<u32v>(last + j), w & 0x7fff7fff));
    };
    int64_t j = 0;
    for (; high != nullptr && j + lanes <= live; j += lanes) {
      prefetch(next + j);
      prefetch(second + j);
      words(j, load_bits(low + j), load_bits(high + j));
    }
    for (; j < padded; j += lanes)
      words(j, load_ragged(low, j, live), high == nullptr ? splat(0u) : load_ragged(high, j, live));
  }
}

TRN_INLINE void ValueStrip::scale_columns(const MxConstants& c, const ValueConstants& v,
                                          u32v& least) {
  for (int64_t j = 0; j < padded; j += lanes) {
    const u32v tops = load<u32v>(last + j);
    const u32v top = umax(tops << 16, tops & 0xffff0000);
    const u32v codes = scale_code(c, top);
    least = umin(least, select(top == splat(0u), splat(255u), codes));
    const ValueLimits limits = value_limits(v, codes);
    store(last + j, limits.last);
    store(most + j, limits.most);
    store(inverse + j, inverse_scale_bits(codes));
    store(scale + j, scale_bits(codes));
    narrow8(codes, code + j);
  }
}

TRN_INLINE u32v ValueStrip::rounded(const MxConstants& c, const ValueConstants& v, int i,
                                    int64_t j) {
  const u32v w = load<u32v>(pair(i) + j);
  if (any_up_to(w & 0x7fff7fff, load<u32v>(last + j))) [[unlikely]]
    return encoded_words(c, w, (f32v)load<u32v>(inverse + j), (f32v)load<u32v>(scale + j));
  return rounded_words(v, w, load<u32v>(most + j));
}

template <class S, bool through_bf16, Output out, class T>
bool mx_columns_values(const MxConstants& constants, const void* const* rows, int64_t width,
                       Grouping grouping, const ColumnDestination& destination, T* base,
                       uint8_t* scales) {
  constexpr bool pairs = out == Output::bf16_pairs;
  const MxConstants c = constants;
  const ColumnDestination d = destination;
  const ValueConstants v = value_constants(c);
  ValueStrip strip;
  u32v least = splat(255u);
  const int64_t unit = d.panel_width == 0 ? lanes : d.panel_width;
  for (int64_t column = 0; column < width; column += strip.width) {
    const int64_t live = width - column < strip.width ? width - column : strip.width;
    const int64_t padded = (live + unit - 1) / unit * unit;
    const int64_t panel = d.panel_width == 0 ? padded : d.panel_width;
    const int64_t limit = d.panel_width == 0 ? live : padded;
    strip.live = live;
    strip.padded = padded;
    strip.read<S, through_bf16>(rows, column);
    strip.scale_columns(c, v, least);
    if (scales != nullptr) copy_items(scales + column, strip.code, live);
    for (int i = 0; i < 32; i += 2) {
      if (rows[i] == nullptr) continue;
      const int64_t row = destination_row(grouping, i);
      T* at = base + (pairs ? row / 2 : row) * d.row_stride +
              (d.panel_width == 0 ? column : column / panel * d.panel_stride);
      for (int64_t first = 0; first < padded; first += panel, at += d.panel_stride)
        for (int64_t j = first; j < first + panel; j += lanes) {
          const u32v words = strip.rounded(c, v, i / 2, j);
          const auto put = [&](T* to, u32v bits) __attribute__((always_inline)) {
            store_ragged(to - first, j, limit, bits,
                         [](T* p, u32v b) __attribute__((always_inline)) {
                           if constexpr (pairs)
                             store(p, b);
                           else
                             store_exact(p, b);
                         });
          };
          if constexpr (pairs) {
            put(at, words);
          } else {
            put(at, words << 16);
            if (rows[i + 1] != nullptr) put(at + d.row_stride, words & 0xffff0000);
          }
        }
    }
  }
  return least_of(least) < least_safe_scale;
}

}  // namespace
}  // namespace trn::numerics::TRN_NAMESPACE
