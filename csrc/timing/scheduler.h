// One pass over one program: what schedule.h gives for a program alone, graph.h for one after
// others.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <span>
#include <vector>

#include "timing/program.h"
#include "timing/schedule.h"
#include "timing/state.h"

namespace trn::timing {

struct Snapshot {
  State state;
  std::vector<std::int64_t> relative;
  Time latest_end;  // of the instructions of the iteration that ended here
};

class Scheduler {
 public:
  Scheduler(const Encoded& program, Options options, const Shared& before);

  // The parts of all slots of a buffer.
  std::span<Region> regions_of(std::size_t buffer);

  // Writes of this HBM buffer wait for its earlier reads: it is written in place.
  void order(std::size_t buffer) { ordered_[buffer] = 1; }

  // Until `time` others use the buffer: in HBM they write it, on chip they hold its memory.
  void hold(std::size_t buffer, Time time);

  // When the last use of a buffer is over; with `writes` the last write.
  Time latest_use(std::size_t buffer, bool writes);

  Schedule run();

  // Where the engines stand afterwards.
  Shared after() const;

  Time first_start() const { return first_start_; }

 private:
  std::int64_t engines() const { return program_.constants.dma_engines; }
  void body(std::size_t from, std::size_t to);
  void loop(std::size_t at);
  std::int64_t try_to_skip(const LoopFacts& facts, std::int64_t remaining,
                           std::deque<Snapshot>& ring, Time& end_inside);
  Region& region(const AccessSpec& access);
  void issue(std::size_t index);
  void mark(Region& r, const AccessSpec& access, std::int32_t queue, Time read_done, Time done);
  Time ports(const InstructionSpec& i, Time start);
  Time throttled(Time busy, Time idle);
  Time table(const InstructionSpec& i);
  Time transfer(const InstructionSpec& i, Time from);
  void tell_engines_apart();

  const Encoded& program_;
  const Options options_;
  const std::size_t extra_;
  State state_;
  std::vector<char> ordered_;  // by buffer
  std::vector<std::int64_t> counters_;
  Time total_ = 0;
  Time first_start_ = std::numeric_limits<Time>::max();
  Time iteration_end_ = 0;  // latest end since the current iteration began
  std::int64_t simulated_ = 0;
  std::vector<Record> records_;
  std::vector<Lane> lanes_;
};

}  // namespace trn::timing
