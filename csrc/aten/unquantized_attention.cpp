// See unquantized_attention.h.
#include "unquantized_attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace trn {
namespace {

using at::Tensor;

Tensor wide(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

// A key head for each query head.
Tensor for_heads(const Tensor& x, int64_t heads) {
  return x.size(1) == heads ? wide(x) : wide(x).repeat_interleave(heads / x.size(1), 1);
}

// The gradient of for_heads, in the dtype of x.
Tensor to_key_heads(const Tensor& grad, const Tensor& x) {
  const int64_t group = grad.size(1) / x.size(1);
  const Tensor summed = group == 1 ? grad : grad.unflatten(1, {x.size(1), group}).sum(2);
  return summed.to(x.scalar_type());
}

double factor(const Tensor& query, std::optional<double> scale) {
  return scale.value_or(1.0 / std::sqrt(double(query.size(3))));
}

Tensor scores_of(const Tensor& q, const Tensor& k, bool is_causal,
                 const std::optional<Tensor>& mask, double scale) {
  const double lowest = -std::numeric_limits<double>::infinity();
  Tensor scores = at::matmul(q, k.mT()).mul_(scale);
  if (mask.has_value() && mask->defined()) {
    scores = mask->scalar_type() == at::kBool ? scores.masked_fill(mask->logical_not(), lowest)
                                              : scores + wide(*mask);
  }
  if (is_causal) {
    const auto shape = {scores.size(2), scores.size(3)};
    scores.masked_fill_(at::ones(shape, scores.options().dtype(at::kBool)).triu_(1), lowest);
  }
  return scores;
}

}  // namespace

std::tuple<Tensor, Tensor> unquantized_attention(const Tensor& query, const Tensor& key,
                                                 const Tensor& value, bool is_causal,
                                                 const std::optional<Tensor>& mask,
                                                 std::optional<double> scale) {
  const int64_t heads = query.size(1);
  const Tensor scores =
      scores_of(wide(query), for_heads(key, heads), is_causal, mask, factor(query, scale));
  Tensor sums = scores.logsumexp(-1);
  sums.masked_fill_(sums == -std::numeric_limits<double>::infinity(), 0);  // a masked-out row
  const Tensor p = (scores - sums.unsqueeze(-1)).exp();
  Tensor out = at::empty_like(query);
  out.copy_(at::matmul(p, for_heads(value, heads)));
  return {std::move(out), std::move(sums)};
}

std::tuple<Tensor, Tensor, Tensor> unquantized_attention_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& out, const Tensor& logsumexp, bool is_causal, const std::optional<Tensor>& mask,
    std::optional<double> scale) {
  const int64_t heads = query.size(1);
  const double by = factor(query, scale);
  const Tensor q = wide(query), k = for_heads(key, heads), g = wide(grad_out);
  const Tensor p = (scores_of(q, k, is_causal, mask, by) - logsumexp.unsqueeze(-1)).exp();
  const Tensor inner = (g * wide(out)).sum(-1, /*keepdim=*/true);
  const Tensor ds = p * (at::matmul(g, for_heads(value, heads).mT()) - inner);
  return {at::matmul(ds, k).mul_(by).to(query.scalar_type()),
          to_key_heads(at::matmul(ds.mT(), q).mul_(by), key),
          to_key_heads(at::matmul(p.mT(), g), value)};
}

}  // namespace trn
