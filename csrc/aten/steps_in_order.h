// The order of a recurrent layer's steps, and what goes from one to the next.
#pragma once

#include "recurrence.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace trn {

// The steps in the order in which they run, or in which their gradients do.
class Order {
 public:
  Order(const Steps& steps, bool backward)
      : steps_(steps), last_first_(steps.reversed != backward) {
    offsets_.reserve(steps.rows.size());
    int64_t offset = 0;
    for (const int64_t rows : steps.rows) {
      offsets_.push_back(offset);
      offset += rows;
    }
  }
  size_t size() const { return steps_.rows.size(); }
  // The step that comes as number i.
  size_t at(size_t i) const { return last_first_ ? size() - 1 - i : i; }
  int64_t rows(size_t step) const { return steps_.rows[step]; }
  at::Tensor slice(const at::Tensor& all, size_t step) const {
    return all.slice(0, offsets_[step], offsets_[step] + rows(step));
  }

 private:
  const Steps& steps_;
  const bool last_first_;
  std::vector<int64_t> offsets_;
};

// What goes from step to step, one row for each sequence that the step has: a sequence begins with
// its row of `first`, and leaves its last row. Undefined: zeros.
class Carried {
 public:
  Carried(const at::Tensor& first, int64_t rows) : first_(first) {
    if (first.defined()) now = first.size(0) == rows ? first : first.slice(0, 0, rows);
  }

  void resize(int64_t rows) {
    if (!now.defined()) return;
    const int64_t before = now.size(0);
    if (rows < before) {
      left_.push_back(now.slice(0, rows, before));
      now = now.slice(0, 0, rows);
    } else if (rows > before) {
      const at::Tensor begun = first_.defined()
                                   ? first_.slice(0, before, rows)
                                   : at::zeros({rows - before, now.size(1)}, now.options());
      now = at::cat({now, begun});
    }
  }

  // The last rows of all sequences.
  at::Tensor last() {
    if (left_.empty() || !now.defined()) return now;
    left_.push_back(now);
    std::reverse(left_.begin(), left_.end());
    return at::cat(left_);
  }

  at::Tensor now;

 private:
  const at::Tensor first_;
  std::vector<at::Tensor> left_;
};

inline std::optional<at::Tensor> optional(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

}  // namespace trn
