// The arithmetic of recurrent cells between their activations, in one pass over the rows: the
// activations and their derivatives themselves are the host's. Rows lie side by side, gates of
// `width` in each. In the order of the unfused cells, a rounding for every operation; T is float or
// double.
#pragma once

#include <cstdint>

namespace trn::numerics {

struct CellRows {
  int64_t rows, width;  // width: of the hidden state
};

// Of which only the units [begin, end) of each gate and state are computed.
struct CellUnits {
  int64_t rows, width, begin, end;
};

// gates [rows, columns] = (hidden + hidden_bias) + (input + input_bias). The biases [columns] may
// be null, and are then not added.
template <class T>
void add_gates(int64_t rows, int64_t columns, const T* hidden, const T* hidden_bias, const T* input,
               const T* input_bias, T* gates);

// gates [rows, 4 width] of i, f, g, o; cy = f * cx + i * g.
template <class T>
void lstm_state(CellRows shape, const T* gates, const T* cx, T* cy);

// hy holds tanh(cy), and becomes o * tanh(cy).
template <class T>
void lstm_output(CellRows shape, const T* gates, T* hy);

// ---- some units of an LSTM's cell, whose gates are a block [4, rows, units] ----

// gates holds the hidden parts, and becomes (hidden + hidden_bias) + (input + input_bias), of rows
// [rows, 4 width]. Both biases may be null.
void add_to_block(CellUnits shape, const float* hidden_bias, const float* input,
                  const float* input_bias, float* gates);

// cells [rows, units] = f * cells + i * g.
void lstm_block_state(CellUnits shape, const float* gates, float* cells);

// The units of hy [rows, width] = o * tanh_cy, a block [rows, units].
void lstm_block_output(CellUnits shape, const float* gates, const float* tanh_cy, float* hy);

// ---- some units of a GRU's cell: parts [5, rows, units] of r, z, n, hx and hidden_n ----

// sums is a block [3, rows, units], input [rows, 3 width], hx [rows, width]. The bias may be null.
struct GruBlockSums {
  const float *sums, *hidden_bias, *input, *hx;
};
// The arguments of r and z, (sums + hidden_bias) + input; the input's part of n; hx; hidden_n.
void gru_block_sums(CellUnits shape, const GruBlockSums& cell, float* parts);

// n += hidden_n * r.
void gru_block_reset(CellUnits shape, float* parts);

// The units of hy [rows, width] = (hx - n) * z + n.
void gru_block_output(CellUnits shape, const float* parts, float* hy);

// ---- blocks of any cell ----

// The units of rows [rows, gates * width], to and from a block.
void rows_of_block(CellUnits shape, int64_t gates, const float* block, float* rows);
void block_of_rows(CellUnits shape, const float* rows, float* block);

// The units of y [rows, width] = x + a block [rows, units].
void add_block_to_rows(CellUnits shape, const float* x, const float* block, float* y);

// ---- some units of rows again ----

// What flows back to the output gate and to tanh(cy) before their derivatives: of_o = dh * tanh_cy,
// of_tanh = dh * o. All but gates [rows, width].
template <class T>
void lstm_to_output(CellUnits shape, const T* gates, const T* tanh_cy, const T* grad_hy, T* of_o,
                    T* of_tanh);

// dc = grad_cy + through_h, either of which may be null. products [3][rows, width] = dc * g,
// dc * cx, dc * i: what flows back to i, f and g before their derivatives. grad_cx = dc * f.
template <class T>
struct LstmGradients {
  const T *gates, *cx, *grad_cy, *through_h;
  T *products, *grad_cx;
};
template <class T>
void lstm_to_gates(CellUnits shape, const LstmGradients<T>& cell);

// ---- whole rows again ----

// sums [3][rows, width] become the arguments of r and z, and the input's part of n; `hidden_n` its
// hidden part. input and hidden [rows, 3 width].
template <class T>
struct GruSums {
  const T *hidden, *hidden_bias, *input, *input_bias;
  T *sums, *hidden_n;
};
template <class T>
void gru_sums(CellRows shape, const GruSums<T>& cell);

// n [rows, width] += hidden_n * r.
template <class T>
void gru_reset(CellRows shape, const T* r, const T* hidden_n, T* n);

// hy = (hx - n) * z + n; activated [3][rows, width] of r, z, n. workspace [rows, 5 width]: r, z, n,
// hx, hidden_n.
template <class T>
void gru_output(CellRows shape, const T* activated, const T* hx, const T* hidden_n, T* hy,
                T* workspace);

// products [2][rows, width] = g - g * z, g * (hx - n): what flows back to n and z before their
// derivatives. grad_hx = g * z.
template <class T>
void gru_to_gates(CellRows shape, const T* grad_hy, const T* workspace, T* products, T* grad_hx);

// of_r [rows, width] = dn * hidden_n; grad_input [rows, 3 width] of dr, dz, dn holds dn.
template <class T>
void gru_to_reset(CellRows shape, const T* grad_input, const T* workspace, T* of_r);

// grad_hidden [rows, 3 width] = dr, dz, dn * r.
template <class T>
void gru_to_hidden(CellRows shape, const T* grad_input, const T* workspace, T* grad_hidden);

}  // namespace trn::numerics
