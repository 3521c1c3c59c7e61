// How the ranks of a group find each other: shared memory if all are on one host, gloo otherwise.
#pragma once

#include "hooks.h"

namespace trn {

// All members call it with stores that see each other's keys. Throws DistBackendError if
// TRN_EMU_TRANSPORT asks for what cannot be.
std::unique_ptr<collectives::Transport> meet(const c10::intrusive_ptr<c10d::Store>& store, int rank,
                                             int size, std::chrono::milliseconds timeout);

// A transport over a gloo group.
std::unique_ptr<collectives::Transport> over_gloo(c10::intrusive_ptr<c10d::Backend> gloo);

}  // namespace trn
