// A timeline of bounded size: what each queue executed, as spans in order of time.
//
// A lane that has grown to twice its limit merges its spans in pairs, so it holds between `limit`
// and twice as many, each of about as many executions. Nothing is left out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trn::timing {

struct Span {
  std::int32_t instruction = 0;  // the first one
  bool alike = true;             // all executions are of it
  std::int64_t start = 0, end = 0;
  std::int64_t busy = 0;   // the executions' times added up
  std::int64_t count = 1;  // executions
};

class Lane {
 public:
  void add(const Span& span, std::size_t limit) {
    if (spans_.size() >= 2 * limit) merge();
    // Once spans are merged, new ones fill up to the same number of executions.
    if (!spans_.empty() && spans_.back().count < merged_)
      join(spans_.back(), span);
    else
      spans_.push_back(span);
  }
  const std::vector<Span>& spans() const { return spans_; }

 private:
  static void join(Span& into, const Span& next) {
    into.alike = into.alike && next.alike && into.instruction == next.instruction;
    into.start = std::min(into.start, next.start);
    into.end = std::max(into.end, next.end);
    into.busy += next.busy;
    into.count += next.count;
  }
  void merge() {
    std::size_t kept = 0;
    for (std::size_t k = 0; k < spans_.size(); k += 2) {
      Span span = spans_[k];
      if (k + 1 < spans_.size()) join(span, spans_[k + 1]);
      spans_[kept++] = span;
    }
    spans_.resize(kept);
    merged_ *= 2;
  }

  std::vector<Span> spans_;
  std::int64_t merged_ = 1;
};

}  // namespace trn::timing
