// Attention, a block of query rows at a time: all scores of a row are at hand, so the softmax needs
// no running maximum, and no product is computed twice. Sources: see attention.h.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "packing.h"
#include "parallel.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

template <class T>
T* offset(T* data, DType dtype, int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(data) + elements * static_cast<int64_t>(size_of(dtype));
}

// Rows of one head; `k` runs along the columns (across = false) or along the rows.
Lines lines(const AttentionInput& x, int64_t batch, int64_t head, int64_t first_row, int64_t rows,
            int64_t cols, bool round_bf16, bool across = false) {
  Lines l{};
  l.data = static_cast<const char*>(offset(
      x.data, x.dtype, batch * x.batch_stride + head * x.head_stride + first_row * x.row_stride));
  l.dtype = x.dtype;
  l.count = across ? cols : rows;
  l.k = across ? rows : cols;
  l.line_stride = across ? x.col_stride : x.row_stride;
  l.k_stride = across ? x.row_stride : x.col_stride;
  l.rounding.kind = round_bf16 ? OperandRounding::Kind::bfloat16 : OperandRounding::Kind::none;
  return l;
}

// A float32 block of scores as an operand: rows are lines, or columns are (transposed).
Lines lines(const float* scores, int64_t stride, int64_t rows, int64_t cols, bool round_bf16,
            bool transposed) {
  const AttentionInput x{scores, DType::float32, 0, 0, stride, 1};
  return lines(x, 0, 0, 0, rows, cols, round_bf16, transposed);
}

// An operand packed on its own.
struct PackedOperand {
  Packing packing;
  Scratch<uint32_t> words;
  int64_t panels;
};

PackedOperand packed_b(const Kernels& kernel, bool pairs, const Lines& x) {
  const Packing p(kernel, pairs, x.k);
  const int64_t panels = ceil_div(x.count, kernel.panel_columns);
  PackedOperand b{p, Scratch<uint32_t>(static_cast<size_t>(panels * p.b_panel_words())), panels};
  pack_b(p, x, 0, panels, b.words.get());
  return b;
}

// c[lines of a, panels] (+)= a * b over the k's of a, which is packed into `words`.
void multiply(const Kernels& kernel, bool pairs, const Lines& a, const PackedOperand& b,
              int64_t panels, uint32_t* words, float* c, int64_t ldc, bool accumulate) {
  const Packing p(kernel, pairs, a.k, packs_a_across(a));
  if (a.k == 0 && !accumulate) std::fill(c, c + a.count * ldc, 0.0f);
  pack_a(p, a, 0, ceil_div(a.count, p.tile_rows), words);
  multiply_panels(p, a.count, words, p.a_panel_words(), panels, b.words.get(),
                  b.packing.b_panel_words(), c, ldc, accumulate);
}

size_t a_words(const Packing& p, int64_t count) {
  return static_cast<size_t>(ceil_div(count, p.tile_rows) * p.a_panel_words());
}

float mask_value(const AttentionMask& mask, int64_t i) {
  switch (mask.kind) {
    case AttentionMask::Kind::float32:
      return static_cast<const float*>(mask.data)[i];
    case AttentionMask::Kind::boolean:
      return static_cast<const bool*>(mask.data)[i] ? 0.0f
                                                    : -std::numeric_limits<float>::infinity();
    case AttentionMask::Kind::bfloat16:
    case AttentionMask::Kind::float16:
      break;
  }
  const Format id = mask.kind == AttentionMask::Kind::bfloat16 ? Format::bfloat16 : Format::float16;
  return reference::decode(format(id), static_cast<const uint16_t*>(mask.data)[i]);
}

// The mask of one row of scores, or null where there is none.
const float* mask_row(const AttentionMask& mask, int64_t batch, int64_t head, int64_t row,
                      int64_t count, float* buffer) {
  if (mask.data == nullptr) return nullptr;
  const int64_t first = batch * mask.batch_stride + head * mask.head_stride + row * mask.row_stride;
  if (mask.kind == AttentionMask::Kind::float32 && mask.col_stride == 1)
    return static_cast<const float*>(mask.data) + first;
  for (int64_t j = 0; j < count; ++j) buffer[j] = mask_value(mask, first + j * mask.col_stride);
  return buffer;
}

void write_row(const Kernels& kernel, const float* sums, int64_t count, float factor,
               const AttentionOutput& y, int64_t batch, int64_t head, int64_t row) {
  void* to =
      offset(y.data, y.dtype, batch * y.batch_stride + head * y.head_stride + row * y.row_stride);
  if (y.col_stride == 1)
    return kernel.finish_row(sums, count, factor, 0, DType::float32, nullptr, 0, y.dtype, to, {},
                             0);
  for (int64_t j = 0; j < count; ++j)
    kernel.finish_row(sums + j, 1, factor, 0, DType::float32, nullptr, 0, y.dtype,
                      offset(to, y.dtype, j * y.col_stride), {}, 0);
}

// What a thread needs for blocks of `rows` query rows.
struct Block {
  const Kernels& kernel;
  const Attention& shape;
  bool pairs;
  int64_t rows;           // query rows at a time
  int64_t scores_stride;  // of a row of scores, in whole panels

  Block(const Kernels& kernels, const Attention& attention)
      : kernel(kernels),
        shape(attention),
        pairs(kernels.gemm_bf16 != nullptr && attention.round_bf16) {
    scores_stride = ceil_div(shape.kv_length, kernel.panel_columns) * kernel.panel_columns;
    // Scores that stay in the second-level cache, and enough rows to reuse a panel of keys.
    const int64_t wanted = 65536 / std::max<int64_t>(1, scores_stride);
    const int64_t tile = Packing(kernel, pairs, 1).tile_rows;
    rows = std::clamp<int64_t>(wanted / tile, 1, 96 / tile) * tile;
  }

  // Columns that rows [row, row + count) see.
  int64_t seen(int64_t row, int64_t count) const {
    return shape.causal ? std::min(row + count, shape.kv_length) : shape.kv_length;
  }
  int64_t panels(int64_t columns) const { return ceil_div(columns, kernel.panel_columns); }
  int64_t padded(int64_t columns) const { return panels(columns) * kernel.panel_columns; }
};

// A row as float32: where it is, or in `buffer`.
const float* float32_row(const Kernels& kernel, const AttentionInput& x, int64_t batch,
                         int64_t head, int64_t row, int64_t count, float* buffer) {
  const void* from =
      offset(x.data, x.dtype, batch * x.batch_stride + head * x.head_stride + row * x.row_stride);
  if (x.dtype == DType::float32 && x.col_stride == 1) return static_cast<const float*>(from);
  const int64_t at_once = x.col_stride == 1 ? count : 1;
  for (int64_t j = 0; j < count; j += at_once)
    kernel.round_row(Elementwise::none, x.dtype, offset(from, x.dtype, j * x.col_stride), at_once,
                     Output::float32, buffer + j);
  return buffer;
}

float dot(const float* a, const float* b, int64_t count) {
  float sums[16] = {};
  int64_t j = 0;
  for (; j + 16 <= count; j += 16)
    for (int i = 0; i < 16; ++i) sums[i] += a[j + i] * b[j + i];
  for (int i = 0; j + i < count; ++i) sums[i] += a[j + i] * b[j + i];
  float sum = 0;
  for (float s : sums) sum += s;
  return sum;
}

int64_t padded_columns(const Kernels& kernel, int64_t count) {
  return ceil_div(count, kernel.panel_columns) * kernel.panel_columns;
}

}  // namespace

void attention_forward(const Attention& shape, const AttentionInput& q, const AttentionInput& k,
                       const AttentionInput& v, const AttentionOutput& out, float* logsumexp) {
  const Kernels& kernel = kernels();
  const Block block(kernel, shape);
  const bool pairs = block.pairs, round = shape.round_bf16;
  const int64_t blocks = ceil_div(shape.q_length, block.rows);
  const int64_t group = shape.heads / std::max<int64_t>(1, shape.kv_heads);
  const int64_t out_stride = padded_columns(kernel, shape.v_dim);
  const float none = -std::numeric_limits<float>::infinity();

  // An item is a run of blocks of one head: all of them where there are heads enough for the
  // threads.
  const int64_t heads = shape.batch * shape.heads, threads = num_threads();
  const int64_t runs =
      threads == 1 || heads == 0
          ? 1
          : std::clamp<int64_t>(ceil_div(2 * threads, heads), 1, std::max<int64_t>(1, blocks));
  const int64_t run = ceil_div(blocks, runs);
  parallel_for(0, heads * runs, 1, [&](int64_t lo, int64_t hi) {
    Scratch<float> scores(static_cast<size_t>(block.rows * block.scores_stride));
    Scratch<float> sums(static_cast<size_t>(block.rows * out_stride));
    Scratch<float> mask(static_cast<size_t>(block.scores_stride));
    Scratch<float> factors(static_cast<size_t>(block.rows));
    const Packing longest(kernel, pairs, std::max(shape.head_dim, block.scores_stride));
    Scratch<uint32_t> words(a_words(longest, block.rows));
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t batch = item / runs / shape.heads, head = item / runs % shape.heads;
      const int64_t first = item % runs * run * block.rows;
      const int64_t last = std::min(shape.q_length, first + run * block.rows);
      if (first >= last) continue;
      const int64_t used = block.seen(first, last - first);
      const PackedOperand keys =
          packed_b(kernel, pairs, lines(k, batch, head / group, 0, used, shape.head_dim, round));
      const PackedOperand values =
          packed_b(kernel, pairs, lines(v, batch, head / group, 0, used, shape.v_dim, round, true));

      for (int64_t row = first; row < last; row += block.rows) {
        const int64_t rows = std::min(block.rows, last - row), stride = block.scores_stride;
        const int64_t columns = block.seen(row, rows);
        multiply(kernel, pairs, lines(q, batch, head, row, rows, shape.head_dim, round), keys,
                 block.panels(columns), words.get(), scores.get(), stride, false);
        for (int64_t i = 0; i < rows; ++i) {
          float* s = scores.get() + i * stride;
          const int64_t count = shape.causal ? std::min(row + i + 1, columns) : columns;
          const float* added = mask_row(shape.mask, batch, head, row + i, count, mask.get());
          const float top = kernel.scale_scores(s, count, shape.scale, added);
          // A NaN escapes the maximum and shows in the sum.
          const float shift = top == none ? 0 : top;
          const float sum = kernel.exponentiate(s, count, block.padded(columns), shift);
          factors.get()[i] = sum == 0 ? 0 : 1 / sum;
          logsumexp[(batch * shape.heads + head) * shape.q_length + row + i] =
              sum == 0 ? 0 : shift + std::log(sum);
        }
        multiply(kernel, pairs, lines(scores.get(), stride, rows, columns, round, false), values,
                 values.panels, words.get(), sums.get(), out_stride, false);
        for (int64_t i = 0; i < rows; ++i)
          write_row(kernel, sums.get() + i * out_stride, shape.v_dim, factors.get()[i], out, batch,
                    head, row + i);
      }
    }
  });
}

void attention_backward(const Attention& shape, const AttentionInput& grad_out,
                        const AttentionInput& q, const AttentionInput& k, const AttentionInput& v,
                        const AttentionInput& out, const float* logsumexp,
                        const AttentionOutput& grad_q, const AttentionOutput& grad_k,
                        const AttentionOutput& grad_v) {
  const Kernels& kernel = kernels();
  const Block block(kernel, shape);
  const bool pairs = block.pairs, round = shape.round_bf16;
  const int64_t group = shape.heads / std::max<int64_t>(1, shape.kv_heads);
  const int64_t k_stride = padded_columns(kernel, shape.head_dim);
  const int64_t v_stride = padded_columns(kernel, shape.v_dim);
  const int64_t stride = block.scores_stride;

  // An item is a head of keys and values, with all the query heads that read it.
  parallel_for(0, shape.batch * shape.kv_heads, 1, [&](int64_t lo, int64_t hi) {
    Scratch<float> p(static_cast<size_t>(block.rows * stride));
    Scratch<float> ds(static_cast<size_t>(block.rows * stride));
    Scratch<float> mask(static_cast<size_t>(stride));
    Scratch<float> row_grad(static_cast<size_t>(v_stride)), row_out(static_cast<size_t>(v_stride));
    Scratch<float> sums_q(static_cast<size_t>(block.rows * k_stride));
    Scratch<float> sums_k(static_cast<size_t>(stride * k_stride));
    Scratch<float> sums_v(static_cast<size_t>(stride * v_stride));
    const Packing longest(kernel, pairs, std::max({shape.head_dim, shape.v_dim, stride}));
    const Packing across(kernel, pairs, block.rows);
    Scratch<uint32_t> words(
        std::max(a_words(longest, block.rows), a_words(across, shape.kv_length)));
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t batch = item / shape.kv_heads, kv_head = item % shape.kv_heads;
      const int64_t length = shape.kv_length;
      const PackedOperand keys =
          packed_b(kernel, pairs, lines(k, batch, kv_head, 0, length, shape.head_dim, round));
      const PackedOperand keys_across =
          packed_b(kernel, pairs, lines(k, batch, kv_head, 0, length, shape.head_dim, round, true));
      const PackedOperand values =
          packed_b(kernel, pairs, lines(v, batch, kv_head, 0, length, shape.v_dim, round));
      std::fill(sums_k.get(), sums_k.get() + stride * k_stride, 0.0f);
      std::fill(sums_v.get(), sums_v.get() + stride * v_stride, 0.0f);

      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
        for (int64_t row = 0; row < shape.q_length; row += block.rows) {
          const int64_t rows = std::min(block.rows, shape.q_length - row);
          const int64_t columns = block.seen(row, rows), panels = block.panels(columns);
          const Lines q_rows = lines(q, batch, head, row, rows, shape.head_dim, round);
          const Lines g_rows = lines(grad_out, batch, head, row, rows, shape.v_dim, round);
          multiply(kernel, pairs, q_rows, keys, panels, words.get(), p.get(), stride, false);
          multiply(kernel, pairs, g_rows, values, panels, words.get(), ds.get(), stride, false);
          for (int64_t i = 0; i < rows; ++i) {
            float* s = p.get() + i * stride;
            const int64_t count = shape.causal ? std::min(row + i + 1, columns) : columns;
            kernel.scale_scores(s, count, shape.scale,
                                mask_row(shape.mask, batch, head, row + i, count, mask.get()));
            kernel.exponentiate(s, count, block.padded(columns),
                                logsumexp[(batch * shape.heads + head) * shape.q_length + row + i]);
            const auto row_of = [&](const AttentionInput& x, float* buffer) {
              return float32_row(kernel, x, batch, head, row + i, shape.v_dim, buffer);
            };
            const float of_row =
                dot(row_of(grad_out, row_grad.get()), row_of(out, row_out.get()), shape.v_dim);
            kernel.softmax_backward(s, ds.get() + i * stride, block.padded(columns), of_row);
          }
          multiply(kernel, pairs, lines(ds.get(), stride, rows, columns, round, false), keys_across,
                   keys_across.panels, words.get(), sums_q.get(), k_stride, false);
          for (int64_t i = 0; i < rows; ++i)
            write_row(kernel, sums_q.get() + i * k_stride, shape.head_dim, shape.scale, grad_q,
                      batch, head, row + i);

          const PackedOperand q_across = packed_b(
              kernel, pairs, lines(q, batch, head, row, rows, shape.head_dim, round, true));
          const PackedOperand g_across = packed_b(
              kernel, pairs, lines(grad_out, batch, head, row, rows, shape.v_dim, round, true));
          multiply(kernel, pairs, lines(p.get(), stride, rows, columns, round, true), g_across,
                   g_across.panels, words.get(), sums_v.get(), v_stride, true);
          multiply(kernel, pairs, lines(ds.get(), stride, rows, columns, round, true), q_across,
                   q_across.panels, words.get(), sums_k.get(), k_stride, true);
        }
      for (int64_t i = 0; i < length; ++i) {
        write_row(kernel, sums_k.get() + i * k_stride, shape.head_dim, shape.scale, grad_k, batch,
                  kv_head, i);
        write_row(kernel, sums_v.get() + i * v_stride, shape.v_dim, 1, grad_v, batch, kv_head, i);
      }
    }
  });
}

}  // namespace trn::numerics
