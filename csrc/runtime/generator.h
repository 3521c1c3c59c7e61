// The random generator of a logical core: the host's generator behind the trn device type, so that
// equal seeds give equal numbers on `trn` and on the host backend, `cpu` or `cuda`.
#pragma once

#include "device.h"

#include <ATen/core/Generator.h>

#include <mutex>
#include <optional>

namespace trn {

class GeneratorImpl final : public c10::GeneratorImpl {
 public:
  GeneratorImpl(c10::DeviceIndex device, at::Generator host);

  void set_current_seed(uint64_t seed) override { host().set_current_seed(seed); }
  // The host's CPU generator has no offset: its state is all. Pickling asks for one, and sets it.
  void set_offset(uint64_t offset) override {
    if (counts() || offset != 0) host().set_offset(offset);
  }
  uint64_t get_offset() const override { return counts() ? host().get_offset() : 0; }
  uint64_t current_seed() const override { return host().current_seed(); }
  uint64_t seed() override { return host().seed(); }
  void set_state(const c10::TensorImpl& state) override { host().set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host().get_state(); }

  // Generators that share one state, for captured graphs and recomputation in compiled code.
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& other) override;
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override;

  const at::Generator& host_generator() const { return host_; }
  static c10::DeviceType device_type() { return kTrn; }

 private:
  bool counts() const { return host_.device().type() != c10::kCPU; }
  c10::GeneratorImpl& host() const { return *host_.unsafeGetGeneratorImpl(); }
  GeneratorImpl* clone_impl() const override;
  at::Generator host_;
};

const at::Generator& default_generator(c10::DeviceIndex device);  // -1: the current device
at::Generator new_generator(c10::DeviceIndex device);

// The host generator that stands behind `generator`, or behind the default one of `device`.
at::Generator host_generator(const std::optional<at::Generator>& generator,
                             c10::DeviceIndex device);

// Host kernels that draw from the host's default generator draw from the device's while one lives.
class DefaultGeneratorSwap {
 public:
  explicit DefaultGeneratorSwap(c10::DeviceIndex device);
  ~DefaultGeneratorSwap();
  DefaultGeneratorSwap(const DefaultGeneratorSwap&) = delete;
  DefaultGeneratorSwap& operator=(const DefaultGeneratorSwap&) = delete;

 private:
  void swap();
  std::lock_guard<std::mutex> one_at_a_time_;
  at::Generator host_, device_;
};

}  // namespace trn
