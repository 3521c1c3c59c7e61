// Recurrent layers whose products and cells share one loop (fused_steps.h), and their tensors on
// the host.
#pragma once

#include "alias.h"
#include "recurrence.h"
#include "runtime/ledger.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace trn {

bool are_plain_float32(at::TensorList all);
bool fuses_steps(const Recurrence& layer);

SignatureHash signature_of_steps(const char* name, const Recurrence& layer);

// Rows of steps on the host, and scratch like them.
struct StepRows {
  int64_t steps, rows, width;
  at::TensorOptions options;

  explicit StepRows(const Recurrence& layer, const at::Tensor& host)
      : steps(int64_t(layer.steps.rows.size())),
        rows(layer.steps.rows.front()),
        width(layer.weight.size(1)),
        options(host.options()) {}

  at::Tensor of(const at::Tensor& all, int64_t step) const {
    return all.narrow(0, step * rows, rows);
  }
  float* row_of(const at::Tensor& all, int64_t step, int64_t widths) const {
    return all.mutable_data_ptr<float>() + step * rows * widths * width;
  }
  at::Tensor fresh(int64_t of_steps, int64_t widths = 1) const {
    return at::empty({of_steps * rows, widths * width}, options);
  }
};

inline at::Tensor contiguous_on_host(HostCall& call, const at::Tensor& x) {
  return x.defined() ? call.alias(x).contiguous() : x;
}

inline const float* floats(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

}  // namespace trn
