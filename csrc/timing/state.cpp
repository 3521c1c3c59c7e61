#include "timing/state.h"

namespace trn::timing {
namespace {

constexpr std::int64_t kEarly = std::numeric_limits<std::int64_t>::min();

// True if nobody used the timeline in between, or if it looks the same from `delta` later.
bool repeats(const Timeline& then, const Timeline& now, std::int64_t delta) {
  const std::int64_t requests = now.requests - then.requests;
  if (requests == 0) return true;
  if (now.frontier - then.frontier != delta || now.gap_count != then.gap_count) return false;
  for (std::size_t i = 0; i < static_cast<std::size_t>(now.gap_count); ++i) {
    const Gap &a = then.gaps[i], &b = now.gaps[i];
    if (b.start - a.start != delta || b.end - a.end != delta || b.born - a.born != requests) {
      return false;
    }
  }
  return true;
}

void skip(Timeline& line, const Timeline& before, std::int64_t periods, std::int64_t delta) {
  const std::int64_t requests = line.requests - before.requests;
  if (requests == 0) return;
  line.frontier += periods * delta;
  line.requests += periods * requests;
  for (int i = 0; i < line.gap_count; ++i) {
    Gap& gap = line.gaps[static_cast<std::size_t>(i)];
    gap.start += periods * delta;
    gap.end += periods * delta;
    gap.born += periods * requests;
  }
}

}  // namespace

void Shared::shift(std::int64_t delta) {
  for (std::int64_t& ready : engine_ready) ready += delta;
  for (std::int64_t& ready : port_ready) ready += delta;
  const auto move = [delta](Timeline& line) {
    line.frontier += delta;
    for (std::size_t i = 0; i < static_cast<std::size_t>(line.gap_count); ++i) {
      line.gaps[i].start += delta;
      line.gaps[i].end += delta;
    }
  };
  for (Timeline& engine : engines) move(engine);
  move(hbm);
}

State::State(const Encoded& program, std::size_t totals_count, const Shared& before)
    : Shared(before), queue_ready(program.queues), regions(program.regions), totals(totals_count) {
  std::copy(engine_ready.begin(), engine_ready.end(), queue_ready.begin());
  for (const BufferSpec& buffer : program.buffers) slot.push_back(buffer.slots - 1);
}

std::int64_t State::latest(const LoopFacts& facts) const {
  std::int64_t time = 0;
  for (std::size_t queue : facts.queues) time = std::max(time, queue_ready[queue]);
  return time;
}

void State::relative(const Encoded& program, const LoopFacts& facts,
                     std::vector<std::int64_t>& out) const {
  out.clear();
  const std::int64_t base = latest(facts);
  std::int64_t early = base;
  for (std::size_t queue : facts.queues) early = std::min(early, queue_ready[queue]);
  for (std::size_t queue : facts.queues) out.push_back(queue_ready[queue] - base);
  const std::int64_t heard = early - program.constants.semaphore;
  for (std::size_t b : facts.buffers) {
    const BufferSpec& buffer = program.buffers[b];
    out.push_back(slot[b]);
    const std::size_t end =
        buffer.first_region + static_cast<std::size_t>(buffer.parts * buffer.slots);
    for (std::size_t k = buffer.first_region; k < end; ++k) {
      const Region& region = regions[k];
      out.push_back(region.write_done <= heard ? kEarly : region.write_done - base);
      out.push_back(region.read_done <= heard ? kEarly : region.read_done - base);
      out.push_back(std::int64_t{region.writer} * (std::int64_t{1} << 32) + region.reader);
    }
  }
  for (std::int64_t ready : port_ready) out.push_back(ready <= early ? kEarly : ready - base);
  out.push_back(table);
  out.push_back(warmth * 2 + (warm ? 1 : 0));
  out.push_back(engines_alike ? -1 : next_engine);
}

bool State::resources_repeat(const State& then, std::int64_t delta) const {
  const std::size_t distinct = engines_alike ? 1 : engines.size();
  for (std::size_t k = 0; k < distinct; ++k) {
    if (!repeats(then.engines[k], engines[k], delta)) return false;
  }
  return repeats(then.hbm, hbm, delta);
}

void State::skip(const State& before, std::int64_t periods, std::int64_t delta) {
  const std::int64_t ahead = periods * delta;
  const auto move = [ahead](std::int64_t& now, std::int64_t then) {
    now += now != then ? ahead : 0;
  };
  for (std::size_t k = 0; k < queue_ready.size(); ++k) move(queue_ready[k], before.queue_ready[k]);
  for (std::size_t k = 0; k < regions.size(); ++k) {
    move(regions[k].write_done, before.regions[k].write_done);
    move(regions[k].read_done, before.regions[k].read_done);
  }
  for (std::size_t k = 0; k < port_ready.size(); ++k) move(port_ready[k], before.port_ready[k]);
  for (std::size_t k = 0; k < engines.size(); ++k) {
    timing::skip(engines[k], before.engines[k], periods, delta);
  }
  timing::skip(hbm, before.hbm, periods, delta);
  for (std::size_t k = 0; k < totals.size(); ++k) {
    totals[k] += periods * (totals[k] - before.totals[k]);
  }
}

}  // namespace trn::timing
