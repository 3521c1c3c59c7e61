// Host aliases that live on their own: for code that runs outside one operator call, such as a
// compiled graph. An alias keeps the memory of its trn tensor alive until it is itself dropped.
#pragma once

#include "alias.h"

namespace trn {

// The host's view of a strided trn tensor. kWrite gives a copy-on-write storage its own pages.
at::Tensor host_alias(const at::Tensor& tensor, Access access);
// The same where list passes may still have to write to it: theirs (list_passes.h).
at::Tensor lent(const at::Tensor& tensor, Access access);

// The tensor on `device`, the host or a core, for a host tensor that host code returned: a view of
// what was lent, or fresh memory. What lies in memory of another device is copied; nothing else is.
at::Tensor device_tensor_of(at::Tensor host, c10::Device device);

}  // namespace trn
