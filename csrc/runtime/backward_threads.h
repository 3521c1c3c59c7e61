// Autograd runs the backward of each device in a thread of its own; this lets them rest before the
// end.
#pragma once

namespace trn {

// Returns when every backward thread has started and has dropped the graphs of earlier backward
// passes. Dropping one may need the interpreter, which must not be finalizing by then: torch 2.13
// aborts otherwise. The caller does not hold the interpreter's lock.
void rest_backward_threads();

}  // namespace trn
