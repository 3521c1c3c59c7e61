// Tells of blocks of the emulated HBM that are given back.
#pragma once

namespace trn {

// Told of every block before it is given back.
using FreeListener = void (*)(const void* block) noexcept;
void set_free_listener(FreeListener listener) noexcept;  // null: nobody

}  // namespace trn
