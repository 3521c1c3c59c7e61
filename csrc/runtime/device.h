// The logical NeuronCores of the emulated chip as torch devices: how many, how large, which is
// current.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace trn {

constexpr c10::DeviceType kTrn = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 128;

// What Python reads from the chip tables and the environment, once, before the first use.
struct ChipConfig {
  std::string name;
  int device_count = 0;
  size_t hbm_bytes = 0;     // usable by one logical core
  int64_t dispatch_ns = 0;  // host time of one eager launch
};

void configure(ChipConfig config);
const ChipConfig& config();

int device_count() noexcept;
c10::DeviceIndex current_device() noexcept;
c10::DeviceIndex exchange_device(c10::DeviceIndex index);  // checks the index
void set_device_unchecked(c10::DeviceIndex index) noexcept;

// Whether this process was forked from one that had used a device. As on hardware, it cannot use it
// then.
bool in_forked_child() noexcept;
[[noreturn]] void throw_forked_child();
void watch_forks();  // at the first use

// `device` with its index filled in: an absent index means the current device.
c10::Device resolve(c10::Device device);
void check_index(int64_t index);

}  // namespace trn
