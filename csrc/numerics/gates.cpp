// See gates.h. The loops are plain: the compiler vectorises them, and no contraction changes a bit.
#include "gates.h"

#include <algorithm>

#include "parallel.h"

namespace trn::numerics {
namespace {

// As the host shares out its own element-wise loops.
constexpr int64_t worth_a_thread = 32768;

// body(row) for each of the rows.
template <class Body>
void each_row(int64_t rows, int64_t columns, Body body) {
  const int64_t grain = std::max<int64_t>(1, worth_a_thread / std::max<int64_t>(1, columns));
  parallel_for(0, rows, grain, [&](int64_t lo, int64_t hi) {
    for (int64_t row = lo; row < hi; ++row) body(row);
  });
}

// y = x + bias.
template <class T>
void add_bias(int64_t count, const T* x, const T* bias, T* y) {
  if (bias == nullptr) {
    std::copy_n(x, count, y);
    return;
  }
  for (int64_t j = 0; j < count; ++j) y[j] = x[j] + bias[j];
}

// y = (hidden + hidden_bias) + (input + input_bias).
template <class T>
void add_row(int64_t count, const T* hidden, const T* hidden_bias, const T* input,
             const T* input_bias, T* y) {
  if (hidden_bias != nullptr && input_bias != nullptr) {
    for (int64_t j = 0; j < count; ++j)
      y[j] = (hidden[j] + hidden_bias[j]) + (input[j] + input_bias[j]);
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const T h = hidden_bias != nullptr ? hidden[j] + hidden_bias[j] : hidden[j];
    const T i = input_bias != nullptr ? input[j] + input_bias[j] : input[j];
    y[j] = h + i;
  }
}

}  // namespace

template <class T>
void add_gates(int64_t rows, int64_t columns, const T* hidden, const T* hidden_bias, const T* input,
               const T* input_bias, T* gates) {
  each_row(rows, columns, [=](int64_t row) {
    const int64_t at = row * columns;
    add_row(columns, hidden + at, hidden_bias, input + at, input_bias, gates + at);
  });
}

template <class T>
void lstm_state(CellRows shape, const T* gates, const T* cx, T* cy) {
  const int64_t w = shape.width;
  each_row(shape.rows, w, [=](int64_t row) {
    const T *i = gates + row * 4 * w, *f = i + w, *g = f + w, *from = cx + row * w;
    T* to = cy + row * w;
    for (int64_t j = 0; j < w; ++j) to[j] = f[j] * from[j] + i[j] * g[j];
  });
}

template <class T>
void lstm_output(CellRows shape, const T* gates, T* hy) {
  const int64_t w = shape.width;
  each_row(shape.rows, w, [=](int64_t row) {
    const T* o = gates + (row * 4 + 3) * w;
    T* to = hy + row * w;
    for (int64_t j = 0; j < w; ++j) to[j] = o[j] * to[j];
  });
}

// Of a block [gates, rows, units], a gate's row of units and where its units are in rows of
// `width`.
template <class Body>
void each_block_row(CellUnits shape, int64_t gates, Body body) {
  const int64_t count = shape.end - shape.begin;
  for (int64_t gate = 0; gate < gates; ++gate)
    for (int64_t row = 0; row < shape.rows; ++row)
      body((gate * shape.rows + row) * count, (row * gates + gate) * shape.width + shape.begin);
}

void add_to_block(CellUnits shape, const float* hidden_bias, const float* input,
                  const float* input_bias, float* gates) {
  const int64_t count = shape.end - shape.begin;
  each_block_row(shape, 4, [&](int64_t at, int64_t from) {
    float* y = gates + at;
    const float* x = input + from;
    if (hidden_bias == nullptr) {
      for (int64_t j = 0; j < count; ++j) y[j] = y[j] + x[j];
      return;
    }
    const int64_t column = from % (4 * shape.width);
    const float *b = hidden_bias + column, *d = input_bias + column;
    for (int64_t j = 0; j < count; ++j) y[j] = (y[j] + b[j]) + (x[j] + d[j]);
  });
}

void lstm_block_state(CellUnits shape, const float* gates, float* cells) {
  const int64_t all = shape.rows * (shape.end - shape.begin);
  const float *i = gates, *f = i + all, *g = f + all;
  for (int64_t j = 0; j < all; ++j) cells[j] = f[j] * cells[j] + i[j] * g[j];
}

void lstm_block_output(CellUnits shape, const float* gates, const float* tanh_cy, float* hy) {
  const int64_t count = shape.end - shape.begin;
  const float* o = gates + 3 * shape.rows * count;
  each_block_row(shape, 1, [&](int64_t at, int64_t to) {
    for (int64_t j = 0; j < count; ++j) hy[to + j] = o[at + j] * tanh_cy[at + j];
  });
}

void gru_block_sums(CellUnits shape, const GruBlockSums& cell, float* parts) {
  const int64_t count = shape.end - shape.begin, all = shape.rows * count;
  each_block_row(shape, 3, [&](int64_t at, int64_t from) {
    const bool is_n = at >= 2 * all;
    const float *sum = cell.sums + at, *x = cell.input + from;
    const int64_t column = from % (3 * shape.width);
    float* hidden = parts + at + (is_n ? 2 * all : 0);
    add_bias(count, sum, cell.hidden_bias != nullptr ? cell.hidden_bias + column : nullptr, hidden);
    if (is_n)
      std::copy_n(x, count, parts + at);
    else
      for (int64_t j = 0; j < count; ++j) hidden[j] = hidden[j] + x[j];
  });
  block_of_rows(shape, cell.hx, parts + 3 * all);
}

void gru_block_reset(CellUnits shape, float* parts) {
  const int64_t all = shape.rows * (shape.end - shape.begin);
  const float *r = parts, *hidden_n = parts + 4 * all;
  float* n = parts + 2 * all;
  for (int64_t j = 0; j < all; ++j) n[j] = n[j] + hidden_n[j] * r[j];
}

void gru_block_output(CellUnits shape, const float* parts, float* hy) {
  const int64_t count = shape.end - shape.begin, all = shape.rows * count;
  const float *z = parts + all, *n = z + all, *h = n + all;
  each_block_row(shape, 1, [&](int64_t at, int64_t to) {
    for (int64_t j = at; j < at + count; ++j) hy[to + j - at] = (h[j] - n[j]) * z[j] + n[j];
  });
}

void rows_of_block(CellUnits shape, int64_t gates, const float* block, float* rows) {
  each_block_row(shape, gates, [&](int64_t at, int64_t to) {
    std::copy_n(block + at, shape.end - shape.begin, rows + to);
  });
}

void block_of_rows(CellUnits shape, const float* rows, float* block) {
  each_block_row(shape, 1, [&](int64_t at, int64_t from) {
    std::copy_n(rows + from, shape.end - shape.begin, block + at);
  });
}

void add_block_to_rows(CellUnits shape, const float* x, const float* block, float* y) {
  const int64_t count = shape.end - shape.begin;
  each_block_row(shape, 1, [&](int64_t at, int64_t to) {
    for (int64_t j = 0; j < count; ++j) y[to + j] = x[to + j] + block[at + j];
  });
}

template <class T>
void lstm_to_output(CellUnits shape, const T* gates, const T* tanh_cy, const T* grad_hy, T* of_o,
                    T* of_tanh) {
  const int64_t w = shape.width;
  each_row(shape.rows, w, [=](int64_t row) {
    const T *o = gates + (row * 4 + 3) * w, *t = tanh_cy + row * w, *dh = grad_hy + row * w;
    T* __restrict to_o = of_o + row * w, * __restrict to_tanh = of_tanh + row * w;
    for (int64_t j = shape.begin; j < shape.end; ++j) {
      to_o[j] = dh[j] * t[j];
      to_tanh[j] = dh[j] * o[j];
    }
  });
}

template <class T>
void lstm_to_gates(CellUnits shape, const LstmGradients<T>& cell) {
  const int64_t w = shape.width, plane = shape.rows * w;
  each_row(shape.rows, 4 * w, [=](int64_t row) {
    const T *i = cell.gates + row * 4 * w, *f = i + w, *g = f + w, *c = cell.cx + row * w;
    const T* given = cell.grad_cy != nullptr ? cell.grad_cy + row * w : nullptr;
    const T* through_h = cell.through_h != nullptr ? cell.through_h + row * w : nullptr;
    T* __restrict di = cell.products + row * w;
    T* __restrict df = di + plane, * __restrict dg = df + plane;
    T* __restrict dc_f = cell.grad_cx + row * w;
#pragma GCC ivdep  // rows of tensors apart
    for (int64_t j = shape.begin; j < shape.end; ++j) {
      const T dc = given == nullptr       ? through_h[j]
                   : through_h == nullptr ? given[j]
                                          : given[j] + through_h[j];
      di[j] = dc * g[j];
      df[j] = dc * c[j];
      dg[j] = dc * i[j];
      dc_f[j] = dc * f[j];
    }
  });
}

template <class T>
void gru_sums(CellRows shape, const GruSums<T>& cell) {
  const int64_t w = shape.width;
  each_row(shape.rows, 3 * w, [=](int64_t row) {
    const T *hidden = cell.hidden + row * 3 * w, *input = cell.input + row * 3 * w;
    for (int64_t gate = 0; gate < 2; ++gate) {
      const int64_t at = gate * w;
      add_row(w, hidden + at, cell.hidden_bias != nullptr ? cell.hidden_bias + at : nullptr,
              input + at, cell.input_bias != nullptr ? cell.input_bias + at : nullptr,
              cell.sums + (gate * shape.rows + row) * w);
    }
    add_bias(w, input + 2 * w, cell.input_bias != nullptr ? cell.input_bias + 2 * w : nullptr,
             cell.sums + (2 * shape.rows + row) * w);
    add_bias(w, hidden + 2 * w, cell.hidden_bias != nullptr ? cell.hidden_bias + 2 * w : nullptr,
             cell.hidden_n + row * w);
  });
}

template <class T>
void gru_reset(CellRows shape, const T* r, const T* hidden_n, T* n) {
  each_row(shape.rows, shape.width, [=](int64_t row) {
    const int64_t at = row * shape.width;
    for (int64_t j = at; j < at + shape.width; ++j) n[j] = n[j] + hidden_n[j] * r[j];
  });
}

template <class T>
void gru_output(CellRows shape, const T* activated, const T* hx, const T* hidden_n, T* hy,
                T* workspace) {
  const int64_t w = shape.width, plane = shape.rows * w;
  each_row(shape.rows, 5 * w, [=](int64_t row) {
    const int64_t at = row * w;
    const T *r = activated + at, *z = r + plane, *n = z + plane, *h = hx + at;
    for (int64_t j = 0; j < w; ++j) hy[at + j] = (h[j] - n[j]) * z[j] + n[j];
    T* to = workspace + row * 5 * w;
    for (const T* part : {r, z, n, h, hidden_n + at}) to = std::copy_n(part, w, to);
  });
}

template <class T>
void gru_to_gates(CellRows shape, const T* grad_hy, const T* workspace, T* products, T* grad_hx) {
  const int64_t w = shape.width, plane = shape.rows * w;
  each_row(shape.rows, 5 * w, [=](int64_t row) {
    const T *z = workspace + (row * 5 + 1) * w, *n = z + w, *h = n + w, *g = grad_hy + row * w;
    T* __restrict dn = products + row * w, * __restrict dz = dn + plane;
    T* __restrict through_z = grad_hx + row * w;
#pragma GCC ivdep  // rows of tensors apart
    for (int64_t j = 0; j < w; ++j) {
      through_z[j] = g[j] * z[j];
      dn[j] = g[j] - through_z[j];
      dz[j] = g[j] * (h[j] - n[j]);
    }
  });
}

template <class T>
void gru_to_reset(CellRows shape, const T* grad_input, const T* workspace, T* of_r) {
  const int64_t w = shape.width;
  each_row(shape.rows, w, [=](int64_t row) {
    const T *dn = grad_input + (row * 3 + 2) * w, *hidden_n = workspace + (row * 5 + 4) * w;
    T* __restrict to = of_r + row * w;
    for (int64_t j = 0; j < w; ++j) to[j] = dn[j] * hidden_n[j];
  });
}

template <class T>
void gru_to_hidden(CellRows shape, const T* grad_input, const T* workspace, T* grad_hidden) {
  const int64_t w = shape.width;
  each_row(shape.rows, 3 * w, [=](int64_t row) {
    const T *from = grad_input + row * 3 * w, *r = workspace + row * 5 * w;
    T* __restrict to = std::copy_n(from, 2 * w, grad_hidden + row * 3 * w);
    for (int64_t j = 0; j < w; ++j) to[j] = from[2 * w + j] * r[j];
  });
}

#define INSTANTIATE(T)                                                                   \
  template void add_gates(int64_t, int64_t, const T*, const T*, const T*, const T*, T*); \
  template void lstm_state(CellRows, const T*, const T*, T*);                            \
  template void lstm_output(CellRows, const T*, T*);                                     \
  template void lstm_to_output(CellUnits, const T*, const T*, const T*, T*, T*);         \
  template void lstm_to_gates(CellUnits, const LstmGradients<T>&);                       \
  template void gru_sums(CellRows, const GruSums<T>&);                                   \
  template void gru_reset(CellRows, const T*, const T*, T*);                             \
  template void gru_output(CellRows, const T*, const T*, const T*, T*, T*);              \
  template void gru_to_gates(CellRows, const T*, const T*, T*, T*);                      \
  template void gru_to_reset(CellRows, const T*, const T*, T*);                          \
  template void gru_to_hidden(CellRows, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace trn::numerics
