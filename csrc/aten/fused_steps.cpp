// See fused_steps.h.
#include "fused_steps.h"

#include "fused_layer.h"
#include "launches_of_steps.h"
#include "numerics/gates.h"
#include "step_product.h"

#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/tanh_cpu_dispatch.h>

#include <utility>

namespace trn {
namespace {

using at::Tensor;

// What a step reads and writes, [rows, width] or as wide as its gates; biases may be null.
struct StepMemory {
  const float *input, *input_bias, *hidden_bias, *before;
  float* after;
};

// What a thread has of an LSTM's cell: the units of a range, side by side.
class LstmUnits {
 public:
  static constexpr int64_t gates = 4, saved = 4;
  static constexpr const char* cell = "aten::_thnn_fused_lstm_cell";

  LstmUnits(const StepRows& of, const Tensor& sums, int64_t lo, int64_t hi, const Tensor& cx)
      : units_{of.rows, of.width, lo, hi} {
    const int64_t all = of.rows * (hi - lo);
    gates_ = sums.view(-1).narrow(0, gates * of.rows * lo, gates * all);
    cells_ = at::empty({all}, of.options);
    hidden_ = at::empty({all}, of.options);
    i_f_ = gates_.narrow(0, 0, 2 * all);
    g_ = gates_.narrow(0, 2 * all, all);
    o_ = gates_.narrow(0, 3 * all, all);
    numerics::block_of_rows(units_, floats(cx), cells_.mutable_data_ptr<float>());
  }

  // After the product, whose results `sums` holds.
  void step(const StepMemory& x) {
    float* all = gates_.mutable_data_ptr<float>();
    numerics::add_to_block(units_, x.hidden_bias, x.input, x.input_bias, all);
    at::cpu::sigmoid_out(i_f_, i_f_);
    at::cpu::tanh_out(g_, g_);
    at::cpu::sigmoid_out(o_, o_);
    numerics::lstm_block_state(units_, all, cells_.mutable_data_ptr<float>());
    at::cpu::tanh_out(hidden_, cells_);
    numerics::lstm_block_output(units_, all, floats(hidden_), x.after);
  }

  void save(float* workspace) const {
    numerics::rows_of_block(units_, saved, floats(gates_), workspace);
  }
  void save_cells(float* rows) const { numerics::rows_of_block(units_, 1, floats(cells_), rows); }

 private:
  numerics::CellUnits units_;
  Tensor gates_, cells_, hidden_;  // [4 * rows * units], [rows * units] twice
  Tensor i_f_, g_, o_;             // of the gates
};

// The same of a GRU's cell.
class GruUnits {
 public:
  static constexpr int64_t gates = 3, saved = 5;
  static constexpr const char* cell = "aten::_thnn_fused_gru_cell";

  GruUnits(const StepRows& of, const Tensor& sums, int64_t lo, int64_t hi, const Tensor&)
      : units_{of.rows, of.width, lo, hi}, sums_(floats(sums) + gates * of.rows * lo) {
    const int64_t all = of.rows * (hi - lo);
    parts_ = at::empty({saved * all}, of.options);
    r_z_ = parts_.narrow(0, 0, 2 * all);
    n_ = parts_.narrow(0, 2 * all, all);
  }

  void step(const StepMemory& x) {
    float* parts = parts_.mutable_data_ptr<float>();
    numerics::gru_block_sums(units_, {sums_, x.hidden_bias, x.input, x.before}, parts);
    at::cpu::sigmoid_out(r_z_, r_z_);
    numerics::gru_block_reset(units_, parts);
    at::cpu::tanh_out(n_, n_);
    numerics::gru_block_output(units_, parts, x.after);
  }

  void save(float* workspace) const {
    numerics::rows_of_block(units_, saved, floats(parts_), workspace);
  }
  void save_cells(float*) const {}

 private:
  numerics::CellUnits units_;
  const float* sums_;
  Tensor parts_;    // [5 * rows * units] of r, z, n, hx, hidden_n
  Tensor r_z_, n_;  // of them
};

// The results of a layer's steps on the host, and what its gradient keeps of them.
struct HostSteps {
  Tensor out, h, c, cells, workspace;

  template <class Units>
  void run(HostCall& call, const Recurrence& layer, const StepRows& of, const StepWeight& weight,
           bool keeps) {
    const Tensor inputs = contiguous_on_host(call, layer.gates), sums = of.fresh(1, Units::gates),
                 input_bias = contiguous_on_host(call, layer.input_bias),
                 bias = contiguous_on_host(call, layer.bias),
                 cx = contiguous_on_host(call, layer.cx);
    begin(of, cx.defined(), keeps ? Units::saved : 0);
    std::vector<std::optional<Units>> blocks(size_t(of.width / numerics::unit_step()));
    Tensor h_now = contiguous_on_host(call, layer.hx);
    StepProduct product({of.rows, Units::gates, of.width}, weight);
    for (int64_t i = 0; i < of.steps; ++i) {
      const int64_t step = layer.steps.reversed ? of.steps - 1 - i : i;
      const Tensor hy = of.of(out, step);
      const StepMemory memory{floats(of.of(inputs, step)), floats(input_bias), floats(bias),
                              floats(h_now), hy.mutable_data_ptr<float>()};
      product.run(h_now, sums, [&](int64_t lo, int64_t hi) {
        auto& block = blocks[size_t(lo / numerics::unit_step())];
        if (!block) block.emplace(of, sums, lo, hi, cx);
        block->step(memory);
        product.pack(hy, lo, hi);
        if (workspace.defined()) block->save(of.row_of(workspace, step, Units::saved));
        if (cells.defined()) block->save_cells(of.row_of(cells, step, 1));
      });
      h_now = hy;
    }
    h.copy_(h_now);
    for (const auto& block : blocks)
      if (block && c.defined()) block->save_cells(c.mutable_data_ptr<float>());
  }

 private:
  void begin(const StepRows& of, bool has_cells, int64_t saved) {
    out = of.fresh(of.steps);
    h = of.fresh(1);
    if (has_cells) c = of.fresh(1);
    if (saved > 0) workspace = of.fresh(of.steps, saved);
    if (saved > 0 && has_cells) cells = of.fresh(of.steps);
  }
};

void keep_steps(Kept& kept, const Recurrence& layer, const StepRows& of, const Tensor& cells,
                const Tensor& workspace) {
  for (auto* each : {&kept.before, &kept.after, &kept.workspace, &kept.projected})
    each->resize(size_t(of.steps));
  Tensor before = layer.cx;
  for (int64_t i = 0; i < of.steps; ++i) {
    const int64_t step = layer.steps.reversed ? of.steps - 1 - i : i;
    const auto at = size_t(step);
    kept.workspace[at] = of.of(workspace, step);
    if (!cells.defined()) continue;
    kept.before[at] = std::exchange(before, of.of(cells, step));
    kept.after[at] = before;
  }
}

}  // namespace

std::optional<Recurred> run_fused_steps(const Recurrence& layer, Kept* kept) {
  if (!fuses_steps(layer)) return std::nullopt;
  const auto weight = StepWeight::of(layer.weight.t(), layer.steps.rows.front());
  if (!weight) return std::nullopt;
  const auto device = layer.weight.device().index();
  const Programs programs =
      programs_of(signature_of_steps("steps", layer), [&] { run_steps(layer, nullptr); });
  const bool lstm = layer.kind == CellKind::lstm;
  HostCall call(device, lstm ? LstmUnits::cell : GruUnits::cell);
  const StepRows of(layer, call.alias(layer.hx));
  HostSteps made;
  if (lstm)
    made.run<LstmUnits>(call, layer, of, *weight, kept != nullptr);
  else
    made.run<GruUnits>(call, layer, of, *weight, kept != nullptr);
  launch_all(programs, device);
  const auto adopted = [&](Tensor& x) { return x.defined() ? call.adopt(std::move(x)) : x; };
  if (kept != nullptr) keep_steps(*kept, layer, of, adopted(made.cells), adopted(made.workspace));
  return Recurred{adopted(made.out), adopted(made.h), adopted(made.c)};
}

}  // namespace trn
