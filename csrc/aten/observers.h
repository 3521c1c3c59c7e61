// Dispatch modes that are to see every operator that the device launches, not one that stands for
// several.
#pragma once

namespace trn {

// Whether one of this thread's modes has an attribute `sees_launches`. Python knows.
using ObserverTest = bool (*)();
void set_observer_test(ObserverTest test) noexcept;

}  // namespace trn
