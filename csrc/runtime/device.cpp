// Device bookkeeping: one configuration a process, one current device a thread.
#include "device.h"

#include <c10/util/Exception.h>

#include <utility>

namespace trn {
namespace {
ChipConfig& mutable_config() {
  static ChipConfig instance;
  return instance;
}
thread_local c10::DeviceIndex current = 0;
}  // namespace

void configure(ChipConfig config) {
  TORCH_CHECK(config.device_count >= 0 && config.device_count <= kMaxDevices,
              "trn: ", config.device_count, " logical cores asked for, at most ", kMaxDevices);
  mutable_config() = std::move(config);
}

const ChipConfig& config() { return mutable_config(); }

int device_count() noexcept { return mutable_config().device_count; }

c10::DeviceIndex current_device() noexcept { return current; }

void check_index(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "trn: invalid device ordinal ", int(index), ": ",
              config().name, " shows ", device_count(),
              " logical NeuronCores (see NEURON_RT_VISIBLE_CORES and NEURON_LOGICAL_NC_CONFIG)");
}

c10::DeviceIndex exchange_device(c10::DeviceIndex index) {
  check_index(index);
  return std::exchange(current, index);
}

void set_device_unchecked(c10::DeviceIndex index) noexcept { current = index; }

c10::Device resolve(c10::Device device) {
  if (device.has_index()) {
    check_index(device.index());
    return device;
  }
  return c10::Device(device.type(), current);
}

}  // namespace trn
