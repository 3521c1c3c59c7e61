#include "timing/schedule.h"

#include <algorithm>

#include "timing/scheduler.h"

namespace trn::timing {
namespace {

// Layout of State::totals: four sums per instruction, then these.
constexpr std::size_t kPerInstruction = 4;
enum Extra : std::size_t { kHbmBusy, kTableLoads, kEngineBusy };

// A loop is watched for a steady state if it is worth it, for periods up to kRing iterations, and
// is given up as not periodic after kPatience.
constexpr double kWorthWatching = 512;
constexpr std::size_t kRing = 64;
constexpr std::int64_t kPatience = 1000;

}  // namespace

Scheduler::Scheduler(const Encoded& program, Options options, const Shared& before)
    : program_(program),
      options_(options),
      extra_(program.instructions.size() * kPerInstruction),
      state_(program, extra_ + kEngineBusy + static_cast<std::size_t>(engines()), before),
      counters_(program.loops),
      lanes_(options.lane_limit > 0 ? program.queues : 0) {
  for (const BufferSpec& buffer : program.buffers) ordered_.push_back(buffer.ordered);
}

std::span<Region> Scheduler::regions_of(std::size_t buffer) {
  const BufferSpec& spec = program_.buffers[buffer];
  return {&state_.regions[spec.first_region], static_cast<std::size_t>(spec.parts * spec.slots)};
}

void Scheduler::hold(std::size_t buffer, Time time) {
  if (time == 0) return;
  const bool written = program_.buffers[buffer].memory == 0;
  for (Region& r : regions_of(buffer)) {
    (written ? r.writer : r.reader) = kSeveral;
    Time& done = written ? r.write_done : r.read_done;
    done = std::max(done, time);
  }
}

Time Scheduler::latest_use(std::size_t buffer, bool writes) {
  Time latest = 0;
  for (const Region& r : regions_of(buffer)) {
    latest = std::max({latest, r.write_done, writes ? Time{0} : r.read_done});
  }
  return latest;
}

Shared Scheduler::after() const {
  Shared shared = state_;
  std::copy_n(state_.queue_ready.begin(), kEngineQueues, shared.engine_ready.begin());
  return shared;
}

Schedule Scheduler::run() {
  body(0, program_.nodes.size());
  Schedule out;
  out.total = total_;
  for (std::size_t k = 0; k < program_.instructions.size(); ++k) {
    const std::int64_t* t = &state_.totals[k * kPerInstruction];
    out.instructions.push_back(Totals{t[0], t[1], t[2], t[3]});
  }
  out.hbm_busy = state_.totals[extra_ + kHbmBusy];
  out.table_loads = state_.totals[extra_ + kTableLoads];
  for (std::size_t k = 0; k < static_cast<std::size_t>(engines()); ++k) {
    out.dma_engine_busy.push_back(
        state_.totals[extra_ + kEngineBusy + (state_.engines_alike ? 0 : k)]);
  }
  out.simulated = simulated_;
  out.records = std::move(records_);
  out.lanes = std::move(lanes_);
  return out;
}

void Scheduler::body(std::size_t from, std::size_t to) {
  for (std::size_t k = from; k < to; ++k) {
    const Node& node = program_.nodes[k];
    if (node.kind == NodeKind::kInstruction) {
      issue(node.index);
    } else if (node.kind == NodeKind::kTake) {
      const bool writes = program_.buffers[node.index].memory == 0;
      hold(node.index, latest_use(static_cast<std::size_t>(node.trip), writes));
    } else if (node.kind == NodeKind::kFresh) {
      std::int64_t& slot = state_.slot[node.index];
      slot = slot + 1 == program_.buffers[node.index].slots ? 0 : slot + 1;
    } else {
      loop(k);
      k += node.length;
    }
  }
}

void Scheduler::loop(std::size_t at) {
  const Node& node = program_.nodes[at];
  const LoopFacts& facts = program_.facts[at];
  const bool traced = options_.trace_limit > 0 || options_.lane_limit > 0;
  bool watched = options_.extrapolate && !traced && !facts.moves_parts && node.trip > 2 &&
                 facts.instructions >= kWorthWatching;
  const Time end_before = iteration_end_;
  Time end_inside = 0;
  std::deque<Snapshot> ring;
  for (std::int64_t i = 0; i < node.trip; ++i) {
    counters_[node.index] = i;
    iteration_end_ = 0;
    body(at + 1, at + 1 + node.length);
    end_inside = std::max(end_inside, iteration_end_);
    if (!watched) continue;
    const std::int64_t skipped = try_to_skip(facts, node.trip - 1 - i, ring, end_inside);
    i += skipped;
    watched = skipped == 0 && i < kPatience;
  }
  iteration_end_ = std::max(end_before, end_inside);
}

// Compares the state with those after the last iterations; if one is the same but for a shift
// in time, skips all whole periods that remain. Returns the iterations skipped.
std::int64_t Scheduler::try_to_skip(const LoopFacts& facts, std::int64_t remaining,
                                    std::deque<Snapshot>& ring, Time& end_inside) {
  Snapshot now{state_, {}, iteration_end_};
  state_.relative(program_, facts, now.relative);
  Time period_end = now.latest_end;
  for (std::size_t back = 0; back < ring.size(); ++back) {
    const Snapshot& then = ring[ring.size() - 1 - back];
    const auto period = static_cast<std::int64_t>(back + 1);
    const Time delta = state_.latest(facts) - then.state.latest(facts);
    if (period <= remaining && then.relative == now.relative &&
        state_.resources_repeat(then.state, delta)) {
      const std::int64_t periods = remaining / period;
      state_.skip(then.state, periods, delta);
      end_inside = std::max(end_inside, period_end + periods * delta);
      total_ = std::max(total_, end_inside);
      return periods * period;
    }
    period_end = std::max(period_end, then.latest_end);
  }
  ring.push_back(std::move(now));
  if (ring.size() > kRing) ring.pop_front();
  return 0;
}

Region& Scheduler::region(const AccessSpec& access) {
  const BufferSpec& buffer = program_.buffers[access.buffer];
  std::int64_t part = access.part;
  for (const Term& term : access.terms) part += term.coefficient * counters_[term.loop];
  const std::int64_t back = state_.slot[access.buffer] - access.age;
  const std::int64_t slot = back < 0 ? back + buffer.slots : back;
  const std::int64_t offset = slot * buffer.parts + part;
  return state_.regions.at(buffer.first_region + static_cast<std::size_t>(offset));
}

void Scheduler::issue(std::size_t index) {
  const InstructionSpec& i = program_.instructions[index];
  const auto queue = static_cast<std::int32_t>(i.queue);
  Time& ready = state_.queue_ready[static_cast<std::size_t>(queue)];
  Time start = ready;
  const Time semaphore = program_.constants.semaphore;
  const auto wait_for = [&](std::int32_t who, Time done, bool also_own) {
    if (who == kNobody || (who == queue && !also_own)) return;
    start = std::max(start, done + (who == queue ? 0 : semaphore));
  };
  Region* touched[kMaxAccesses];
  std::size_t count = 0;
  for (const AccessSpec& access : i.accesses) {
    Region& r = region(access);
    touched[count++] = &r;
    if (!access.write) {
      wait_for(r.writer, r.write_done, true);
    } else if (ordered_[access.buffer]) {
      wait_for(r.reader, r.read_done, false);
      wait_for(r.writer, r.write_done, false);
    }
  }
  std::int64_t* totals = &state_.totals[index * kPerInstruction];
  first_start_ = std::min(first_start_, start);
  totals[0] += 1;
  totals[2] += start - ready;
  Time read_done = 0, done = 0, end = 0;
  if (i.engines > 0) {
    ready = start + program_.constants.dma_issue;
    end = transfer(i, start + program_.constants.dma_start);
    read_done = done = end + program_.constants.dma_completion;
    totals[1] += i.engines * i.engine_busy;
  } else {
    start = ports(i, start);
    const Time busy =
        i.queue == kTensorQueue ? throttled(i.busy, start - ready) : i.busy + table(i);
    ready = read_done = end = start + busy;
    done = end + i.latency;
    totals[1] += busy;
  }
  totals[3] += end - start;
  for (std::size_t k = 0; k < count; ++k) {
    mark(*touched[k], i.accesses[k], queue, read_done, done);
  }
  iteration_end_ = std::max(iteration_end_, done);
  total_ = std::max(total_, done);
  ++simulated_;
  if (records_.size() < options_.trace_limit) {
    records_.push_back(Record{static_cast<std::int32_t>(index), start, end});
  }
  if (options_.lane_limit > 0) {
    lanes_[static_cast<std::size_t>(queue)].add(
        Span{static_cast<std::int32_t>(index), true, start, end, end - start, 1},
        options_.lane_limit);
  }
}

void Scheduler::mark(Region& r, const AccessSpec& access, std::int32_t queue, Time read_done,
                     Time done) {
  if (!access.write) {
    r.reader = r.reader == kNobody || r.reader == queue ? queue : kSeveral;
    r.read_done = std::max(r.read_done, read_done);
  } else {
    r.writer =
        r.writer == kNobody || r.writer == queue || ordered_[access.buffer] ? queue : kSeveral;
    r.write_done = std::max(r.write_done, done);
    r.reader = kNobody;
    r.read_done = 0;
  }
}

Time Scheduler::ports(const InstructionSpec& i, Time start) {
  for (std::size_t p = 0; p < kPorts; ++p) {
    if (i.ports >> p & 1) start = std::max(start, state_.port_ready[p]);
  }
  for (std::size_t p = 0; p < kPorts; ++p) {
    if (i.ports >> p & 1) state_.port_ready[p] = start + i.busy;
  }
  return start;
}

// How long the Tensor engine takes for `busy` after it was `idle`. It starts at half duty, is at
// full duty once it was busy for `warm_up` longer than idle, and falls back when idle made up
// for that: it must be used half of the time.
Time Scheduler::throttled(Time busy, Time idle) {
  const Time warm_up = program_.constants.warm_up;
  if (warm_up == 0) return busy;
  state_.warmth = std::max<Time>(0, state_.warmth - idle);
  if (state_.warmth == 0) state_.warm = false;
  const Time cold = state_.warm ? 0 : std::min(2 * busy, warm_up - state_.warmth);
  const Time taken = cold + busy - cold / 2;
  state_.warmth = std::min(warm_up, state_.warmth + taken);
  state_.warm = state_.warm || state_.warmth == warm_up;
  return taken;
}

Time Scheduler::table(const InstructionSpec& i) {
  if (i.table == 0 || i.table == state_.table) return 0;
  state_.table = i.table;
  state_.totals[extra_ + kTableLoads] += 1;
  return program_.constants.table_load;
}

// Moves the bytes: its DMA engines and HBM work side by side. Returns when the last byte is
// there.
Time Scheduler::transfer(const InstructionSpec& i, Time from) {
  Time end = from;
  Time* engine_busy = &state_.totals[extra_ + kEngineBusy];
  if (i.engines == engines() && state_.engines_alike) {
    end = state_.engines[0].reserve(from, i.engine_busy);
    engine_busy[0] += i.engine_busy;
  } else {
    tell_engines_apart();
    for (std::int64_t k = 0; k < i.engines; ++k) {
      const auto e = static_cast<std::size_t>((state_.next_engine + k) % engines());
      end = std::max(end, state_.engines[e].reserve(from, i.engine_busy));
      engine_busy[e] += i.engine_busy;
    }
    state_.next_engine = (state_.next_engine + i.engines) % engines();
  }
  if (i.hbm_busy > 0) end = std::max(end, state_.hbm.reserve(from, i.hbm_busy));
  state_.totals[extra_ + kHbmBusy] += i.hbm_busy;
  return end;
}

void Scheduler::tell_engines_apart() {
  if (!state_.engines_alike) return;
  state_.engines_alike = false;
  std::fill(state_.engines.begin() + 1, state_.engines.end(), state_.engines[0]);
  Time* engine_busy = &state_.totals[extra_ + kEngineBusy];
  std::fill(engine_busy + 1, engine_busy + engines(), engine_busy[0]);
}

Schedule schedule(std::span<const std::int64_t> code, Options options) {
  const Encoded program = decode(code);
  const Shared before(static_cast<std::size_t>(program.constants.dma_engines));
  return Scheduler(program, options, before).run();
}

}  // namespace trn::timing
