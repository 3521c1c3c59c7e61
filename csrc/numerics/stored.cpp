// See stored.h. A panel of columns is dequantised and transposed 256 k's at a time, in cache; for a
// few rows a column is dequantised and multiplied at once.
#include "stored.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "scratch.h"

// The same source for every width; the loader picks one.
#if defined(__x86_64__)
#define TRN_EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TRN_EVERY_WIDTH
#endif

namespace trn::numerics {
namespace {

constexpr int64_t k_at_once = 512, most_columns = 32;

// A code of a float format as float32: a normal number's magnitude moves to its place and gets the
// other bias, a subnormal one is a small integer times the smallest. No float32 is subnormal on the
// way: hosts take a hundred times as long with those.
struct Places {
  int shift;            // of the magnitude
  uint32_t bias;        // to add to it
  float smallest;       // subnormal number
  uint32_t normal;      // code of the smallest normal number
  uint32_t sign_shift;  // from the code's sign to bit 31
  uint32_t magnitude;   // mask
  uint32_t largest;     // code of a finite number
  uint32_t infinity;    // its code; none: above every code

  explicit Places(const FloatFormat& f)
      : shift(23 - f.mantissa_bits),
        bias(static_cast<uint32_t>(127 - f.bias()) << 23),
        smallest(std::ldexp(1.0f, f.min_exponent() - f.mantissa_bits)),
        normal(1u << f.mantissa_bits),
        sign_shift(static_cast<uint32_t>(32 - f.bits())),
        magnitude(f.magnitude_mask()),
        largest(f.max_code()),
        infinity(f.specials == Specials::ieee ? f.infinity_code() : 256) {}
};

inline uint32_t value_bits(uint32_t code, const Places p, float scale) {
  const uint32_t magnitude = code & p.magnitude;
  const uint32_t sign = (code & (p.magnitude + 1)) << p.sign_shift;
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * p.smallest;
  const uint32_t normal = (magnitude << p.shift) + p.bias;
  const uint32_t finite = magnitude < p.normal ? std::bit_cast<uint32_t>(small) : normal;
  const uint32_t special = magnitude == p.infinity ? 0x7f800000u : 0x7fc00000u;
  const float v = std::bit_cast<float>(sign | (magnitude > p.largest ? special : finite));
  const float scaled = v * scale;
  return scaled != scaled ? 0x7fc00000u : std::bit_cast<uint32_t>(scaled);
}

TRN_EVERY_WIDTH void widen_bytes(const Places p, const uint8_t* __restrict codes,
                                 const float* __restrict scales, int64_t blocks,
                                 uint32_t* __restrict y) {
  for (int64_t block = 0; block < blocks; ++block, codes += 32, y += 32) {
    const float scale = scales[block];
    for (int i = 0; i < 32; ++i) y[i] = value_bits(codes[i], p, scale);
  }
}

TRN_EVERY_WIDTH void widen_halves(const Places p, const uint8_t* __restrict codes,
                                  const float* __restrict scales, int64_t blocks,
                                  uint32_t* __restrict y) {
  for (int64_t block = 0; block < blocks; ++block, codes += 16, y += 32) {
    const float scale = scales[block];
    for (int i = 0; i < 16; ++i) {
      y[2 * i] = value_bits(codes[i] & 15u, p, scale);
      y[2 * i + 1] = value_bits(codes[i] >> 4, p, scale);
    }
  }
}

// k [k0, k0 + count) of column j in float32.
void widen_column(const StoredMx& b, const Places& places, int64_t j, int64_t k0, int64_t count,
                  uint32_t* y) {
  const int together = codes_a_byte(b.element);
  const FloatFormat& f = element_format(b.element);
  const uint8_t* codes = b.codes + j * b.column_bytes + k0 / together;
  const uint8_t* scales = b.scales + j * b.column_scales + k0 / 32;
  const int64_t blocks = f.specials == Specials::integer ? 0 : count / 32;
  float factors[k_at_once / 32];
  for (int64_t block = 0; block < blocks; ++block) factors[block] = decode_e8m0(scales[block]);
  (together == 2 ? widen_halves : widen_bytes)(places, codes, factors, blocks, y);
  if (const int64_t done = blocks * 32; done < count)
    dequantize(codes + done / together, b.column_bytes, scales + blocks, b.column_scales, 1,
               b.element, Grouping::contiguous, 1, count - done, DType::float32, y + done, count);
}

// k [k0, k0 + count) of columns [j0, j0 + columns) as [count, panel_columns] in float32.
void widen_panel(const Kernels& kernel, const StoredMx& b, const Places& places, int64_t j0,
                 int64_t columns, int64_t k0, int64_t count, uint32_t* panel) {
  constexpr int64_t line = k_at_once + 16;  // a power of two would share cache sets
  uint32_t lines[most_columns * line];
  const int64_t width = kernel.panel_columns;
  std::fill(lines + columns * line, lines + width * line, 0u);
  for (int64_t j = 0; j < columns; ++j)
    widen_column(b, places, j0 + j, k0, count, lines + j * line);
  kernel.transpose(lines, line, width, count, panel, width);
}

void put(const Kernels& kernel, const Result& c, int64_t m, int64_t n, int64_t j0, int64_t count,
         const float* sums, int64_t stride) {
  for (int64_t i = 0; i < m; ++i)
    kernel.finish_row(sums + i * stride, count, 1.0f, 0.0f, DType::float32, nullptr, 0, c.dtype,
                      static_cast<char*>(c.data) +
                          (i * c.row_stride + j0) * static_cast<int64_t>(size_of(c.dtype)),
                      c.rounding, static_cast<uint64_t>(i * n + j0));
}

// As gemm multiplies lines that are contiguous along k.
void multiply_columns(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                      const Result& c) {
  static_assert(k_at_once == piece_k);  // sums are added up after as many
  const Kernels& kernel = kernels();
  const Places places(element_format(b.element));
  constexpr int64_t each = 64;
  parallel_for(0, ceil_div(n, each), 1, [&](int64_t lo, int64_t hi) {
    uint32_t words[k_at_once];
    float sums[most_dots * each];
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * each, columns = std::min(each, n - j0);
      for (int64_t j = 0; j < columns; ++j) {
        float line[most_dots] = {};
        for (int64_t k0 = 0; k0 < k; k0 += k_at_once) {
          const int64_t count = std::min(k_at_once, k - k0);
          widen_column(b, places, j0 + j, k0, count, words);
          kernel.dots(m, count, a + k0, k, Elementwise::none, DType::float32, words, line);
        }
        for (int64_t i = 0; i < m; ++i) sums[i * each + j] = line[i];
      }
      put(kernel, c, m, n, j0, columns, sums, each);
    }
  });
}

}  // namespace

void gemm_stored(int64_t m, int64_t n, int64_t k, const float* a, const StoredMx& b,
                 const Result& c) {
  const IeeeScope scope;
  if (m <= most_dots) return multiply_columns(m, n, k, a, b, c);
  const Kernels& kernel = kernels();
  const Places places(element_format(b.element));
  const Packing p(kernel, false, k);
  const Lines lines{reinterpret_cast<const char*>(a), DType::float32, m, k, k, 1, 0, 0, {}};
  const int64_t tiles = ceil_div(m, kernel.tile_rows), columns = kernel.panel_columns;
  Scratch<uint32_t> left(static_cast<size_t>(tiles * p.a_panel_words()));
  pack_a(p, lines, 0, tiles, left.get());
  parallel_for(0, ceil_div(n, columns), 1, [&](int64_t lo, int64_t hi) {
    alignas(64) uint32_t panel[k_at_once * most_columns];
    alignas(64) float sums[most_stored_rows * most_columns] = {};
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t j0 = item * columns, live = std::min(columns, n - j0);
      for (int64_t k0 = 0; k0 < k; k0 += k_at_once) {
        const int64_t count = std::min(k_at_once, k - k0);
        widen_panel(kernel, b, places, j0, live, k0, count, panel);
        for (int64_t tile = 0; tile < tiles; ++tile)
          kernel.gemm_float32(std::min(kernel.tile_rows, m - tile * kernel.tile_rows), count,
                              left.get() + tile * p.a_panel_words() + k0 * kernel.tile_rows, false,
                              panel, sums + tile * kernel.tile_rows * columns, columns, k0 > 0);
      }
      put(kernel, c, m, n, j0, live, sums, columns);
    }
  });
}

}  // namespace trn::numerics
