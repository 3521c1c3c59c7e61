// Aliases of tensors that are more than a strided view of one storage: sparse, nested and
// quantized.
#pragma once

#include "alias.h"

#include <c10/util/FunctionRef.h>

namespace trn {

bool is_sparse(const at::Tensor& tensor);     // COO or compressed
bool is_composite(const at::Tensor& tensor);  // sparse, nested or quantized

at::Tensor make_composite_alias(HostCall& call, const at::Tensor& tensor, Access access);
// Takes over what the host kernel did to the alias of a written argument.
void carry_composite(HostCall& call, const at::Tensor& origin, const at::Tensor& alias);
// A sparse result on `device`; `adopt` takes each of its members there.
using Adopt = c10::function_ref<at::Tensor(const at::Tensor& member)>;
at::Tensor adopt_sparse(const at::Tensor& result, c10::Device device, Adopt adopt);
at::Tensor adopt_sparse(HostCall& call, const at::Tensor& result, c10::Device device);

}  // namespace trn
