// Everything the scheduler knows at one moment: when each queue, region and shared resource is
// ready.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "timing/program.h"
#include "timing/timeline.h"

namespace trn::timing {

constexpr std::int32_t kNobody = -1;
constexpr std::int32_t kSeveral = -2;

// One part of one slot of a buffer.
struct Region {
  std::int64_t write_done = 0;
  std::int64_t read_done = 0;
  std::int32_t writer = kNobody;
  std::int32_t reader = kNobody;
};

// What all programs of a graph share: the engines, and what moves their data.
struct Shared {
  std::array<std::int64_t, kEngineQueues> engine_ready{};  // between two programs
  std::array<std::int64_t, kPorts> port_ready{};
  std::int64_t table = 0;
  std::int64_t warmth = 0;  // of the Tensor engine: its busy time less its idle time, within bounds
  bool warm = false;        // it runs at full duty
  bool engines_alike = true;  // then engines[0] stands for all
  std::int64_t next_engine = 0;
  std::vector<Timeline> engines;
  Timeline hbm;

  explicit Shared(std::size_t dma_engines) : engines(dma_engines) {}

  // Goes `delta` ahead.
  void shift(std::int64_t delta);
};

struct State : Shared {
  std::vector<std::int64_t> queue_ready;
  std::vector<Region> regions;
  std::vector<std::int64_t> slot;    // by buffer
  std::vector<std::int64_t> totals;  // every sum that grows by the same amount each period

  State(const Encoded& program, std::size_t totals_count, const Shared& before);

  // The state as a loop's future sees it, but for the shared resources: times relative to its
  // latest queue. Times so early that no instruction of the loop can be held by them are all alike.
  void relative(const Encoded& program, const LoopFacts& facts,
                std::vector<std::int64_t>& out) const;

  // True if DMA engines and HBM look the same as `then`, `delta` later.
  bool resources_repeat(const State& then, std::int64_t delta) const;

  // Goes `periods` periods ahead: `before` is the state one period ago, `delta` its length.
  // What changed in the period moves with it, what did not stays.
  void skip(const State& before, std::int64_t periods, std::int64_t delta);

  std::int64_t latest(const LoopFacts& facts) const;
};

}  // namespace trn::timing
