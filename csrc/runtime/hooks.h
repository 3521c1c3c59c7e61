// Registers the hooks through which torch reaches the device, its generators and its pinned memory.
#pragma once

namespace trn {

void register_hooks();  // once, at load

}  // namespace trn
