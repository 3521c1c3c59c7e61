// Schedules the programs of a graph as one: engines, DMA and memory run on from part to part, so
// that a part's loads begin while others compute.
//
// A part is an encoded program and its tensors. What parts share is small: where the engines stand,
// when each tensor was last written and read, and who held which addresses of SBUF and PSUM. So
// each part is scheduled from its own program, which equal parts share, and nothing is copied. The
// result is that of one program of all parts: isa/join.py makes it, for tests to compare.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "timing/program.h"
#include "timing/schedule.h"

namespace trn::timing {

// An HBM buffer of a part, and a tensor of the graph that it reads, writes or is.
struct Link {
  std::size_t buffer, tensor;
  bool reads, writes;
};

struct Part {
  std::size_t program;
  std::vector<Link> links;
};

// `count` times the same `period` parts, from part `start` on.
struct Repeat {
  std::size_t start, period, count;
};

struct Graph {
  std::vector<const Encoded*> programs;
  std::vector<Part> parts;
  std::vector<char> ordered;                     // tensors that are written in place
  std::array<std::int64_t, kMemories> capacity;  // bytes per partition; of HBM nothing
  std::vector<Repeat> repeats;
};

struct PartTimes {
  Time start = 0;  // its first instruction
  Time end = 0;    // its last instruction is done
  Time added = 0;  // while it was the first part that was not done; they add up to the total
};

// Over all parts that run one program.
struct ProgramSums {
  std::int64_t parts = 0;
  std::vector<Totals> instructions;
  std::vector<Time> dma_engine_busy;
  Time hbm_busy = 0;
  std::int64_t table_loads = 0;
  std::int64_t simulated = 0;
};

struct GraphSchedule {
  Time total = 0;
  std::vector<PartTimes> parts;
  std::vector<ProgramSums> programs;
  std::vector<std::vector<Lane>> lanes;  // by part and queue
};

// Of repeats some periods are scheduled; once they take equally long, the others take as long.
// Throws std::invalid_argument for a malformed graph.
GraphSchedule schedule(const Graph& graph, Options options);

}  // namespace trn::timing
