// Errors of host kernels name the device that the user asked for.
#pragma once

#include <c10/util/Exception.h>

namespace trn {

// To be called while `error` is being handled: throws it again, as trn's where it speaks of the CPU
// or of a kernel that the host lacks. `op` is the operator's full name.
[[noreturn]] void rethrow_as_trns(const c10::Error& error, const char* op);

// What `work` returns, and its errors.
template <class Work>
decltype(auto) naming_trn(const char* op, Work&& work) {
  try {
    return work();
  } catch (const c10::Error& error) {
    rethrow_as_trns(error, op);
  }
}

}  // namespace trn
