// What host kernels take for granted and do not check: arguments with which they would read beyond
// their operands. To add an operator, add a row to kPreconditions in preconditions.cpp.
#pragma once

#include <ATen/core/ivalue.h>

#include <string_view>

namespace trn {

// Throws where the arguments of a call are not what the kernel needs.
using Precondition = void (*)(const c10::IValue* arguments);

// That of "aten::lu_unpack.out", or null.
Precondition precondition(std::string_view name);

}  // namespace trn
