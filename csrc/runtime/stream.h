// Streams of a logical core: which is current in this thread, and their ids.
#pragma once

#include "device.h"

#include <c10/core/Stream.h>

namespace trn {

constexpr int kMaxStreams = 64;  // a device: the default one, then a round-robin pool

c10::Stream default_stream(c10::DeviceIndex device);
c10::Stream current_stream(c10::DeviceIndex device);
c10::Stream exchange_stream(c10::Stream stream);
void check_stream(c10::Stream stream);  // torch.Stream takes any number
c10::Stream new_stream(c10::DeviceIndex device);

}  // namespace trn
