// Launches that are listed instead of counted: of a graph that is being captured, and of operators
// that stand for several programs.
#pragma once

#include "ledger.h"

#include <functional>
#include <vector>

namespace trn {

// Whether launches of this thread are listed from now on. Gives those since the previous call.
std::vector<LaunchRow> list_launches(bool listing);

// Those of `run` on this thread, in order, even where launches are listed or not counted now.
std::vector<LaunchRow*> launches_of(const std::function<void()>& run);

}  // namespace trn
