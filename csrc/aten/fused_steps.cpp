// See fused_steps.h.
#include "fused_steps.h"

#include "alias.h"
#include "launches_of_steps.h"
#include "numerics/gates.h"
#include "numerics/packed.h"
#include "product_roles.h"
#include "recurrent_cells.h"
#include "rounding_mode.h"
#include "runtime/host.h"
#include "step_product.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/tanh_cpu_dispatch.h>
#include <ATen/record_function.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <utility>

namespace trn {
namespace {

using at::Tensor;

constexpr const char* kFusedSteps = "aten::_thnn_fused_lstm_cell";
constexpr const char* kFusedGradients = "aten::_thnn_fused_lstm_cell_backward_impl";

bool is_plain_float32(const Tensor& x) {
  constexpr c10::DispatchKeySet seen({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                      c10::DispatchKey::FuncTorchBatched,
                                      c10::DispatchKey::FuncTorchGradWrapper});
  return !x.defined() || (x.device().type() == kTrn && x.scalar_type() == at::kFloat &&
                          x.layout() == at::kStrided && !x.is_neg() && !x.key_set().has_any(seen));
}

bool are_plain_float32(at::TensorList all) {
  return std::all_of(all.begin(), all.end(), is_plain_float32);
}

// Modes and profilers see operators.
bool is_watched() { return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::hasCallbacks(); }

// Whether the units of a thread are whole steps of all loops, and the products those of rounded
// copies of weights, which rows up to `most` have (matmul.cpp).
bool fits_units(const Recurrence& layer) {
  constexpr int64_t most = 128;
  if (layer.bias.defined() != layer.input_bias.defined()) return false;
  const std::vector<int64_t>& rows = layer.steps.rows;
  const int64_t width = layer.weight.size(1);
  return rows.size() > 1 && rows.front() <= most && rows.front() <= width &&
         width % numerics::unit_step() == 0 &&
         std::all_of(rows.begin(), rows.end(), [&](int64_t each) { return each == rows.front(); });
}

bool fuses_steps(const Recurrence& layer) {
  if (layer.kind != CellKind::lstm || layer.projection.defined() || host().foreign ||
      is_watched() || stochastic_rounding() || at::in_parallel_region())
    return false;
  return std::all_of(std::begin(kRecurrentInputs), std::end(kRecurrentInputs),
                     [&](const auto input) { return is_plain_float32(layer.*input); }) &&
         fits_units(layer);
}

SignatureHash signature_of_steps(const char* name, const Recurrence& layer) {
  SignatureHash hash;
  hash.add(reinterpret_cast<uint64_t>(name) + uint64_t(current_policy()));
  hash.add(uint64_t(layer.weight.device().index()) << 1 | uint64_t(layer.steps.reversed));
  hash.add(uint64_t(layer.steps.rows.size()));
  for (const auto input : kRecurrentInputs) hash.add(layer.*input);
  return hash;
}

// Rows of steps on the host, and scratch like them.
struct StepRows {
  int64_t steps, rows, width;
  at::TensorOptions options;

  explicit StepRows(const Recurrence& layer, const Tensor& host)
      : steps(int64_t(layer.steps.rows.size())),
        rows(layer.steps.rows.front()),
        width(layer.weight.size(1)),
        options(host.options()) {}

  Tensor of(const Tensor& all, int64_t step) const { return all.narrow(0, step * rows, rows); }
  float* row_of(const Tensor& all, int64_t step, int64_t widths) const {
    return all.mutable_data_ptr<float>() + step * rows * widths * width;
  }
  Tensor fresh(int64_t of_steps, int64_t widths = 1) const {
    return at::empty({of_steps * rows, widths * width}, options);
  }
};

Tensor host_of(HostCall& call, const Tensor& x) {
  return x.defined() ? call.alias(x).contiguous() : x;
}

// What a thread has of a cell: the units of a range, side by side.
struct UnitBlock {
  numerics::CellUnits units;
  Tensor gates, cells, hidden;  // [4 * rows * units], [rows * units] twice
  Tensor i_f, g, o;             // of the gates

  UnitBlock(const StepRows& of, const Tensor& sums, int64_t lo, int64_t hi, const Tensor& cx)
      : units{of.rows, of.width, lo, hi} {
    const int64_t all = of.rows * (hi - lo);
    gates = sums.view(-1).narrow(0, 4 * of.rows * lo, 4 * all);
    cells = at::empty({all}, of.options);
    hidden = at::empty({all}, of.options);
    i_f = gates.narrow(0, 0, 2 * all);
    g = gates.narrow(0, 2 * all, all);
    o = gates.narrow(0, 3 * all, all);
    numerics::block_of_rows(units, cx.const_data_ptr<float>(), cells.mutable_data_ptr<float>());
  }

  // After the product. hy [rows, width].
  void step(const float* hidden_bias, const float* input, const float* input_bias, float* hy) {
    float* all = gates.mutable_data_ptr<float>();
    numerics::add_to_block(units, hidden_bias, input, input_bias, all);
    at::cpu::sigmoid_out(i_f, i_f);
    at::cpu::tanh_out(g, g);
    at::cpu::sigmoid_out(o, o);
    numerics::lstm_block_state(units, all, cells.mutable_data_ptr<float>());
    at::cpu::tanh_out(hidden, cells);
    numerics::lstm_block_output(units, all, hidden.const_data_ptr<float>(), hy);
  }
};

const float* floats(const Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// The results of a layer's steps on the host, and what its gradient keeps of them.
struct HostSteps {
  Tensor out, h, c, cells, gates;

  HostSteps(const StepRows& of, bool keeps)
      : out(of.fresh(of.steps)), h(of.fresh(1)), c(of.fresh(1)) {
    if (!keeps) return;
    cells = of.fresh(of.steps);
    gates = of.fresh(of.steps, 4);
  }

  void run(HostCall& call, const Recurrence& layer, const StepRows& of, const StepWeight& weight) {
    const Tensor inputs = host_of(call, layer.gates), sums = of.fresh(1, 4),
                 input_bias = host_of(call, layer.input_bias), bias = host_of(call, layer.bias),
                 cx = host_of(call, layer.cx);
    std::vector<std::optional<UnitBlock>> blocks(size_t(of.width / numerics::unit_step()));
    Tensor h_now = host_of(call, layer.hx);
    StepProduct product({of.rows, 4, of.width}, weight);
    for (int64_t i = 0; i < of.steps; ++i) {
      const int64_t step = layer.steps.reversed ? of.steps - 1 - i : i;
      const Tensor hy = of.of(out, step);
      product.run(h_now, sums, [&](int64_t lo, int64_t hi) {
        auto& block = blocks[size_t(lo / numerics::unit_step())];
        if (!block) block.emplace(of, sums, lo, hi, cx);
        block->step(floats(bias), floats(of.of(inputs, step)), floats(input_bias),
                    hy.mutable_data_ptr<float>());
        product.pack(hy, lo, hi);
        keep(*block, of, step);
      });
      h_now = hy;
    }
    h.copy_(h_now);
    for (const auto& block : blocks)
      if (block)
        numerics::rows_of_block(block->units, 1, floats(block->cells), c.mutable_data_ptr<float>());
  }

 private:
  void keep(const UnitBlock& block, const StepRows& of, int64_t step) const {
    if (!cells.defined()) return;
    numerics::rows_of_block(block.units, 1, floats(block.cells), of.row_of(cells, step, 1));
    numerics::rows_of_block(block.units, 4, floats(block.gates), of.row_of(gates, step, 4));
  }
};

void keep_steps(Kept& kept, const Recurrence& layer, const StepRows& of, const Tensor& cells,
                const Tensor& gates) {
  for (auto* each : {&kept.before, &kept.after, &kept.workspace}) each->resize(size_t(of.steps));
  kept.projected.resize(size_t(of.steps));
  Tensor before = layer.cx;
  for (int64_t i = 0; i < of.steps; ++i) {
    const int64_t step = layer.steps.reversed ? of.steps - 1 - i : i;
    const auto at = size_t(step);
    kept.before[at] = std::exchange(before, of.of(cells, step));
    kept.after[at] = before;
    kept.workspace[at] = of.of(gates, step);
  }
}

// The gradients of a layer's steps on the host, each from that of the step before it. The units of
// a thread are those of the product for the hidden state, as forward.
class HostGradients {
 public:
  Tensor gates, hx, cx;

  HostGradients(HostCall& call, const Recurrence& layer, const StepRows& of, const Kept& kept,
                const Recurred& grads)
      : gates(of.fresh(of.steps, 4)),
        hx(of.fresh(1)),
        cx(of.fresh(1)),
        call_(call),
        layer_(layer),
        of_(of),
        kept_(kept),
        of_out_(host_of(call, grads.out)),
        sums_(of.fresh(1)),
        of_h_(of.fresh(1)),
        other_cx_(of.fresh(1)),
        tanh_cy_(tanh_of_cells()),
        cell_{host_of(call, grads.h),
              host_of(call, grads.c),
              {},
              {},
              {},
              {},
              {},
              of.fresh(1),
              of.fresh(1),
              of.fresh(1, 3)} {}

  void run(const StepWeight& weight, bool of_hx) {
    StepProduct product({of_.rows, 1, of_.width}, weight);
    for (int64_t i = 0; i < of_.steps; ++i) {
      const int64_t step = step_at(i);
      const Tensor out = of_out_.defined() ? of_.of(of_out_, step) : of_out_;
      begin_step(i, step);
      if (i == 0) {
        if (out.defined())
          cell_.grad_hy = cell_.grad_hy.defined() ? at::add(out, cell_.grad_hy) : out;
        fused_lstm_backward_units(cell_, 0, of_.width);
      } else {
        cell_.grad_hy = of_h_;
        product.run(of_.of(gates, step_at(i - 1)), sums_, [&](int64_t lo, int64_t hi) {
          through_product(lo, hi, floats(out), of_h_);
          fused_lstm_backward_units(cell_, lo, hi);
          product.pack(cell_.grad_gates, lo, hi);
        });
      }
      cell_.grad_cy = cell_.grad_cx;
    }
    if (of_hx)
      product.run(of_.of(gates, step_at(of_.steps - 1)), sums_,
                  [&](int64_t lo, int64_t hi) { through_product(lo, hi, nullptr, hx); });
  }

 private:
  int64_t step_at(int64_t i) const { return layer_.steps.reversed ? i : of_.steps - 1 - i; }

  void begin_step(int64_t i, int64_t step) {
    const auto at = size_t(step);
    cell_.cx = host_of(call_, kept_.before[at]);
    cell_.workspace = host_of(call_, kept_.workspace[at]);
    cell_.grad_gates = of_.of(gates, step);
    cell_.tanh_cy = of_.of(tanh_cy_, step);
    cell_.grad_cx = (of_.steps - 1 - i) % 2 == 0 ? cx : other_cx_;  // the last one in cx
  }

  // to [rows, width] = the product's block of sums, and what flows into the step from outside.
  void through_product(int64_t lo, int64_t hi, const float* from_out, const Tensor& to) {
    const numerics::CellUnits units{of_.rows, of_.width, lo, hi};
    const float* block = floats(sums_) + of_.rows * lo;
    float* rows = to.mutable_data_ptr<float>();
    if (from_out == nullptr) return numerics::rows_of_block(units, 1, block, rows);
    numerics::add_block_to_rows(units, from_out, block, rows);
  }

  // Of all steps, whose rows each are whole steps of the host's loops.
  Tensor tanh_of_cells() const {
    const Tensor all = of_.fresh(of_.steps);
    std::vector<Tensor> cells;
    for (const Tensor& each : kept_.after) cells.push_back(host_of(call_, each));
    at::parallel_for(0, of_.steps, 1, [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowADInplaceOrView below;
      for (int64_t step = begin; step < end; ++step) {
        Tensor to = of_.of(all, step);
        at::cpu::tanh_out(to, cells[size_t(step)]);
      }
    });
    return all;
  }

  HostCall& call_;
  const Recurrence& layer_;
  const StepRows& of_;
  const Kept& kept_;
  const Tensor of_out_, sums_, of_h_, other_cx_, tanh_cy_;
  LstmBackward cell_;
};

}  // namespace

std::optional<Recurred> run_fused_steps(const Recurrence& layer, Kept* kept) {
  if (!fuses_steps(layer)) return std::nullopt;
  const auto weight = StepWeight::of(layer.weight.t(), layer.steps.rows.front());
  if (!weight) return std::nullopt;
  const auto device = layer.weight.device().index();
  const Programs programs =
      programs_of(signature_of_steps("steps", layer), [&] { run_steps(layer, nullptr); });
  HostCall call(device, kFusedSteps);
  const StepRows of(layer, call.alias(layer.hx));
  HostSteps made(of, /*keeps=*/kept != nullptr);
  made.run(call, layer, of, *weight);
  launch_all(programs, device);
  if (kept != nullptr)
    keep_steps(*kept, layer, of, call.adopt(std::move(made.cells)),
               call.adopt(std::move(made.gates)));
  return Recurred{call.adopt(std::move(made.out)), call.adopt(std::move(made.h)),
                  call.adopt(std::move(made.c))};
}

std::optional<StepGradients> fused_step_gradients(const Recurrence& layer, const Kept& kept,
                                                  const Tensor& out, const Recurred& grads,
                                                  const Wanted& wanted) {
  if (!fuses_steps(layer) || !are_plain_float32({grads.out, grads.h, grads.c}) ||
      !are_plain_float32(kept.before) || !are_plain_float32(kept.after) ||
      !are_plain_float32(kept.workspace))
    return std::nullopt;
  const auto weight = StepWeight::of(layer.weight, layer.steps.rows.front());
  if (!weight) return std::nullopt;
  const auto device = layer.weight.device().index();
  SignatureHash signature = signature_of_steps("gradients", layer);
  for (const Tensor& grad : {grads.out, grads.h, grads.c}) signature.add(grad);
  for (const bool each : wanted.inputs) signature.add(uint64_t(each));
  const Programs programs =
      programs_of(signature, [&] { gradients_step_by_step(layer, kept, out, grads, wanted); });
  HostCall call(device, kFusedGradients);
  const StepRows of(layer, call.alias(layer.hx));
  HostGradients made(call, layer, of, kept, grads);
  const bool of_hx = wanted.has(&Recurrence::hx);
  made.run(*weight, of_hx);
  launch_all(programs, device);
  StepGradients all;
  all.hidden = call.adopt(std::move(made.gates));
  if (wanted.has(&Recurrence::gates)) all.input = all.hidden;
  if (of_hx) all.hx = call.adopt(std::move(made.hx));
  if (wanted.has(&Recurrence::cx)) all.cx = call.adopt(std::move(made.cx));
  return all;
}

}  // namespace trn
