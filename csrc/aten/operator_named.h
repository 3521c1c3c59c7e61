// An operator of torch.ops.trn by its name and its C++ signature.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace trn {

// operator_named<Tensor(const Tensor&)>("trn::name"): the overload without a name; raises where the
// schema is another.
template <class Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace trn
