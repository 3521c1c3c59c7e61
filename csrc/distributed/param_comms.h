// What a profiler of torch is told of each collective: the event `record_param_comms`, whose
// metadata torch.profiler and ExecutionTraceObserver write, as for NCCL.
#pragma once

#include "backend.h"

#include <string>
#include <vector>

namespace trn {

// Costs nothing while nothing profiles. Messages have a peer, a rank of the group.
void record_param_comms(const Call& call, uint64_t sequence, const std::string& group,
                        const std::string& description, const std::vector<int64_t>& ranks, int rank,
                        int peer = -1);
void record_wait(int rank, uint64_t sequence, const std::vector<at::Tensor>& results);

}  // namespace trn
