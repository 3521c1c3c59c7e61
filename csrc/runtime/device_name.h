// What messages call the device: "trn", or the name that it was registered under.
#pragma once

#include <c10/core/DeviceType.h>

#include <string>

namespace trn {

inline std::string device_name() { return c10::get_privateuse1_backend(); }

// trn:0
inline std::string device_name(int index) { return device_name() + ":" + std::to_string(index); }

}  // namespace trn
