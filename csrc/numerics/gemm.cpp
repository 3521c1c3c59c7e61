// Matrix products: packs and rounds operands into panels, then runs the microkernels over tiles.
// Sources: see gemm.h.
#include "gemm.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "product.h"
#include "scratch.h"

namespace trn::numerics {
namespace {

// Packed bfloat16 pairs to packed float32, where subnormals forbid the bfloat16 product. Panels of
// a may have other heights in either.
void widen_a(const Packing& pairs, const Packing& words, int64_t lines, const uint32_t* from,
             int64_t from_panel_words, uint32_t* to) {
  for (int64_t line = 0; line < lines; ++line) {
    const uint32_t* in = from + line / pairs.tile_rows * from_panel_words;
    uint32_t* out = to + line / words.tile_rows * words.a_panel_words();
    for (int64_t k = 0; k < words.steps; ++k) {
      const uint32_t pair = in[pairs.a_word(line % pairs.tile_rows, k / 2)];
      out[words.a_word(line % words.tile_rows, k)] = k % 2 == 0 ? pair << 16 : pair & 0xffff0000;
    }
  }
}

void widen_b(const Packing& words, int64_t panels, const uint32_t* from, int64_t from_panel_words,
             uint32_t* to) {
  const int64_t columns = words.kernel->panel_columns;
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t k = 0; k < words.steps; ++k)
      for (int64_t j = 0; j < columns; ++j) {
        const uint32_t pair = from[panel * from_panel_words + k / 2 * columns + j];
        to[panel * words.b_panel_words() + k * columns + j] =
            k % 2 == 0 ? pair << 16 : pair & 0xffff0000;
      }
}

// Panels of one operand, from `first` on.
struct Panels {
  const uint32_t* words;
  int64_t first, panel_words;

  const uint32_t* at(int64_t panel) const { return words + (panel - first) * panel_words; }
  Panels from(int64_t offset) const { return {words + offset, first, panel_words}; }
};

// Rows of panels [a_first, a_last) of a by columns of panels [b_first, b_last) of b.
struct Region {
  int64_t a_first, a_last, b_first, b_last;

  int64_t first_row(const Packing& p) const { return a_first * p.tile_rows; }
  int64_t rows(const Packing& p, int64_t m) const {
    return std::min(a_last * p.tile_rows, m) - first_row(p);
  }
};

// c (+)= a * b over the k's of the packing.
void multiply_region(const Packing& p, bool subnormal, const Region& r, int64_t rows,
                     const Panels& a, const Panels& b, float* c, int64_t ldc, bool accumulate) {
  const int64_t b_panels = r.b_last - r.b_first;
  if (!subnormal || !p.pairs)
    return multiply_panels(p, rows, a.at(r.a_first), a.panel_words, b_panels, b.at(r.b_first),
                           b.panel_words, c, ldc, accumulate);
  const Packing words(*p.kernel, false, p.k, p.a_by_steps);
  Scratch<uint32_t> wide_a(
      static_cast<size_t>(ceil_div(rows, words.tile_rows) * words.a_panel_words()));
  Scratch<uint32_t> wide_b(static_cast<size_t>(b_panels * words.b_panel_words()));
  widen_a(p, words, rows, a.at(r.a_first), a.panel_words, wide_a.get());
  widen_b(words, b_panels, b.at(r.b_first), b.panel_words, wide_b.get());
  multiply_panels(words, rows, wide_a.get(), words.a_panel_words(), b_panels, wide_b.get(),
                  words.b_panel_words(), c, ldc, accumulate);
}

// Where the sums of a region are kept until all of k is added: whole panels of columns in c itself
// where that is all there is to do, the others in a buffer.
class Sums {
 public:
  Sums(const Product& q, const Packing& p, const Region& region)
      : q_(q), p_(p), region_(region), direct_(region.b_first) {
    if (q.plain_result)
      direct_ = std::clamp(q.n / p.kernel->panel_columns, region.b_first, region.b_last);
    stride_ = (region.b_last - direct_) * p.kernel->panel_columns;
    const size_t words = static_cast<size_t>(region.rows(p, q.m) * stride_);
    buffer_ = Scratch<float>(words);
    if (q.k == 0) std::fill_n(buffer_.get(), words, 0.0f);
  }

  // What one chunk of k adds to a tile of the region.
  void add(const Packing& chunk, bool subnormal, const Region& tile, const Panels& a,
           const Panels& b, bool accumulate) const {
    const int64_t columns = p_.kernel->panel_columns, i0 = tile.first_row(p_);
    const int64_t rows = tile.rows(p_, q_.m);
    const int64_t cut = std::clamp(direct_, tile.b_first, tile.b_last);
    if (tile.b_first < cut)
      multiply_region(
          chunk, subnormal, {tile.a_first, tile.a_last, tile.b_first, cut}, rows, a, b,
          static_cast<float*>(q_.c.data) + i0 * q_.c.row_stride + tile.b_first * columns,
          q_.c.row_stride, accumulate);
    if (cut < tile.b_last)
      multiply_region(
          chunk, subnormal, {tile.a_first, tile.a_last, cut, tile.b_last}, rows, a, b,
          buffer_.get() + (i0 - region_.first_row(p_)) * stride_ + (cut - direct_) * columns,
          stride_, accumulate);
  }

  // Rounds what lies in the buffer to c.
  void finish() const {
    const int64_t columns = p_.kernel->panel_columns, j0 = direct_ * columns;
    const int64_t count = std::min(region_.b_last * columns, q_.n) - j0;
    if (count > 0)
      trn::numerics::finish(*p_.kernel, q_, region_.first_row(p_), region_.rows(p_, q_.m), j0,
                            count, buffer_.get(), stride_);
  }

 private:
  const Product& q_;
  const Packing& p_;
  Region region_;
  int64_t direct_, stride_;
  Scratch<float> buffer_;
};

// k's that are packed and multiplied at a time: what is packed of the streamed operand, a tile of
// the other and their sums take three quarters of a core's second-level cache. Chunks are alike.
int64_t chunk_of(int64_t k) {
  static const int64_t most = [] {
    const int64_t words = (most_tile_rows + most_tile_columns) * int64_t{sizeof(uint32_t)};
    return std::clamp<int64_t>(second_level_cache_bytes() * 3 / 4 / words / 256, 1, 4) * 256;
  }();
  constexpr int64_t whole_blocks = 64;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(k, most));
  return std::max<int64_t>(1, ceil_div(ceil_div(k, chunks), whole_blocks)) * whole_blocks;
}

// One operand whole, packed by all threads.
struct Kept {
  Panels panels;
  Scratch<uint32_t> words;
  bool subnormal;
};

template <class Loop>
Kept packed_whole(const Packing& p, const Lines& x, bool is_a, int64_t panels, int64_t threads,
                  const Loop& loop) {
  const int64_t panel_words = is_a ? p.a_panel_words() : p.b_panel_words();
  Scratch<uint32_t> words(static_cast<size_t>(panels * panel_words));
  std::atomic<bool> subnormal = false;
  const int64_t share = ceil_div(panels, threads);
  loop(ceil_div(panels, share), [&](int64_t lo, int64_t hi) {
    const int64_t first = lo * share, last = std::min(hi * share, panels);
    uint32_t* to = words.get() + first * panel_words;
    if (is_a ? pack_a(p, x, first, last, to) : pack_b(p, x, first, last, to)) subnormal = true;
  });
  const Panels at{words.get(), 0, panel_words};
  return {at, std::move(words), subnormal};
}

// The smaller operand is packed once for all; the larger in pieces, each by the thread that then
// multiplies it with the whole of the other while it is in cache.
struct Streaming {
  const Product& q;
  const Packing p;
  bool streams_b;
  int64_t kept_panels, streamed_panels, chunk;

  Streaming(const Product& problem, const Packing& packing)
      : q(problem), p(packing), streams_b(problem.m <= problem.n), chunk(chunk_of(problem.k)) {
    const int64_t a_panels = ceil_div(q.m, p.tile_rows);
    const int64_t b_panels = ceil_div(q.n, p.kernel->panel_columns);
    kept_panels = streams_b ? a_panels : b_panels;
    streamed_panels = streams_b ? b_panels : a_panels;
  }

  int64_t most(bool of_a) const {
    return of_a ? most_tile_rows / p.tile_rows : most_tile_columns / p.kernel->panel_columns;
  }
  Packing part(int64_t k) const { return {*p.kernel, p.pairs, k, p.a_by_steps}; }
  int64_t streamed_words(const Packing& packing) const {
    return streams_b ? packing.b_panel_words() : packing.a_panel_words();
  }
  Region region(int64_t kept_first, int64_t kept_last, int64_t first, int64_t last) const {
    return streams_b ? Region{kept_first, kept_last, first, last}
                     : Region{first, last, kept_first, kept_last};
  }

  // Panels [first, last) of the streamed operand, packed into `words` chunk by chunk.
  void item(const Kept& kept, int64_t first, int64_t last, uint32_t* words) const {
    // With a single chunk the sums of a tile are done at once, and a buffer for it is enough.
    const int64_t at_once = q.k <= chunk ? most(streams_b) : kept_panels;
    bool subnormal = false;
    for (int64_t at = 0; at < kept_panels; at += at_once) {
      const int64_t end = std::min(at + at_once, kept_panels);
      const Sums sums(q, p, region(at, end, first, last));
      for (int64_t k0 = 0; k0 < q.k; k0 += chunk) {
        const Packing here = part(std::min(chunk, q.k - k0));
        if (at == 0)
          subnormal = streams_b ? pack_b(here, q.b.part(k0, here.k), first, last, words)
                                : pack_a(here, q.a.part(k0, here.k), first, last, words);
        const Panels streamed{words, first, streamed_words(here)};
        const Panels whole = kept.panels.from(p.words(k0) * p.step_words(streams_b));
        for (int64_t tile = at; tile < end; tile += most(streams_b))
          sums.add(here, subnormal || kept.subnormal,
                   region(tile, std::min(tile + most(streams_b), end), first, last),
                   streams_b ? whole : streamed, streams_b ? streamed : whole, k0 > 0);
      }
      sums.finish();
    }
  }
};

// Whether each thread packs the kept operand for itself. It then lies in the thread's own caches,
// and no thread waits for another or takes lines from its caches, which can cost a third of the
// product where cores are far apart. Rounding an element takes about as long as 16 multiply-adds,
// so the threads' extra work is at most an eighth of the product.
bool packs_apart(const Streaming& s, int64_t streamed_lines, int64_t threads) {
  const int64_t words = s.kept_panels * (s.streams_b ? s.p.a_panel_words() : s.p.b_panel_words());
  return threads > 1 && (threads - 1) * 128 <= streamed_lines &&
         words * int64_t{sizeof(uint32_t)} <= 2 * second_level_cache_bytes();
}

void multiply(const Product& q, int64_t threads) {
  const Kernels& kernel = kernels();
  if (q.m <= most_dots && q.b.k_stride == 1) return multiply_lines(q, threads);
  if (q.m <= kernel.tile_rows) return multiply_thin(q, threads);
  const bool pairs = kernel.gemm_bf16 != nullptr && fits_bf16(q.a) && fits_bf16(q.b);
  const Streaming s(q, Packing(kernel, pairs, q.k, packs_a_across(q.a)));
  const auto here = [](int64_t count, auto&& body) { body(int64_t{0}, count); };
  const auto loop = [threads, here](int64_t count, auto&& body) {
    if (threads == 1) return here(count, body);
    parallel_for(0, count, 1, body);
  };
  const auto packed = [&](int64_t packers, const auto& by) {
    return packed_whole(s.p, s.streams_b ? q.a : q.b, s.streams_b, s.kept_panels, packers, by);
  };
  const Items items(s.streamed_panels, s.most(!s.streams_b), threads);
  const auto work = [&](const Kept& kept, int64_t lo, int64_t hi) {
    const Packing longest = s.part(std::min(s.chunk, q.k));
    Scratch<uint32_t> words(static_cast<size_t>(items.largest() * s.streamed_words(longest)));
    for (int64_t item = lo; item < hi; ++item)
      s.item(kept, items.first(item), items.first(item + 1), words.get());
  };
  if (packs_apart(s, std::max(q.m, q.n), threads))
    return loop(items.count, [&](int64_t lo, int64_t hi) { work(packed(1, here), lo, hi); });
  const Kept kept = packed(threads, loop);
  loop(items.count, [&](int64_t lo, int64_t hi) { work(kept, lo, hi); });
}

// Packing rounds along lines or across them, and gives neighbours in that direction neighbouring
// random bits. Where the operand's indices run the other way, or a wrapped block is scattered over
// 512 k's, the whole operand is rounded first, so that packing has nothing left to do.
bool rounds_first(const Lines& x, bool across) {
  if (!x.is_mx()) return false;
  if (x.rounding.mx.grouping == Grouping::wrapped) return true;
  const int64_t index_stride = across ? x.index_line_stride : x.index_k_stride;
  return x.rounding.mx.rounding.mode == RoundingMode::stochastic && index_stride != 1;
}

Scratch<char> round_whole(Lines& x, int64_t rows, int64_t cols, int64_t row_stride,
                          int64_t col_stride, int axis) {
  const MatrixView view{x.data, x.dtype, rows, cols, row_stride, col_stride};
  Scratch<char> values(static_cast<size_t>(rows * cols) * sizeof(float));
  quantize_dequantize(view, axis, x.rounding.mx, DType::float32, values.get(), cols);
  x.data = values.get();
  x.dtype = DType::float32;
  x.line_stride = axis == 1 ? cols : 1;
  x.k_stride = axis == 1 ? 1 : cols;
  x.rounding.kind = OperandRounding::Kind::none;
  return values;
}

Product transposed(Product q) {
  std::swap(q.m, q.n);
  std::swap(q.a, q.b);
  std::swap(q.c.row_stride, q.c.col_stride);
  std::swap(q.addend.row_stride, q.addend.col_stride);
  q.plain_result = false;
  return q;
}

void multiply_one(Product q, int64_t threads) {
  Scratch<char> a, b;
  // Before a thin problem is transposed: an operand keeps the indices it was given.
  if (rounds_first(q.a, packs_a_across(q.a)) || rounds_first(q.a, packs_b_across(q.a)))
    a = round_whole(q.a, q.m, q.k, q.a.line_stride, q.a.k_stride, 1);
  if (rounds_first(q.b, packs_b_across(q.b)) || rounds_first(q.b, packs_a_across(q.b)))
    b = round_whole(q.b, q.k, q.n, q.b.k_stride, q.b.line_stride, 0);
  // A few columns would leave most of a panel empty; a few rows do not.
  const bool thin = q.n < q.m && q.n <= 8 && q.c.rounding.mode == RoundingMode::nearest_even;
  multiply(thin ? transposed(q) : q, threads);
}

}  // namespace

void gemm(int64_t batch, int64_t m, int64_t n, int64_t k, const Operand& a, const Operand& b,
          const Result& c, float alpha, float beta, const Addend& addend) {
  if (batch == 0 || m == 0 || n == 0) return;
  const auto matrix = [&](int64_t i) {
    Product q{};
    q.m = m;
    q.n = n;
    q.k = k;
    const auto offset = [i](DType dtype, int64_t batch_stride) {
      return i * batch_stride * static_cast<int64_t>(size_of(dtype));
    };
    q.a = {static_cast<const char*>(a.data) + offset(a.dtype, a.batch_stride),
           a.dtype,
           m,
           k,
           a.row_stride,
           a.col_stride,
           k,
           1,
           a.rounding};
    q.b = {static_cast<const char*>(b.data) + offset(b.dtype, b.batch_stride),
           b.dtype,
           n,
           k,
           b.col_stride,
           b.row_stride,
           1,
           n,
           b.rounding};
    q.c = c;
    q.c.data = static_cast<char*>(c.data) + offset(c.dtype, c.batch_stride);
    q.alpha = alpha;
    q.beta = beta;
    q.addend = addend;
    if (addend.data != nullptr)
      q.addend.data =
          static_cast<const char*>(addend.data) + offset(addend.dtype, addend.batch_stride);
    q.first_index = static_cast<uint64_t>(i * m * n);
    q.plain_result = c.dtype == DType::float32 && c.col_stride == 1 && alpha == 1.0f && k > 0 &&
                     (addend.data == nullptr || beta == 0);
    return q;
  };

  const int64_t threads = num_threads();
  const double work = static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  constexpr double worth_a_thread = 64.0 * 64 * 64;
  if (batch >= threads && threads > 1) {
    const double each = std::max(1.0, worth_a_thread / std::max(1.0, work));
    const int64_t grain = static_cast<int64_t>(std::min(each, static_cast<double>(batch)));
    parallel_for(0, batch, grain, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) multiply_one(matrix(i), 1);
    });
    return;
  }
  IeeeScope scope;
  for (int64_t i = 0; i < batch; ++i) multiply_one(matrix(i), work <= worth_a_thread ? 1 : threads);
}
}  // namespace trn::numerics
