// torch's device guard for trn: current device, streams and events in simulated time.
#include "collective_clock.h"
#include "device.h"
#include "graph.h"
#include "ledger.h"
#include "stream.h"

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/headeronly/version.h>

namespace trn {
namespace {

struct EventState {
  int64_t ns = 0;  // simulated time at which the recorded work ends
  c10::DeviceIndex device = 0;
  Waits waits{};  // for collectives, that the stream had
};

// The dtypes that tensors can be created in and converted from and to: those of the host's copy_.
c10::DeviceCapability copyable_types() {
  using namespace c10;
  DeviceCapability types;
  types.capability_data.capability_bits = 0;
  for (ScalarTypeIndex i :
       {kIndex_Byte,          kIndex_Char,          kIndex_Short,           kIndex_Int,
        kIndex_Long,          kIndex_UInt16,        kIndex_UInt32,          kIndex_UInt64,
        kIndex_Bool,          kIndex_Half,          kIndex_BFloat16,        kIndex_Float,
        kIndex_Double,        kIndex_ComplexHalf,   kIndex_ComplexFloat,    kIndex_ComplexDouble,
        kIndex_Float8_e5m2,   kIndex_Float8_e4m3fn, kIndex_Float8_e5m2fnuz, kIndex_Float8_e4m3fnuz,
        kIndex_Float8_e8m0fnu})
    types.capability_data.capability_bits |= uint64_t{1} << i;
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14  // that has the dtype
  types.capability_data.capability_bits |= uint64_t{1} << kIndex_BComplex32;
#endif
  return types;
}

class GuardImpl final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kTrn; }
  c10::Device exchangeDevice(c10::Device device) const override {
    if (!device.has_index()) return getDevice();
    return c10::Device(kTrn, exchange_device(device.index()));
  }
  c10::Device getDevice() const override { return c10::Device(kTrn, current_device()); }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) set_device_unchecked(device.index());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return c10::DeviceIndex(device_count());
  }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return copyable_types(); }

  c10::Stream getStream(c10::Device device) const override {
    return current_stream(resolve(device).index());
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return default_stream(resolve(device).index());
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return new_stream(resolve(device).index());
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return new_stream(resolve(device).index());
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return exchange_stream(stream); }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());  // NOLINT: an id, never read through
  }
  bool isStreamCapturing(const c10::Stream& stream) const override {
    check_stream(stream);
    return capturing();
  }
  bool queryStream(const c10::Stream& stream) const override {
    check_stream(stream);
    return SimulatedClock::reached(stream.device_index(), SimulatedClock::stream_ns(stream));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    check_stream(stream);
    SimulatedClock::synchronize(stream);
  }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    SimulatedClock::synchronize(device);
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex,
              c10::EventFlag) const override {
    check_stream(stream);
    if (*event == nullptr) *event = new EventState;
    const c10::DeviceIndex device = stream.device_index();
    *static_cast<EventState*>(*event) = {SimulatedClock::stream_ns(stream), device,
                                         CollectiveClock::waits(stream)};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    check_stream(stream);
    const auto* state = static_cast<EventState*>(event);
    CollectiveClock::wait(stream, state->waits);
    SimulatedClock::wait(stream, state->ns);
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) return true;
    const auto* state = static_cast<EventState*>(event);
    return SimulatedClock::reached(state->device, state->ns);
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    const auto* state = static_cast<EventState*>(event);
    const c10::Stream stream = default_stream(state->device);
    CollectiveClock::wait(stream, state->waits);
    SimulatedClock::wait(stream, state->ns);
    SimulatedClock::synchronize(stream);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<EventState*>(event);
  }
  double elapsedTime(void* from, void* to, c10::DeviceIndex) const override {
    TORCH_CHECK(from != nullptr && to != nullptr,
                "Both events must be recorded before calculating elapsed time.");
    return double(static_cast<EventState*>(to)->ns - static_cast<EventState*>(from)->ns) / 1e6;
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, GuardImpl)

}  // namespace
}  // namespace trn
