// Device time for the profilers of torch that read events around each operator:
// torch.autograd.profiler.profile(use_device="trn") without Kineto, and profile(CUDA) in a build of
// torch without CUDA, where the device answers to that name. Checked on torch 2.13.0.
#include "profiler_stubs.h"
#include "ledger.h"
#include "stream.h"

#include <c10/util/ApproximateClock.h>
#include <torch/csrc/profiler/stubs/base.h>

#include <algorithm>

namespace trn {
namespace {

// An event is the core's busy time so far: what lies between two is the time of what was launched,
// without the core's waiting for the host.
class Stubs final : public torch::profiler::impl::ProfilerStubs {
 public:
  void record(c10::DeviceIndex* device, torch::profiler::impl::ProfilerVoidEventStub* event,
              int64_t* cpu_ns) const override {
    const c10::DeviceIndex core = current_device();
    if (device != nullptr) *device = core;
    *event = std::make_shared<int64_t>(Ledger::of(core).times().busy_ns);
    if (cpu_ns != nullptr) *cpu_ns = c10::getTime();
  }
  // Microseconds. Resetting the counters in between gives zero, not less.
  float elapsed(const torch::profiler::impl::ProfilerVoidEventStub* event,
                const torch::profiler::impl::ProfilerVoidEventStub* event2) const override {
    const auto ns = [](const auto& stub) { return *static_cast<const int64_t*>(stub->get()); };
    return float(std::max<int64_t>(0, ns(event2) - ns(event))) / 1e3f;
  }
  void mark(const char*) const override {}
  void rangePush(const char*) const override {}
  void rangePop() const override {}
  bool enabled() const override { return device_count() > 0; }
  void onEachDevice(std::function<void(int)> op) const override {
    for (int device = 0; device < device_count(); ++device) op(device);
  }
  void synchronize() const override {
    for (int device = 0; device < device_count(); ++device)
      SimulatedClock::synchronize(c10::DeviceIndex(device));
  }
};

Stubs& stubs() {
  static auto* all = new Stubs;
  return *all;
}

const bool registered = [] {
  torch::profiler::impl::registerPrivateUse1Methods(&stubs());
  return true;
}();

}  // namespace

void answer_to_cuda_profiler() { torch::profiler::impl::registerCUDAMethods(&stubs()); }

}  // namespace trn
