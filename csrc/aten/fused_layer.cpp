// See fused_layer.h.
#include "fused_layer.h"

#include "numerics/packed.h"
#include "policy.h"
#include "recurrent_steps.h"
#include "rounding_mode.h"
#include "runtime/host.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>

namespace trn {
namespace {

bool is_plain_float32(const at::Tensor& x) {
  constexpr c10::DispatchKeySet seen({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                      c10::DispatchKey::FuncTorchBatched,
                                      c10::DispatchKey::FuncTorchGradWrapper});
  return !x.defined() || (x.device().type() == kTrn && x.scalar_type() == at::kFloat &&
                          x.layout() == at::kStrided && !x.is_neg() && !x.key_set().has_any(seen));
}

// Modes and profilers see operators.
bool is_watched() { return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::hasCallbacks(); }

// Whether the units of a thread are whole steps of all loops, and the products those of rounded
// copies of weights, which rows up to `most` have (matmul.cpp).
bool fits_units(const Recurrence& layer) {
  constexpr int64_t most = 128;
  if (layer.kind == CellKind::lstm && layer.bias.defined() != layer.input_bias.defined())
    return false;
  const std::vector<int64_t>& rows = layer.steps.rows;
  const int64_t width = layer.weight.size(1);
  return rows.size() > 1 && rows.front() <= most && rows.front() <= width &&
         width % numerics::unit_step() == 0 &&
         std::all_of(rows.begin(), rows.end(), [&](int64_t each) { return each == rows.front(); });
}

}  // namespace

bool are_plain_float32(at::TensorList all) {
  return std::all_of(all.begin(), all.end(), is_plain_float32);
}

bool fuses_steps(const Recurrence& layer) {
  const bool has_cell = layer.kind == CellKind::lstm || layer.kind == CellKind::gru;
  if (!has_cell || layer.projection.defined() || host().foreign || is_watched() ||
      stochastic_rounding() || at::in_parallel_region())
    return false;
  return std::all_of(std::begin(kRecurrentInputs), std::end(kRecurrentInputs),
                     [&](const auto input) { return is_plain_float32(layer.*input); }) &&
         fits_units(layer);
}

SignatureHash signature_of_steps(const char* name, const Recurrence& layer) {
  SignatureHash hash;
  hash.add(reinterpret_cast<uint64_t>(name) + uint64_t(current_policy()));
  hash.add(uint64_t(layer.weight.device().index()) << 2 | uint64_t(layer.kind) << 1 |
           uint64_t(layer.steps.reversed));
  hash.add(uint64_t(layer.steps.rows.size()));
  for (const auto input : kRecurrentInputs) hash.add(layer.*input);
  return hash;
}

}  // namespace trn
