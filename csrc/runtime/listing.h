// Launches that are listed instead of counted: of a graph that is being captured.
#pragma once

#include "ledger.h"

#include <vector>

namespace trn {

// Whether launches of this thread are listed from now on. Gives those since the previous call.
std::vector<LaunchRow> list_launches(bool listing);

}  // namespace trn
