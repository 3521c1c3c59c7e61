// Gradients of an LSTM's steps, see fused_steps.h.
#include "fused_layer.h"
#include "fused_steps.h"
#include "launches_of_steps.h"
#include "numerics/gates.h"
#include "recurrent_cells.h"
#include "step_product.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/tanh_cpu_dispatch.h>

#include <utility>

namespace trn {
namespace {

using at::Tensor;

constexpr const char* kFusedGradients = "aten::_thnn_fused_lstm_cell_backward_impl";

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
        of_out_(contiguous_on_host(call, grads.out)),
        sums_(of.fresh(1)),
        of_h_(of.fresh(1)),
        other_cx_(of.fresh(1)),
        tanh_cy_(tanh_of_cells()),
        cell_{contiguous_on_host(call, grads.h),
              contiguous_on_host(call, grads.c),
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
    cell_.cx = contiguous_on_host(call_, kept_.before[at]);
    cell_.workspace = contiguous_on_host(call_, kept_.workspace[at]);
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
    for (const Tensor& each : kept_.after) cells.push_back(contiguous_on_host(call_, each));
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

std::optional<StepGradients> fused_step_gradients(const Recurrence& layer, const Kept& kept,
                                                  const Tensor& out, const Recurred& grads,
                                                  const Wanted& wanted) {
  if (layer.kind != CellKind::lstm || !fuses_steps(layer) ||
      !are_plain_float32({grads.out, grads.h, grads.c}) || !are_plain_float32(kept.before) ||
      !are_plain_float32(kept.after) || !are_plain_float32(kept.workspace))
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
