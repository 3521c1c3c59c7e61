// Default generators, one a logical core, start from torch's default seed as the host's does.
#include "generator.h"

#include "device_name.h"
#include "host.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <array>
#include <utility>

namespace trn {
namespace {

std::mutex swap_mutex;

at::Generator host_default() {
  if (host().type == kCpu) return at::detail::getDefaultCPUGenerator();
  return at::globalContext().defaultGenerator(host().device());
}

at::Generator new_on_host() {
  if (host().type == kCpu) return at::detail::createCPUGenerator();
  at::globalContext().lazyInitDevice(host().type);
  return at::globalContext()
      .getAcceleratorHooksInterface(host().type)
      .getNewGenerator(host().device().index());
}

// Without the detour over a tensor that states take in general.
void swap_engines(at::CPUGeneratorImpl& a, at::CPUGeneratorImpl& b) {
  const auto engine = a.engine();
  const auto float_sample = a.next_float_normal_sample();
  const auto double_sample = a.next_double_normal_sample();
  a.set_engine(b.engine());
  a.set_next_float_normal_sample(b.next_float_normal_sample());
  a.set_next_double_normal_sample(b.next_double_normal_sample());
  b.set_engine(engine);
  b.set_next_float_normal_sample(float_sample);
  b.set_next_double_normal_sample(double_sample);
}

}  // namespace

GeneratorImpl::GeneratorImpl(c10::DeviceIndex device, at::Generator host)
    : c10::GeneratorImpl(c10::Device(kTrn, device),
                         c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      host_(std::move(host)) {}

GeneratorImpl* GeneratorImpl::clone_impl() const {
  return new GeneratorImpl(device_.index(), host_.clone());
}

c10::intrusive_ptr<c10::GeneratorImpl> GeneratorImpl::graphsafe_get_state() const {
  return c10::make_intrusive<GeneratorImpl>(device_.index(), host_);
}

void GeneratorImpl::graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& other) {
  const auto* given = dynamic_cast<const GeneratorImpl*>(other.get());
  TORCH_CHECK(given != nullptr, "graphsafe_set_state expects a generator of ", device_name());
  TORCH_CHECK(given->device().index() == device_.index(), "graphsafe_set_state on ", device_,
              " was given a generator of ", given->device());
  host_ = given->host_;
}

at::Generator new_generator(c10::DeviceIndex device) {
  const c10::Device resolved = resolve(c10::Device(kTrn, device));
  return at::make_generator<GeneratorImpl>(resolved.index(), new_on_host());
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
  TORCH_CHECK(chosen.device().type() == kTrn, "Expected a '", device_name(),
              "' device type for generator but found '", chosen.device().type(), "'");
  TORCH_CHECK(chosen.device().index() == device, "Expected a generator of ", device_name(device),
              " but found one of ", chosen.device());
  return chosen.get<GeneratorImpl>()->host_generator();
}

DefaultGeneratorSwap::DefaultGeneratorSwap(c10::DeviceIndex device)
    : one_at_a_time_(swap_mutex),
      host_(host_default()),
      device_(default_generator(device).get<GeneratorImpl>()->host_generator()) {
  swap();
}

DefaultGeneratorSwap::~DefaultGeneratorSwap() { swap(); }

void DefaultGeneratorSwap::swap() {
  if (host().type == kCpu)
    return swap_engines(*host_.get<at::CPUGeneratorImpl>(), *device_.get<at::CPUGeneratorImpl>());
  const auto state = host_.get_state(), other = device_.get_state();
  host_.set_state(other);
  device_.set_state(state);
}

}  // namespace trn
