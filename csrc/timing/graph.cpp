#include "timing/graph.h"

#include <algorithm>
#include <stdexcept>

#include "timing/arena.h"
#include "timing/scheduler.h"

namespace trn::timing {
namespace {

// The periods of a repeat that are scheduled before two that take equally long, to this share, end
// it (chosen).
constexpr std::size_t kPeriods = 4;
constexpr Time kAlike = 1000;

// One part of a tensor: when its last write and its reads are done.
struct Uses {
  Time write_done = 0, read_done = 0;

  void merge(Time written, Time read) {
    write_done = std::max(write_done, written);
    read_done = std::max(read_done, read);
  }
};

using Tensor = std::vector<Uses>;  // by part

Uses latest(const Tensor& tensor) {
  Uses all;
  for (const Uses& u : tensor) all.merge(u.write_done, u.read_done);
  return all;
}

void merge(Tensor& into, const Tensor& from, Time ahead) {
  if (into.size() < from.size()) into.resize(from.size(), latest(into));
  for (std::size_t k = 0; k < from.size(); ++k) {
    const auto later = [ahead](Time t) { return t > 0 ? t + ahead : 0; };
    into[k].merge(later(from[k].write_done), later(from[k].read_done));
  }
}

void meet(Region& r, const Uses& u) {
  if (u.write_done > 0) {
    r.writer = kSeveral;
    r.write_done = std::max(r.write_done, u.write_done);
  }
  if (u.read_done > 0) {
    r.reader = kSeveral;
    r.read_done = std::max(r.read_done, u.read_done);
  }
}

// What the parts before left of a tensor.
void import(const Tensor& tensor, std::span<Region> regions) {
  const bool alike = tensor.size() == regions.size();
  const Uses all = latest(tensor);
  for (std::size_t k = 0; k < regions.size(); ++k) meet(regions[k], alike ? tensor[k] : all);
}

void give(std::span<const Region> regions, const Link& link, Tensor& tensor) {
  if (tensor.empty()) tensor.resize(regions.size());
  const bool alike = tensor.size() == regions.size();
  for (std::size_t k = 0; k < regions.size(); ++k) {
    const Time written = link.writes ? regions[k].write_done : 0;
    const Time read = link.reads ? regions[k].read_done : 0;
    if (alike) {
      tensor[k].merge(written, read);
    } else {
      for (Uses& u : tensor) u.merge(written, read);
    }
  }
}

void add(ProgramSums& sums, const Schedule& s) {
  sums.parts += 1;
  sums.instructions.resize(s.instructions.size());
  for (std::size_t k = 0; k < s.instructions.size(); ++k) {
    Totals& into = sums.instructions[k];
    const Totals& t = s.instructions[k];
    into = Totals{into.count + t.count, into.busy + t.busy, into.wait + t.wait, into.span + t.span};
  }
  sums.dma_engine_busy.resize(s.dma_engine_busy.size());
  for (std::size_t k = 0; k < s.dma_engine_busy.size(); ++k) {
    sums.dma_engine_busy[k] += s.dma_engine_busy[k];
  }
  sums.hbm_busy += s.hbm_busy;
  sums.table_loads += s.table_loads;
  sums.simulated += s.simulated;
}

// Adds what came since `before`, `times` times more.
void repeat(ProgramSums& sums, const ProgramSums& before, std::int64_t times) {
  const auto more = [times](std::int64_t& now, std::int64_t then) { now += times * (now - then); };
  more(sums.parts, before.parts);
  for (std::size_t k = 0; k < sums.instructions.size(); ++k) {
    const Totals then = k < before.instructions.size() ? before.instructions[k] : Totals{};
    Totals& now = sums.instructions[k];
    more(now.count, then.count);
    more(now.busy, then.busy);
    more(now.wait, then.wait);
    more(now.span, then.span);
  }
  for (std::size_t k = 0; k < sums.dma_engine_busy.size(); ++k) {
    const bool known = k < before.dma_engine_busy.size();
    more(sums.dma_engine_busy[k], known ? before.dma_engine_busy[k] : 0);
  }
  more(sums.hbm_busy, before.hbm_busy);
  more(sums.table_loads, before.table_loads);
}

class GraphScheduler {
 public:
  GraphScheduler(const Graph& graph, Options options)
      : graph_(graph),
        options_(options),
        shared_(dma_engines(graph)),
        tensors_(graph.ordered.size()),
        arenas_{Arena(graph.capacity[1]), Arena(graph.capacity[2])} {
    out_.programs.resize(graph.programs.size());
    out_.parts.resize(graph.parts.size());
  }

  GraphSchedule run() {
    std::size_t next = 0;
    for (const Repeat& r : graph_.repeats) {
      while (next < r.start) part(next++);
      next = repeated(r);
    }
    while (next < graph_.parts.size()) part(next++);
    return std::move(out_);
  }

 private:
  static std::size_t dma_engines(const Graph& graph) {
    if (graph.programs.empty()) throw std::invalid_argument("timing: a graph without programs");
    return static_cast<std::size_t>(graph.programs.front()->constants.dma_engines);
  }

  void part(std::size_t number) {
    const Part& p = graph_.parts[number];
    const Encoded& program = *graph_.programs[p.program];
    Scheduler scheduler(program, options_, shared_);
    for (const Link& link : p.links) {
      if (graph_.ordered[link.tensor]) scheduler.order(link.buffer);
      if (link.reads || graph_.ordered[link.tensor]) {
        import(tensors_[link.tensor], scheduler.regions_of(link.buffer));
      }
    }
    std::array<std::vector<Arena::Placed>, 2> placed;
    for (std::size_t k = 0; k < program.buffers.size(); ++k) {
      const BufferSpec& b = program.buffers[k];
      if (b.memory > 0) placed[b.memory - 1].push_back(Arena::Placed{k, b.bytes});
    }
    for (std::size_t m = 0; m < 2; ++m) {
      arenas_[m].place(number, placed[m]);
      for (const Arena::Placed& b : placed[m]) scheduler.hold(b.buffer, b.free_from);
    }
    Schedule schedule = scheduler.run();
    shared_ = scheduler.after();
    for (const Link& link : p.links) {
      give(scheduler.regions_of(link.buffer), link, tensors_[link.tensor]);
    }
    for (std::size_t m = 0; m < 2; ++m) {
      for (const Arena::Placed& b : placed[m]) {
        arenas_[m].used(number, b.buffer, scheduler.latest_use(b.buffer, false));
      }
    }
    const Time before = out_.total;
    out_.total = std::max(before, schedule.total);
    out_.parts[number] = PartTimes{std::min(scheduler.first_start(), out_.total), schedule.total,
                                   out_.total - before};
    add(out_.programs[p.program], schedule);
    if (options_.lane_limit > 0) out_.lanes.push_back(std::move(schedule.lanes));
  }

  // Returns the part that comes after the repeat.
  std::size_t repeated(const Repeat& r) {
    const std::size_t end = r.start + r.period * r.count;
    std::vector<ProgramSums> sums;
    Time before = out_.total, last = 0;
    for (std::size_t k = 0; k < r.count; ++k) {
      const bool may_skip = k + 2 >= kPeriods && options_.extrapolate && options_.lane_limit == 0;
      if (may_skip) sums = out_.programs;
      for (std::size_t i = 0; i < r.period; ++i) part(r.start + k * r.period + i);
      const Time took = out_.total - before;
      before = out_.total;
      const bool alike = took > 0 && std::abs(took - last) * kAlike <= took;
      if (may_skip && k + 1 >= kPeriods && k + 1 < r.count && alike) {
        skip(r.start + (k + 1) * r.period, end, r.period, took, sums);
        return end;
      }
      last = took;
    }
    return end;
  }

  void skip(std::size_t from, std::size_t end, std::size_t period, Time took,
            const std::vector<ProgramSums>& before) {
    const auto times = static_cast<std::int64_t>((end - from) / period);
    for (std::size_t k = 0; k < before.size(); ++k) repeat(out_.programs[k], before[k], times);
    for (std::size_t number = from; number < end; ++number) {
      const PartTimes& t = out_.parts[number - period];
      out_.parts[number] = PartTimes{t.start + took, t.end + took, t.added};
      const std::vector<Link>& links = graph_.parts[number].links;
      const std::vector<Link>& earlier = graph_.parts[number - period].links;
      for (std::size_t k = 0; k < links.size(); ++k) {
        if (!links[k].writes || k >= earlier.size()) continue;
        const Tensor from_tensor = tensors_[earlier[k].tensor];
        merge(tensors_[links[k].tensor], from_tensor, took);
      }
    }
    shared_.shift(times * took);
    for (Arena& arena : arenas_) arena.shift(times * took);
    out_.total += times * took;
  }

  const Graph& graph_;
  const Options options_;
  Shared shared_;
  std::vector<Tensor> tensors_;
  std::array<Arena, 2> arenas_;  // SBUF, PSUM
  GraphSchedule out_;
};

}  // namespace

GraphSchedule schedule(const Graph& graph, Options options) {
  for (const Part& p : graph.parts) {
    for (const Link& link : p.links) {
      if (link.tensor >= graph.ordered.size() ||
          link.buffer >= graph.programs[p.program]->buffers.size()) {
        throw std::invalid_argument("timing: a part of the graph is linked to nothing");
      }
    }
  }
  std::size_t next = 0;
  for (const Repeat& r : graph.repeats) {
    if (r.start < next || r.period == 0 || r.start + r.period * r.count > graph.parts.size()) {
      throw std::invalid_argument("timing: repeats of a graph that overlap, or are too long");
    }
    next = r.start + r.period * r.count;
  }
  return GraphScheduler(graph, options).run();
}

}  // namespace trn::timing
