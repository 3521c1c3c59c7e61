// The fused LSTM and GRU cells that torch chooses for accelerators, in the order of the unfused
// cells and of their derivatives, 16-bit formats in float32 and rounded once, when a result leaves.
// `workspace` holds the activated gates. Each cell is defined with the host's operators; what lies
// in contiguous rows takes a fused one of the same bits, with the host's activations.
#include "recurrent_cells.h"
#include "registrations.h"

#include <ATen/ATen.h>

#include <array>

namespace trn {
namespace {

using Optional = std::optional<at::Tensor>;

bool given(const Optional& x) { return x.has_value() && x->defined(); }

// One call of a fused cell: operands on the host and wide, results in the operands' format.
class Cell {
 public:
  template <typename... Arguments>
  Cell(const char* name, const at::Tensor& like, const Arguments&... arguments)
      : dtype_(like.scalar_type()),
        launch_(name, like, arguments...),
        call_(launch_.device(), name) {}

  at::Tensor operand(const at::Tensor& x) {
    const at::Tensor host = call_.alias(x);
    return at::isReducedFloatingType(dtype_) ? host.to(at::kFloat) : host;
  }

  at::Tensor gates(const at::Tensor& products, const Optional& bias) {
    return given(bias) ? operand(products) + operand(*bias) : operand(products);
  }

  // Fresh ones are handed over: a result that is held elsewhere too would be copied.
  template <typename... Tensors>
  auto results(Tensors... tensors) {
    const auto rounded = [this](at::Tensor& x) {
      return x.defined() && x.scalar_type() != dtype_ ? x.to(dtype_) : std::move(x);
    };
    std::tuple<Tensors...> leaving{rounded(tensors)...};
    launch_.retire();
    return std::apply([this](auto&... each) { return std::tuple{call_.adopt(std::move(each))...}; },
                      leaving);
  }

 private:
  at::ScalarType dtype_;
  Launch launch_;
  HostCall call_;
};

// ---- fused cells, on rows that lie side by side ----

bool are_rows(const at::Tensor& x, const at::Tensor& like, int64_t rows, int64_t columns) {
  return x.scalar_type() == like.scalar_type() && x.dim() == 2 && x.size(0) == rows &&
         x.size(1) == columns && x.is_contiguous() && !x.is_neg();
}

bool are_rows(const Optional& x, const at::Tensor& like, int64_t rows, int64_t columns) {
  return !given(x) || are_rows(*x, like, rows, columns);
}

bool is_row(const Optional& bias, const at::Tensor& like, int64_t columns) {
  return !given(bias) || (bias->scalar_type() == like.scalar_type() && bias->dim() == 1 &&
                          bias->size(0) == columns && bias->is_contiguous() && !bias->is_neg());
}

// Whether a cell with this state [rows, width] and `gates` gates may be fused.
bool fuses(const at::Tensor& state) {
  return !host().foreign && state.dim() == 2 && state.is_contiguous() && !state.is_neg() &&
         at::isFloatingType(state.scalar_type()) && state.numel() > 0;
}

bool fuses(const at::Tensor& state, const at::Tensor& input, const at::Tensor& hidden,
           const Optional& input_bias, const Optional& hidden_bias, int64_t gates) {
  if (!fuses(state)) return false;
  const int64_t rows = state.size(0), columns = gates * state.size(1);
  return are_rows(input, state, rows, columns) && are_rows(hidden, state, rows, columns) &&
         is_row(input_bias, state, columns) && is_row(hidden_bias, state, columns);
}

CellGates gates_of(Cell& cell, const at::Tensor& input, const at::Tensor& hidden,
                   const Optional& input_bias, const Optional& hidden_bias,
                   const at::Tensor& state) {
  const auto bias = [&](const Optional& x) { return given(x) ? cell.operand(*x) : at::Tensor(); };
  return {cell.operand(input), cell.operand(hidden), bias(input_bias), bias(hidden_bias),
          cell.operand(state)};
}

// ---- the operators ----

// What kernels of other accelerators check: chunks of other sizes would be too few, or broadcast.
void check_cell(const char* op, const at::Tensor& input, const at::Tensor& hidden,
                const at::Tensor& state, const Optional& input_bias, const Optional& hidden_bias,
                int64_t gates) {
  TORCH_CHECK(state.dim() == 2, op, ": expected a state of 2 dimensions, got ", state.sizes());
  const int64_t rows = state.size(0), columns = gates * state.size(1);
  const auto check = [&](const char* name, const at::Tensor& x, bool fits) {
    TORCH_CHECK(fits, op, ": expected ", name, " of a size that fits a state of size ",
                state.sizes(), ", got size ", x.sizes());
    TORCH_CHECK(x.scalar_type() == state.scalar_type(), op, ": expected ", name, " of dtype ",
                state.scalar_type(), ", as the state, got ", x.scalar_type());
  };
  const std::array<int64_t, 2> sizes{rows, columns};
  check("input gates", input, input.sizes() == at::IntArrayRef(sizes));
  check("hidden gates", hidden, hidden.sizes() == at::IntArrayRef(sizes));
  for (const Optional* bias : {&input_bias, &hidden_bias}) {
    if (!given(*bias)) continue;
    const at::Tensor& x = **bias;  // of one element as well, as on the host
    check("biases", x, x.numel() == 1 || (x.numel() == columns && x.size(-1) == columns));
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor& input_gates,
                                                         const at::Tensor& hidden_gates,
                                                         const at::Tensor& cx,
                                                         const Optional& input_bias,
                                                         const Optional& hidden_bias) {
  check_cell("lstm_cell", input_gates, hidden_gates, cx, input_bias, hidden_bias, 4);
  Cell cell("aten::_thnn_fused_lstm_cell", input_gates, hidden_gates, cx, input_bias, hidden_bias);
  if (fuses(cx, input_gates, hidden_gates, input_bias, hidden_bias, 4)) {
    auto [hy, cy, workspace] =
        fused_lstm(gates_of(cell, input_gates, hidden_gates, input_bias, hidden_bias, cx));
    return cell.results(std::move(hy), std::move(cy), std::move(workspace));
  }
  const at::Tensor gates =
      cell.gates(hidden_gates, hidden_bias) + cell.gates(input_gates, input_bias);
  auto parts = gates.unsafe_chunk(4, 1);
  const at::Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), g = parts[2].tanh(),
                   o = parts[3].sigmoid();
  at::Tensor cy = (f * cell.operand(cx)).add_(i * g), hy = o * cy.tanh();
  return cell.results(std::move(hy), std::move(cy), at::cat({i, f, g, o}, 1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const Optional& grad_hy, const Optional& grad_cy, const at::Tensor& cx, const at::Tensor& cy,
    const at::Tensor& workspace, bool has_bias) {
  Cell cell("aten::_thnn_fused_lstm_cell_backward_impl", cx, cy, workspace, has_bias);
  if (!given(grad_hy) && !given(grad_cy)) return {};
  if (fuses(cx) && are_rows(cy, cx, cx.size(0), cx.size(1)) &&
      are_rows(workspace, cx, cx.size(0), 4 * cx.size(1)) &&
      are_rows(grad_hy, cx, cx.size(0), cx.size(1)) &&
      are_rows(grad_cy, cx, cx.size(0), cx.size(1))) {
    const auto wide = [&](const Optional& x) { return given(x) ? cell.operand(*x) : at::Tensor(); };
    auto [grad_gates, grad_cx] = fused_lstm_backward(wide(grad_hy), wide(grad_cy), cell.operand(cx),
                                                     cell.operand(cy), cell.operand(workspace));
    at::Tensor grad_bias = has_bias ? grad_gates.sum(0) : at::Tensor();
    return cell.results(std::move(grad_gates), std::move(grad_cx), std::move(grad_bias));
  }
  auto parts = cell.operand(workspace).chunk(4, 1);
  const at::Tensor i = parts[0], f = parts[1], g = parts[2], o = parts[3];
  const at::Tensor c = cell.operand(cx), t = cell.operand(cy).tanh();
  at::Tensor dc = given(grad_cy) ? cell.operand(*grad_cy) : at::Tensor();
  at::Tensor d_o = at::zeros_like(o);
  if (given(grad_hy)) {
    const at::Tensor dh = cell.operand(*grad_hy);
    const at::Tensor through_h = at::tanh_backward(dh * o, t);
    dc = dc.defined() ? dc + through_h : through_h;
    d_o = at::sigmoid_backward(dh * t, o);
  }
  at::Tensor grad_gates = at::cat({at::sigmoid_backward(dc * g, i), at::sigmoid_backward(dc * c, f),
                                   at::tanh_backward(dc * i, g), d_o},
                                  1);
  at::Tensor grad_bias = has_bias ? grad_gates.sum(0) : at::Tensor();
  return cell.results(std::move(grad_gates), dc * f, std::move(grad_bias));
}

// workspace: r, z, n, h, and the hidden part of n before the reset gate.
std::tuple<at::Tensor, at::Tensor> gru_cell(const at::Tensor& input_gates,
                                            const at::Tensor& hidden_gates, const at::Tensor& hx,
                                            const Optional& input_bias,
                                            const Optional& hidden_bias) {
  check_cell("gru_cell", input_gates, hidden_gates, hx, input_bias, hidden_bias, 3);
  Cell cell("aten::_thnn_fused_gru_cell", input_gates, hidden_gates, hx, input_bias, hidden_bias);
  if (fuses(hx, input_gates, hidden_gates, input_bias, hidden_bias, 3)) {
    auto [hy, workspace] =
        fused_gru(gates_of(cell, input_gates, hidden_gates, input_bias, hidden_bias, hx));
    return cell.results(std::move(hy), std::move(workspace));
  }
  const at::Tensor h = cell.operand(hx);
  auto in = cell.gates(input_gates, input_bias).unsafe_chunk(3, 1);
  auto hidden = cell.gates(hidden_gates, hidden_bias).unsafe_chunk(3, 1);
  const at::Tensor r = (hidden[0] + in[0]).sigmoid(), z = (hidden[1] + in[1]).sigmoid();
  const at::Tensor n = (in[2] + hidden[2] * r).tanh();
  return cell.results((h - n) * z + n, at::cat({r, z, n, h, hidden[2]}, 1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& grad_hy, const at::Tensor& workspace, bool has_bias) {
  Cell cell("aten::_thnn_fused_gru_cell_backward", grad_hy, workspace, has_bias);
  const at::Tensor g = cell.operand(grad_hy);
  const auto biases = [&](const at::Tensor& grad) { return has_bias ? grad.sum(0) : at::Tensor(); };
  if (fuses(grad_hy) && are_rows(workspace, grad_hy, grad_hy.size(0), 5 * grad_hy.size(1))) {
    auto [grad_input, grad_hidden, grad_hx] = fused_gru_backward(g, cell.operand(workspace));
    at::Tensor of_input = biases(grad_input), of_hidden = biases(grad_hidden);
    return cell.results(std::move(grad_input), std::move(grad_hidden), std::move(grad_hx),
                        std::move(of_input), std::move(of_hidden));
  }
  auto parts = cell.operand(workspace).chunk(5, 1);
  const at::Tensor r = parts[0], z = parts[1], n = parts[2], h = parts[3], hidden_n = parts[4];
  const at::Tensor through_z = g * z;
  const at::Tensor dn = at::tanh_backward(g - through_z, n);
  const at::Tensor dz = at::sigmoid_backward(g * (h - n), z);
  const at::Tensor dr = at::sigmoid_backward(dn * hidden_n, r);
  const at::Tensor grad_input = at::cat({dr, dz, dn}, 1);
  const at::Tensor grad_hidden = at::cat({dr, dz, dn * r}, 1);
  return cell.results(grad_input, grad_hidden, through_z, biases(grad_input), biases(grad_hidden));
}

}  // namespace

void register_rnn(Registrar& registrar) {
  registrar.add("_thnn_fused_lstm_cell", &lstm_cell);
  registrar.add("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  registrar.add("_thnn_fused_gru_cell", &gru_cell);
  registrar.add("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

}  // namespace trn
