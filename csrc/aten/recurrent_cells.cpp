// See recurrent_cells.h.
#include "recurrent_cells.h"

#include "numerics/gates.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sigmoid_backward_cpu_dispatch.h>
#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/tanh_backward_cpu_dispatch.h>
#include <ATen/ops/tanh_cpu_dispatch.h>

#include <algorithm>
#include <numeric>

namespace trn {
namespace {

// Rows [first, first + count) of a tensor, where there is one.
struct Rows {
  int64_t first, count;

  at::Tensor of(const at::Tensor& x) const { return x.defined() ? x.narrow(0, first, count) : x; }
};

numerics::CellRows rows_of(const at::Tensor& state) { return {state.size(0), state.size(1)}; }

template <class T>
const T* values(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

// Calls f with a float or a double, as the wide operands are.
template <class F>
auto with_type(const at::Tensor& wide, F f) {
  return wide.scalar_type() == at::kDouble ? f(double()) : f(float());
}

CellGates of(const CellGates& x, Rows rows) {
  CellGates part = x;
  for (const auto each : {&CellGates::input, &CellGates::hidden, &CellGates::state})
    part.*each = rows.of(x.*each);
  return part;
}

// Calls body(rows) on ranges that cover the rows of a state, side by side where they are worth it.
// A range ends where the host's loops end a step, so that each element is computed as in one loop.
template <class Body>
void by_rows(const at::Tensor& state, const Body& body) {
  constexpr int64_t worth_a_thread = 2048, elements = 64;  // of the state (chosen)
  const int64_t rows = state.size(0), width = state.size(1);
  const int64_t whole = elements / std::gcd(elements, width);
  const int64_t least = std::max((worth_a_thread + width - 1) / width,
                                 (rows + at::get_num_threads() - 1) / at::get_num_threads());
  const int64_t step = (least + whole - 1) / whole * whole;
  if (step >= rows || at::in_parallel_region()) return body(Rows{0, rows});
  at::parallel_for(0, (rows + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const int64_t first = begin * step;
    body(Rows{first, std::min(end * step, rows) - first});
  });
}

// A gate of rows that hold several.
at::Tensor part(const at::Tensor& x, int64_t gate, int64_t width) {
  return x.narrow(1, gate * width, width);
}

template <class T>
void lstm_rows(const CellGates& x, const at::Tensor& gates, const at::Tensor& cy, at::Tensor hy) {
  const auto rows = rows_of(x.state);
  T* all = gates.mutable_data_ptr<T>();
  numerics::add_gates(rows.rows, 4 * rows.width, values<T>(x.hidden), values<T>(x.hidden_bias),
                      values<T>(x.input), values<T>(x.input_bias), all);
  for (int64_t gate = 0; gate < 4; ++gate) {
    at::Tensor one = part(gates, gate, rows.width);
    gate == 2 ? at::cpu::tanh_out(one, one) : at::cpu::sigmoid_out(one, one);
  }
  numerics::lstm_state(rows, all, values<T>(x.state), cy.mutable_data_ptr<T>());
  at::cpu::tanh_out(hy, cy);
  numerics::lstm_output(rows, all, hy.mutable_data_ptr<T>());
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_of(const CellGates& x) {
  at::Tensor gates = at::empty_like(x.hidden), cy = at::empty_like(x.state),
             hy = at::empty_like(x.state);
  by_rows(x.state, [&](Rows r) { lstm_rows<T>(of(x, r), r.of(gates), r.of(cy), r.of(hy)); });
  return {std::move(hy), std::move(cy), std::move(gates)};
}

LstmBackward of(const LstmBackward& x, Rows r) {
  return {r.of(x.grad_hy), r.of(x.grad_cy), r.of(x.cx),   r.of(x.workspace), r.of(x.grad_gates),
          r.of(x.grad_cx), r.of(x.tanh_cy), r.of(x.of_o), r.of(x.through_h), r.of(x.products)};
}

template <class T>
void lstm_backward_units(const LstmBackward& x, int64_t begin, int64_t end) {
  const int64_t height = x.cx.size(0), width = x.cx.size(1);
  const numerics::CellUnits shape{height, width, begin, end};
  const auto units = [&](const at::Tensor& of, int64_t gate) {
    return of.narrow(1, gate * width + begin, end - begin);
  };
  const T* gates = values<T>(x.workspace);
  at::Tensor d_o = units(x.grad_gates, 3);
  if (x.grad_hy.defined()) {
    numerics::lstm_to_output(shape, gates, values<T>(x.tanh_cy), values<T>(x.grad_hy),
                             x.of_o.mutable_data_ptr<T>(), x.through_h.mutable_data_ptr<T>());
    at::Tensor through = units(x.through_h, 0);
    at::cpu::tanh_backward_out(through, through, units(x.tanh_cy, 0));
    at::cpu::sigmoid_backward_out(d_o, units(x.of_o, 0), units(x.workspace, 3));
  } else {
    d_o.zero_();
  }
  const at::Tensor products = x.products.view({3, height, width});
  const T* through_h = x.grad_hy.defined() ? values<T>(x.through_h) : nullptr;
  numerics::lstm_to_gates<T>(shape,
                             {gates, values<T>(x.cx), values<T>(x.grad_cy), through_h,
                              products.mutable_data_ptr<T>(), x.grad_cx.mutable_data_ptr<T>()});
  for (int64_t gate = 0; gate < 3; ++gate) {
    at::Tensor to = units(x.grad_gates, gate);
    const at::Tensor from = units(products.select(0, gate), 0), y = units(x.workspace, gate);
    gate == 2 ? at::cpu::tanh_backward_out(to, from, y)
              : at::cpu::sigmoid_backward_out(to, from, y);
  }
}

template <class T>
std::tuple<at::Tensor, at::Tensor> lstm_gradients_of(const at::Tensor& grad_hy,
                                                     const at::Tensor& grad_cy,
                                                     const at::Tensor& cx, const at::Tensor& cy,
                                                     const at::Tensor& workspace) {
  const auto fresh = [&] { return grad_hy.defined() ? at::empty_like(cx) : at::Tensor(); };
  LstmBackward x{grad_hy,
                 grad_cy,
                 cx,
                 workspace,
                 at::empty_like(workspace),
                 at::empty_like(cx),
                 fresh(),
                 fresh(),
                 fresh(),
                 at::empty({cx.size(0), 3 * cx.size(1)}, cx.options())};
  by_rows(cx, [&](Rows r) {
    LstmBackward rows = of(x, r);
    if (grad_hy.defined()) at::cpu::tanh_out(rows.tanh_cy, r.of(cy));
    lstm_backward_units<T>(rows, 0, cx.size(1));
  });
  return {std::move(x.grad_gates), std::move(x.grad_cx)};
}

// `planes` are scratch of [rows, 3 * width].
template <class T>
void gru_rows(const CellGates& x, const at::Tensor& hidden_n, const at::Tensor& planes,
              const at::Tensor& hy, const at::Tensor& workspace) {
  const auto rows = rows_of(x.state);
  const at::Tensor by_gate = planes.view({3, rows.rows, rows.width});
  T *sums = by_gate.mutable_data_ptr<T>(), *n = sums + 2 * x.state.numel();
  numerics::gru_sums<T>(rows, {values<T>(x.hidden), values<T>(x.hidden_bias), values<T>(x.input),
                               values<T>(x.input_bias), sums, hidden_n.mutable_data_ptr<T>()});
  for (int64_t gate = 0; gate < 3; ++gate) {
    at::Tensor one = by_gate.select(0, gate);
    if (gate == 2) numerics::gru_reset<T>(rows, sums, values<T>(hidden_n), n);
    gate == 2 ? at::cpu::tanh_out(one, one) : at::cpu::sigmoid_out(one, one);
  }
  numerics::gru_output<T>(rows, sums, values<T>(x.state), values<T>(hidden_n),
                          hy.mutable_data_ptr<T>(), workspace.mutable_data_ptr<T>());
}

template <class T>
std::tuple<at::Tensor, at::Tensor> gru_cell_of(const CellGates& x) {
  const int64_t rows = x.state.size(0), width = x.state.size(1);
  at::Tensor hy = at::empty_like(x.state), hidden_n = at::empty_like(x.state);
  const at::Tensor planes = at::empty({rows, 3 * width}, x.state.options());
  at::Tensor workspace = at::empty({rows, 5 * width}, x.state.options());
  by_rows(x.state, [&](Rows r) {
    gru_rows<T>(of(x, r), r.of(hidden_n), r.of(planes), r.of(hy), r.of(workspace));
  });
  return {std::move(hy), std::move(workspace)};
}

struct GruBackward {
  at::Tensor grad_hy, workspace;                // given
  at::Tensor grad_input, grad_hidden, grad_hx;  // results
  at::Tensor products;                          // scratch, [rows, 2 * width]

  GruBackward of(Rows r) const {
    return {r.of(grad_hy),     r.of(workspace), r.of(grad_input),
            r.of(grad_hidden), r.of(grad_hx),   r.of(products)};
  }
};

template <class T>
void gru_backward_rows(const GruBackward& x) {
  const auto rows = rows_of(x.grad_hy);
  const T* saved = values<T>(x.workspace);
  const auto gate = [&](const at::Tensor& of, int64_t i) { return part(of, i, rows.width); };
  const at::Tensor products = x.products.view({2, rows.rows, rows.width});
  numerics::gru_to_gates(rows, values<T>(x.grad_hy), saved, products.mutable_data_ptr<T>(),
                         x.grad_hx.mutable_data_ptr<T>());
  at::Tensor dr = gate(x.grad_input, 0), dz = gate(x.grad_input, 1), dn = gate(x.grad_input, 2);
  const at::Tensor of_n = products.select(0, 0), &of_r = of_n;
  at::cpu::tanh_backward_out(dn, of_n, gate(x.workspace, 2));
  at::cpu::sigmoid_backward_out(dz, products.select(0, 1), gate(x.workspace, 1));
  numerics::gru_to_reset(rows, values<T>(x.grad_input), saved, of_r.mutable_data_ptr<T>());
  at::cpu::sigmoid_backward_out(dr, of_r, gate(x.workspace, 0));
  numerics::gru_to_hidden(rows, values<T>(x.grad_input), saved,
                          x.grad_hidden.mutable_data_ptr<T>());
}

template <class T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> gru_gradients_of(const at::Tensor& grad_hy,
                                                                const at::Tensor& workspace) {
  const int64_t rows = grad_hy.size(0), width = grad_hy.size(1);
  const auto empty = [&](int64_t gates) {
    return at::empty({rows, gates * width}, grad_hy.options());
  };
  GruBackward x{grad_hy, workspace, empty(3), empty(3), at::empty_like(grad_hy), empty(2)};
  by_rows(grad_hy, [&](Rows r) { gru_backward_rows<T>(x.of(r)); });
  return {std::move(x.grad_input), std::move(x.grad_hidden), std::move(x.grad_hx)};
}

}  // namespace

LstmResults fused_lstm(const CellGates& x) {
  return with_type(x.state, [&](auto type) { return lstm_cell_of<decltype(type)>(x); });
}

std::tuple<at::Tensor, at::Tensor> fused_lstm_backward(const at::Tensor& grad_hy,
                                                       const at::Tensor& grad_cy,
                                                       const at::Tensor& cx, const at::Tensor& cy,
                                                       const at::Tensor& workspace) {
  return with_type(cx, [&](auto type) {
    return lstm_gradients_of<decltype(type)>(grad_hy, grad_cy, cx, cy, workspace);
  });
}

void fused_lstm_backward_units(const LstmBackward& x, int64_t begin, int64_t end) {
  with_type(x.cx, [&](auto type) { lstm_backward_units<decltype(type)>(x, begin, end); });
}

std::tuple<at::Tensor, at::Tensor> fused_gru(const CellGates& x) {
  return with_type(x.state, [&](auto type) { return gru_cell_of<decltype(type)>(x); });
}

GruGradients fused_gru_backward(const at::Tensor& grad_hy, const at::Tensor& workspace) {
  return with_type(grad_hy,
                   [&](auto type) { return gru_gradients_of<decltype(type)>(grad_hy, workspace); });
}

}  // namespace trn
