// A shared resource that serves requests one after the other: a DMA engine, an HBM stack.
//
// Requests come in program order, not in order of time: a store that waits for its data asks for a
// time far ahead, and the loads behind it in the program may be served before. So a timeline keeps
// the gaps it left, and lets later requests flow into them. A gap can be used by the next
// kReorderWindow requests only, as a real engine's window is bounded, and at most kGaps are kept.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace trn::timing {

constexpr int kGaps = 16;
constexpr std::int64_t kReorderWindow = 32;

struct Gap {
  std::int64_t start = 0;
  std::int64_t end = 0;
  std::int64_t born = 0;  // number of the request that left it
};

struct Timeline {
  std::int64_t frontier = 0;  // busy until here, but for the gaps
  std::int64_t requests = 0;
  int gap_count = 0;
  std::array<Gap, kGaps> gaps;  // in order of time

  // Serves `work` from `from` on, in pieces if need be. Returns when it is done.
  std::int64_t reserve(std::int64_t from, std::int64_t work) {
    std::int64_t done = from;
    for (int i = 0; i < gap_count && work > 0; ++i) {
      Gap gap = gaps[static_cast<std::size_t>(i)];
      if (gap.end <= from) continue;
      const std::int64_t start = std::max(gap.start, from);
      const std::int64_t used = std::min(work, gap.end - start);
      work -= used;
      done = start + used;
      i += replace(i, gap, start, done);
    }
    if (work > 0) {
      const std::int64_t start = std::max(frontier, from);
      if (start > frontier) insert(gap_count, Gap{frontier, start, requests});
      frontier = done = start + work;
    }
    ++requests;
    forget();
    return done;
  }

 private:
  // Leaves of gap `i` what lies outside [start, end). Returns how many gaps more there are.
  int replace(int i, const Gap& gap, std::int64_t start, std::int64_t end) {
    const Gap before{gap.start, start, gap.born}, after{end, gap.end, gap.born};
    erase(i);
    int added = -1;
    int at = i;
    if (before.end > before.start) added += insert(at++, before);
    if (after.end > after.start) added += insert(std::min(at, gap_count), after);
    return added;
  }

  // Returns how many gaps more there are: none if the earliest had to go.
  int insert(int at, const Gap& gap) {
    const bool full = gap_count == kGaps;
    if (full) {
      erase(0);
      at = std::max(0, at - 1);
    }
    for (int i = gap_count; i > at; --i) at_(i) = at_(i - 1);
    at_(at) = gap;
    ++gap_count;
    return full ? 0 : 1;
  }

  void erase(int at) {
    for (int i = at; i + 1 < gap_count; ++i) at_(i) = at_(i + 1);
    --gap_count;
  }

  void forget() {
    int kept = 0;
    for (int i = 0; i < gap_count; ++i) {
      if (requests - at_(i).born < kReorderWindow) at_(kept++) = at_(i);
    }
    gap_count = kept;
  }

  Gap& at_(int i) { return gaps[static_cast<std::size_t>(i)]; }
};

}  // namespace trn::timing
