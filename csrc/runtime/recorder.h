// What a profile records while it is active: launches with where they came from, and HBM blocks.
//
// A launch comes from a scope (a module or an optimizer, entered by Python's hooks) or, in the
// backward pass, from an autograd node. A node knows its sequence number and the thread that made
// it; the log of scopes says which one was entered when that number was given out. Nothing is
// looked up while recording: readers join the two afterwards.
#pragma once

#include "ledger.h"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace trn {

enum class Phase : int8_t { kOther, kForward, kBackward, kOptimizer };

// Where work comes from, on this thread and now.
struct Origin {
  Phase phase = Phase::kOther;
  int32_t scope = -1;          // innermost one; -1: none, or a backward node says more
  int64_t node = -1;           // sequence number of the autograd node; -1: none
  uint64_t thread = 0;         // of the node's forward pass, or this one
  const void* leaf = nullptr;  // tensor whose gradient is accumulated
  uint64_t next_node = 0;      // sequence number that this thread's next node will get
  int32_t site = -1;           // source line, if asked for
};

struct LaunchRecord {
  Launched launch;
  Origin origin;
};

// A scope was entered or left: nodes from `node` on belong to `scope`.
struct ScopeRecord {
  uint64_t thread;
  uint64_t node;
  int32_t scope;
};

// A block was taken (bytes > 0), given back (bytes < 0), or is known to hold `kind` (bytes 0).
struct BlockRecord {
  const void* block;
  int64_t bytes;
  int64_t launches;  // recorded before
  int8_t device;
  int8_t kind;  // when taken: its Phase; else what Python says it is
  int64_t size = 0;
};

struct Recording {
  std::vector<LaunchRecord> launches;
  int64_t left_out = 0;  // launches beyond the limit, with their blocks
  std::vector<ScopeRecord> scopes;
  std::vector<BlockRecord> blocks;
};

namespace recorder {

void start(bool sites, size_t limit);  // with nothing recorded; so many launches at most
Recording stop();

void enter(int32_t scope, Phase phase);  // on this thread
void leave();
void mark(const void* block, int8_t kind);  // of HBM; others are left out

// Gives the number of the source line that this thread executes, -1 for none.
void set_site_finder(std::function<int32_t()> finder);

}  // namespace recorder
}  // namespace trn
