// Device bookkeeping: one configuration a process, one current device a thread.
#include "device.h"

#include "device_name.h"

#include <c10/util/Exception.h>

#include <pthread.h>

#include <mutex>
#include <utility>

namespace trn {
namespace {
ChipConfig& mutable_config() {
  static ChipConfig instance;
  return instance;
}
thread_local c10::DeviceIndex current_index = 0;
bool forked = false;  // set before the child's first other line runs
}  // namespace

void configure(ChipConfig config) {
  TORCH_CHECK(config.device_count >= 0 && config.device_count <= kMaxDevices, device_name(), ": ",
              config.device_count, " logical cores asked for, at most ", kMaxDevices);
  mutable_config() = std::move(config);
}

const ChipConfig& config() { return mutable_config(); }

int device_count() noexcept { return mutable_config().device_count; }

c10::DeviceIndex current_device() noexcept { return current_index; }

void check_index(int64_t index) {
  TORCH_CHECK(index >= 0 && index < device_count(), device_name(), ": invalid device ordinal ",
              index, ": ", config().name, " shows ", device_count(),
              " logical NeuronCores (see NEURON_RT_VISIBLE_CORES and NEURON_LOGICAL_NC_CONFIG)");
}

c10::DeviceIndex exchange_device(c10::DeviceIndex index) {
  check_index(index);
  return std::exchange(current_index, index);
}

void set_device_unchecked(c10::DeviceIndex index) noexcept { current_index = index; }

bool in_forked_child() noexcept { return forked; }

void throw_forked_child() {
  TORCH_CHECK(false, "Cannot re-initialize ", device_name(), " in forked subprocess. To use ",
              device_name(), " with multiprocessing, you must use the 'spawn' start method");
}

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forked = true; }); });
}

c10::Device resolve(c10::Device device) {
  if (device.has_index()) {
    check_index(device.index());
    return device;
  }
  return c10::Device(device.type(), current_index);
}

}  // namespace trn
