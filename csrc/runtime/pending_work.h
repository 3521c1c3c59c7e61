// Host work that a thread has put off: it is done before memory of the device is looked at, taken
// or resized by that thread. The layer that puts it off says how it is done.
#pragma once

namespace trn {

using PendingWork = void (*)();

// What this thread has still to do, or null.
inline thread_local PendingWork pending_work = nullptr;

inline void do_pending_work() {
  if (const PendingWork work = pending_work) work();
}

}  // namespace trn
