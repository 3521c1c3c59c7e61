// Operators of aten that accelerators have a kernel for and the host has none. Each has a twin of
// the same schema in torch.ops.trn, whose host kernel torch_trn_emu/accelerated has; on trn the
// twin runs on aliases, in one launch, as every operator does.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <vector>

namespace trn {

// Defines the twins of operators of aten, "bmm.dtype", and sends calls on trn to them. Before the
// first call of any of them, once.
void register_accelerated(const std::vector<std::string>& names);

std::optional<c10::OperatorHandle> twin_of(const c10::OperatorName& name);

}  // namespace trn
