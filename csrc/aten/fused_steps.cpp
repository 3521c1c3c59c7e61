// See fused_steps.h.
#include "fused_steps.h"

#include "alias.h"
#include "launches_of_steps.h"
#include "numerics/gates.h"
#include "numerics/kernels.h"
#include "numerics/packed.h"
#include "operands.h"
#include "product_roles.h"
#include "rounding_mode.h"
#include "runtime/host.h"
#include "weight_copies.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
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

bool is_plain_float32(const Tensor& x) {
  return !x.defined() || (x.device().type() == kTrn && x.scalar_type() == at::kFloat &&
                          x.layout() == at::kStrided && !x.is_neg() &&
                          !x.key_set().has_any(c10::DispatchKeySet(
                              {c10::DispatchKey::Python, c10::DispatchKey::Functionalize})));
}

// Modes and profilers see operators.
bool is_watched() { return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::hasCallbacks(); }

// Whether the units of a thread are whole steps of all loops, and the products those of packed
// weights, which rows up to `most` have (matmul.cpp).
bool fits_units(const Recurrence& layer) {
  constexpr int64_t most = 128;
  if (layer.bias.defined() != layer.input_bias.defined()) return false;
  const std::vector<int64_t>& rows = layer.steps.rows;
  const int64_t width = layer.weight.size(1);
  return rows.size() > 1 && rows.front() > numerics::most_dots && rows.front() <= most &&
         rows.front() <= width && width % numerics::unit_step() == 0 &&
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

// The rounded panels of a step's weight, which is read often enough to have them at once.
// Undefined where it can have none.
Tensor step_panels(const Tensor& weight, OperandFormats formats) {
  if (!numerics::is_packable(operand_rounding(formats.first, at::kFloat))) return {};
  packed_copy(weight, formats.second);
  return packed_copy(weight, formats.second);
}

SignatureHash signature_of_steps(const char* name, const Recurrence& layer) {
  SignatureHash hash;
  hash.add(reinterpret_cast<uint64_t>(name) + uint64_t(current_policy()));
  hash.add(uint64_t(layer.weight.device().index()) << 1 | uint64_t(layer.steps.reversed));
  hash.add(uint64_t(layer.steps.rows.size()));
  for (const auto input : kRecurrentInputs) hash.add(layer.*input);
  return hash;
}

numerics::Operand line_operand(const Tensor& x, OperandFormat format) {
  return {x.const_data_ptr(),
          numerics::DType::float32,
          x.stride(0),
          1,
          operand_rounding(format, at::kFloat),
          0};
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

using Then = std::function<void(int64_t, int64_t)>;

// The product of a step by packed panels, and what follows it, below autograd.
void multiply_step(numerics::GateColumns shape, const Tensor& x, OperandFormat format,
                   const Tensor& panels, const Tensor& to, const Then& then) {
  numerics::gemm_packed_gates(shape, x.size(1), line_operand(x, format),
                              static_cast<const uint32_t*>(panels.const_data_ptr()),
                              to.mutable_data_ptr<float>(), [&](int64_t lo, int64_t hi) {
                                const at::AutoDispatchBelowADInplaceOrView below;
                                then(lo, hi);
                              });
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

  void run(HostCall& call, const Recurrence& layer, const StepRows& of, const Tensor& panels,
           OperandFormat format) {
    const Tensor inputs = host_of(call, layer.gates), sums = of.fresh(1, 4),
                 input_bias = host_of(call, layer.input_bias), bias = host_of(call, layer.bias),
                 cx = host_of(call, layer.cx);
    std::vector<std::optional<UnitBlock>> blocks(size_t(of.width / numerics::unit_step()));
    Tensor h_now = host_of(call, layer.hx);
    for (int64_t i = 0; i < of.steps; ++i) {
      const int64_t step = layer.steps.reversed ? of.steps - 1 - i : i;
      const Tensor hy = of.of(out, step);
      multiply_step({of.rows, 4, of.width}, h_now, format, panels, sums,
                    [&](int64_t lo, int64_t hi) {
                      auto& block = blocks[size_t(lo / numerics::unit_step())];
                      if (!block) block.emplace(of, sums, lo, hi, cx);
                      block->step(floats(bias), floats(of.of(inputs, step)), floats(input_bias),
                                  hy.mutable_data_ptr<float>());
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

}  // namespace

std::optional<Recurred> run_fused_steps(const Recurrence& layer, Kept* kept) {
  if (!fuses_steps(layer)) return std::nullopt;
  const OperandFormats formats = formats_of(current_policy(), kByWeight);
  const Tensor panels = step_panels(layer.weight.t(), formats);
  if (!panels.defined()) return std::nullopt;
  const auto device = layer.weight.device().index();
  const Programs programs =
      programs_of(signature_of_steps("steps", layer), [&] { run_steps(layer, nullptr); });
  HostCall call(device, kFusedSteps);
  const StepRows of(layer, call.alias(layer.hx));
  HostSteps made(of, /*keeps=*/kept != nullptr);
  made.run(call, layer, of, panels, formats.first);
  launch_all(programs, device);
  if (kept != nullptr)
    keep_steps(*kept, layer, of, call.adopt(std::move(made.cells)),
               call.adopt(std::move(made.gates)));
  return Recurred{call.adopt(std::move(made.out)), call.adopt(std::move(made.h)),
                  call.adopt(std::move(made.c))};
}

}  // namespace trn
