// Passes over lists of tensors, as the foreach form of an optimizer makes them: one operator after
// the other, each over all parameters. Each would read and write all of that memory again, so while
// an optimizer's step collects them, they are kept, and run together, piece by piece of the
// memory. Checks, launches, counters and allocations are those of each operator's call; only the
// host's work is done later.
//
// What is kept runs before anything looks at memory: it is pending work (runtime/pending_work.h) to
// HostCall, host_alias and the allocator, and the step's end does it. Values are those of one
// operator after the other, bit for bit: kept are element-wise operators on lists whose tensors are
// dense, alike and apart, and a piece ends where the host's vectors do.
#pragma once

#include "redispatch.h"

#include <cstdint>
#include <optional>

namespace trn {

// Whether this operator is one that can be kept; of its plan.
bool is_list_pass(const OpPlan& plan);

// Keeps the call with the arguments on top of the stack, which its results replace. False when it
// must run now: nothing has changed then.
bool keep_list_pass(const OpPlan& plan, const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                    torch::jit::Stack* stack, c10::DeviceIndex device);

// This thread keeps passes from now on, or no longer; then what is kept runs.
void collect_list_passes(bool on);
bool collecting_list_passes() noexcept;

// Runs what this thread keeps.
void run_list_passes();

// For tests: the calls that this process has kept.
int64_t list_passes_kept() noexcept;

}  // namespace trn
