// What an operator launches that stands for the steps of a layer: found once for a signature, by
// running them.
#pragma once

#include "runtime/ledger.h"

#include <functional>
#include <memory>
#include <vector>

namespace trn {

using Programs = std::shared_ptr<const std::vector<LaunchRow*>>;

// The launches of a signature: found by running `steps` the first time.
Programs programs_of(const SignatureHash& signature, const std::function<void()>& steps);

void launch_all(const Programs& programs, c10::DeviceIndex device);

}  // namespace trn
