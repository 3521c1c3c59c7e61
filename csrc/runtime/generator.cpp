// Default generators, one a logical core, start from torch's default seed as the host's does.
#include "generator.h"

#include <array>
#include <utility>

namespace trn {
namespace {

std::mutex swap_mutex;

at::CPUGeneratorImpl& host_default() {
  return *at::detail::getDefaultCPUGenerator().get<at::CPUGeneratorImpl>();
}

}  // namespace

GeneratorImpl::GeneratorImpl(c10::DeviceIndex device, at::Generator host)
    : c10::GeneratorImpl(c10::Device(kTrn, device),
                         c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      host_(std::move(host)) {}

GeneratorImpl* GeneratorImpl::clone_impl() const {
  return new GeneratorImpl(device_.index(), host_.clone());
}

at::Generator new_generator(c10::DeviceIndex device) {
  const c10::Device resolved = resolve(c10::Device(kTrn, device));
  return at::make_generator<GeneratorImpl>(resolved.index(), at::detail::createCPUGenerator());
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static auto* generators = new std::array<at::Generator, kMaxDevices>;
  static std::mutex mutex;
  const c10::DeviceIndex index = resolve(c10::Device(kTrn, device)).index();
  std::lock_guard<std::mutex> lock(mutex);
  at::Generator& generator = (*generators)[size_t(index)];
  if (!generator.defined()) generator = new_generator(index);
  return generator;
}

at::Generator host_generator(const std::optional<at::Generator>& generator,
                             c10::DeviceIndex device) {
  const at::Generator& chosen =
      generator.has_value() && generator->defined() ? *generator : default_generator(device);
  TORCH_CHECK(chosen.device().type() == kTrn,
              "Expected a 'trn' device type for generator but found '", chosen.device().type(),
              "'");
  TORCH_CHECK(chosen.device().index() == device, "Expected a generator of trn:", int(device),
              " but found one of ", chosen.device());
  return chosen.get<GeneratorImpl>()->host_generator();
}

DefaultGeneratorSwap::DefaultGeneratorSwap(c10::DeviceIndex device)
    : one_at_a_time_(swap_mutex),
      host_(host_default()),
      device_(*default_generator(device)
                   .get<GeneratorImpl>()
                   ->host_generator()
                   .get<at::CPUGeneratorImpl>()) {
  swap();
}

DefaultGeneratorSwap::~DefaultGeneratorSwap() { swap(); }

void DefaultGeneratorSwap::swap() noexcept {
  const auto engine = host_.engine();
  const auto float_sample = host_.next_float_normal_sample();
  const auto double_sample = host_.next_double_normal_sample();
  host_.set_engine(device_.engine());
  host_.set_next_float_normal_sample(device_.next_float_normal_sample());
  host_.set_next_double_normal_sample(device_.next_double_normal_sample());
  device_.set_engine(engine);
  device_.set_next_float_normal_sample(float_sample);
  device_.set_next_double_normal_sample(double_sample);
}

}  // namespace trn
