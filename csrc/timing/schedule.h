// Schedules a Program on the engines of one core. No Python, no torch: the program comes as an
// array of integers that torch_trn_emu/timing/encode.py writes, and times are integer picoseconds,
// so that a run is exact and repeatable.
//
// Every engine and every DMA queue takes its instructions in program order, and a dependency only
// ever points back in program order. So one pass over the program gives every start time as a
// maximum over what it waits for; the events need no queue. torch_trn_emu/timing/reference.py is
// the twin of this file, written to be read; tests hold them equal.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "timing/lanes.h"

namespace trn::timing {

using Time = std::int64_t;  // picoseconds

// One dynamic instruction, when tracing.
struct Record {
  std::int32_t instruction = 0;
  Time start = 0;  // its engine begins, or the DMA is triggered
  Time end = 0;    // its engine is free again, or the last byte has moved
};

// Sums over all executions of one instruction of the program.
struct Totals {
  std::int64_t count = 0;
  Time busy = 0;  // its engine, or all its DMA engines together
  Time wait = 0;  // its engine or queue stood still for it
  Time span = 0;  // from start to end
};

struct Schedule {
  Time total = 0;  // the last instruction is done
  std::vector<Totals> instructions;
  std::vector<Time> dma_engine_busy;
  Time hbm_busy = 0;
  std::int64_t table_loads = 0;
  std::int64_t simulated = 0;  // dynamic instructions scheduled one by one
  std::vector<Record> records;
  std::vector<Lane> lanes;  // by queue
};

struct Options {
  bool extrapolate = true;      // skip whole periods of loops in steady state; exact
  std::size_t trace_limit = 0;  // keep that many records; tracing does not extrapolate
  std::size_t lane_limit = 0;   // keep up to twice as many spans a queue; nor does this
};

// Throws std::invalid_argument for a malformed encoding.
Schedule schedule(std::span<const std::int64_t> code, Options options);

}  // namespace trn::timing
